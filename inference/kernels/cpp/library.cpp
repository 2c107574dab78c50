// The library's face: keeps the threads, and gives the kernels to MindSpore's graphs and,
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
#include "group.h"

class AotExtra;

// KERNEL_SETS names the instruction sets that are linked into this library: SET(isa_avx2).
#define SET(isa) namespace isa { extern const Kernels table; }
KERNEL_SETS
#undef SET

namespace {

#define SET(isa) &isa::table,
const Kernels *const sets[] = {KERNEL_SETS};
#undef SET
const Kernels *kernels = sets[0];

std::unique_ptr<Team> team_;
// Kernels keep their working memory from call to call, so that only one runs at a time: two models may be in use.
std::mutex one_call;
typedef std::lock_guard<std::mutex> Lock;

// To be called under the lock.
Team &team() {
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

// Reads a record of a program: int64 numbers, among them addresses.
class Record {
 public:
  explicit Record(const int64_t *next) : next_(next) {}
  int64_t number() { return *next_++; }
  float real() { return float_of(number()); }
  template <class T>
  T *at() {
    return reinterpret_cast<T *>(number());
  }
  Matrix matrix(int64_t rows, int64_t columns) {
    const Format format = Format(number());
    return {at<const uint8_t>(), format, rows, columns};
  }
  LoraTable lora() { return LoraTable::at(at<const int64_t>()); }
  LoraTables part_lora() { return {at<const int64_t *const>()}; }

 private:
  const int64_t *next_;
};

// What inference/kernels/native.py writes, field by field.
AttentionLayer attention_layer(Record record) {
  AttentionLayer layer{};
  layer.hidden = record.number(), layer.heads = record.number(), layer.kv_heads = record.number();
  layer.head_size = record.number(), layer.block_size = record.number(), layer.window = record.number();
  layer.half_cache = record.number() != 0, layer.eps = record.real();
  layer.norm = record.at<const float>(), layer.rotation = record.at<const float>();
  const int64_t query = layer.heads * layer.head_size, kv = layer.kv_heads * layer.head_size;
  layer.qkv = record.matrix(query + 2 * kv, layer.hidden), layer.qkv_bias = record.at<const float>();
  layer.query_norm = record.at<const float>(), layer.key_norm = record.at<const float>();
  layer.output = record.matrix(layer.hidden, query), layer.output_bias = record.at<const float>();
  layer.keys = record.at<void>(), layer.values = record.at<void>();
  layer.scale = record.real(), layer.softcap = record.real(), layer.slopes = record.at<const float>();
  layer.norm_bias = record.at<const float>(), layer.post_norm = record.at<const float>();
  layer.scope = Scope(record.number()), layer.reach = record.number(), layer.distances = record.at<const float>();
  layer.qkv_lora = record.lora(), layer.output_lora = record.lora();
  layer.qkv.rows = layer.columns();
  return layer;
}

LatentLayer latent_layer(Record record) {
  LatentLayer layer{};
  layer.hidden = record.number(), layer.heads = record.number(), layer.query_rank = record.number();
  layer.rank = record.number(), layer.nope = record.number(), layer.rope = record.number();
  layer.value = record.number(), layer.block_size = record.number(), layer.half_cache = record.number() != 0;
  layer.eps = record.real(), layer.latent_eps = record.real(), layer.scale = record.real();
  layer.norm = record.at<const float>(), layer.rotation = record.at<const float>();
  const int64_t query = layer.query_rank ? layer.query_rank : layer.query();
  layer.down = record.matrix(query + layer.width(), layer.hidden), layer.down_bias = record.at<const float>();
  layer.query_norm = record.at<const float>(), layer.latent_norm = record.at<const float>();
  layer.query_up = record.matrix(layer.query(), layer.query_rank);
  layer.key_up = record.matrix(layer.heads * panels_of(layer.rank) * PANEL, layer.nope);
  layer.value_up = record.matrix(layer.heads * panels_of(layer.value) * PANEL, layer.rank);
  layer.output = record.matrix(layer.hidden, layer.heads * layer.value), layer.output_bias = record.at<const float>();
  layer.cache = record.at<void>();
  layer.down_lora = record.lora(), layer.query_up_lora = record.lora();
  layer.key_up_lora = record.part_lora(), layer.value_up_lora = record.part_lora();
  layer.output_lora = record.lora();
  return layer;
}

FeedForwardLayer feed_forward_layer(Record record) {
  FeedForwardLayer layer{};
  layer.hidden = record.number(), layer.width = record.number(), layer.eps = record.real();
  layer.activation = Activation(record.number()), layer.gated = record.number() != 0;
  layer.norm = record.at<const float>(), layer.norm_bias = record.at<const float>();
  layer.gate_up = record.matrix((layer.gated ? 2 : 1) * layer.width, layer.hidden);
  layer.gate_up_bias = record.at<const float>();
  layer.down = record.matrix(layer.hidden, layer.width), layer.down_bias = record.at<const float>();
  layer.post_norm = record.at<const float>();
  layer.gate_up_lora = record.lora(), layer.down_lora = record.lora();
  return layer;
}

ExpertsLayer experts_layer(Record record) {
  ExpertsLayer layer{};
  layer.hidden = record.number(), layer.width = record.number(), layer.shared_width = record.number();
  layer.shared_gate = record.number() != 0, layer.eps = record.real(), layer.norm = record.at<const float>();
  Routing &routing = layer.routing;
  routing.experts = record.number(), routing.chosen = record.number(), routing.groups = record.number();
  routing.chosen_groups = record.number(), routing.group_best = record.number();
  routing.sigmoid = record.number() != 0, routing.normalize = record.number() != 0;
  routing.scale = record.real(), routing.correction = record.at<const float>();
  const auto room = [](int64_t rows) { return panels_of(rows) * PANEL; };
  layer.router = record.matrix(routing.experts + layer.shared_gate, layer.hidden);
  layer.gate_up = record.matrix(routing.experts * 2 * room(layer.width), layer.hidden);
  layer.down = record.matrix(routing.experts * room(layer.hidden), layer.width);
  layer.shared_gate_up = record.matrix(2 * room(layer.shared_width), layer.hidden);
  layer.shared_down = record.matrix(layer.hidden, layer.shared_width);
  layer.router_lora = record.lora();
  layer.gate_up_lora = record.part_lora(), layer.down_lora = record.part_lora();
  layer.shared_gate_up_lora = record.lora(), layer.shared_down_lora = record.lora();
  return layer;
}

constexpr int64_t RECORD = 40;  // numbers a record

// Numbers of adapters [tokens]; null where no token has one.
const int32_t *if_any(const int32_t *adapters, int64_t tokens) {
  const auto is_one = [](int32_t adapter) { return adapter != 0; };
  return std::any_of(adapters, adapters + tokens, is_one) ? adapters : nullptr;
}

// Of the first five inputs of an operator on sublayers.
Step step_of(void **p, int64_t **shapes) {
  Step step{};
  step.tokens = shapes[0][0], step.sequences = shapes[4][0] - 1, step.table_width = shapes[3][1];
  step.positions = as<const int32_t>(p[1]), step.slots = as<const int32_t>(p[2]);
  step.block_tables = as<const int32_t>(p[3]), step.query_starts = as<const int32_t>(p[4]);
  return step;
}

// Of the first seven inputs of an operator on sublayers that attend to sources.
Step cross_step_of(void **p, int64_t **shapes) {
  Step step = step_of(p, shapes);
  step.cross_width = shapes[5][1];
  step.cross_tables = as<const int32_t>(p[5]), step.cross_lengths = as<const int32_t>(p[6]);
  return step;
}

// Runs the sublayers of a program, one record each, on x [T, hidden] in place. A record begins with its kind: 0 for an
// attention sublayer, 1 for feed-forward, 2 for experts, 3 for latent attention; 4 for the group whose ranks
// have a part of each of the sublayers that follow, and whether this rank is the one that adds the residual. Ranks add up
// after each sublayer that adds something; where what it gives is normed, before the norm. 0, or -1 where another rank is
// gone.
int32_t run_sublayers(const int64_t *program, int64_t numbers, Step step, float *x) {
  const Lock lock(one_call);
  Group *group = nullptr;
  std::vector<float> partial;
  step.adds_residual = true;
  const float *norm = nullptr;
  float eps = 0;
  const auto run = [&](const auto &sublayer, const auto &layer) {
    norm = layer.post_norm, eps = layer.eps;
    if (group && norm) partial.resize(step.tokens * layer.hidden), step.partial = partial.data();
    sublayer(team(), layer, step, x);
  };
  for (const int64_t *at = program; at < program + numbers; at += RECORD) {
    Record record(at);
    const int64_t kind = record.number(), hidden = Record(record).number();
    norm = nullptr;
    switch (kind) {
      case 0: {
        const AttentionLayer layer = attention_layer(record);
        run(kernels->attention_sublayer, layer);
        if (layer.scope == STORE) continue;
        break;
      }
      case 1: run(kernels->feed_forward_sublayer, feed_forward_layer(record)); break;
      case 2: kernels->experts_sublayer(team(), experts_layer(record), step, x); break;
      case 3: kernels->latent_sublayer(team(), latent_layer(record), step, x); break;
      case 4: group = record.at<Group>(), step.adds_residual = record.number() != 0; continue;
    }
    if (!group) continue;
    if (!group->sum(norm ? partial.data() : x, step.tokens * hidden)) return -1;
    if (norm) kernels->add_normed(team(), partial.data(), norm, step.tokens, hidden, eps, x);
  }
  return 0;
}

// What `output_head` does; `adapters` [T], or null.
int run_head(void **p, int64_t **shapes, const int32_t *adapters, float *out) {
  Record record(as<const int64_t>(p[3]));
  Head layer{};
  layer.hidden = record.number(), layer.eps = record.real(), layer.softcap = record.real();
  layer.norm = record.at<const float>(), layer.norm_bias = record.at<const float>();
  layer.weight = record.matrix(shapes[4][0], layer.hidden), layer.lora = record.lora();
  const int32_t *wanted = as<const int32_t>(p[1]);
  const int64_t tokens = shapes[1][0];
  std::vector<float> rows(tokens * layer.hidden);
  std::vector<int32_t> own(adapters ? tokens : 0);
  for (int64_t t = 0; t < tokens; t++) {
    std::memcpy(rows.data() + t * layer.hidden, as<const float>(p[0]) + wanted[t] * layer.hidden, layer.hidden * 4);
    if (adapters) own[t] = adapters[wanted[t]];
  }
  const Choice choice{as<const int32_t>(p[2]) + 1, shapes[2][0] - 1, out, out + tokens, out + 2 * tokens};
  const Lock lock(one_call);
  kernels->head(team(), layer, rows.data(), tokens, adapters ? if_any(own.data(), tokens) : nullptr, choice);
  return 0;
}

}  // namespace

extern "C" {

const char *kernels_name() { return kernels->name; }

// Chooses among the instruction sets of this library: 0, or -1 if it does not have this one.
int kernels_use(const char *name) {
  for (const Kernels *set : sets)
    if (!std::strcmp(set->name, name)) return kernels = set, 0;
  return -1;
}

void kernels_set_threads(int threads) {
  const Lock lock(one_call);
  if (!team_ || team_->size() != threads) team_ = std::make_unique<Team>(threads);
}

// Writes x [rows, columns], float32 or (is_packed) of the format's own 16-bit elements, into the panels of a matrix as
// its rows from `first` on.
void kernels_pack(int32_t format, const uint8_t *x, int32_t is_packed, int64_t rows, int64_t columns, int64_t first,
                  uint8_t *panels) {
  const Lock lock(one_call);
  const int64_t last = first + rows, before = first / PANEL, row_bytes = columns * (is_packed ? 2 : 4);
  team().run([&](Member &me) {
    me.share(panels_of(last) - before, 1, [&](int64_t i) {
      const int64_t panel = before + i;
      const int64_t begin = std::max(first, panel * PANEL), end = std::min(last, (panel + 1) * PANEL);
      kernels->pack(Format(format), x + (begin - first) * row_bytes, is_packed != 0, end - begin, columns, begin % PANEL,
                    panels + panel * panel_bytes(Format(format), columns));
    });
  });
}

// Reads `bytes` once with all threads; the return value keeps the compiler from leaving it out.
uint64_t kernels_read(const uint64_t *data, int64_t bytes) {
  const Lock lock(one_call);
  constexpr int64_t GRAIN = 1 << 17, LANES = 8;  // words
  const int64_t words = bytes / 8 / LANES * LANES;
  std::atomic<uint64_t> total{0};
  team().run([&](Member &me) {
    uint64_t sums[LANES] = {};
    me.share((words + GRAIN - 1) / GRAIN, 1, [&](int64_t piece) {
      for (int64_t i = piece * GRAIN; i < std::min(words, (piece + 1) * GRAIN); i += LANES)
        for (int64_t lane = 0; lane < LANES; lane++) sums[lane] += data[i + lane];
    });
    for (uint64_t sum : sums) total += sum;
  });
  return total;
}

void kernels_linear(int32_t format, const uint8_t *weight, int64_t rows, int64_t columns, const float *x, int64_t tokens,
                    const float *bias, const float *residual, float *out) {
  const Lock lock(one_call);
  kernels->linear(team(), {weight, Format(format), rows, columns}, x, tokens, bias, residual, out);
}

void kernels_rms_norm(const float *x, const float *weight, int64_t tokens, int64_t width, float eps, float *out) {
  kernels->rms_norm(x, weight, tokens, width, eps, out);
}

// A group of ranks, to be named in the records of those that share a model. It lives as long as the process.
Group *kernels_group(int32_t rank, int32_t size, void *memory, const int32_t *connections, int32_t count) {
  return new Group(rank, size, memory, {connections, connections + count});
}

int64_t kernels_group_bytes(int32_t size) { return Group::bytes_of(size); }

int32_t kernels_group_sum(Group *group, float *x, int64_t count) { return group->sum(x, count) ? 0 : -1; }

// How many sums there have been, and the nanoseconds that they took, waiting included.
void kernels_group_figures(const Group *group, int64_t *figures) {
  figures[0] = group->sums(), figures[1] = group->nanoseconds();
}

// Runs the sublayers of a program of a model without an encoder; 0, or -1 where another rank is gone.
int32_t kernels_sublayers(const int64_t *program, int64_t numbers, int64_t tokens, int64_t sequences, int64_t table_width,
                    const int32_t *positions, const int32_t *slots, const int32_t *block_tables,
                    const int32_t *query_starts, float *x) {
  Step step{};
  step.tokens = tokens, step.sequences = sequences, step.table_width = table_width;
  step.positions = positions, step.slots = slots, step.block_tables = block_tables, step.query_starts = query_starts;
  return run_sublayers(program, numbers, step, x);
}

// Inputs: 0 x [T, hidden], 1 positions, 2 slots, 3 block tables, 4 query starts, 5 program; output 6: x after all sublayers.
int sublayers(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 7) return 1;
  std::memcpy(p[6], p[0], shapes[0][0] * shapes[0][1] * 4);
  return run_sublayers(as<const int64_t>(p[5]), shapes[5][0], step_of(p, shapes), as<float>(p[6]));
}

// Inputs: those of `sublayers` up to 4, 5 cross tables, 6 cross lengths, 7 program; output 8.
int cross_sublayers(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 9) return 1;
  std::memcpy(p[8], p[0], shapes[0][0] * shapes[0][1] * 4);
  const Step step = cross_step_of(p, shapes);
  return run_sublayers(as<const int64_t>(p[7]), shapes[7][0], step, as<float>(p[8]));
}

