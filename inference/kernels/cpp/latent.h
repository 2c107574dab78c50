// Ragged causal attention over a paged latent cache: one vector per position, [rank + rope], shared by all heads. Scores
// use the whole vector; the output uses its first part, the latent.
//
// Vectors are contiguous within a block, [block_size, rank + rope]. A score is a sum across lanes, whose cost is small for
// such long vectors, and the output reads the same memory again.
#pragma once

#include "attention.h"

namespace KERNEL_ISA {

// Writes a token's cache entry: its normalized latent and its rotated key.
template <class Cache>
inline void store_latent(const LatentLayer &layer, const Step &step, int64_t token, float *entry) {
  const int64_t width = layer.width(), rank = layer.rank, size = layer.block_size;
  const int64_t block = step.slots[token] / size, at = step.slots[token] % size;
  auto *start = static_cast<typename Cache::Element *>(layer.cache) + block * (width + 2 * Cache::SCALE_ELEMENTS) * size;
  auto *scales = start + width * size + at * Cache::SCALE_ELEMENTS;
  store_vector<Cache>(entry, rank, start + at * width, 1, scales);
  store_vector<Cache>(entry + rank, layer.rope, start + at * width + rank, 1, scales + size * Cache::SCALE_ELEMENTS);
}

// Vectors [first, first + count) of a sequence's queries [tokens * heads, rank + rope] -> their mixed latents [rank].
// May change the queries.
// In latent.cpp.
template <class Cache>
void attend_latent_tile(const LatentLayer &layer, const Step &step, float *queries, float *out, int64_t sequence,
                        int64_t first, int count, AttentionWork &work);

}  // namespace KERNEL_ISA
