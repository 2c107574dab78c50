// The library's face: picks the instruction set, keeps the threads, and gives the kernels to MindSpore's graphs and,
// through plain C functions, to Python.
//
// MindSpore calls a custom operator as `int f(int n, void **tensors, int *ranks, int64_t **shapes, const char **types,
// void *stream, void *extra)`, inputs first, then outputs, and asks `fInferShape` for the output's shape
// (ops.Custom, function type "aot").
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "blocks.h"

class AotExtra;

#define DECLARE(isa) namespace isa { extern const Kernels table; }
DECLARE(isa_plain)
#ifdef WITH_AVX2
DECLARE(isa_avx2)
#endif
#ifdef WITH_AVX512
DECLARE(isa_avx512)
#endif
#ifdef WITH_AVX512_VNNI
DECLARE(isa_avx512_vnni)
#endif

namespace {

const Kernels *by_name(const char *name) {
  const Kernels *known[] = {&isa_plain::table,
#ifdef WITH_AVX2
                            &isa_avx2::table,
#endif
#ifdef WITH_AVX512
                            &isa_avx512::table,
#endif
#ifdef WITH_AVX512_VNNI
                            &isa_avx512_vnni::table,
#endif
  };
  for (const Kernels *kernels : known)
    if (!std::strcmp(kernels->name, name)) return kernels;
  return nullptr;
}

const Kernels *best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#ifdef WITH_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
#ifdef WITH_AVX512_VNNI
    if (__builtin_cpu_supports("avx512vnni")) return &isa_avx512_vnni::table;
#endif
    return &isa_avx512::table;
  }
#endif
#ifdef WITH_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return &isa_avx2::table;
#endif
#endif
  return &isa_plain::table;
}

const Kernels *kernels = best();
std::unique_ptr<Team> team_;
std::mutex team_lock;

Team &team() {
  std::lock_guard<std::mutex> lock(team_lock);
  if (!team_) team_ = std::make_unique<Team>(int(std::thread::hardware_concurrency()));
  return *team_;
}

template <class T>
T *as(void *pointer) {
  return static_cast<T *>(pointer);
}

float float_of(int64_t bits) {
  const uint32_t low = uint32_t(bits);
  float value;
  std::memcpy(&value, &low, 4);
  return value;
}

Matrix matrix(void *data, int64_t format, int64_t rows, int64_t columns) {
  return {as<const uint8_t>(data), Format(format), rows, columns};
}

int64_t elements(int rank, const int64_t *shape) {
  int64_t count = 1;
  for (int i = 0; i < rank; i++) count *= shape[i];
  return count;
}

}  // namespace

extern "C" {

const char *kernels_name() { return kernels->name; }

// 0 if the instruction set is there, -1 if this build or this processor does not have it.
int kernels_use(const char *name) {
  const Kernels *chosen = std::strcmp(name, "best") ? by_name(name) : best();
  if (!chosen) return -1;
  kernels = chosen;
  return 0;
}

void kernels_set_threads(int threads) {
  std::lock_guard<std::mutex> lock(team_lock);
  if (!team_ || team_->size() != threads) team_ = std::make_unique<Team>(threads);
}

// Writes x [rows, columns], float32 or (is_packed) of the format's own 16-bit elements, into the panels of a matrix as
// its rows from `first` on.
void kernels_pack(int32_t format, const uint8_t *x, int32_t is_packed, int64_t rows, int64_t columns, int64_t first,
                  uint8_t *panels) {
  const int64_t last = first + rows, before = first / PANEL, row_bytes = columns * (is_packed ? 2 : 4);
  team().run([&](Team &t, int) {
    for (int64_t panel; (panel = before + t.next()) < panels_of(last);) {
      const int64_t begin = std::max(first, panel * PANEL), end = std::min(last, (panel + 1) * PANEL);
      uint8_t *out = panels + panel * panel_bytes(Format(format), columns);
      for (int64_t row = begin; row < end; row++)
        kernels->pack_row(Format(format), x + (row - first) * row_bytes, is_packed != 0, columns, row % PANEL, out);
    }
  });
}

// Reads `bytes` once with all threads; the return value keeps the compiler from leaving it out.
uint64_t kernels_read(const uint64_t *data, int64_t bytes) {
  constexpr int64_t GRAIN = 1 << 17;  // words
  const int64_t words = bytes / 8;
  std::atomic<uint64_t> total{0};
  team().run([&](Team &t, int) {
    uint64_t sums[8] = {};
    for (int64_t begin; (begin = int64_t(t.next()) * GRAIN) < words;) {
      const int64_t end = std::min(words, begin + GRAIN) / 8 * 8;
      for (int64_t i = begin; i < end; i += 8)
        for (int lane = 0; lane < 8; lane++) sums[lane] += data[i + lane];
    }
    for (uint64_t sum : sums) total += sum;
  });
  return total;
}

void kernels_linear(int32_t format, const uint8_t *weight, int64_t rows, int64_t columns, const float *x, int64_t tokens,
                    const float *bias, const float *residual, float *out) {
  kernels->linear(team(), {weight, Format(format), rows, columns}, x, tokens, bias, residual, out);
}

void kernels_rms_norm(const float *x, const float *weight, int64_t tokens, int64_t width, float eps, float *out) {
  kernels->rms_norm(x, weight, tokens, width, eps, out);
}

// Inputs: 0 x, 1 positions, 2 slots, 3 block tables, 4 query starts, 5 frequencies, 6 norm, 7 qkv, 8 qkv bias,
// 9 query norm, 10 key norm, 11 output, 12 output bias, 13 keys, 14 values, 15 layout; output 16.
// Layout, int64: hidden, heads, kv heads, head size, block size, window, half cache, bits of eps, format of qkv, format
// of output, whether there is a qkv bias, an output bias, a query and key norm.
static AttentionLayer attention_layer(void **p, const int64_t *layout) {
  AttentionLayer layer{};
  layer.hidden = layout[0], layer.heads = layout[1], layer.kv_heads = layout[2], layer.head_size = layout[3];
  layer.block_size = layout[4], layer.window = layout[5], layer.half_cache = layout[6] != 0;
  layer.eps = float_of(layout[7]);
  layer.norm = as<const float>(p[6]);
  const int64_t query = layer.heads * layer.head_size, kv = layer.kv_heads * layer.head_size;
  layer.qkv = matrix(p[7], layout[8], query + 2 * kv, layer.hidden);
  layer.qkv_bias = layout[10] ? as<const float>(p[8]) : nullptr;
  layer.query_norm = layout[12] ? as<const float>(p[9]) : nullptr;
  layer.key_norm = layout[12] ? as<const float>(p[10]) : nullptr;
  layer.output = matrix(p[11], layout[9], layer.hidden, query);
  layer.output_bias = layout[11] ? as<const float>(p[12]) : nullptr;
  layer.keys = p[13], layer.values = p[14];
  return layer;
}

static Step step_of(void **p, int64_t **shapes) {
  Step step{};
  step.tokens = shapes[1][0];
  step.sequences = shapes[4][0] - 1;
  step.table_width = shapes[3][1];
  step.positions = as<const int32_t>(p[1]);
  step.slots = as<const int32_t>(p[2]);
  step.block_tables = as<const int32_t>(p[3]);
  step.query_starts = as<const int32_t>(p[4]);
  step.frequencies = as<const float>(p[5]);
  return step;
}

int attention_half(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 17) return 1;
  const AttentionLayer layer = attention_layer(p, as<const int64_t>(p[15]));
  kernels->attention_half(team(), layer, step_of(p, shapes), as<const float>(p[0]), as<float>(p[16]));
  return 0;
}

