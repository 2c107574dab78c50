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
inline void store_latent(const LatentLayer &layer, const Step &step, int64_t token, const float *entry) {
  auto *out = static_cast<typename Cache::Element *>(layer.cache) + step.slots[token] * layer.width();
  for (int64_t i = 0; i < layer.width(); i++) out[i] = Cache::narrow(entry[i]);
}

// Vectors [first, first + count) of a sequence's queries [tokens * heads, rank + rope] -> their mixed latents [rank].
// In latent.cpp.
template <class Cache>
void attend_latent_tile(const LatentLayer &layer, const Step &step, const float *queries, float *out, int64_t sequence,
                        int64_t first, int count, AttentionWork &work);

}  // namespace KERNEL_ISA
