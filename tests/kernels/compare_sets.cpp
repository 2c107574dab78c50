// Runs products and whole layers with every instruction set of a machine and compares them with `plain`; for machines
// that Python does not run on here (tests/kernels/test_arm.py). Prints a line for each set; exit code 1 if one differs.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "records.h"

extern "C" {
int kernels_use(const char *name);
int kernels_set_threads(int threads);
void kernels_pack(int32_t format, const uint8_t *x, int32_t is_packed, int64_t rows, int64_t columns, int64_t first,
                  uint8_t *panels);
void kernels_linear(int32_t format, const uint8_t *weight, int64_t rows, int64_t columns, const float *x, int64_t tokens,
                    const float *bias, const float *residual, float *out);
int32_t kernels_sublayers(const int64_t *program, int64_t numbers, int64_t tokens, int64_t sequences, int64_t table_width,
                    const int32_t *positions, const int32_t *slots, const int32_t *block_tables,
                    const int32_t *query_starts, float *x);
}

namespace {

std::mt19937 generator(7);

std::vector<float> random(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float &value : values) value = normal(generator);
  return values;
}

std::vector<uint8_t> packed(int32_t format, int64_t rows, int64_t columns) {
  const std::vector<float> values = random(rows * columns);
  std::vector<uint8_t> panels(panels_of(rows) * panel_bytes(Format(format), columns));
  kernels_pack(format, reinterpret_cast<const uint8_t *>(values.data()), 0, rows, columns, 0, panels.data());
  return panels;
}

// Largest difference, as a part of the largest value.
double difference(const std::vector<float> &a, const std::vector<float> &b) {
  double largest = 0, worst = 0;
  for (size_t i = 0; i < a.size(); i++) {
    largest = std::max(largest, std::fabs(double(b[i])));
    worst = std::isfinite(a[i]) ? std::max(worst, std::fabs(double(a[i]) - b[i])) : INFINITY;
  }
  return worst / largest;
}

double compare_products(const char *set) {
  double worst = 0;
  for (int32_t format = FLOAT32; format <= LAST_FORMAT; format++)
    for (int64_t tokens : {1, 2, 3, 5, 8, 17})
      for (int64_t columns : {7, 64, 200}) {
        const int64_t rows = 37;
        kernels_use("plain");
        const std::vector<uint8_t> weight = packed(format, rows, columns);
        const std::vector<float> x = random(tokens * columns), bias = random(rows);
        std::vector<float> expected(tokens * rows), got(tokens * rows);
        kernels_linear(format, weight.data(), rows, columns, x.data(), tokens, bias.data(), nullptr, expected.data());
        kernels_use(set);
        kernels_linear(format, weight.data(), rows, columns, x.data(), tokens, bias.data(), nullptr, got.data());
        worst = std::max(worst, difference(got, expected));
      }
  return worst;
}

// Two layers on two sequences of 20 and 3 tokens, the second with every option.
double compare_layers(const char *set, CacheType cache_type) {
  constexpr int64_t hidden = 48, heads = 6, kv_heads = 2, size = 10, block = 16, width = 50, tokens = 23;
  kernels_use("plain");
  const auto qkv = packed(FLOAT32, (heads + 2 * kv_heads) * size, hidden), output = packed(FLOAT16, hidden, heads * size);
  const auto gate_up = packed(BFLOAT16, 2 * width, hidden), down = packed(FLOAT32, hidden, width);
  const auto up = packed(FLOAT32, width, hidden);
  const auto norm = random(hidden), bias = random(hidden), rotation = random(size), slopes = random(heads);
  const auto x = random(tokens * hidden);
  // An int8 block has a float more per position.
  std::vector<float> keys(8 * kv_heads * (size + 4) * block), values(keys.size());
  AttentionRecord attention{};
  attention.header = {sizeof attention, ATTENTION};
  attention.hidden = hidden, attention.heads = heads, attention.kv_heads = kv_heads, attention.head_size = size;
  attention.block_size = block, attention.window = 12, attention.cache_type = cache_type;
  attention.eps = 1e-5, attention.scale = 0.3, attention.norm = norm.data(), attention.rotation = rotation.data();
  attention.qkv = {FLOAT32, qkv.data()}, attention.output = {FLOAT16, output.data()};
  attention.keys = keys.data(), attention.values = values.data();
  AttentionRecord with_options = attention;
  with_options.window = 0, with_options.softcap = 2, with_options.slopes = slopes.data();
  with_options.norm_bias = bias.data(), with_options.post_norm = norm.data();
  FeedForwardRecord gated{};
  gated.header = {sizeof gated, FEED_FORWARD};
  gated.hidden = hidden, gated.width = width, gated.eps = 1e-5, gated.activation = SILU, gated.gated = 1;
  gated.norm = norm.data(), gated.gate_up = {BFLOAT16, gate_up.data()}, gated.down = {FLOAT32, down.data()};
  FeedForwardRecord ungated = gated;
  ungated.activation = GELU_TANH, ungated.gated = 0, ungated.norm_bias = bias.data(), ungated.post_norm = norm.data();
  ungated.gate_up = {FLOAT32, up.data()};
  std::vector<int64_t> program;
  const auto append = [&](const auto &record) {
    const int64_t *numbers = reinterpret_cast<const int64_t *>(&record);
    program.insert(program.end(), numbers, numbers + sizeof record / 8);
  };
  append(attention), append(gated), append(with_options), append(ungated);
  std::vector<int32_t> positions, slots;
  const int32_t tables[4] = {3, 5, 1, 0}, starts[3] = {0, 20, 23};
  for (int32_t t = 0; t < tokens; t++) {
    const int32_t position = t < 20 ? t : t - 20, row = t < 20 ? 0 : 1;
    positions.push_back(position);
    slots.push_back(tables[row * 2 + position / block] * block + position % block);
  }
  std::vector<float> results[2] = {x, x};
  const char *sets[2] = {"plain", set};
  for (int run = 0; run < 2; run++) {
    kernels_use(sets[run]);
    const int32_t code = kernels_sublayers(program.data(), program.size(), tokens, 2, 2, positions.data(), slots.data(),
                                           tables, starts, results[run].data());
    if (code) return INFINITY;
  }
  return difference(results[1], results[0]);
}

}  // namespace

int main(int count, char **sets) {
  bool good = count > 1;
  kernels_set_threads(2);
  for (int i = 1; i < count; i++) {
    if (kernels_use(sets[i])) return std::printf("%s is not there\n", sets[i]), 1;
    const double products = compare_products(sets[i]), layers = compare_layers(sets[i], CACHE_FLOAT32);
    const double half = compare_layers(sets[i], CACHE_FLOAT16);
    const double int8 = compare_layers(sets[i], CACHE_INT8);
    std::printf("%s: products %.1e, layers %.1e, with a float16 cache %.1e, int8 %.1e\n", sets[i], products, layers, half,
                int8);
    // An activation on the border of two int8 values may fall to either.
    good = good && products < 5e-3 && layers < 1e-4 && half < 2e-3 && int8 < 2e-2;
  }
  return good ? 0 : 1;
}
