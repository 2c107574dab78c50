// The mixture-of-experts sublayer: each token runs through the experts that the router chooses.
#pragma once

#include "feed_forward.h"
#include "routing.h"

namespace KERNEL_ISA {
namespace {

// Each token's experts, [tokens, taken], and their weights; the shared expert is every token's last.
void route_phase(Member &me, const ExpertsLayer &layer, int64_t tokens, int64_t taken) {
  float *logits = workspace.logits.data(), *weights = workspace.weights.data();
  int32_t *chosen = workspace.chosen.data();
  me.share(tokens, 1, [&](int64_t t) {
    float *own = logits + t * layer.router.rows;
    route(layer.routing, own, chosen + t * taken, weights + t * taken);
    if (taken == layer.routing.chosen) return;
    chosen[t * taken + taken - 1] = int32_t(layer.routing.experts);
    weights[t * taken + taken - 1] = layer.shared_gate ? 1.0f / (1.0f + std::exp(-own[layer.routing.experts])) : 1.0f;
  });
}

// Sorts tokens by expert: fills the workspace's chosen experts, and replaces each entry of `chosen` by the row of its
// output. Returns the number of chosen experts.
int64_t group_by_expert(const ExpertsLayer &layer, const Step &step, int64_t taken, const float *normed) {
  const int64_t pairs = step.tokens * taken, all = layer.routing.experts + 1;
  workspace.rows.resize(pairs);
  std::vector<int64_t> counts(all), next(all);
  for (int64_t i = 0; i < pairs; i++) counts[workspace.chosen[i]]++;
  float *gated = sized(workspace.gated, pairs * std::max(layer.width, layer.shared_width));
  float *answers = sized(workspace.answers, pairs * layer.hidden);
  int64_t used = 0, first = 0;
  for (int64_t e = 0; e < all; e++) {
    next[e] = first;
    if (!counts[e]) continue;
    if (int64_t(workspace.experts.size()) == used) workspace.experts.emplace_back();
    ActiveExpert &chosen = workspace.experts[used++];
    chosen.expert = layer.expert(e), chosen.gated = gated, chosen.answers = answers + first * layer.hidden;
    const int32_t *rows = workspace.rows.data() + first;
    chosen.input.reserve(chosen.expert.gate_up, normed, counts[e], rows);
    chosen.second.reserve(chosen.expert.down, gated, counts[e]);
    chosen.lora.reserve(chosen.expert.gate_up_lora, step.adapters, chosen.input, rows);
    chosen.lora_second.reserve(chosen.expert.down_lora, step.adapters, chosen.second, rows);
    gated += counts[e] * chosen.expert.width, first += counts[e];
  }
  for (int64_t i = 0; i < pairs; i++) {
    const int64_t row = next[workspace.chosen[i]]++;
    workspace.rows[row] = int32_t(i / taken), workspace.chosen[i] = int32_t(row);
  }
  return used;
}

// The outputs of the chosen experts, each for its own tokens.
void experts_phases(Member &me, int64_t experts) {
  const auto chosen = [](int64_t e) -> ActiveExpert & { return workspace.experts[e]; };
  const auto input = [&](int64_t e) -> Input & { return chosen(e).input; };
  const auto second = [&](int64_t e) -> Input & { return chosen(e).second; };
  arrange_all(me, experts, input, [&](int64_t e) -> Lora & { return chosen(e).lora; });
  const auto room = [&](int64_t e) { return panels_of(chosen(e).expert.width); };
  share_panels(me, experts, input, room, [&](int64_t e, int64_t first, int64_t panels) {
    const Expert &expert = chosen(e).expert;
    gated_panels(expert.gate_up, room(e), expert.width, nullptr, SILU, input(e), first, panels, chosen(e).gated,
                 chosen(e).lora);
  });
  arrange_all(me, experts, second, [&](int64_t e) -> Lora & { return chosen(e).lora_second; });
  const auto down = [&](int64_t e) { return chosen(e).expert.down.panels(); };
  share_panels(me, experts, second, down, [&](int64_t e, int64_t first, int64_t panels) {
    const Matrix &w = chosen(e).expert.down;
    const auto finish = [&](int64_t row, int64_t rows, int64_t token, const float *y) {
      std::copy_n(y, rows, chosen(e).answers + token * w.rows + row);
    };
    product_panels(w, second(e), first, panels, finish, chosen(e).lora_second);
  });
}

// x += the weighted outputs of each token's experts, in the order of choice. If ranks share a model, only one adds the
// residual.
void sum_phase(Member &me, const Step &step, int64_t taken, int64_t hidden, float *x) {
  constexpr int64_t BLOCK = 256;  // columns
  const int64_t blocks = (hidden + BLOCK - 1) / BLOCK;
  me.share(step.tokens * blocks, 1, [&](int64_t i) {
    const int64_t token = i / blocks, begin = i % blocks * BLOCK, end = std::min(hidden, begin + BLOCK);
    if (!step.adds_residual) std::fill(x + token * hidden + begin, x + token * hidden + end, 0.0f);
    for (int64_t k = 0; k < taken; k++) {
      const float weight = workspace.weights[token * taken + k];
      const float *answer = workspace.answers.data() + workspace.chosen[token * taken + k] * hidden;
      for (int64_t c = begin; c < end; c++)
        x[token * hidden + c] = multiply_add(weight, answer[c], x[token * hidden + c]);
    }
  });
}

void experts_sublayer(Team &team, const ExpertsLayer &layer, const Step &step, float *x) {
  const int64_t tokens = step.tokens, taken = layer.routing.chosen + (layer.shared_width ? 1 : 0);
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  float *logits = sized(workspace.logits, tokens * layer.router.rows);
  sized(workspace.weights, tokens * taken);
  workspace.chosen.resize(tokens * taken);
  workspace.input.reserve(layer.router, normed, tokens);
  workspace.lora.reserve(layer.router_lora, step.adapters, workspace.input);
  team.run([&](Member &me) {
    norm_phase(me, x, layer.norm, nullptr, tokens, layer.hidden, layer.eps, normed);
    arrange(me, workspace.input, workspace.lora);
    linear_into(me, layer.router, workspace.input, nullptr, nullptr, logits, workspace.lora);
    route_phase(me, layer, tokens, taken);
  });
  const int64_t experts = group_by_expert(layer, step, taken, normed);
  team.run([&](Member &me) {
    experts_phases(me, experts);
    sum_phase(me, step, taken, layer.hidden, x);
  });
}

}  // namespace
}  // namespace KERNEL_ISA
