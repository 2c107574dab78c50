// y = x W^T for every weight format, from one token to a long prompt.
//
// With a few tokens, panels stream through the registers once. With more than one tile of tokens, a block of columns of
// a few panels stays in the L1 cache while all tiles pass over it (Goto & van de Geijn 2008, with W as the packed side).
#pragma once

#include <algorithm>
#include <iterator>
#include <vector>

#include "input.h"

namespace KERNEL_ISA {

// Panels per call of an innermost kernel: as many as leave registers for the sums of T tokens.
#if defined(__AVX512F__)
template <int T> constexpr int float_panels() { return T <= 2 ? 4 : T <= 12 ? 2 : 1; }
template <int T> constexpr int quantized_panels() { return T == 1 ? 4 : T <= 4 ? 2 : 1; }
#else
template <int T> constexpr int float_panels() { return T == 1 ? 4 : T == 2 ? 2 : 1; }
template <int T> constexpr int quantized_panels() { return T == 1 ? 2 : 1; }
#endif

// Panels that tiles pass over together if there are many tiles.
constexpr int64_t HELD_PANELS = float_panels<FLOAT_TILES[std::size(FLOAT_TILES) - 2]>();

// Sums of a range of panels, [panels][slots][16]: W's panels [first, first + panels) times every token.
struct Range {
  const Matrix &w;
  int64_t first, panels;
  const Input &input;
  float *sums;
  // Floats between a tile's sums of two panels.
  int64_t apart() const { return input.slots() * PANEL; }
  float *at(int64_t panel, int64_t tile) const { return sums + panel * apart() + tile * input.tile * PANEL; }
};

// In linear_float.cpp, for each element type.
template <class Load>
void float_range(const Range &range, std::vector<float> &scratch);

// In linear_quantized.cpp, for each quantized format.
template <Format F>
void quantized_range(const Range &range);

inline void linear_range(const Range &range, std::vector<float> &scratch) {
  std::fill_n(range.sums, range.panels * range.apart(), 0.0f);
  switch (range.w.format) {
    case FLOAT32: return float_range<LoadFloat>(range, scratch);
    case FLOAT16: return float_range<LoadHalf>(range, scratch);
    case BFLOAT16: return float_range<LoadBfloat>(range, scratch);
    case INT8: return quantized_range<INT8>(range);
    case INT4: return quantized_range<INT4>(range);
    case INT8_MINIMUM: return quantized_range<INT8_MINIMUM>(range);
    case INT4_MINIMUM: return quantized_range<INT4_MINIMUM>(range);
  }
}

}  // namespace KERNEL_ISA