// Inputs: those of `sublayers` up to 4, 5 adapters, 6 program; output 7.
int adapted_sublayers(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 8) return 1;
  std::memcpy(p[7], p[0], shapes[0][0] * shapes[0][1] * 4);
  Step step = step_of(p, shapes);
  step.adapters = if_any(as<const int32_t>(p[5]), step.tokens);
  return run_sublayers(as<const int64_t>(p[6]), shapes[6][0], step, as<float>(p[7]));
}

// Inputs: those of `cross_sublayers` up to 6, 7 adapters, 8 program; output 9.
int adapted_cross_sublayers(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 10) return 1;
  std::memcpy(p[9], p[0], shapes[0][0] * shapes[0][1] * 4);
  Step step = cross_step_of(p, shapes);
  step.adapters = if_any(as<const int32_t>(p[7]), step.tokens);
  return run_sublayers(as<const int64_t>(p[8]), shapes[8][0], step, as<float>(p[9]));
}

// Inputs: 0 x, 1 tokens wanted [R], 2 of these those whose logits are wanted, after a number that is not read [1 + S],
// 3 record: hidden, eps, soft cap, norm, its bias, weight, lora, 4 as many bytes as there are tokens in the
// vocabulary, not read; output 5: best tokens [R], their logits [R], then logits [S, vocabulary].
int output_head(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  return n == 6 ? run_head(p, shapes, nullptr, as<float>(p[5])) : 1;
}

