// y = x W^T for every weight format, from one token to a long prompt.
//
// One token, or a few: panels stream through the registers once. More than one tile of tokens: a block of columns of a
// few panels stays in the first-level cache while all tiles pass over it (Goto & van de Geijn 2008, with W as the packed
// side).
#pragma once

#include <algorithm>
#include <iterator>
#include <vector>

#include "input.h"
#include "products.h"

namespace KERNEL_ISA {

// Panels that one call of an innermost kernel takes: as many as leave room for the sums of T tokens.
#if defined(__AVX512F__)
template <int T> constexpr int float_panels() { return T <= 2 ? 4 : T <= 12 ? 2 : 1; }
template <int T> constexpr int quantized_panels() { return T == 1 ? 4 : T <= 4 ? 2 : 1; }
#else
template <int T> constexpr int float_panels() { return T == 1 ? 4 : T == 2 ? 2 : 1; }
template <int T> constexpr int quantized_panels() { return T == 1 ? 2 : 1; }
#endif

// Panels that many tiles pass over together.
constexpr int64_t HELD_PANELS = float_panels<FLOAT_TILES[std::size(FLOAT_TILES) - 2]>();

// Sums of a range of panels, [panels][slots][16], from W's panels [first, first + panels) against every token.
struct Range {
  const Matrix &w;
  int64_t first, panels;
  const Input &input;
  float *sums;
  // Floats between a tile's sums of two panels.
  int64_t apart() const { return input.slots() * PANEL; }
  float *at(int64_t panel, int64_t tile) const { return sums + panel * apart() + tile * input.tile * PANEL; }
};

// `panels` panels, `stride` elements apart, times x [count][T].
template <class Load, int T>
inline void multiply_tile(const typename Load::Element *w, int64_t stride, int64_t panels, const float *x, int64_t count,
                          float *sums, int64_t apart) {
  constexpr int P = float_panels<T>();
  int64_t p = 0;
  for (; p + P <= panels; p += P)
    multiply_panels<Load, P, T>(w + p * stride, stride, x, count, sums + p * apart, apart);
  if (P > 2 && p + 2 <= panels) {
    multiply_panels<Load, 2, T>(w + p * stride, stride, x, count, sums + p * apart, apart);
    p += 2;
  }
  for (; p < panels; p++) multiply_panels<Load, 1, T>(w + p * stride, stride, x, count, sums + p * apart, apart);
}

// The block of columns from `column` on of the range's panels [panel, panel + panels), which are at `w`, times a tile.
template <class Load>
inline void multiply_tile(const typename Load::Element *w, int64_t stride, const Range &range, int64_t panel,
                          int64_t panels, int64_t tile, int64_t column, int64_t count) {
  const float *x = range.input.values(tile, column);
  float *sums = range.at(panel, tile);
  const int64_t apart = range.apart();
  switch (range.input.size(tile)) {
    case 1: return multiply_tile<Load, 1>(w, stride, panels, x, count, sums, apart);
    case 2: return multiply_tile<Load, 2>(w, stride, panels, x, count, sums, apart);
    case 4: return multiply_tile<Load, 4>(w, stride, panels, x, count, sums, apart);
#if defined(__AVX512F__)
    case 8: return multiply_tile<Load, 8>(w, stride, panels, x, count, sums, apart);
    case 12: return multiply_tile<Load, 12>(w, stride, panels, x, count, sums, apart);
    default: return multiply_tile<Load, 16>(w, stride, panels, x, count, sums, apart);
#else
    case 6: return multiply_tile<Load, 6>(w, stride, panels, x, count, sums, apart);
    default: return multiply_tile<Load, 8>(w, stride, panels, x, count, sums, apart);
#endif
  }
}

template <class Load>
inline void widen(const typename Load::Element *w, int64_t count, float *out) {
  int64_t k = 0;
  for (; k + LANES <= count; k += LANES) store(out + k, Load::vector(w + k));
  for (; k < count; k++) out[k] = Load::scalar(w[k]);
}

template <class Load>
inline void float_range(const Range &range, std::vector<float> &scratch) {
  typedef typename Load::Element Element;
  const int64_t columns = range.w.columns, stride = columns * PANEL, tiles = range.input.tiles;
  const Element *w = reinterpret_cast<const Element *>(range.w.panel(range.first));
  if (tiles == 1) return multiply_tile<Load>(w, stride, range, 0, range.panels, 0, 0, columns);
  for (int64_t k = 0; k < columns; k += Input::BLOCK) {
    const int64_t count = std::min(Input::BLOCK, columns - k);
    for (int64_t panel = 0; panel < range.panels; panel += HELD_PANELS) {
      const int64_t some = std::min(HELD_PANELS, range.panels - panel);
      const Element *block = w + panel * stride + k * PANEL;
      if (sizeof(Element) == sizeof(float)) {
        for (int64_t tile = 0; tile < tiles; tile++)
          multiply_tile<Load>(block, stride, range, panel, some, tile, k, count);
        continue;
      }
      // Many tokens: convert the block once instead of once for every tile.
      scratch.resize(HELD_PANELS * Input::BLOCK * PANEL);
      for (int64_t p = 0; p < some; p++)
        widen<Load>(block + p * stride, count * PANEL, scratch.data() + p * count * PANEL);
      for (int64_t tile = 0; tile < tiles; tile++)
        multiply_tile<LoadFloat>(scratch.data(), count * PANEL, range, panel, some, tile, k, count);
    }
  }
}

// The same as `multiply_tile` for `count` pairs of groups, `stride` bytes from panel to panel.
template <Format F, int T>
inline void quantized_tile(const uint8_t *w, int64_t stride, int64_t panels, const Input &input, int64_t tile,
                           int64_t pair, int64_t count, float *sums, int64_t apart) {
  constexpr int P = quantized_panels<T>();
  const int64_t group = 2 * pair;
  const int32_t *x = input.words(tile) + group * 8 * T, *x_sums = input.sums(tile) + group * T;
  const float *scales = input.scales(tile) + group * T;
  int64_t p = 0;
  for (; p + P <= panels; p += P)
    multiply_quantized<F, P, T>(w + p * stride, stride, x, scales, x_sums, count, sums + p * apart, apart);
  if (P > 2 && p + 2 <= panels) {
    multiply_quantized<F, 2, T>(w + p * stride, stride, x, scales, x_sums, count, sums + p * apart, apart);
    p += 2;
  }
  for (; p < panels; p++)
    multiply_quantized<F, 1, T>(w + p * stride, stride, x, scales, x_sums, count, sums + p * apart, apart);
}

template <Format F>
inline void quantized_tile(const uint8_t *w, int64_t stride, const Range &range, int64_t panel, int64_t panels,
                           int64_t tile, int64_t pair, int64_t count) {
  const Input &input = range.input;
  float *sums = range.at(panel, tile);
  const int64_t apart = range.apart();
  switch (input.size(tile)) {
    case 1: return quantized_tile<F, 1>(w, stride, panels, input, tile, pair, count, sums, apart);
    case 2: return quantized_tile<F, 2>(w, stride, panels, input, tile, pair, count, sums, apart);
#if defined(__AVX512F__)
    case 4: return quantized_tile<F, 4>(w, stride, panels, input, tile, pair, count, sums, apart);
    case 8: return quantized_tile<F, 8>(w, stride, panels, input, tile, pair, count, sums, apart);
    case 12: return quantized_tile<F, 12>(w, stride, panels, input, tile, pair, count, sums, apart);
    default: return quantized_tile<F, 16>(w, stride, panels, input, tile, pair, count, sums, apart);
#else
    case 3: return quantized_tile<F, 3>(w, stride, panels, input, tile, pair, count, sums, apart);
    default: return quantized_tile<F, 4>(w, stride, panels, input, tile, pair, count, sums, apart);
#endif
  }
}

template <Format F>
inline void quantized_range(const Range &range) {
  constexpr int64_t BLOCK = 512 / PAIR;
  const int64_t pairs = padded(range.w.columns) / PAIR, stride = pairs * pair_bytes(F), tiles = range.input.tiles;
  const int64_t block = tiles == 1 ? pairs : BLOCK, held = tiles == 1 ? range.panels : 1;
  const uint8_t *w = range.w.panel(range.first);
  for (int64_t pair = 0; pair < pairs; pair += block)
    for (int64_t panel = 0; panel < range.panels; panel += held)
      for (int64_t tile = 0; tile < tiles; tile++)
        quantized_tile<F>(w + panel * stride + pair * pair_bytes(F), stride, range, panel, held, tile, pair,
                          std::min(block, pairs - pair));
}

inline void linear_range(const Range &range, std::vector<float> &scratch) {
  std::fill_n(range.sums, range.panels * range.apart(), 0.0f);
  switch (range.w.format) {
    case FLOAT32: return float_range<LoadFloat>(range, scratch);
    case FLOAT16: return float_range<LoadHalf>(range, scratch);
    case BFLOAT16: return float_range<LoadBfloat>(range, scratch);
    case INT8: return quantized_range<INT8>(range);
    case INT4: return quantized_range<INT4>(range);
  }
}

}  // namespace KERNEL_ISA
