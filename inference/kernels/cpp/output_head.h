// Final norm and logits; also finds each row's largest logit.
#pragma once

#include <cmath>
#include <limits>

#include "phases.h"

namespace KERNEL_ISA {
namespace {

// A token's largest logit among those that a thread has computed.
struct Argmax {
  float value = -INFINITY;
  int64_t index = -1;
  bool spoiled = false;  // one of the logits is NaN or +inf; -inf is a token that cannot be chosen

  // Bounds a logit below, so that its difference with itself is 0 for -inf too, and NaN for NaN and +inf.
  static constexpr float LOWEST = std::numeric_limits<float>::lowest();

  void see(const float *y, int64_t row, int64_t rows) {
    if (rows == PANEL) {
      const VecF lowest = broadcast(LOWEST);
      VecF largest = load(y), differences = zero();
      for (int i = 0; i < PANEL; i += LANES) {
        const VecF some = load(y + i), bounded = some < lowest ? lowest : some;
        largest = some > largest ? some : largest;
        differences += bounded - bounded;
      }
      spoiled |= sum_lanes(differences) != 0.0f;
      if (largest_lane(largest) <= value) return;
    }
    for (int64_t r = 0; r < rows; r++) {
      const float bounded = y[r] < LOWEST ? LOWEST : y[r];
      spoiled |= bounded - bounded != 0.0f;
      if (y[r] > value) value = y[r], index = row + r;
    }
  }

  void merge(const Argmax &other) {
    spoiled |= other.spoiled;
    if (other.value > value || (other.value == value && other.index < index)) value = other.value, index = other.index;
  }
};

void head(Team &team, const Head &layer, const float *x, int64_t tokens, const int32_t *adapters, const Choice &choice) {
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  for (int64_t t = 0; t < tokens; t++)
    norm_row(x + t * layer.hidden, layer.norm, layer.norm_bias, layer.hidden, layer.eps, normed + t * layer.hidden);
  workspace.input.reserve(layer.weight, normed, tokens);
  workspace.lora.reserve(layer.lora, adapters, workspace.input);
  std::vector<float *> logits(tokens, nullptr);
  for (int64_t s = 0; s < choice.logit_count; s++)
    logits[choice.logit_rows[s]] = choice.logits + s * layer.weight.rows;
  std::vector<std::vector<Argmax>> best(team.size(), std::vector<Argmax>(tokens));
  team.run([&](Member &me) {
    arrange(me, workspace.input, workspace.lora);
    const auto finish = [&](int64_t row, int64_t rows, int64_t token, const float *y) {
      alignas(64) float capped[PANEL], biased[PANEL] = {};
      if (layer.bias) {
        for (int64_t r = 0; r < rows; r++) biased[r] = y[r] + layer.bias[row + r];
        y = biased;
      }
      if (layer.softcap > 0) {
        for (int64_t i = 0; i < PANEL; i += LANES) store(capped + i, softcap(load(y + i), layer.softcap));
        y = capped;
      }
      best[me.thread()][token].see(y, row, rows);
      if (logits[token]) std::copy_n(y, rows, logits[token] + row);
    };
    linear_phase(me, layer.weight, workspace.input, finish, workspace.lora);
  });
  for (int64_t token = 0; token < tokens; token++) {
    for (int thread = 1; thread < team.size(); thread++) best[0][token].merge(best[thread][token]);
    choice.best[token] = best[0][token].spoiled ? -1.0f : float(best[0][token].index);
    choice.value[token] = best[0][token].spoiled ? NAN : best[0][token].value;
  }
}

}  // namespace
}  // namespace KERNEL_ISA
