// LoRA adapters' addition to a product: up (down x), with the matrices of each token's own adapter.
#pragma once

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "input.h"
#include "simd.h"

namespace KERNEL_ISA {
namespace {

// Sums in a fixed order, so that a token's result does not depend on its neighbors.
float dot(const float *a, const float *b, int64_t count) {
  VecF sums[2] = {zero(), zero()};
  int64_t i = 0;
  for (; i + 2 * LANES <= count; i += 2 * LANES)
    for (int part = 0; part < 2; part++) sums[part] += load(a + i + part * LANES) * load(b + i + part * LANES);
  float sum = sum_lanes(sums[0] + sums[1]);
  for (; i < count; i++) sum = multiply_add(a[i], b[i], sum);
  return sum;
}

// The additions of the tokens' adapters to a product; nothing if no token has an adapter.
class Lora {
 public:
  // Allocates memory; call it before threads share the work. `adapters` are those of the step's tokens, or null; `rows`
  // lists the input's tokens among these, unless it has all of them in order.
  void reserve(const LoraTable &lora, const int32_t *adapters, const Input &input, const int32_t *rows = nullptr) {
    table_ = lora, adapters_ = lora.list ? adapters : nullptr, rows_ = rows, tokens_ = input.tokens;
    if (adapters_ && int64_t(low_.size()) < tokens_ * lora.width) low_.resize(tokens_ * lora.width);
  }

  // Number of pieces of work for `project_down`, which any thread may call in any order, before the product.
  int64_t pieces() const { return adapters_ ? tokens_ * blocks() : 0; }

  // Computes a piece of the down projection of a token's adapter.
  void project_down(int64_t piece, const Input &input) {
    const int64_t token = piece / blocks(), begin = piece % blocks() * BLOCK, columns = input.columns;
    each(token, [&](const LoraEntry &part) {
      const int64_t first = std::max(begin, part.offset), last = std::min(begin + BLOCK, part.offset + part.rank);
      for (int64_t at = first; at < last; at++)
        low_[token * table_.width + at] = dot(part.down + (at - part.offset) * columns, input.row(token), columns);
    });
  }

  // Adds the up projection to y, the panel of a token's product that begins at `row`.
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
  static constexpr int64_t BLOCK = 8;  // values per piece

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
