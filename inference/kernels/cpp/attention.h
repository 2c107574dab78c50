// Rotary embedding, cache write and ragged causal attention over a paged cache.
//
// Keys lie transposed within a block, [D, block_size], so that the scores of neighbouring positions are neighbouring
// lanes and need no sum across lanes. Softmax is taken piece by piece with a running maximum (Milakov & Gimelshein
// 2018), so that scratch memory does not grow with the context. Nothing beyond a sequence's last position is read.
#pragma once

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "simd.h"

namespace KERNEL_ISA {

constexpr int TILE = 8;            // query vectors that share one pass over the keys
constexpr int64_t PIECE = 128;     // positions between two corrections of the running maximum
constexpr float MASKED = -1e30f;

inline void rms_norm_row(const float *x, const float *weight, int64_t width, float eps, float *out) {
  VecF sums = zero();
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) sums += load(x + i) * load(x + i);
  float sum = sum_lanes(sums);
  for (; i < width; i++) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum / float(width) + eps);
  for (i = 0; i + LANES <= width; i += LANES) store(out + i, load(x + i) * scale * load(weight + i));
  for (; i < width; i++) out[i] = x[i] * scale * weight[i];
}

// Rotates pairs (i, i + D/2), as Hugging Face's rotate_half does.
inline void rotate(float *x, const float *cosines, const float *sines, int64_t size) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i++) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosines[i] - b * sines[i];
    x[i + half] = b * cosines[i] + a * sines[i];
  }
}

// Cosines, then sines, of one token's angles, [D].
inline void turn(const float *frequencies, int64_t position, int64_t size, float *angles) {
  for (int64_t i = 0; i < size / 2; i++) {
    const float angle = float(position) * frequencies[i];
    angles[i] = std::cos(angle);
    angles[size / 2 + i] = std::sin(angle);
  }
}

struct CacheFloat {
  typedef float Element;
  static VecF vector(const float *p) { return load(p); }
  static float scalar(float x) { return x; }
  static float narrow(float x) { return x; }
};
struct CacheHalf {
  typedef uint16_t Element;
  static VecF vector(const uint16_t *p) { return load_half(p); }
  static float scalar(uint16_t x) { return half_to_float(x); }
  static uint16_t narrow(float x) { return float_to_half(x); }
};

// Normalises, rotates and scales the query heads of a token in place; writes its keys and values into the cache.
template <class Cache>
inline void place_head(const AttentionLayer &layer, const Step &step, const float *angles, float *qkv, int64_t token,
                       int64_t head) {
  const int64_t size = layer.head_size, half = size / 2, kv = layer.kv_heads;
  float *x = qkv + (token * (layer.heads + 2 * kv) + head) * size;
  const bool is_query = head < layer.heads, is_value = head >= layer.heads + kv;
  if (!is_value) {
    const float *norm = is_query ? layer.query_norm : layer.key_norm;
    if (norm) rms_norm_row(x, norm, size, layer.eps, x);
    rotate(x, angles + token * size, angles + token * size + half, size);
  }
  if (is_query) {
    const float scale = 1.0f / std::sqrt(float(size));
    for (int64_t i = 0; i < size; i++) x[i] *= scale;
    return;
  }
  const int64_t slot = step.slots[token], block = slot / layer.block_size, at = slot % layer.block_size;
  const int64_t kv_head = is_value ? head - layer.heads - kv : head - layer.heads;
  const int64_t start = (block * kv + kv_head) * size * layer.block_size;
  if (is_value) {
    auto *values = static_cast<typename Cache::Element *>(layer.values) + start + at * size;
    for (int64_t i = 0; i < size; i++) values[i] = Cache::narrow(x[i]);
  } else {
    auto *keys = static_cast<typename Cache::Element *>(layer.keys) + start + at;
    for (int64_t i = 0; i < size; i++) keys[i * layer.block_size] = Cache::narrow(x[i]);
  }
}

// Query vectors [first, first + count) of one sequence and key/value head; vector i is token i / G, head i % G.
struct Tile {
  int64_t sequence, kv_head, first;
  int count;
};

struct Attending {
  const float *query[TILE];
  float *out[TILE];
  int64_t last[TILE], earliest[TILE];  // positions that a vector may see, both included
  float maximum[TILE], total[TILE];
  alignas(64) float scores[TILE][PIECE];
  std::vector<float> mixed;            // [TILE, D]
};

template <class Cache, int V>
inline void score_block(const typename Cache::Element *keys, const float *const *query, int64_t size,
                        int64_t block_size, float *scores) {
  for (int64_t p = 0; p < block_size; p += LANES) {
    VecF sums[V];
    for (int v = 0; v < V; v++) sums[v] = zero();
    for (int64_t d = 0; d < size; d++) {
      const VecF key = Cache::vector(keys + d * block_size + p);
      for (int v = 0; v < V; v++) sums[v] += key * query[v][d];
    }
    for (int v = 0; v < V; v++) store(scores + v * PIECE + p, sums[v]);
  }
}

