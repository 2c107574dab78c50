// Products with quantized weights and int8 activations.
#include "linear.h"
#include "products.h"

namespace KERNEL_ISA {
namespace {

// As `multiply_tile`, for `count` pairs of groups, with panels `stride` bytes apart.
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

}  // namespace

template <Format F>
void quantized_range(const Range &range) {
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

template void quantized_range<INT8>(const Range &);
template void quantized_range<INT4>(const Range &);
template void quantized_range<INT8_MINIMUM>(const Range &);
template void quantized_range<INT4_MINIMUM>(const Range &);

}  // namespace KERNEL_ISA
