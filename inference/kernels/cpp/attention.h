// Rotary embedding, cache write and ragged causal attention over a paged cache.
//
// Keys lie transposed within a block, [D, block_size], so that the scores of neighboring positions are neighboring
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

// (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016).
inline void layer_norm_row(const float *x, const float *weight, const float *bias, int64_t width, float eps,
                           float *out) {
  VecF sums = zero();
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) sums += load(x + i);
  float sum = sum_lanes(sums);
  for (; i < width; i++) sum += x[i];
  const float mean = sum / float(width);
  VecF squares = zero();
  for (i = 0; i + LANES <= width; i += LANES) squares += (load(x + i) - mean) * (load(x + i) - mean);
  float square = sum_lanes(squares);
  for (; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / std::sqrt(square / float(width) + eps);
  for (i = 0; i + LANES <= width; i += LANES)
    store(out + i, (load(x + i) - mean) * scale * load(weight + i) + load(bias + i));
  for (; i < width; i++) out[i] = multiply_add((x[i] - mean) * scale, weight[i], bias[i]);
}

inline void norm_row(const float *x, const float *weight, const float *bias, int64_t width, float eps, float *out) {
  if (bias) layer_norm_row(x, weight, bias, width, eps, out);
  else rms_norm_row(x, weight, width, eps, out);
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

// Cosines, then sines, of one token's angles, each times its pair's magnitude, [D].
inline void turn(const float *rotation, int64_t position, int64_t size, float *angles) {
  const float *magnitudes = rotation + size / 2;
  for (int64_t i = 0; i < size / 2; i++) {
    const float angle = float(position) * rotation[i];
    angles[i] = std::cos(angle) * magnitudes[i];
    angles[size / 2 + i] = std::sin(angle) * magnitudes[i];
  }
}

struct CacheFloat : LoadFloat {
  static float narrow(float x) { return x; }
};
struct CacheHalf : LoadHalf {
  static uint16_t narrow(float x) { return float_to_half(x); }
};

// Normalizes, rotates and scales the query heads of a token in place; writes its keys and values into the cache.
template <class Cache>
inline void place_head(const AttentionLayer &layer, const Step &step, const float *angles, float *qkv, int64_t token,
                       int64_t head) {
  const int64_t size = layer.head_size, half = size / 2, kv = layer.kv_heads, queries = layer.queries();
  float *x = qkv + token * layer.columns() + head * size;
  const bool is_query = head < queries, is_value = head >= queries + kv;
  if (!is_value) {
    const float *norm = is_query ? layer.query_norm : layer.key_norm;
    if (norm) rms_norm_row(x, norm, size, layer.eps, x);
    if (layer.rotation) rotate(x, angles + token * size, angles + token * size + half, size);
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

struct Attending {
  const float *query[TILE];
  float *out[TILE];
  int64_t last[TILE], earliest[TILE];  // positions that a vector may see, both included
  float maximum[TILE], total[TILE];
  float slope[TILE];                   // of a vector's head
  int64_t position[TILE];              // of a vector's token
  const float *distances[TILE];        // of a vector's head
  alignas(64) float scores[TILE][PIECE];
  std::vector<float> mixed;            // [TILE, D]
  std::vector<float> queries;          // [D, vectors]
};

// Scores of V queries, [D][V], against N vectors of positions, each with its keys [D] `stride` apart.
template <class Cache, int V, int N>
inline void score_vectors(const typename Cache::Element *const *keys, int64_t stride, const float *query, int64_t size,
                          float *scores) {
  VecF sums[N][V];
#pragma GCC unroll 2
  for (int n = 0; n < N; n++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[n][v] = zero();
  for (int64_t d = 0; d < size; d++) {
    VecF key[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) key[n] = Cache::vector(keys[n] + d * stride);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
#pragma GCC unroll 2
      for (int n = 0; n < N; n++) sums[n][v] += key[n] * query[d * V + v];
  }
#pragma GCC unroll 2
  for (int n = 0; n < N; n++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(scores + v * PIECE + n * LANES, sums[n][v]);
}

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

template <class Cache, int V>
inline void mix(const typename Cache::Element *const *blocks, int64_t block_size, int64_t stride, const float *weights,
                int64_t size, int64_t count, float *mixed) {
  int64_t d = 0;
  for (; d + 2 * LANES <= size; d += 2 * LANES)
    mix_vectors<Cache, V, 2>(blocks, block_size, stride, weights, size, count, d, mixed);
  for (; d + LANES <= size; d += LANES)
    mix_vectors<Cache, V, 1>(blocks, block_size, stride, weights, size, count, d, mixed);
  for (; d < size; d++)
    for (int v = 0; v < V; v++)
      for (int64_t p = 0; p < count; p++) {
        const float value = Cache::scalar(blocks[p / block_size][p % block_size * stride + d]);
        mixed[v * size + d] = multiply_add(value, weights[v * PIECE + p], mixed[v * size + d]);
      }
}

// Bounds scores, and lowers them with their distance, in models that do.
inline void adjust(const AttentionLayer &layer, Attending &work, int v, int64_t begin, int64_t count) {
  float *scores = work.scores[v];
  if (layer.softcap > 0)
    for (int64_t p = 0; p < count; p += LANES) store(scores + p, softcap(load(scores + p), layer.softcap));
  if (layer.slopes)
    for (int64_t p = 0; p < count; p++) scores[p] += work.slope[v] * float(begin + p - work.last[v]);
}

// Adds what the model has learned for the distance of positions [begin, begin + count) from a vector's own.
inline void add_distances(int64_t reach, Attending &work, int v, int64_t begin, int64_t count) {
  const float *table = work.distances[v];
  float *scores = work.scores[v];
  int64_t at = begin - work.position[v] + reach;
  for (int64_t p = 0; p < count; p += LANES, at += LANES) {
    if (at >= 0 && at + LANES <= 2 * reach + 1) {
      store(scores + p, load(scores + p) + load(table + at));
      continue;
    }
    for (int64_t i = 0; i < LANES; i++)
      scores[p + i] += table[std::min(std::max<int64_t>(at + i, 0), 2 * reach)];
  }
}

// Turns scores of positions [begin, begin + count) into weights, and brings what was summed before to the new maximum.
inline void soften(Attending &work, int v, int64_t begin, int64_t count, int64_t size) {
  float *scores = work.scores[v];
  VecI position = broadcast(int32_t(begin));
  for (int i = 0; i < LANES; i++) position[i] += i;
  const int32_t last = int32_t(work.last[v]), earliest = int32_t(work.earliest[v]);
  VecF largest = broadcast(work.maximum[v]);
  for (int64_t p = 0; p < count; p += LANES, position += LANES) {
    VecF score = load(scores + p);
    score = position > last ? broadcast(MASKED) : score;
    score = position < earliest ? broadcast(MASKED) : score;
    store(scores + p, score);
    largest = score > largest ? score : largest;
  }
  const float maximum = largest_lane(largest);
  const float fade = work.maximum[v] == maximum ? 1.0f : exp_nonpositive(broadcast(work.maximum[v] - maximum))[0];
  work.maximum[v] = maximum;
  VecF sums = zero();
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
  typedef typename Cache::Element Element;
  const int64_t size = layer.head_size, block_size = layer.block_size, kv = layer.kv_heads;
  int64_t begin = work.earliest[0], end = work.last[0] + 1;
  for (int v = 0; v < V; v++) {
    work.maximum[v] = MASKED;
    work.total[v] = 0;
    begin = std::min(begin, work.earliest[v]);
    end = std::max(end, work.last[v] + 1);
  }
  work.mixed.assign(TILE * size, 0.0f);
  work.queries.resize(TILE * size);
  for (int64_t d = 0; d < size; d++)
    for (int v = 0; v < V; v++) work.queries[d * V + v] = work.query[v][d];
  const bool is_cross = layer.scope == CROSS;
  const int32_t *table = is_cross ? step.cross_tables + tile.sequence * step.cross_width
                                  : step.block_tables + tile.sequence * step.table_width;
  const auto *keys = static_cast<const Element *>(layer.keys), *values = static_cast<const Element *>(layer.values);
  const auto start = [&](int64_t position) {
    return (int64_t(table[position / block_size]) * kv + tile.kv_head) * size * block_size;
  };
  // A piece is a whole number of blocks, at least one; longer blocks than a piece are refused when a layer is made. Pieces
  // begin where they do for every tile, so that sums do not depend on which tokens a tile holds.
  const int64_t piece = std::max<int64_t>(1, PIECE / block_size) * block_size;
  for (int64_t at = begin / piece * piece; at < end; at += piece) {
    const int64_t count = std::min(piece, end - at), vectors = (count + LANES - 1) / LANES;
    const Element *key_vectors[PIECE / LANES], *value_blocks[PIECE / LANES];
    for (int64_t i = 0; i < vectors; i++)
      key_vectors[i] = keys + start(at + i * LANES) + (at + i * LANES) % block_size;
    for (int64_t p = 0; p < count; p += block_size) value_blocks[p / block_size] = values + start(at + p);
    int64_t i = 0;
    for (; i + 2 <= vectors; i += 2)
      score_vectors<Cache, V, 2>(key_vectors + i, block_size, work.queries.data(), size, work.scores[0] + i * LANES);
    if (i < vectors)
      score_vectors<Cache, V, 1>(key_vectors + i, block_size, work.queries.data(), size, work.scores[0] + i * LANES);
    if (layer.softcap > 0 || layer.slopes)
      for (int v = 0; v < V; v++) adjust(layer, work, v, at, count);
    if (layer.distances)
      for (int v = 0; v < V; v++) add_distances(layer.reach, work, v, at, count);
    for (int v = 0; v < V; v++) soften(work, v, at, count, size);
    mix<Cache, V>(value_blocks, block_size, size, work.scores[0], size, count, work.mixed.data());
  }
  for (int v = 0; v < V; v++)
    for (int64_t d = 0; d < size; d++) work.out[v][d] = work.mixed[v * size + d] / work.total[v];
}

// The last position that a token may see.
inline int64_t last_seen(const AttentionLayer &layer, const Step &step, int64_t sequence, int64_t token) {
  if (layer.scope == CROSS) return step.cross_lengths[sequence] - 1;
  return step.positions[layer.scope == WHOLE ? step.query_starts[sequence + 1] - 1 : token];
}

template <class Cache>
inline void attend_tile(const AttentionLayer &layer, const Step &step, const float *qkv, float *out, const Tile &tile,
                        Attending &work) {
  const int64_t group = layer.heads / layer.kv_heads;
  for (int v = 0; v < tile.count; v++) {
    const int64_t vector = tile.first + v, token = step.query_starts[tile.sequence] + vector / group;
    const int64_t head = tile.kv_head * group + vector % group;
    work.query[v] = qkv + token * layer.columns() + head * layer.head_size;
    work.out[v] = out + (token * layer.heads + head) * layer.head_size;
    work.slope[v] = layer.slopes ? layer.slopes[head] : 0;
    work.last[v] = last_seen(layer, step, tile.sequence, token);
    work.position[v] = step.positions[token];
    work.distances[v] = layer.distances + head * (2 * layer.reach + 1);
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
