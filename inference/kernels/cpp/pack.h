// Packs weights into the memory layout of formats.h, and unpacks rows to float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats.h"
#include "simd.h"

namespace KERNEL_ISA {
namespace {

void unpack(const Matrix &w, int64_t row, float *out) {
  const uint8_t *panel = w.panel(row / PANEL);
  const int64_t lane = row % PANEL;
  const auto half = [panel](int64_t byte) {
    uint16_t bits;
    std::memcpy(&bits, panel + byte, 2);
    return bits;
  };
  for (int64_t k = 0; k < w.columns; k++) {
    const int64_t at = k * PANEL + lane;
    switch (w.format) {
      case FLOAT32: std::memcpy(out + k, panel + 4 * at, 4); break;
      case FLOAT16: out[k] = half_to_float(half(2 * at)); break;
      case BFLOAT16: out[k] = bfloat_to_float(half(2 * at)); break;
      default: {
        const int64_t pair = k / PAIR * pair_bytes(w.format), group = k / GROUP % 2, i = k % GROUP;
        const bool is_four = without_minimum(w.format) == INT4, is_high = is_four && i >= GROUP / 2;
        const int64_t byte = is_four ? i % (GROUP / 2) : i;
        const int64_t word = group * words_of_group(w.format) + byte / 4;
        const int value = panel[pair + values_at(w.format) + word * WORD_BYTES + lane * 4 + byte % 4];
        const int q = is_four ? (is_high ? value >> 4 : value & 15) - 8 : value - 128;
        const int64_t scale_at = pair + (group * PANEL + lane) * 2;
        out[k] = float(q) * half_to_float(half(scale_at));
        if (has_minimum(w.format)) out[k] += half_to_float(half(scale_at + SCALE_BYTES));
      }
    }
  }
}

// Scale of a group of 32 by its largest magnitude. For int4, tries slightly smaller and larger scales and keeps the one
// with the least squared error.
float best_scale(Format format, const float *x) {
  VecF sizes = magnitude(load(x));
  for (int i = LANES; i < GROUP; i += LANES) {
    const VecF m = magnitude(load(x + i));
    sizes = m > sizes ? m : sizes;
  }
  const float largest = largest_lane(sizes);
  if (format == INT8) return largest / 127.0f;
  float best = 0, least = INFINITY;
  for (int step = 0; step < 24 && largest > 0; step++) {
    // Try both signs: a negative scale puts the extra level of [-8, 7] on the other side.
    const float size = largest / (6.0f + 0.2f * float(step % 12)), scale = step < 12 ? size : -size;
    const float inverse = 1.0f / scale;
    VecF errors = zero();
    for (int i = 0; i < GROUP; i += LANES) {
      VecF q = __builtin_convertvector(round_to_int(load(x + i) * inverse), VecF);
      q = q > 7.0f ? broadcast(7.0f) : q;
      q = q < -8.0f ? broadcast(-8.0f) : q;
      const VecF error = load(x + i) - q * scale;
      errors += error * error;
    }
    const float error = sum_lanes(errors);
    if (error < least) least = error, best = scale;
  }
  return best;
}

// For formats with minimums: the midpoint of a group's values, as float16, and the values minus it.
uint16_t take_middle(const float *x, float *centered) {
  const auto [least, most] = std::minmax_element(x, x + GROUP);
  const uint16_t half = float_to_half(0.5f * *least + 0.5f * *most);
  for (int64_t i = 0; i < GROUP; i++) centered[i] = x[i] - half_to_float(half);
  return half;
}

// Packs 32 float32 values as one row of a group: a float16 scale, a minimum if the format has one, and words of bytes.
void quantize_group(Format whole, const float *x, uint8_t *scale_at, uint8_t *words, int64_t lane) {
  const Format format = without_minimum(whole);
  alignas(64) float centered[GROUP];
  if (has_minimum(whole)) {
    const uint16_t middle = take_middle(x, centered);
    std::memcpy(scale_at + SCALE_BYTES + lane * 2, &middle, 2);
    x = centered;
  }
  const uint16_t half = float_to_half(best_scale(format, x));
  std::memcpy(scale_at + lane * 2, &half, 2);
  const float scale = half_to_float(half), inverse = scale != 0 ? 1.0f / scale : 0.0f;
  uint8_t q[GROUP];
  for (int64_t i = 0; i < GROUP; i++) {
    const float value = std::nearbyint(x[i] * inverse);
    if (format == INT8) q[i] = uint8_t(int(std::min(127.0f, std::max(-127.0f, value))) + 128);
    else q[i] = uint8_t(int(std::min(7.0f, std::max(-8.0f, value))) + 8);
  }
  if (format == INT4)
    for (int64_t i = 0; i < GROUP / 2; i++) q[i] = uint8_t(q[i] | q[i + GROUP / 2] << 4);
  for (int64_t word = 0; word < words_of_group(format); word++)
    std::memcpy(words + word * WORD_BYTES + lane * 4, q + word * 4, 4);
}

// Copies rows of values to lanes of a panel, a few rows and a block of columns at a time, which fit in the L1 cache.
template <class Element, class Source, class Narrow>
void pack_elements(const Source *x, int64_t rows, int64_t columns, Element *out, const Narrow &narrow) {
  constexpr int64_t ROWS = 8, COLUMNS = 64;
  for (int64_t begin = 0; begin < columns; begin += COLUMNS)
    for (int64_t first = 0; first < rows; first += ROWS)
      for (int64_t k = begin; k < std::min(columns, begin + COLUMNS); k++)
        for (int64_t r = first; r < std::min(rows, first + ROWS); r++) out[k * PANEL + r] = narrow(x[r * columns + k]);
}

void pack_quantized(Format format, const float *x, int64_t columns, int64_t lane, uint8_t *panel) {
  for (int64_t g = 0; g < padded(columns) / GROUP; g++) {
    alignas(64) float group[GROUP] = {};
    const int64_t count = std::max<int64_t>(0, std::min(GROUP, columns - g * GROUP));
    std::copy_n(x + std::min(g * GROUP, columns), count, group);
    uint8_t *pair = panel + g / 2 * pair_bytes(format), *scales = pair + g % 2 * PANEL * 2;
    uint8_t *words = pair + values_at(format) + g % 2 * words_of_group(format) * WORD_BYTES;
    quantize_group(format, group, scales, words, lane);
  }
}

void pack(Format format, const void *x, bool is_packed, int64_t rows, int64_t columns, int64_t lane, uint8_t *panel) {
  const float *values = static_cast<const float *>(x);
  uint16_t *sublayers = reinterpret_cast<uint16_t *>(panel) + lane;
  const auto same = [](auto value) { return value; };
  if (is_packed) return pack_elements(static_cast<const uint16_t *>(x), rows, columns, sublayers, same);
  switch (format) {
    case FLOAT32: return pack_elements(values, rows, columns, reinterpret_cast<float *>(panel) + lane, same);
    case FLOAT16: return pack_elements(values, rows, columns, sublayers, float_to_half);
    case BFLOAT16: return pack_elements(values, rows, columns, sublayers, float_to_bfloat);
    default:
      for (int64_t r = 0; r < rows; r++) pack_quantized(format, values + r * columns, columns, lane + r, panel);
  }
}

}  // namespace
}  // namespace KERNEL_ISA
