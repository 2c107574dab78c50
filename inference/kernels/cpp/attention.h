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
#include "int8_cache.h"
#include "norms.h"
#include "rope.h"
#include "simd.h"

namespace KERNEL_ISA {

constexpr int TILE = 8;            // query vectors that share one pass over the keys
constexpr int64_t PIECE = 128;     // positions between two updates of the running maximum
constexpr float MASKED = -1e30f;

// SCALE_ELEMENTS: elements that a vector's scale takes, behind the values of its block; 0 without scales.
struct CacheFloat : LoadFloat {
  static constexpr int64_t SCALE_ELEMENTS = 0;
  static float narrow(float x) { return x; }
};
struct CacheHalf : LoadHalf {
  static constexpr int64_t SCALE_ELEMENTS = 0;
  static uint16_t narrow(float x) { return float_to_half(x); }
};
struct CacheInt8 : LoadInt8 {
  static constexpr int64_t SCALE_ELEMENTS = sizeof(float);
};

// Calls work(Cache()) with the type of the cache.
template <class Work>
inline void with_cache(CacheType type, const Work &work) {
  switch (type) {
    case CACHE_FLOAT16: return work(CacheHalf());
    case CACHE_INT8: return work(CacheInt8());
    default: return work(CacheFloat());
  }
}

// Writes a vector, elements `stride` apart, and its scale, if the cache has scales. May change x.
template <class Cache>
inline void store_vector(float *x, int64_t size, typename Cache::Element *out, int64_t stride,
                         [[maybe_unused]] typename Cache::Element *scale) {
  if constexpr (Cache::SCALE_ELEMENTS > 0) {
    *reinterpret_cast<float *>(scale) = quantize_vector(x, size, out, stride);
  } else {
    for (int64_t i = 0; i < size; i++) out[i * stride] = Cache::narrow(x[i]);
  }
}

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
    if (Cache::SCALE_ELEMENTS) hadamard(x, size);
    return;
  }
  const int64_t slot = step.slots[token], block = slot / layer.block_size, at = slot % layer.block_size;
  const int64_t kv_head = is_value ? head - queries - kv : head - queries;
  auto *start = static_cast<typename Cache::Element *>(is_value ? layer.values : layer.keys) +
                (block * kv + kv_head) * (size + Cache::SCALE_ELEMENTS) * layer.block_size;
  auto *scale = start + size * layer.block_size + at * Cache::SCALE_ELEMENTS;
  if (is_value) store_vector<Cache>(x, size, start + at * size, 1, scale);
  else store_vector<Cache>(x, size, start + at, layer.block_size, scale);
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

// Multiplies `vectors` rows of `count` scores by the scales of their positions, which begin `offset` elements into each
// block.
template <class Element>
inline void scale_positions(int vectors, const Element *const *blocks, int64_t block_size, int64_t offset,
                            int64_t count, float *scores) {
  for (int64_t p = 0; p < count; p += block_size) {
    const float *scales = reinterpret_cast<const float *>(blocks[p / block_size] + offset);
    for (int64_t i = 0; i < block_size; i += LANES)
      for (int v = 0; v < vectors; v++) {
        float *at = scores + v * PIECE + p + i;
        store(at, load(at) * load(scales + i));
      }
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
extern template void mix<CacheInt8>(int, const int8_t *const *, int64_t, int64_t, const float *, int64_t, int64_t,
                                    float *);

// Computes attention of a tile's query vectors over the cache into `out`, [tokens, H * D]. In attention.cpp.
template <class Cache>
void attend_tile(const AttentionLayer &layer, const Step &step, const float *qkv, float *out, const Tile &tile,
                 AttentionWork &work);

}  // namespace KERNEL_ISA
