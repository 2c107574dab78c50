// Routing: scores, group selection, expert selection and expert weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "blocks.h"

namespace KERNEL_ISA {

// Turns the logits of `count` experts into scores, in place. Both kinds preserve NaN.
inline void score(const Routing &routing, float *x) {
  if (routing.sigmoid) {
    for (int64_t i = 0; i < routing.experts; i++) x[i] = 1.0f / (1.0f + std::exp(-x[i]));
    return;
  }
  const float largest = *std::max_element(x, x + routing.experts);
  float total = 0;
  for (int64_t i = 0; i < routing.experts; i++) total += x[i] = std::exp(x[i] - largest);
  for (int64_t i = 0; i < routing.experts; i++) x[i] /= total;
}

// Finds the `count` largest of x, lower indices first among equals; overwrites x. Indices are in range even if x has NaN.
inline void top_k(std::vector<float> &x, int64_t count, int32_t *chosen) {
  std::vector<bool> taken(x.size());
  for (int64_t k = 0; k < count; k++) {
    int64_t best = std::find(taken.begin(), taken.end(), false) - taken.begin();
    for (int64_t i = best; i < int64_t(x.size()); i++)
      if (!taken[i] && x[i] > x[best]) best = i;
    taken[best] = true;
    chosen[k] = int32_t(best);
  }
}

// The score of a group: the sum of the scores of its best experts, or its best expert's score.
inline float group_score(const Routing &routing, const float *choice, int64_t size) {
  std::vector<float> sorted(choice, choice + size);
  std::partial_sort(sorted.begin(), sorted.begin() + routing.group_best, sorted.end(), std::greater<float>());
  float sum = 0;
  for (int64_t i = 0; i < routing.group_best; i++) sum += sorted[i];
  return sum;
}

// Ranks the experts outside the best groups last.
inline void close_groups(const Routing &routing, std::vector<float> &choice) {
  const int64_t size = routing.experts / routing.groups;
  std::vector<float> groups(routing.groups);
  for (int64_t g = 0; g < routing.groups; g++) groups[g] = group_score(routing, choice.data() + g * size, size);
  std::vector<int32_t> open(routing.chosen_groups);
  top_k(groups, routing.chosen_groups, open.data());
  for (int64_t g = 0; g < routing.groups; g++)
    if (std::find(open.begin(), open.end(), int32_t(g)) == open.end())
      std::fill_n(choice.begin() + g * size, size, -INFINITY);
}

// Computes a token's experts and their weights, [chosen], from its router logits, which it overwrites.
inline void route(const Routing &routing, float *logits, int32_t *chosen, float *weights) {
  score(routing, logits);
  std::vector<float> choice(logits, logits + routing.experts);
  for (int64_t i = 0; routing.correction && i < routing.experts; i++) choice[i] += routing.correction[i];
  if (routing.groups > 1) close_groups(routing, choice);
  top_k(choice, routing.chosen, chosen);
  float total = 0;
  for (int64_t k = 0; k < routing.chosen; k++) total += weights[k] = logits[chosen[k]];
  const float scale = routing.normalize ? routing.scale / (total + 1e-20f) : routing.scale;
  for (int64_t k = 0; k < routing.chosen; k++) weights[k] *= scale;
}

}  // namespace KERNEL_ISA
