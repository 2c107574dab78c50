// The phases of sublayers: all threads share the work of a phase, and it ends before the next one begins.
// Knows products, norms and LoRA; knows nothing about sublayers.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"
#include "blocks.h"
#include "linear.h"
#include "lora.h"

namespace KERNEL_ISA {
namespace {

// An expert that at least one token has chosen.
struct ActiveExpert {
  Expert expert;
  Input input, second;  // of its two products
  Lora lora, lora_second;
  float *gated;         // [its tokens, width]
  float *answers;       // [its tokens, hidden]
};

// Memory kept between calls; only one region runs at a time.
struct Workspace {
  std::vector<float> normed, qkv, angles, attended, gate_up, gated, added, logits, weights, answers;
  Input input, second, third;           // of a sublayer's products
  Lora lora, lora_second, lora_third;
  std::vector<ActiveExpert> experts;
  std::vector<Input> heads, heads_second;
  std::vector<Lora> lora_heads, lora_heads_second;
  std::vector<float> queries, latents;
  std::vector<int32_t> chosen, rows;
};
Workspace workspace;
thread_local std::vector<float> scratch, sums;
thread_local AttentionWork attention_work;

float *sized(std::vector<float> &buffer, int64_t count) {
  if (int64_t(buffer.size()) < count) buffer.resize(count);
  return buffer.data();
}

// The concatenated work of several lists.
class Lists {
 public:
  void add(int64_t count) { ends_.push_back(total() + count); }
  int64_t total() const { return ends_.empty() ? 0 : ends_.back(); }
  // Calls work(list, index in that list) for an index into the concatenation.
  template <class Work>
  void find(int64_t i, const Work &work) const {
    const int64_t list = std::upper_bound(ends_.begin(), ends_.end(), i) - ends_.begin();
    work(list, list ? i - ends_[list - 1] : i);
  }

