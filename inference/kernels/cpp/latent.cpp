// Attention over the latent cache; see latent.h.
#include "latent.h"

namespace KERNEL_ISA {
namespace {

// Products of elements [begin, end) of V queries and one position.
template <class Cache, int V>
inline void multiply_part(const typename Cache::Element *entry, const float *const *query, int64_t begin, int64_t end,
                          float *products) {
  VecF sums[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) sums[v] = zero();
  int64_t d = begin;
  for (; d + LANES <= end; d += LANES) {
    const VecF key = Cache::vector(entry + d);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[v] += key * load(query[v] + d);
  }
  for (int v = 0; v < V; v++) {
    float sum = sum_lanes(sums[v]);
    for (int64_t i = d; i < end; i++) sum = multiply_add(Cache::scalar(entry[i]), query[v][i], sum);
    products[v] = sum;
  }
}

// Scores of V queries against position `at` of a block.
template <class Cache, int V>
inline void score_position(const LatentLayer &layer, const typename Cache::Element *block, int64_t at,
                           const float *const *query, float *scores) {
  const int64_t width = layer.width(), size = layer.block_size;
  const typename Cache::Element *entry = block + at * width;
  float products[V];
  if constexpr (Cache::SCALE_ELEMENTS > 0) {
    const float *scales = reinterpret_cast<const float *>(block + width * size) + at;
    float rotated[V];
    multiply_part<Cache, V>(entry, query, 0, layer.rank, products);
    multiply_part<Cache, V>(entry, query, layer.rank, width, rotated);
    for (int v = 0; v < V; v++) scores[v * PIECE] = multiply_add(products[v], scales[0], rotated[v] * scales[size]);
  } else {
    multiply_part<Cache, V>(entry, query, 0, width, products);
    for (int v = 0; v < V; v++) scores[v * PIECE] = products[v];
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
      blocks[p / block_size] = cache + table[(at + p) / block_size] * block_size * (width + 2 * Cache::SCALE_ELEMENTS);
    with_count(queries, [&](auto constant) {
      for (int64_t p = 0; p < count; p++)
        score_position<Cache, decltype(constant)::value>(layer, blocks[p / block_size], p % block_size, work.query,
                                                         work.scores[0] + p);
    });
    for (int v = 0; v < queries; v++) softmax_piece(work, v, at, count, rank);
    if constexpr (Cache::SCALE_ELEMENTS > 0)
      scale_positions(queries, blocks, block_size, width * block_size, count, work.scores[0]);
    mix<Cache>(queries, blocks, block_size, width, work.scores[0], rank, count, work.mixed.data());
  }
  for (int v = 0; v < queries; v++) {
    for (int64_t d = 0; d < rank; d++) work.out[v][d] = work.mixed[v * rank + d] / work.total[v];
    if (Cache::SCALE_ELEMENTS) hadamard(work.out[v], rank);
  }
}

}  // namespace

template <class Cache>
void attend_latent_tile(const LatentLayer &layer, const Step &step, float *queries, float *out,
                               int64_t sequence, int64_t first, int count, AttentionWork &work) {
  for (int v = 0; v < count; v++) {
    const int64_t token = step.query_starts[sequence] + (first + v) / layer.heads;
    const int64_t vector = token * layer.heads + (first + v) % layer.heads;
    float *query = queries + vector * layer.width();
    if (Cache::SCALE_ELEMENTS) hadamard(query, layer.rank), hadamard(query + layer.rank, layer.rope);
    work.query[v] = query;
    work.out[v] = out + vector * layer.rank;
    work.last[v] = step.positions[token];
    work.earliest[v] = 0;
  }
  attend_latents<Cache>(layer, step, sequence, count, work);
}

template void attend_latent_tile<CacheFloat>(const LatentLayer &, const Step &, float *, float *, int64_t,
                                             int64_t, int, AttentionWork &);
template void attend_latent_tile<CacheHalf>(const LatentLayer &, const Step &, float *, float *, int64_t, int64_t,
                                            int, AttentionWork &);
template void attend_latent_tile<CacheInt8>(const LatentLayer &, const Step &, float *, float *, int64_t, int64_t,
                                            int, AttentionWork &);

}  // namespace KERNEL_ISA
