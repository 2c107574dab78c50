// Products with 16-bit and 32-bit weights.
#include "linear.h"
#include "products.h"

namespace KERNEL_ISA {
namespace {

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

// The block of columns starting at `column` of the range's panels [panel, panel + panels), located at `w`, times a tile.
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

}  // namespace

template <class Load>
void float_range(const Range &range, std::vector<float> &scratch) {
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
      // With many tokens, convert the block once instead of once per tile.
      scratch.resize(HELD_PANELS * Input::BLOCK * PANEL);
      for (int64_t p = 0; p < some; p++)
        widen<Load>(block + p * stride, count * PANEL, scratch.data() + p * count * PANEL);
      for (int64_t tile = 0; tile < tiles; tile++)
        multiply_tile<LoadFloat>(scratch.data(), count * PANEL, range, panel, some, tile, k, count);
    }
  }
}

template void float_range<LoadFloat>(const Range &, std::vector<float> &);
template void float_range<LoadHalf>(const Range &, std::vector<float> &);
template void float_range<LoadBfloat>(const Range &, std::vector<float> &);

}  // namespace KERNEL_ISA
