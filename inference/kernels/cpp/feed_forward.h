// The feed-forward sublayer: down(activation(gate) * up), or down(activation(up)) without a gate.
#pragma once

#include "phases.h"

namespace KERNEL_ISA {
namespace {

template <class Function>
void activate(const Function &function, const float *gate, const float *up, int64_t count, float *out) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const VecF y = function(load(gate + i));
    store(out + i, up ? y * load(up + i) : y);
  }
  for (; i < count; i++) {
    const float y = function(broadcast(gate[i]))[0];
    out[i] = up ? y * up[i] : y;
  }
}

// out = activation(gate) * up; activation(gate) if `up` is null.
void activate(Activation kind, const float *gate, const float *up, int64_t count, float *out) {
  switch (kind) {
    case SILU: return activate([](VecF x) { return silu(x); }, gate, up, count, out);
    case GELU_TANH: return activate([](VecF x) { return gelu_tanh(x); }, gate, up, count, out);
    case GELU: return activate([](VecF x) { return gelu(x); }, gate, up, count, out);
    case RELU: return activate([](VecF x) { return relu(x); }, gate, up, count, out);
  }
}

// Panels [first, first + panels) of gate and those of up, `room` panels later; writes only their product.
void gated_panels(const Matrix &gate_up, int64_t room, int64_t width, const float *gate_bias, Activation activation,
                  const Input &input, int64_t first, int64_t panels, float *gated, const Lora &lora = no_lora) {
  const float *up_bias = gate_bias ? gate_bias + width : nullptr;
  const int64_t size = panels * input.slots() * PANEL;
  float *gate = sized(sums, 2 * size), *up = gate + size;
  linear_range({gate_up, first, panels, input, gate}, scratch);
  linear_range({gate_up, room + first, panels, input, up}, scratch);
  for (int64_t token = 0; token < input.tokens; token++)
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t at = (panel * input.slots() + token) * PANEL, column = (first + panel) * PANEL;
      const int64_t columns = std::min(PANEL, width - column);
      lora.add(token, column, gate + at);
      lora.add(token, room * PANEL + column, up + at);
      for (int64_t i = 0; gate_bias && i < columns; i++)
        gate[at + i] += gate_bias[column + i], up[at + i] += up_bias[column + i];
      activate(activation, gate + at, up + at, columns, gated + token * width + column);
    }
}

// If gate and up begin at panel boundaries: computes both together, some columns at a time.
void gated_phase(Member &me, const FeedForwardLayer &layer, Input &input, float *gated, const Lora &lora) {
  const int64_t room = layer.width / PANEL;
  prefetch(me, layer.down, input);
  me.share_runs(room, panels_at_once(input), panels_together(input), [&](int64_t first, int64_t panels) {
    gated_panels(layer.gate_up, room, layer.width, layer.gate_up_bias, layer.activation, input, first, panels, gated,
                 lora);
  });
}

// Otherwise: computes gate and up first, then their product.
void ungrouped_gated_phase(Member &me, const FeedForwardLayer &layer, Input &input, float *gate_up, float *gated,
                           const Lora &lora) {
  const int64_t width = layer.width;
  linear_into(me, layer.gate_up, input, layer.gate_up_bias, nullptr, gate_up, lora);
  me.share(input.tokens, 1, [&](int64_t token) {
    const float *gate = gate_up + token * 2 * width;
    activate(layer.activation, gate, gate + width, width, gated + token * width);
  });
}

// Without a gate: activation(x W^T + bias).
void ungated_phase(Member &me, const FeedForwardLayer &layer, Input &input, float *activated,
                   const Lora &lora) {
  prefetch(me, layer.down, input);
  const auto finish = [&](int64_t row, int64_t rows, int64_t token, const float *y) {
    float biased[PANEL];
    for (int64_t r = 0; r < rows; r++) biased[r] = layer.gate_up_bias ? y[r] + layer.gate_up_bias[row + r] : y[r];
    activate(layer.activation, biased, nullptr, rows, activated + token * layer.width + row);
  };
  linear_phase(me, layer.gate_up, input, finish, lora);
}

void feed_forward_sublayer(Team &team, const FeedForwardLayer &layer, const Step &step, float *x) {
  const int64_t tokens = step.tokens;
  const bool is_grouped = layer.width % PANEL == 0;
  if (layer.post_norm) sized(workspace.added, tokens * layer.hidden);
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  float *gate_up = is_grouped || !layer.gated ? nullptr : sized(workspace.gate_up, tokens * 2 * layer.width);
  float *gated = sized(workspace.gated, tokens * layer.width);
  workspace.input.reserve(layer.gate_up, layer.norm || layer.parallel ? normed : x, tokens);
  workspace.second.reserve(layer.down, gated, tokens);
  const Lora &lora = workspace.lora;
  workspace.lora.reserve(layer.gate_up_lora, step.adapters, workspace.input);
  workspace.lora_second.reserve(layer.down_lora, step.adapters, workspace.second);
  team.run([&](Member &me) {
    prefetch(me, layer.gate_up, workspace.input);
    if (layer.norm) norm_phase(me, x, layer.norm, layer.norm_bias, tokens, layer.hidden, layer.eps, normed);
    arrange(me, workspace.input, workspace.lora);
    if (!layer.gated) ungated_phase(me, layer, workspace.input, gated, lora);
    else if (is_grouped) gated_phase(me, layer, workspace.input, gated, lora);
    else ungrouped_gated_phase(me, layer, workspace.input, gate_up, gated, lora);
    arrange(me, workspace.second, workspace.lora_second);
    add_linear(me, layer.down, workspace.second, layer.down_bias, layer.post_norm, layer.eps, step, x,
               workspace.lora_second);
  });
}

}  // namespace
}  // namespace KERNEL_ISA
