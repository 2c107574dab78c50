// A product's input, x [tokens, columns] or some rows of it, arranged for the innermost kernels: tiles of T tokens in
// which the values of one column, or the words of four, are contiguous. Quantized to int8 if the weights are quantized.
#pragma once

#include <algorithm>
#include <vector>

#include "formats.h"
#include "simd.h"

namespace KERNEL_ISA {

// Tile sizes that the kernels are compiled for, by the number of accumulators that fit in registers. The last but one
// is the best for many tokens; the last is the maximum number of tokens that fit in one pass. The final tile is the
// smallest that holds the remaining tokens.
#if defined(__AVX512F__)
constexpr int FLOAT_TILES[] = {1, 2, 4, 8, 12, 16}, QUANTIZED_TILES[] = {1, 2, 4, 8, 12, 16};
#else
constexpr int FLOAT_TILES[] = {1, 2, 4, 6, 8}, QUANTIZED_TILES[] = {1, 2, 3, 4};
#endif

template <int N>
inline int tile_size(const int (&sizes)[N], int64_t tokens) {
  return tokens > sizes[N - 1] ? sizes[N - 2] : *std::lower_bound(sizes, sizes + N - 1, tokens);
}

class Input {
 public:
  // Allocates memory, which is kept between calls; call it before threads share the work. Tokens are the rows of x
  // listed in `rows`, or the first ones if it is null; rows are `stride` apart, 0 for contiguous rows.
  void reserve(const Matrix &w, const float *x, int64_t tokens, const int32_t *rows = nullptr, int64_t stride = 0) {
    x_ = x;
    rows_ = rows;
    this->tokens = tokens;
    columns = w.columns;
    stride_ = stride ? stride : columns;
    quantized = w.quantized();
    tile = quantized ? tile_size(QUANTIZED_TILES, tokens) : tile_size(FLOAT_TILES, tokens);
    tiles = (tokens + tile - 1) / tile;
    const int64_t left = tokens - (tiles - 1) * tile;
    last_ = quantized ? tile_size(QUANTIZED_TILES, left) : tile_size(FLOAT_TILES, left);
    groups = padded(columns) / GROUP;
    if (quantized) {
      grow(words_, slots() * groups * GROUP / 4);
      grow(scales_, slots() * groups);
      grow(sums_, slots() * groups);
    } else if (tile > 1) {
      grow(values_, slots() * columns);
    }
  }

  // Number of pieces of work for `arrange`, which any thread may call in any order.
  int64_t pieces() const { return quantized ? slots() * parts() : tile > 1 ? tiles * parts() : 0; }

  void arrange(int64_t piece) {
    const int64_t begin = piece % parts() * PIECE, end = std::min(columns, begin + PIECE);
    if (quantized) return quantize(piece / parts(), begin);
    for (int64_t k = begin; k < end; k += BLOCK) interleave(piece / parts(), k);
  }

  // Tokens of a tile.
  int size(int64_t index) const { return index + 1 < tiles ? tile : last_; }

  // A token's original values.
  const float *row(int64_t token) const { return x_ + (rows_ ? rows_[token] : token) * stride_; }

  // Tokens, including the padding of the last tile.
  int64_t slots() const { return (tiles - 1) * tile + last_; }

  // A tile's values in the block of columns that begins at `column`, [columns][size]. Tiles of a block are contiguous
  // in memory, so that the hardware prefetcher predicts the next read.
  const float *values(int64_t index, int64_t column) const {
    return tile > 1 ? values_.data() + place(index, column) : row(0) + column;
  }
  // [groups][8][size]: four int8 values each
  const int32_t *words(int64_t index) const { return words_.data() + index * tile * groups * (GROUP / 4); }
  // [groups][size]: scale of a group's values
  const float *scales(int64_t index) const { return scales_.data() + index * tile * groups; }
  // [groups][size]: sum of a group's int8 values, used to subtract the zero point of the weights
  const int32_t *sums(int64_t index) const { return sums_.data() + index * tile * groups; }