 private:
  std::vector<int64_t> ends_;
};

// Panels that a thread takes at a time: enough to reuse x while it is cached, and enough for one kernel call.
int64_t panels_at_once(const Input &input) { return input.tiles == 1 ? 4 : 8; }

// Minimum number of panels that a thread takes, if that many are left.
int64_t panels_together(const Input &input) { return input.tiles == 1 || input.quantized ? 1 : HELD_PANELS; }

// Lets a waiting thread prefetch the first panels of the next matrix.
void prefetch(Member &me, const Matrix &w, const Input &input) {
  constexpr int64_t MOST = 384 << 10;  // of an L2 cache
  if (input.tiles == 1) me.prefetch(w.data, std::min(MOST, 4 * panel_bytes(w.format, w.columns)));
}

// A piece of the work before a product.
void prepare(Input &input, Lora &lora, int64_t piece) {
  if (piece < input.pieces()) input.arrange(piece);
  else lora.project_down(piece - input.pieces(), input);
}

// Arranges x, given to `Input::reserve`, and computes the adapters' down projections.
[[gnu::noinline]] void arrange(Member &me, Input &input, Lora &lora) {
  const int64_t pieces = input.pieces() + lora.pieces();
  if (pieces) me.share(pieces, 1, [&](int64_t piece) { prepare(input, lora, piece); });
}

// Calls finish(row, rows, token, y) for each token and each run of at most 16 rows of some panels, with
// y [rows] = x W^T.
template <class Finish>
void product_panels(const Matrix &w, const Input &input, int64_t first, int64_t panels, const Finish &finish,
                    const Lora &lora = no_lora) {
  float *buffer = sized(sums, panels * input.slots() * PANEL);
  linear_range({w, first, panels, input, buffer}, scratch);
  // Token by token, because a token's rows are contiguous in the output.
  for (int64_t token = 0; token < input.tokens; token++)
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t row = (first + panel) * PANEL, rows = std::min(PANEL, w.rows - row);
      float *y = buffer + (panel * input.slots() + token) * PANEL;
      lora.add(token, row, y);
      finish(row, rows, token, y);
    }
}

template <class Finish>
void linear_phase(Member &me, const Matrix &w, Input &input, const Finish &finish,
                  const Lora &lora = no_lora) {
  me.share_runs(w.panels(), panels_at_once(input), panels_together(input),
                [&](int64_t first, int64_t panels) { product_panels(w, input, first, panels, finish, lora); });
}

// out [tokens, rows] = x W^T + bias + residual; the last two may be null.
[[gnu::noinline]] void linear_into(Member &me, const Matrix &w, Input &input, const float *bias, const float *residual, float *out,
                 const Lora &lora = no_lora) {
  const auto finish = [&](int64_t row, int64_t rows, int64_t token, const float *y) {
    const int64_t at = token * w.rows + row;
    for (int64_t r = 0; r < rows; r++) {
      const float biased = bias ? y[r] + bias[row + r] : y[r];
      out[at + r] = residual ? residual[at + r] + biased : biased;
    }
  };
  linear_phase(me, w, input, finish, lora);
}

// Several products at once: `input_of(i)` is the input of product i.
template <class InputOf, class LoraOf>
void arrange_all(Member &me, int64_t count, const InputOf &input_of, const LoraOf &lora_of) {
  Lists pieces;
  for (int64_t i = 0; i < count; i++) pieces.add(input_of(i).pieces() + lora_of(i).pieces());
  if (!pieces.total()) return;
  me.share(pieces.total(), 1, [&](int64_t at) {
    pieces.find(at, [&](int64_t i, int64_t piece) { prepare(input_of(i), lora_of(i), piece); });
  });
}

// Calls work(i, first, panels) for runs of the products' panels; product i has `panels_in(i)` panels.
template <class InputOf, class PanelsIn, class Work>
void share_panels(Member &me, int64_t count, const InputOf &input_of, const PanelsIn &panels_in, const Work &work) {
  Lists runs;
  for (int64_t i = 0; i < count; i++) {
    const int64_t most = panels_at_once(input_of(i));
    runs.add((panels_in(i) + most - 1) / most);
  }
  me.share(runs.total(), 1, [&](int64_t at) {
    runs.find(at, [&](int64_t i, int64_t run) {
      const int64_t most = panels_at_once(input_of(i)), first = run * most;
      work(i, first, std::min(most, panels_in(i) - first));
    });
  });
}

[[gnu::noinline]] void norm_phase(Member &me, const float *x, const float *weight, const float *bias, int64_t tokens, int64_t width,
                float eps, float *out) {
  me.share(tokens, 1, [&](int64_t t) { norm_row(x + t * width, weight, bias, width, eps, out + t * width); });
}

void add_normed_phase(Member &me, float *added, const float *norm, int64_t tokens, int64_t width, float eps, float *x) {
  me.share(tokens, 1, [&](int64_t t) {
    float *row = added + t * width;
    rms_norm_row(row, norm, width, eps, row);
    for (int64_t i = 0; i < width; i++) x[t * width + i] += row[i];
  });
}

// x [tokens, rows] += y W^T + bias, with y given to `Input::reserve`. With a norm, the product is normalized before it
// is added. If ranks share a model, only one adds the residual; with a norm, no rank changes x, and each writes its
// result to `step.partial`.
void add_linear(Member &me, const Matrix &w, Input &input, const float *bias, const float *norm, float eps,
                const Step &step, float *x, const Lora &lora) {
  if (!norm) return linear_into(me, w, input, bias, step.adds_residual ? x : nullptr, x, lora);
  float *added = step.partial ? step.partial : workspace.added.data();
  linear_into(me, w, input, bias, nullptr, added, lora);
  if (!step.partial) add_normed_phase(me, added, norm, input.tokens, w.rows, eps, x);
}

}  // namespace
}  // namespace KERNEL_ISA