template <class Cache, int V>
inline void mix_block(const typename Cache::Element *values, const float *weights, int64_t size, int64_t positions,
                      float *mixed) {
  int64_t d = 0;
  for (; d + LANES <= size; d += LANES) {
    VecF sums[V];
    for (int v = 0; v < V; v++) sums[v] = load(mixed + v * size + d);
    for (int64_t p = 0; p < positions; p++) {
      const VecF value = Cache::vector(values + p * size + d);
      for (int v = 0; v < V; v++) sums[v] += value * weights[v * PIECE + p];
    }
    for (int v = 0; v < V; v++) store(mixed + v * size + d, sums[v]);
  }
  for (; d < size; d++)
    for (int v = 0; v < V; v++)
      for (int64_t p = 0; p < positions; p++)
        mixed[v * size + d] += Cache::scalar(values[p * size + d]) * weights[v * PIECE + p];
}

// Turns scores [begin, begin + count) into weights, and brings what was summed before to the new maximum.
inline void soften(Attending &work, int v, int64_t begin, int64_t count, int64_t size) {
  float *scores = work.scores[v];
  float maximum = work.maximum[v];
  for (int64_t p = 0; p < count; p++) {
    const int64_t position = begin + p;
    if (position > work.last[v] || position < work.earliest[v]) scores[p] = MASKED;
    maximum = maximum >= scores[p] ? maximum : scores[p];
  }
  const float fade = work.maximum[v] == maximum ? 1.0f : exp_nonpositive(broadcast(work.maximum[v] - maximum))[0];
  work.maximum[v] = maximum;
  VecF sums = zero();
  for (int64_t p = count; p % LANES; p++) scores[p] = MASKED;
  for (int64_t p = 0; p < count; p += LANES) {
    const VecF score = load(scores + p);
    const VecF weight = exp_nonpositive(score - maximum);
    const VecF kept = score <= MASKED ? zero() : weight;
    store(scores + p, kept);
    sums += kept;
  }
  work.total[v] = work.total[v] * fade + sum_lanes(sums);
  if (fade != 1.0f)
    for (int64_t d = 0; d < size; d++) work.mixed[v * size + d] *= fade;
}

template <class Cache, int V>
inline void attend(const AttentionLayer &layer, const Step &step, const Tile &tile, Attending &work) {
  const int64_t size = layer.head_size, block_size = layer.block_size, kv = layer.kv_heads;
  int64_t begin = work.earliest[0], end = work.last[0] + 1;
  for (int v = 0; v < V; v++) {
    work.maximum[v] = MASKED;
    work.total[v] = 0;
    begin = std::min(begin, work.earliest[v]);
    end = std::max(end, work.last[v] + 1);
  }
  work.mixed.assign(TILE * size, 0.0f);
  const int32_t *table = step.block_tables + tile.sequence * step.table_width;
  // A piece is a whole number of blocks, at least one; longer blocks than a piece are refused when a layer is made.
  const int64_t piece = std::max<int64_t>(1, PIECE / block_size) * block_size;
  for (int64_t at = begin / block_size * block_size; at < end; at += piece) {
    const int64_t count = std::min(piece, end - at);
    for (int64_t p = 0; p < count; p += block_size) {
      const int64_t start = (int64_t(table[(at + p) / block_size]) * kv + tile.kv_head) * size * block_size;
      score_block<Cache, V>(static_cast<const typename Cache::Element *>(layer.keys) + start, work.query, size,
                            block_size, work.scores[0] + p);
    }
    for (int v = 0; v < V; v++) soften(work, v, at, count, size);
    for (int64_t p = 0; p < count; p += block_size) {
      const int64_t start = (int64_t(table[(at + p) / block_size]) * kv + tile.kv_head) * size * block_size;
      mix_block<Cache, V>(static_cast<const typename Cache::Element *>(layer.values) + start, work.scores[0] + p, size,
                          std::min(block_size, count - p), work.mixed.data());
    }
  }
  for (int v = 0; v < V; v++)
    for (int64_t d = 0; d < size; d++) work.out[v][d] = work.mixed[v * size + d] / work.total[v];
}

template <class Cache>
inline void attend_tile(const AttentionLayer &layer, const Step &step, const float *qkv, float *out, const Tile &tile,
                        Attending &work) {
  const int64_t group = layer.heads / layer.kv_heads, width = layer.heads + 2 * layer.kv_heads;
  for (int v = 0; v < tile.count; v++) {
    const int64_t vector = tile.first + v, token = step.query_starts[tile.sequence] + vector / group;
    const int64_t head = tile.kv_head * group + vector % group;
    work.query[v] = qkv + (token * width + head) * layer.head_size;
    work.out[v] = out + (token * layer.heads + head) * layer.head_size;
    work.last[v] = step.positions[token];
    work.earliest[v] = layer.window > 0 ? std::max<int64_t>(0, work.last[v] - layer.window + 1) : 0;
  }
  switch (tile.count) {
    case 1: return attend<Cache, 1>(layer, step, tile, work);
    case 2: return attend<Cache, 2>(layer, step, tile, work);
    case 3: return attend<Cache, 3>(layer, step, tile, work);
    case 4: return attend<Cache, 4>(layer, step, tile, work);
    case 5: return attend<Cache, 5>(layer, step, tile, work);
    case 6: return attend<Cache, 6>(layer, step, tile, work);
    case 7: return attend<Cache, 7>(layer, step, tile, work);
    default: return attend<Cache, 8>(layer, step, tile, work);
  }
}

}  // namespace KERNEL_ISA
