// Attention over the latent cache; see latent.h.
#include "latent.h"

namespace KERNEL_ISA {
namespace {

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

template <class Cache>
void attend_latents(const LatentLayer &layer, const Step &step, int64_t sequence, int queries,
                    AttentionWork &work) {
  typedef typename Cache::Element Element;
  const int64_t block_size = layer.block_size, width = layer.width(), rank = layer.rank;
  int64_t end = 0;
  for (int v = 0; v < queries; v++) {
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
    with_count(queries, [&](auto constant) {
      for (int64_t p = 0; p < count; p++)
        score_position<Cache, decltype(constant)::value>(blocks[p / block_size] + p % block_size * width, work.query,
                                                         width, work.scores[0] + p);
    });
    for (int v = 0; v < queries; v++) softmax_piece(work, v, at, count, rank);
    mix<Cache>(queries, blocks, block_size, width, work.scores[0], rank, count, work.mixed.data());
  }
  for (int v = 0; v < queries; v++)
    for (int64_t d = 0; d < rank; d++) work.out[v][d] = work.mixed[v * rank + d] / work.total[v];
}

}  // namespace

template <class Cache>
void attend_latent_tile(const LatentLayer &layer, const Step &step, const float *queries, float *out,
                               int64_t sequence, int64_t first, int count, AttentionWork &work) {
  for (int v = 0; v < count; v++) {
    const int64_t token = step.query_starts[sequence] + (first + v) / layer.heads;
    const int64_t vector = token * layer.heads + (first + v) % layer.heads;
    work.query[v] = queries + vector * layer.width();
    work.out[v] = out + vector * layer.rank;
    work.last[v] = step.positions[token];
    work.earliest[v] = 0;
  }
  attend_latents<Cache>(layer, step, sequence, count, work);
}

template void attend_latent_tile<CacheFloat>(const LatentLayer &, const Step &, const float *, float *, int64_t,
                                             int64_t, int, AttentionWork &);
template void attend_latent_tile<CacheHalf>(const LatentLayer &, const Step &, const float *, float *, int64_t, int64_t,
                                            int, AttentionWork &);

}  // namespace KERNEL_ISA
