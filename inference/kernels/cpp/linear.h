// y = x W^T for every weight format, from one token to a long prompt.
//
// One token, or a few: panels stream through the registers once. More than one tile of tokens: a block of columns of a
// few panels stays in the cache while all tiles pass over it (Goto & van de Geijn 2008, with W as the packed side).
#pragma once

#include <algorithm>
#include <vector>

#include "input.h"
#include "products.h"

namespace KERNEL_ISA {

// Columns of a block of panels that stays in the first-level cache.
constexpr int64_t FLOAT_BLOCK = 256, QUANTISED_BLOCK = 512;

// Panels that one call of an innermost kernel takes: as many as leave room for the sums of T tokens.
#if defined(__AVX512F__)
template <int T> constexpr int float_panels() { return T <= 2 ? 4 : T <= 12 ? 2 : 1; }
template <int T> constexpr int quantised_panels() { return T == 1 ? 4 : T <= 4 ? 2 : 1; }
#else
template <int T> constexpr int float_panels() { return T == 1 ? 4 : T == 2 ? 2 : 1; }
template <int T> constexpr int quantised_panels() { return T == 1 ? 2 : 1; }
#endif

// Sums of a range of panels, [panels][tiles][T][16], from W's panels [first, first + panels) against every token.
struct Range {
  const Matrix &w;
  int64_t first, panels;
  const Input &input;
  float *sums;
  float *at(int64_t panel, int64_t tile) const {
    return sums + (panel * input.tiles + tile) * input.tile * PANEL;
  }
};

// Where there are several tiles, the sums of the panels of one call lie apart: they are brought together for it.
template <class Load, int T>
inline void multiply_tile(const typename Load::Element *w, int64_t stride, int panels, const Range &range,
                          int64_t panel, int64_t tile, int64_t column, int64_t count) {
  const float *x = range.input.values(tile) + column * T;
  constexpr int P = float_panels<T>();
  alignas(64) float sums[P * T * PANEL];
  int p = 0;
  for (; p + P <= panels; p += P) {
    for (int i = 0; i < P; i++) std::copy_n(range.at(panel + p + i, tile), T * PANEL, sums + i * T * PANEL);
    multiply_panels<Load, P, T>(w + p * stride, stride, x, count, sums);
    for (int i = 0; i < P; i++) std::copy_n(sums + i * T * PANEL, T * PANEL, range.at(panel + p + i, tile));
  }
  if (P > 2 && p + 2 <= panels && range.input.tiles == 1) {
    multiply_panels<Load, 2, T>(w + p * stride, stride, x, count, range.at(panel + p, tile));
    p += 2;
  }
  for (; p < panels; p++) multiply_panels<Load, 1, T>(w + p * stride, stride, x, count, range.at(panel + p, tile));
}

template <class Load>
inline void widen(const typename Load::Element *w, int64_t count, float *out) {
  int64_t k = 0;
  for (; k + LANES <= count; k += LANES) store(out + k, Load::vector(w + k));
  for (; k < count; k++) out[k] = Load::scalar(w[k]);
}

template <class Load, int T>
inline void float_range(const Range &range, std::vector<float> &scratch) {
  typedef typename Load::Element Element;
  const int64_t columns = range.w.columns, stride = columns * PANEL;
  const Element *w = reinterpret_cast<const Element *>(range.w.panel(range.first));
  if (range.input.tiles == 1)
    return multiply_tile<Load, T>(w, stride, int(range.panels), range, 0, 0, 0, columns);
  constexpr int P = float_panels<T>();
  for (int64_t k = 0; k < columns; k += FLOAT_BLOCK) {
    const int64_t count = std::min(FLOAT_BLOCK, columns - k);
    for (int64_t panel = 0; panel < range.panels; panel += P) {
      const int some = int(std::min<int64_t>(P, range.panels - panel));
      const Element *block = w + panel * stride + k * PANEL;
      if (sizeof(Element) == sizeof(float)) {
        for (int64_t tile = 0; tile < range.input.tiles; tile++)
          multiply_tile<Load, T>(block, stride, some, range, panel, tile, k, count);
        continue;
      }
      // Many tokens: convert the block once instead of once for every tile.
      scratch.resize(P * FLOAT_BLOCK * PANEL);
      for (int p = 0; p < some; p++)
        widen<Load>(block + p * stride, count * PANEL, scratch.data() + p * FLOAT_BLOCK * PANEL);
      for (int64_t tile = 0; tile < range.input.tiles; tile++)
        multiply_tile<LoadFloat, T>(scratch.data(), FLOAT_BLOCK * PANEL, some, range, panel, tile, k, count);
    }
  }
}

template <class Load>
inline void float_range(const Range &range, std::vector<float> &scratch) {
  switch (range.input.tile) {
    case 1: return float_range<Load, 1>(range, scratch);
    case 2: return float_range<Load, 2>(range, scratch);
    case 4: return float_range<Load, 4>(range, scratch);
#if defined(__AVX512F__)
    case 8: return float_range<Load, 8>(range, scratch);
    case 12: return float_range<Load, 12>(range, scratch);
    default: return float_range<Load, 16>(range, scratch);
#else
    case 6: return float_range<Load, 6>(range, scratch);
    default: return float_range<Load, 8>(range, scratch);
#endif
  }
}

template <Format F, int T>
inline void quantised_range(const Range &range) {
  constexpr int P = quantised_panels<T>();
  const Input &input = range.input;
  const int64_t pairs = padded(range.w.columns) / PAIR, stride = pairs * pair_bytes(F);
  const int64_t block = input.tiles == 1 ? pairs : QUANTISED_BLOCK / PAIR;
  const uint8_t *w = range.w.panel(range.first);
  for (int64_t pair = 0; pair < pairs; pair += block) {
    const int64_t count = std::min(block, pairs - pair), group = 2 * pair;
    for (int64_t panel = 0; panel < range.panels;) {
      // Sums of several panels lie together where there is one tile only.
      const int64_t some = input.tiles > 1 ? 1 : std::min<int64_t>(P, range.panels - panel);
      const uint8_t *at = w + panel * stride + pair * pair_bytes(F);
      for (int64_t tile = 0; tile < input.tiles; tile++) {
        const int32_t *x = input.words(tile) + group * 8 * T, *x_sums = input.sums(tile) + group * T;
        const float *scales = input.scales(tile) + group * T;
        float *sums = range.at(panel, tile);
        if (some == P) multiply_quantised<F, P, T>(at, stride, x, scales, x_sums, count, sums);
        else if (P > 2 && some >= 2) multiply_quantised<F, 2, T>(at, stride, x, scales, x_sums, count, sums);
        else multiply_quantised<F, 1, T>(at, stride, x, scales, x_sums, count, sums);
      }
      panel += some == P ? P : P > 2 && some >= 2 ? 2 : 1;
    }
  }
}

template <Format F>
inline void quantised_range(const Range &range) {
  switch (range.input.tile) {
    case 1: return quantised_range<F, 1>(range);
    case 2: return quantised_range<F, 2>(range);
#if defined(__AVX512F__)
    case 4: return quantised_range<F, 4>(range);
    case 8: return quantised_range<F, 8>(range);
    case 12: return quantised_range<F, 12>(range);
    default: return quantised_range<F, 16>(range);
#else
    case 3: return quantised_range<F, 3>(range);
    default: return quantised_range<F, 4>(range);
#endif
  }
}

inline void linear_range(const Range &range, std::vector<float> &scratch) {
  std::fill_n(range.sums, range.panels * range.input.slots() * PANEL, 0.0f);
  switch (range.w.format) {
    case FLOAT32: return float_range<LoadFloat>(range, scratch);
    case FLOAT16: return float_range<LoadHalf>(range, scratch);
    case BFLOAT16: return float_range<LoadBfloat>(range, scratch);
    case INT8: return quantised_range<INT8>(range);
    case INT4: return quantised_range<INT4>(range);
  }
}

}  // namespace KERNEL_ISA