// The attention itself, without products and norm: x is qkv [T, (H + 2K) * D], out is [T, H * D].
int attention_only(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 17) return 1;
  const AttentionLayer layer = attention_layer(p, as<const int64_t>(p[15]));
  kernels->attention(team(), layer, step_of(p, shapes), as<const float>(p[0]), as<float>(p[16]));
  return 0;
}

// Inputs: 0 x, 1 norm, 2 gate and up, 3 their bias, 4 down, 5 its bias, 6 layout; output 7.
// Layout, int64: hidden, width, bits of eps, format of gate and up, format of down, whether there are biases.
int feed_forward_half(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 8) return 1;
  const int64_t *layout = as<const int64_t>(p[6]);
  FeedForwardLayer layer{};
  layer.hidden = layout[0], layer.width = layout[1], layer.eps = float_of(layout[2]);
  layer.norm = as<const float>(p[1]);
  layer.gate_up = matrix(p[2], layout[3], 2 * layer.width, layer.hidden);
  layer.gate_up_bias = layout[5] ? as<const float>(p[3]) : nullptr;
  layer.down = matrix(p[4], layout[4], layer.hidden, layer.width);
  layer.down_bias = layout[5] ? as<const float>(p[5]) : nullptr;
  const int64_t tokens = elements(ranks[0], shapes[0]) / layer.hidden;
  kernels->feed_forward_half(team(), layer, tokens, as<const float>(p[0]), as<float>(p[7]));
  return 0;
}

// Inputs: 0 x, 1 norm, 2 weight, 3 tokens wanted [R], 4 of these those whose logits are wanted, after a number that is not
// read [1 + S], 5 layout, 6 as many bytes as there are tokens in the vocabulary, not read; output 7: best tokens [R], then
// logits [S, vocabulary].
// Layout, int64: hidden, bits of eps, format.
int output_head(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 8) return 1;
  const int64_t *layout = as<const int64_t>(p[5]), vocabulary = shapes[6][0];
  const Head layer{layout[0], float_of(layout[1]), as<const float>(p[1]),
                   matrix(p[2], layout[2], vocabulary, layout[0])};
  const int32_t *wanted = as<const int32_t>(p[3]);
  const int64_t tokens = shapes[3][0];
  std::vector<float> rows(tokens * layer.hidden);
  for (int64_t t = 0; t < tokens; t++)
    std::memcpy(rows.data() + t * layer.hidden, as<const float>(p[0]) + wanted[t] * layer.hidden, layer.hidden * 4);
  float *out = as<float>(p[7]);
  kernels->head(team(), layer, rows.data(), tokens,
                {as<const int32_t>(p[4]) + 1, shapes[4][0] - 1, out, out + tokens});
  return 0;
}

// Inputs: 0 tokens, 1 weight, 2 layout (int64: format, then as many entries as there are columns); output 3.
int embedding(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 4) return 1;
  const int64_t columns = shapes[2][0], count = shapes[0][0];
  const Matrix weight = matrix(p[1], *as<const int64_t>(p[2]), shapes[1][0] * PANEL, columns);
  for (int64_t t = 0; t < count; t++)
    kernels->unpack(weight, as<const int32_t>(p[0])[t], as<float>(p[3]) + t * columns);
  return 0;
}

std::vector<int64_t> embeddingInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  return {shapes[0][0], shapes[2][0]};
}

std::vector<int64_t> attention_halfInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  return {shapes[0][0], shapes[0][1]};
}

std::vector<int64_t> feed_forward_halfInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  return {shapes[0][0], shapes[0][1]};
}

std::vector<int64_t> output_headInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  // Dimensions that are not known yet are negative.
  if (shapes[3][0] < 0 || shapes[4][0] < 0) return {-1};
  return {shapes[3][0] + (shapes[4][0] - 1) * shapes[6][0]};
}

}  // extern "C"
