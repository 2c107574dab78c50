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
