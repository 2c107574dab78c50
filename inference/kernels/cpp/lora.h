// What LoRA adapters add to a product: up (down x), for each token the matrices of its own adapter.
#pragma once

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "input.h"
#include "simd.h"

namespace KERNEL_ISA {
namespace {

// In one order, whoever calls it: a token's result does not depend on its neighbors.
float dot(const float *a, const float *b, int64_t count) {
  VecF sums[2] = {zero(), zero()};
  int64_t i = 0;
  for (; i + 2 * LANES <= count; i += 2 * LANES)
    for (int part = 0; part < 2; part++) sums[part] += load(a + i + part * LANES) * load(b + i + part * LANES);
  float sum = sum_lanes(sums[0] + sums[1]);
  for (; i < count; i++) sum = multiply_add(a[i], b[i], sum);
  return sum;
}

// What the adapters of its tokens add to a product; nothing where no token has one.
class Lora {
 public:
  // Makes room; to be called before threads share the work. `adapters` are those of the step's tokens, or null; `rows`
  // says which of these the input's tokens are, where it has not all of them in their order.
  void reserve(const LoraTable &lora, const int32_t *adapters, const Input &input, const int32_t *rows = nullptr) {
    table_ = lora, adapters_ = lora.list ? adapters : nullptr, rows_ = rows, tokens_ = input.tokens;
    if (adapters_ && int64_t(low_.size()) < tokens_ * lora.width) low_.resize(tokens_ * lora.width);
  }

  // Pieces of work that `project_down` can be asked for, in any order, by any thread, before the product.
  int64_t pieces() const { return adapters_ ? tokens_ * blocks() : 0; }

  // Of some of a token's input what its adapter makes of it.
  void project_down(int64_t piece, const Input &input) {
    const int64_t token = piece / blocks(), begin = piece % blocks() * BLOCK, columns = input.columns;
    each(token, [&](const LoraEntry &part) {
      const int64_t first = std::max(begin, part.offset), last = std::min(begin + BLOCK, part.offset + part.rank);
      for (int64_t at = first; at < last; at++)
        low_[token * table_.width + at] = dot(part.down + (at - part.offset) * columns, input.row(token), columns);
    });
  }

  // Adds to y, the panel of a token's product that begins at `row`.
  void add(int64_t token, int64_t row, float *y) const {
    if (!adapters_) return;
    each(token, [&](const LoraEntry &part) {
      const int64_t panel = row / PANEL - part.first_panel;
      if (panel < 0 || panel >= part.panels) return;
      const float *low = low_.data() + token * table_.width + part.offset;
      const float *up = part.up + panel * part.rank * PANEL;
      for (int64_t lane = 0; lane < PANEL; lane += LANES) {
        VecF sum = zero();
        for (int64_t k = 0; k < part.rank; k++) sum += load(up + k * PANEL + lane) * low[k];
        store(y + lane, load(y + lane) + sum);
      }
    });
  }

 private:
  static constexpr int64_t BLOCK = 8;  // numbers that a piece makes

  int64_t blocks() const { return (table_.width + BLOCK - 1) / BLOCK; }

  template <class Work>
  void each(int64_t token, const Work &work) const {
    const int64_t adapter = adapters_[rows_ ? rows_[token] : token];
    if (!adapter || adapter > table_.adapters) return;
    for (int64_t i = table_.starts[adapter - 1]; i < table_.starts[adapter]; i++) work(table_.list[i]);
  }

  LoraTable table_{};
  const int32_t *adapters_ = nullptr, *rows_ = nullptr;
  int64_t tokens_ = 0;
  std::vector<float> low_;  // [tokens, width]
};
const Lora no_lora;

}  // namespace
}  // namespace KERNEL_ISA
