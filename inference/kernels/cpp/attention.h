// The KV cache, and the code that attention shares with latent attention: online softmax and the weighted sum of values.
//
// Keys are stored transposed within a block, [D, block_size], so that the scores of neighboring positions are neighboring
// lanes and need no sum across lanes. Softmax runs piece by piece with a running maximum (Milakov & Gimelshein 2018), so
// that scratch memory does not grow with the context. Nothing beyond a sequence's last position is read.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "blocks.h"
#include "norms.h"
#include "rope.h"
#include "simd.h"

namespace KERNEL_ISA {

constexpr int TILE = 8;            // query vectors that share one pass over the keys
constexpr int64_t PIECE = 128;     // positions between two updates of the running maximum
constexpr float MASKED = -1e30f;

struct CacheFloat : LoadFloat {
  static float narrow(float x) { return x; }
};
struct CacheHalf : LoadHalf {
  static uint16_t narrow(float x) { return float_to_half(x); }
};

// Normalizes, rotates and scales a token's query heads in place; writes its keys and values into the cache.
template <class Cache>
inline void store_head(const AttentionLayer &layer, const Step &step, const float *angles, float *qkv, int64_t token,
                       int64_t head) {
  const int64_t size = layer.head_size, half = size / 2, kv = layer.kv_heads, queries = layer.queries();
  float *x = qkv + token * layer.columns() + head * size;
  const bool is_query = head < queries, is_value = head >= queries + kv;
  if (!is_value) {
    const float *norm = layer.norms_all_heads ? nullptr : is_query ? layer.query_norm : layer.key_norm;
    if (norm && !layer.norms_rotated) rms_norm_row(x, norm, size, layer.eps, x);
    if (layer.rotation) apply_rope(x, angles + token * size, angles + token * size + half, size);
    if (norm && layer.norms_rotated) rms_norm_row(x, norm, size, layer.eps, x);
  }
  if (is_query) {
    for (int64_t i = 0; i < size; i++) x[i] *= layer.scale;
    return;
  }
  const int64_t slot = step.slots[token], block = slot / layer.block_size, at = slot % layer.block_size;
  const int64_t kv_head = is_value ? head - queries - kv : head - queries;
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

struct AttentionWork {
  const float *query[TILE];
  float *out[TILE];
  int64_t last[TILE], earliest[TILE];  // positions that a vector may attend to, inclusive
  float maximum[TILE], total[TILE];
  float slope[TILE];                   // of a vector's head
  int64_t position[TILE];              // of a vector's token
  const float *distances[TILE];        // of a vector's head
  alignas(64) float scores[TILE][PIECE];
  std::vector<float> mixed;            // [TILE, D]
  std::vector<float> queries;          // [D, vectors]
};

// mixed [V][D] from column d on, N vectors of them, += weights [V][count] times the values of `count` positions, which
// are `stride` apart.
template <class Cache, int V, int N>
inline void mix_vectors(const typename Cache::Element *const *blocks, int64_t block_size, int64_t stride,
                        const float *weights, int64_t size, int64_t count, int64_t d, float *mixed) {
  VecF sums[N][V];
#pragma GCC unroll 2
  for (int n = 0; n < N; n++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[n][v] = load(mixed + v * size + d + n * LANES);
  for (int64_t begin = 0; begin < count; begin += block_size) {
    const typename Cache::Element *values = blocks[begin / block_size] + d;
    for (int64_t p = begin; p < std::min(count, begin + block_size); p++, values += stride) {
      VecF value[N];
#pragma GCC unroll 2
      for (int n = 0; n < N; n++) value[n] = Cache::vector(values + n * LANES);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) sums[n][v] += value[n] * weights[v * PIECE + p];
    }
  }
#pragma GCC unroll 2
  for (int n = 0; n < N; n++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(mixed + v * size + d + n * LANES, sums[n][v]);
}

// Calls work(std::integral_constant<int, count>), for 1 to TILE.
template <class Work>
inline void with_count(int count, const Work &work) {
  switch (count) {
    case 1: return work(std::integral_constant<int, 1>());
    case 2: return work(std::integral_constant<int, 2>());
    case 3: return work(std::integral_constant<int, 3>());
    case 4: return work(std::integral_constant<int, 4>());
    case 5: return work(std::integral_constant<int, 5>());
    case 6: return work(std::integral_constant<int, 6>());
    case 7: return work(std::integral_constant<int, 7>());
    default: return work(std::integral_constant<int, TILE>());
  }
}

// Calls `mix` for all columns and `vectors` outputs.
template <class Cache>
void mix(int vectors, const typename Cache::Element *const *blocks, int64_t block_size, int64_t stride,
         const float *weights, int64_t size, int64_t count, float *mixed) {
  with_count(vectors, [&](auto constant) {
    constexpr int V = decltype(constant)::value;
    int64_t d = 0;
    for (; d + 2 * LANES <= size; d += 2 * LANES)
      mix_vectors<Cache, V, 2>(blocks, block_size, stride, weights, size, count, d, mixed);
    for (; d + LANES <= size; d += LANES)
      mix_vectors<Cache, V, 1>(blocks, block_size, stride, weights, size, count, d, mixed);
  });
  for (int64_t d = size / LANES * LANES; d < size; d++)
    for (int v = 0; v < vectors; v++)
      for (int64_t p = 0; p < count; p++) {
        const float value = Cache::scalar(blocks[p / block_size][p % block_size * stride + d]);
        mixed[v * size + d] = multiply_add(value, weights[v * PIECE + p], mixed[v * size + d]);
      }
}

// Turns scores of positions [begin, begin + count) into weights, and rescales the earlier sums to the new maximum. In
// attention.cpp.
void softmax_piece(AttentionWork &work, int v, int64_t begin, int64_t count, int64_t size);

// attention.cpp instantiates `mix` for each cache type.
extern template void mix<CacheFloat>(int, const float *const *, int64_t, int64_t, const float *, int64_t, int64_t,
                                     float *);
extern template void mix<CacheHalf>(int, const uint16_t *const *, int64_t, int64_t, const float *, int64_t, int64_t,
                                    float *);

// Computes attention of a tile's query vectors over the cache into `out`, [tokens, H * D]. In attention.cpp.
template <class Cache>
void attend_tile(const AttentionLayer &layer, const Step &step, const float *qkv, float *out, const Tile &tile,
                 AttentionWork &work);

}  // namespace KERNEL_ISA