  // Columns per block, chosen so that W's part of the panels (16 KB) and a tile's part of x (6 KB) fit together in a 32
  // KB L1 cache.
  static constexpr int64_t BLOCK = 128;

  int64_t tokens = 0, columns = 0, groups = 0, tiles = 0;
  int tile = 1;
  bool quantized = false;

 private:
  static constexpr int64_t PIECE = 512;  // columns of a tile, or of a token, per piece of work

  // Offset of a tile's part of a block in `values_`.
  int64_t place(int64_t index, int64_t column) const {
    return column * slots() + index * tile * std::min(BLOCK, columns - column);
  }

  int64_t parts() const { return (columns + PIECE - 1) / PIECE; }

  template <class T>
  static void grow(std::vector<T> &buffer, int64_t count) {
    if (int64_t(buffer.size()) < count) buffer.resize(count);
  }

  // Arranges the block of columns that starts at `begin`.
  void interleave(int64_t index, int64_t begin) {
    const int64_t count = std::min(BLOCK, columns - begin), width = size(index);
    float *out = values_.data() + place(index, begin);
    const int64_t first = index * tile, some = std::min(width, tokens - first);
    for (int64_t k = 0; k < count; k++) {
      for (int64_t t = 0; t < some; t++) out[k * width + t] = row(first + t)[begin + k];
      for (int64_t t = some; t < width; t++) out[k * width + t] = 0;
    }
  }

  // Quantizes groups of 32 values to [-127, 127], scaled by the largest magnitude.
  void quantize(int64_t slot, int64_t column) {
    const int64_t index = slot / tile, t = slot % tile, width = size(index);
    int32_t *words = words_.data() + index * tile * groups * (GROUP / 4) + t;
    float *scales = scales_.data() + index * tile * groups + t;
    int32_t *sums = sums_.data() + index * tile * groups + t;
    const int64_t last = std::min(groups, (column + PIECE) / GROUP);
    for (int64_t g = column / GROUP; g < last; g++) {
      const int64_t begin = g * GROUP;
      const int64_t count = slot < tokens ? std::max<int64_t>(0, std::min(GROUP, columns - begin)) : 0;
      alignas(64) float padding[GROUP];
      const float *x = row(std::min(slot, tokens - 1)) + begin;
      if (count < GROUP) {
        std::fill(padding, padding + GROUP, 0.0f);
        std::copy(x, x + count, padding);
        x = padding;
      }
      alignas(64) int8_t bytes[GROUP];
      scales[g * width] = quantize_group(x, bytes, sums[g * width]);
      int32_t packed[GROUP / 4];
      std::memcpy(packed, bytes, GROUP);
      for (int64_t i = 0; i < GROUP / 4; i++) words[(g * (GROUP / 4) + i) * width] = packed[i];
    }
  }

  static float quantize_group(const float *x, int8_t *bytes, int32_t &sum) {
    constexpr int VECTORS = int(GROUP) / LANES;
    VecF magnitudes = magnitude(load(x)), spoiled = magnitudes - magnitudes;
    for (int i = 1; i < VECTORS; i++) {
      const VecF m = magnitude(load(x + i * LANES));
      magnitudes = m > magnitudes ? m : magnitudes;
      spoiled += m - m;
    }
    // NaN must not be rounded to a number: the group's results become NaN.
    const bool finite = sum_lanes(spoiled) == 0.0f;
    const float largest = finite ? largest_lane(magnitudes) : 0.0f, inverse = largest > 0 ? 127.0f / largest : 0.0f;
    VecI total{};
    for (int i = 0; i < VECTORS; i++) {
      const VecI q = round_to_int(finite ? load(x + i * LANES) * inverse : zero());
      total += q;
      store_bytes(bytes + i * LANES, q);
    }
    sum = sum_lanes(total);
    return finite ? largest / 127.0f : NAN;
  }

  const float *x_ = nullptr;
  const int32_t *rows_ = nullptr;
  int64_t stride_ = 0;
  int last_ = 1;
  std::vector<float> values_, scales_;
  std::vector<int32_t> words_, sums_;
};

}  // namespace KERNEL_ISA
