// Ragged causal attention over a paged cache.
#include "attention.h"

namespace KERNEL_ISA {
namespace {

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

// Scores of `count` queries against `vectors` vectors of positions.
template <class Cache>
void score_piece(int count, const typename Cache::Element *const *keys, int64_t vectors, int64_t stride,
                 const float *query, int64_t size, float *scores) {
  with_count(count, [&](auto queries) {
    constexpr int V = decltype(queries)::value;
    int64_t i = 0;
    for (; i + 2 <= vectors; i += 2)
      score_vectors<Cache, V, 2>(keys + i, stride, query, size, scores + i * LANES);
    if (i < vectors) score_vectors<Cache, V, 1>(keys + i, stride, query, size, scores + i * LANES);
  });
}

// Applies the softcap and the ALiBi slopes to scores, if the model has them.
inline void adjust(const AttentionLayer &layer, AttentionWork &work, int v, int64_t begin, int64_t count) {
  float *scores = work.scores[v];
  if (layer.softcap > 0)
    for (int64_t p = 0; p < count; p += LANES) store(scores + p, softcap(load(scores + p), layer.softcap));
  if (layer.slopes)
    for (int64_t p = 0; p < count; p++) scores[p] += work.slope[v] * float(begin + p - work.last[v]);
}

// Adds the learned distance bias of positions [begin, begin + count) relative to a vector's own position.
inline void add_distances(int64_t reach, AttentionWork &work, int v, int64_t begin, int64_t count) {
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

template <class Cache>
void attend(const AttentionLayer &layer, const Step &step, const Tile &tile, AttentionWork &work) {
  typedef typename Cache::Element Element;
  const int queries = tile.count;
  const int64_t size = layer.head_size, block_size = layer.block_size, kv = layer.kv_heads;
  int64_t begin = work.earliest[0], end = work.last[0] + 1;
  for (int v = 0; v < queries; v++) {
    work.maximum[v] = MASKED;
    work.total[v] = 0;
    begin = std::min(begin, work.earliest[v]);
    end = std::max(end, work.last[v] + 1);
  }
  work.mixed.assign(TILE * size, 0.0f);
  work.queries.resize(TILE * size);
  for (int64_t d = 0; d < size; d++)
    for (int v = 0; v < queries; v++) work.queries[d * queries + v] = work.query[v][d];
  const bool is_cross = layer.scope == CROSS;
  const int32_t *table = is_cross ? step.cross_tables + tile.sequence * step.cross_width
                                  : step.block_tables + tile.sequence * step.table_width;
  const auto *keys = static_cast<const Element *>(layer.keys), *values = static_cast<const Element *>(layer.values);
  const auto start = [&](int64_t position) {
    return (int64_t(table[position / block_size]) * kv + tile.kv_head) * (size + Cache::SCALE_ELEMENTS) *
           block_size;
  };
  // A piece is a whole number of blocks, at least one; blocks longer than a piece are rejected when a layer is created.
  // Pieces begin at the same positions for every tile, so that sums do not depend on which tokens a tile holds.
  const int64_t piece = std::max<int64_t>(1, PIECE / block_size) * block_size;
  for (int64_t at = begin / piece * piece; at < end; at += piece) {
    const int64_t count = std::min(piece, end - at), vectors = (count + LANES - 1) / LANES;
    const Element *key_vectors[PIECE / LANES], *key_blocks[PIECE / LANES], *value_blocks[PIECE / LANES];
    for (int64_t p = 0; p < count; p += block_size) {
      key_blocks[p / block_size] = keys + start(at + p);
      value_blocks[p / block_size] = values + start(at + p);
    }
    for (int64_t i = 0; i < vectors; i++)
      key_vectors[i] = key_blocks[i * LANES / block_size] + i * LANES % block_size;
    score_piece<Cache>(queries, key_vectors, vectors, block_size, work.queries.data(), size, work.scores[0]);
    if constexpr (Cache::SCALE_ELEMENTS > 0)
      scale_positions(queries, key_blocks, block_size, size * block_size, count, work.scores[0]);
    if (layer.softcap > 0 || layer.slopes)
      for (int v = 0; v < queries; v++) adjust(layer, work, v, at, count);
    if (layer.distances)
      for (int v = 0; v < queries; v++) add_distances(layer.reach, work, v, at, count);
    for (int v = 0; v < queries; v++) softmax_piece(work, v, at, count, size);
    if constexpr (Cache::SCALE_ELEMENTS > 0)
      scale_positions(queries, value_blocks, block_size, size * block_size, count, work.scores[0]);
    mix<Cache>(queries, value_blocks, block_size, size, work.scores[0], size, count, work.mixed.data());
  }
  for (int v = 0; v < queries; v++) {
    for (int64_t d = 0; d < size; d++) work.out[v][d] = work.mixed[v * size + d] / work.total[v];
    if (Cache::SCALE_ELEMENTS) hadamard(work.out[v], size);
  }
}

// The last position that a token may attend to.
inline int64_t last_seen(const AttentionLayer &layer, const Step &step, int64_t sequence, int64_t token) {
  if (layer.scope == CROSS) return step.cross_lengths[sequence] - 1;
  return step.positions[layer.scope == WHOLE ? step.query_starts[sequence + 1] - 1 : token];
}

}  // namespace

void softmax_piece(AttentionWork &work, int v, int64_t begin, int64_t count, int64_t size) {
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

template <class Cache>
void attend_tile(const AttentionLayer &layer, const Step &step, const float *qkv, float *out, const Tile &tile,
                        AttentionWork &work) {
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
  attend<Cache>(layer, step, tile, work);
}

template void mix<CacheFloat>(int, const float *const *, int64_t, int64_t, const float *, int64_t, int64_t, float *);
template void mix<CacheHalf>(int, const uint16_t *const *, int64_t, int64_t, const float *, int64_t, int64_t, float *);
template void mix<CacheInt8>(int, const int8_t *const *, int64_t, int64_t, const float *, int64_t, int64_t, float *);
template void attend_tile<CacheFloat>(const AttentionLayer &, const Step &, const float *, float *, const Tile &,
                                      AttentionWork &);
template void attend_tile<CacheHalf>(const AttentionLayer &, const Step &, const float *, float *, const Tile &,
                                     AttentionWork &);
template void attend_tile<CacheInt8>(const AttentionLayer &, const Step &, const float *, float *, const Tile &,
                                     AttentionWork &);

}  // namespace KERNEL_ISA
