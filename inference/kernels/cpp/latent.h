// Ragged causal attention on a paged cache of latents: one vector a position, [rank + rope], for all heads. Its scores
// take the whole vector, its answer is made of the first part, the latent.
//
// Vectors lie one after the other within a block, [block_size, rank + rope]: a score is a sum across lanes, which such
// long vectors can afford, and the answer reads the same memory again.
#pragma once

#include "attention.h"

namespace KERNEL_ISA {

// Writes what the cache holds of a token: its latent, normed, and its rotated key.
template <class Cache>
inline void place_latent(const LatentLayer &layer, const Step &step, int64_t token, const float *entry) {
  auto *out = static_cast<typename Cache::Element *>(layer.cache) + step.slots[token] * layer.width();
  for (int64_t i = 0; i < layer.width(); i++) out[i] = Cache::narrow(entry[i]);
}

// Scores of V queries [size] against one position.
template <class Cache, int V>
inline void score_position(const typename Cache::Element *entry, const float *const *query, int64_t size,
                           float *scores) {
  VecF sums[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) sums[v] = zero();
  int64_t d = 0;
  for (; d + LANES <= size; d += LANES) {
    const VecF key = Cache::vector(entry + d);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[v] += key * load(query[v] + d);
  }
  for (int v = 0; v < V; v++) {
    float sum = sum_lanes(sums[v]);
    for (int64_t i = d; i < size; i++) sum = multiply_add(Cache::scalar(entry[i]), query[v][i], sum);
    scores[v * PIECE] = sum;
  }
}

template <class Cache, int V>
inline void attend_latents(const LatentLayer &layer, const Step &step, int64_t sequence, Attending &work) {
  typedef typename Cache::Element Element;
  const int64_t block_size = layer.block_size, width = layer.width(), rank = layer.rank;
  int64_t end = 0;
  for (int v = 0; v < V; v++) {
    work.maximum[v] = MASKED;
    work.total[v] = 0;
    end = std::max(end, work.last[v] + 1);
  }
  work.mixed.assign(TILE * rank, 0.0f);
  const int32_t *table = step.block_tables + sequence * step.table_width;
  const auto *cache = static_cast<const Element *>(layer.cache);
  const int64_t piece = std::max<int64_t>(1, PIECE / block_size) * block_size;
  for (int64_t at = 0; at < end; at += piece) {
    const int64_t count = std::min(piece, end - at);
    const Element *blocks[PIECE / LANES];
    for (int64_t p = 0; p < count; p += block_size)
      blocks[p / block_size] = cache + table[(at + p) / block_size] * block_size * width;
    for (int64_t p = 0; p < count; p++)
      score_position<Cache, V>(blocks[p / block_size] + p % block_size * width, work.query, width,
                               work.scores[0] + p);
    for (int v = 0; v < V; v++) soften(work, v, at, count, rank);
    mix<Cache, V>(blocks, block_size, width, work.scores[0], rank, count, work.mixed.data());
  }
  for (int v = 0; v < V; v++)
    for (int64_t d = 0; d < rank; d++) work.out[v][d] = work.mixed[v * rank + d] / work.total[v];
}

// Vectors [first, first + count) of a sequence's queries [tokens * heads, rank + rope] -> their mixed latents [rank].
template <class Cache>
inline void attend_latent_tile(const LatentLayer &layer, const Step &step, const float *queries, float *out,
                               int64_t sequence, int64_t first, int count, Attending &work) {
  for (int v = 0; v < count; v++) {
    const int64_t token = step.query_starts[sequence] + (first + v) / layer.heads;
    const int64_t vector = token * layer.heads + (first + v) % layer.heads;
    work.query[v] = queries + vector * layer.width();
    work.out[v] = out + vector * layer.rank;
    work.last[v] = step.positions[token];
    work.earliest[v] = 0;
  }
  switch (count) {
    case 1: return attend_latents<Cache, 1>(layer, step, sequence, work);
    case 2: return attend_latents<Cache, 2>(layer, step, sequence, work);
    case 3: return attend_latents<Cache, 3>(layer, step, sequence, work);
    case 4: return attend_latents<Cache, 4>(layer, step, sequence, work);
    case 5: return attend_latents<Cache, 5>(layer, step, sequence, work);
    case 6: return attend_latents<Cache, 6>(layer, step, sequence, work);
    case 7: return attend_latents<Cache, 7>(layer, step, sequence, work);
    default: return attend_latents<Cache, 8>(layer, step, sequence, work);
  }
}

}  // namespace KERNEL_ISA