// The same; 5 adapters [T], output 6.
int adapted_output_head(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  return n == 7 ? run_head(p, shapes, as<const int32_t>(p[5]), as<float>(p[6])) : 1;
}

// Inputs: 0 tokens, 1 record: weight, the first token and how many there are, the group whose ranks have the others or 0,
// then as many numbers as make its length that of a row; output 2.
int embedding(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 3) return 1;
  const int64_t columns = shapes[1][0], count = shapes[0][0];
  Record record(as<const int64_t>(p[1]));
  // How many rows there are is the caller's to check, where there is no group.
  const Matrix weight = record.matrix(0, columns);
  const int64_t first = record.number(), rows = record.number();
  Group *group = record.at<Group>();
  float *out = as<float>(p[2]);
  for (int64_t t = 0; t < count; t++) {
    const int64_t row = as<const int32_t>(p[0])[t] - first;
    if (group && (row < 0 || row >= rows)) std::fill_n(out + t * columns, columns, 0.0f);
    else kernels->unpack(weight, row, out + t * columns);
  }
  return group && !group->sum(out, count * columns) ? -1 : 0;
}

std::vector<int64_t> embeddingInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  return {shapes[0][0], shapes[1][0]};
}

std::vector<int64_t> sublayersInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  return {shapes[0][0], shapes[0][1]};
}

std::vector<int64_t> cross_sublayersInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  return {shapes[0][0], shapes[0][1]};
}

std::vector<int64_t> adapted_sublayersInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  return {shapes[0][0], shapes[0][1]};
}

std::vector<int64_t> adapted_cross_sublayersInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  return {shapes[0][0], shapes[0][1]};
}

std::vector<int64_t> output_headInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  // Dimensions that are not known yet are negative.
  if (shapes[1][0] < 0 || shapes[2][0] < 0) return {-1};
  return {2 * shapes[1][0] + (shapes[2][0] - 1) * shapes[4][0]};
}

std::vector<int64_t> adapted_output_headInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  return output_headInferShape(ranks, shapes, extra);
}

}  // extern "C"
