// The library's interface: owns the threads, and exposes the kernels to MindSpore's graphs and,
// through plain C functions, to Python.
//
// MindSpore calls a custom operator as `int f(int n, void **tensors, int *ranks, int64_t **shapes, const char **types,
// void *stream, void *extra)`, inputs first, then outputs, and calls `fInferShape` for the output's shape
// (ops.Custom, function type "aot").
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "blocks.h"
#include "group.h"
#include "records.h"

class AotExtra;

// KERNEL_SETS lists the instruction sets linked into this library: SET(isa_avx2).
#define SET(isa) namespace isa { extern const Kernels table; }
KERNEL_SETS
#undef SET

namespace {

#define SET(isa) &isa::table,
const Kernels *const sets[] = {KERNEL_SETS};
#undef SET
const Kernels *kernels = sets[0];

std::unique_ptr<Team> team_;
// Kernels keep their working memory between calls, so only one may run at a time, even if two models are in use.
std::mutex one_call;
typedef std::lock_guard<std::mutex> Lock;

// Requires the lock.
Team &team() {
  if (!team_) team_ = std::make_unique<Team>(int(std::thread::hardware_concurrency()));
  return *team_;
}

template <class T>
T *as(void *pointer) {
  return static_cast<T *>(pointer);
}

AttentionLayer attention_layer(const AttentionRecord &r) {
  AttentionLayer layer{};
  layer.hidden = r.hidden, layer.heads = r.heads, layer.kv_heads = r.kv_heads, layer.head_size = r.head_size;
  layer.block_size = r.block_size, layer.window = r.window, layer.cache_type = CacheType(r.cache_type);
  layer.scope = Scope(r.scope), layer.reach = r.reach;
  layer.eps = float(r.eps), layer.scale = float(r.scale), layer.softcap = float(r.softcap);
  layer.norm = r.norm, layer.norm_bias = r.norm_bias, layer.post_norm = r.post_norm;
  layer.rotation = r.rotation, layer.slopes = r.slopes, layer.distances = r.distances;
  layer.qkv = r.qkv.of(layer.columns(), r.hidden), layer.qkv_bias = r.qkv_bias;
  layer.query_norm = r.query_norm, layer.key_norm = r.key_norm;
  layer.norms_all_heads = r.norms_all_heads != 0, layer.norms_rotated = r.norms_rotated != 0;
  layer.output = r.output.of(r.hidden, r.heads * r.head_size), layer.output_bias = r.output_bias;
  layer.keys = r.keys, layer.values = r.values;
  layer.qkv_lora = LoraTable::at(r.qkv_lora), layer.output_lora = LoraTable::at(r.output_lora);
  return layer;
}

LatentLayer latent_layer(const LatentRecord &r) {
  LatentLayer layer{};
  layer.hidden = r.hidden, layer.heads = r.heads, layer.query_rank = r.query_rank, layer.rank = r.rank;
  layer.nope = r.nope, layer.rope = r.rope, layer.value = r.value;
  layer.block_size = r.block_size, layer.cache_type = CacheType(r.cache_type);
  layer.eps = float(r.eps), layer.latent_eps = float(r.latent_eps), layer.scale = float(r.scale);
  layer.norm = r.norm, layer.rotation = r.rotation;
  const int64_t query = r.query_rank ? r.query_rank : layer.query();
  layer.down = r.down.of(query + layer.width(), r.hidden), layer.down_bias = r.down_bias;
  layer.query_norm = r.query_norm, layer.latent_norm = r.latent_norm;
  layer.query_up = r.query_up.of(layer.query(), r.query_rank);
  layer.key_up = r.key_up.of(r.heads * panels_of(r.rank) * PANEL, r.nope);
  layer.value_up = r.value_up.of(r.heads * panels_of(r.value) * PANEL, r.rank);
  layer.output = r.output.of(r.hidden, r.heads * r.value), layer.output_bias = r.output_bias;
  layer.cache = r.cache;
  layer.down_lora = LoraTable::at(r.down_lora), layer.query_up_lora = LoraTable::at(r.query_up_lora);
  layer.key_up_lora = r.key_up_lora, layer.value_up_lora = r.value_up_lora;
  layer.output_lora = LoraTable::at(r.output_lora);
  return layer;
}

FeedForwardLayer feed_forward_layer(const FeedForwardRecord &r) {
  FeedForwardLayer layer{};
  layer.hidden = r.hidden, layer.width = r.width, layer.eps = float(r.eps);
  layer.activation = Activation(r.activation), layer.gated = r.gated != 0;
  layer.parallel = r.parallel != 0;
  layer.norm = r.norm, layer.norm_bias = r.norm_bias, layer.post_norm = r.post_norm;
  layer.gate_up = r.gate_up.of((layer.gated ? 2 : 1) * r.width, r.hidden), layer.gate_up_bias = r.gate_up_bias;
  layer.down = r.down.of(r.hidden, r.width), layer.down_bias = r.down_bias;
  layer.gate_up_lora = LoraTable::at(r.gate_up_lora), layer.down_lora = LoraTable::at(r.down_lora);
  return layer;
}

ExpertsLayer experts_layer(const ExpertsRecord &r) {
  ExpertsLayer layer{};
  layer.hidden = r.hidden, layer.width = r.width, layer.shared_width = r.shared_width;
  layer.shared_gate = r.shared_gate != 0, layer.eps = float(r.eps), layer.norm = r.norm;
  Routing &routing = layer.routing;
  routing.experts = r.experts, routing.chosen = r.chosen, routing.groups = r.groups;
  routing.chosen_groups = r.chosen_groups, routing.group_best = r.group_best;
  routing.sigmoid = r.sigmoid != 0, routing.normalize = r.normalize != 0;
  routing.scale = float(r.routed_scale), routing.correction = r.correction;
  const auto room = [](int64_t rows) { return panels_of(rows) * PANEL; };
  layer.router = r.router.of(r.experts + layer.shared_gate, r.hidden);
  layer.gate_up = r.gate_up.of(r.experts * 2 * room(r.width), r.hidden);
  layer.down = r.down.of(r.experts * room(r.hidden), r.width);
  layer.shared_gate_up = r.shared_gate_up.of(2 * room(r.shared_width), r.hidden);
  layer.shared_down = r.shared_down.of(r.hidden, r.shared_width);
  layer.router_lora = LoraTable::at(r.router_lora);
  layer.gate_up_lora = r.gate_up_lora, layer.down_lora = r.down_lora;
  layer.shared_gate_up_lora = LoraTable::at(r.shared_gate_up_lora);
  layer.shared_down_lora = LoraTable::at(r.shared_down_lora);
  return layer;
}

// Return codes of operators: another rank was lost; a record is invalid.
constexpr int32_t RANK_GONE = -1, BAD_RECORD = -2;

// Adapter numbers [tokens]; null if no token has one.
const int32_t *if_any(const int32_t *adapters, int64_t tokens) {
  const auto is_one = [](int32_t adapter) { return adapter != 0; };
  return std::any_of(adapters, adapters + tokens, is_one) ? adapters : nullptr;
}

// Builds a step from the first five inputs of an operator on sublayers.
Step step_of(void **p, int64_t **shapes) {
  Step step{};
  step.tokens = shapes[0][0], step.sequences = shapes[4][0] - 1, step.table_width = shapes[3][1];
  step.positions = as<const int32_t>(p[1]), step.slots = as<const int32_t>(p[2]);
  step.block_tables = as<const int32_t>(p[3]), step.query_starts = as<const int32_t>(p[4]);
  return step;
}

// Builds a step from the first seven inputs of an operator on sublayers with cross-attention.
Step cross_step_of(void **p, int64_t **shapes) {
  Step step = step_of(p, shapes);
  step.cross_width = shapes[5][1];
  step.cross_tables = as<const int32_t>(p[5]), step.cross_lengths = as<const int32_t>(p[6]);
  return step;
}

// Runs the sublayers of a program, one record after the other, on x [T, hidden] in place. Ranks that share a model sum
// their results after each sublayer that adds to x, and before its post-norm if it has one. Returns 0 or an error code.
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
  int64_t hidden = 0;
  for (const int64_t *at = program, *end = program + numbers; at < end; at += *at / 8) {
    const int64_t left = end - at;
    norm = nullptr;
    if (left < 2) return BAD_RECORD;
    if (const auto *ranks = record_at<RanksRecord>(at, left, RANKS)) {
      group = ranks->group, step.adds_residual = ranks->adds_residual != 0;
      continue;
    }
    if (const auto *attention = record_at<AttentionRecord>(at, left, ATTENTION)) {
      hidden = attention->hidden;
      run(kernels->attention_sublayer, attention_layer(*attention));
      if (attention->scope == STORE) continue;
    } else if (const auto *feed_forward = record_at<FeedForwardRecord>(at, left, FEED_FORWARD)) {
      hidden = feed_forward->hidden;
      run(kernels->feed_forward_sublayer, feed_forward_layer(*feed_forward));
    } else if (const auto *experts = record_at<ExpertsRecord>(at, left, EXPERTS)) {
      hidden = experts->hidden;
      kernels->experts_sublayer(team(), experts_layer(*experts), step, x);
    } else if (const auto *latent = record_at<LatentRecord>(at, left, LATENT)) {
      hidden = latent->hidden;
      kernels->latent_sublayer(team(), latent_layer(*latent), step, x);
    } else {
      return BAD_RECORD;
    }
    if (!group) continue;
    if (!group->sum(norm ? partial.data() : x, step.tokens * hidden)) return RANK_GONE;
    if (norm) kernels->add_normed(team(), partial.data(), norm, step.tokens, hidden, eps, x);
  }
  return 0;
}

// Returns a description of what is wrong with the record at `at`, or null. `numbers` bounds the numbers there,
// including later records.
template <class Record>
const char *problem_at(const int64_t *at, int64_t numbers) {
  const Record *record = reinterpret_cast<const Record *>(at);
  if (numbers * 8 < int64_t(sizeof(Record)) || record->header.bytes != sizeof(Record)) return "size";
  return problem(*record);
}

const char *problem_at(const int64_t *at, int64_t numbers) {
  if (numbers < 2) return "size";
  switch (at[1]) {
    case ATTENTION: return problem_at<AttentionRecord>(at, numbers);
    case FEED_FORWARD: return problem_at<FeedForwardRecord>(at, numbers);
    case EXPERTS: return problem_at<ExpertsRecord>(at, numbers);
    case LATENT: return problem_at<LatentRecord>(at, numbers);
    case RANKS: return problem_at<RanksRecord>(at, numbers);
    case HEAD: return problem_at<HeadRecord>(at, numbers);
    case EMBEDDING: return problem_at<EmbeddingRecord>(at, numbers);
    default: return "kind";
  }
}

// Implements `output_head`; `adapters` [T], or null.
int run_head(void **p, int64_t **shapes, const int32_t *adapters, float *out) {
  const auto *record = record_at<HeadRecord>(as<const int64_t>(p[3]), shapes[3][0], HEAD);
  if (!record || record->vocabulary != shapes[4][0]) return BAD_RECORD;
  Head layer{};
  layer.hidden = record->hidden, layer.eps = float(record->eps), layer.softcap = float(record->softcap);
  layer.norm = record->norm, layer.norm_bias = record->norm_bias, layer.bias = record->bias;
  layer.weight = record->weight.of(record->vocabulary, layer.hidden), layer.lora = LoraTable::at(record->lora);
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

// Selects one of the library's instruction sets. Returns 0, or -1 if the library does not contain it.
int kernels_use(const char *name) {
  for (const Kernels *set : sets)
    if (!std::strcmp(set->name, name)) return kernels = set, 0;
  return -1;
}

// Returns 0, or -1 if the machine cannot start that many threads; the existing threads are then kept.
int kernels_set_threads(int threads) {
  const Lock lock(one_call);
  if (team_ && team_->size() == threads) return 0;
  try {
    team_ = std::make_unique<Team>(threads);
  } catch (const std::system_error &) {
    return -1;
  }
  return 0;
}

// Returns the fields of all records, to compare with inference/kernels/records.py. Lives as long as the process.
const char *kernels_records() {
  static const std::string text = describe_records();
  return text.c_str();
}

// Returns a description of what is wrong with a record, naming the field; null if it is valid.
const char *kernels_problem(const int64_t *record, int64_t numbers) { return problem_at(record, numbers); }

// Writes x [rows, columns], float32 or (is_packed) the format's own 16-bit elements, into the panels of a matrix,
// starting at row `first`.
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

// Reads `bytes` once with all threads; the return value keeps the compiler from removing the reads.
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

// Creates a group of ranks, which the records of a shared model refer to. It lives as long as the process.
Group *kernels_group(int32_t rank, int32_t size, void *memory, const int32_t *connections, int32_t count) {
  return new Group(rank, size, memory, {connections, connections + count});
}

int64_t kernels_group_bytes(int32_t size) { return Group::bytes_of(size); }

int32_t kernels_group_sum(Group *group, float *x, int64_t count) { return group->sum(x, count) ? 0 : -1; }

// Returns the number of sums so far and the nanoseconds that they took, including waiting.
void kernels_group_figures(const Group *group, int64_t *figures) {
  figures[0] = group->sums(), figures[1] = group->nanoseconds();
}

// Runs the sublayers of a program of a model without an encoder. Returns 0, or -1 if another rank was lost.
int32_t kernels_sublayers(const int64_t *program, int64_t numbers, int64_t tokens, int64_t sequences, int64_t table_width,
                    const int32_t *positions, const int32_t *slots, const int32_t *block_tables,
                    const int32_t *query_starts, float *x) {
  Step step{};
  step.tokens = tokens, step.sequences = sequences, step.table_width = table_width;
  step.positions = positions, step.slots = slots, step.block_tables = block_tables, step.query_starts = query_starts;
  return run_sublayers(program, numbers, step, x);
}

// Inputs: 0 x [T, hidden], 1 positions, 2 slots, 3 block tables, 4 query starts, 5 program; output 6: x after all
// sublayers.
int sublayers(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 7) return 1;
  std::memcpy(p[6], p[0], shapes[0][0] * shapes[0][1] * 4);
  return run_sublayers(as<const int64_t>(p[5]), shapes[5][0], step_of(p, shapes), as<float>(p[6]));
}

// Inputs: 0 to 4 as for `sublayers`, 5 cross tables, 6 cross lengths, 7 program; output 8.
int cross_sublayers(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 9) return 1;
  std::memcpy(p[8], p[0], shapes[0][0] * shapes[0][1] * 4);
  const Step step = cross_step_of(p, shapes);
  return run_sublayers(as<const int64_t>(p[7]), shapes[7][0], step, as<float>(p[8]));
}

// Inputs: 0 to 4 as for `sublayers`, 5 adapters, 6 program; output 7.
int adapted_sublayers(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 8) return 1;
  std::memcpy(p[7], p[0], shapes[0][0] * shapes[0][1] * 4);
  Step step = step_of(p, shapes);
  step.adapters = if_any(as<const int32_t>(p[5]), step.tokens);
  return run_sublayers(as<const int64_t>(p[6]), shapes[6][0], step, as<float>(p[7]));
}

// Inputs: 0 to 6 as for `cross_sublayers`, 7 adapters, 8 program; output 9.
int adapted_cross_sublayers(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 10) return 1;
  std::memcpy(p[9], p[0], shapes[0][0] * shapes[0][1] * 4);
  Step step = cross_step_of(p, shapes);
  step.adapters = if_any(as<const int32_t>(p[7]), step.tokens);
  return run_sublayers(as<const int64_t>(p[8]), shapes[8][0], step, as<float>(p[9]));
}

// Inputs: 0 x, 1 requested tokens [R], 2 the indices of those whose logits are requested, after an unused number
// [1 + S], 3 record, 4 one unused byte per token of the vocabulary; output 5: best tokens [R], their logits [R], then
// logits [S, vocabulary].
int output_head(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  return n == 6 ? run_head(p, shapes, nullptr, as<float>(p[5])) : 1;
}

// Inputs: 0 to 4 as for `output_head`, 5 adapters [T]; output 6.
int adapted_output_head(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  return n == 7 ? run_head(p, shapes, as<const int32_t>(p[5]), as<float>(p[6])) : 1;
}

// Inputs: 0 tokens, 1 record, 2 one unused byte per number of a row; output 3: rows [T, hidden].
int embedding(int n, void **p, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra) {
  if (n != 4) return 1;
  const auto *record = record_at<EmbeddingRecord>(as<const int64_t>(p[1]), shapes[1][0], EMBEDDING);
  const int64_t columns = shapes[2][0], count = shapes[0][0];
  if (!record || record->hidden != columns) return BAD_RECORD;
  const Matrix weight = record->weight.of(record->tokens, columns);
  float *out = as<float>(p[3]);
  for (int64_t t = 0; t < count; t++) {
    const int64_t row = as<const int32_t>(p[0])[t] - record->first_token;
    // If ranks share a model, exactly one has this token; with a single rank, the caller has checked the tokens.
    if (row < 0 || row >= record->tokens) std::fill_n(out + t * columns, columns, 0.0f);
    else kernels->unpack(weight, row, out + t * columns);
  }
  return record->group && !record->group->sum(out, count * columns) ? RANK_GONE : 0;
}

std::vector<int64_t> embeddingInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  return {shapes[0][0], shapes[2][0]};
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
  // Unknown dimensions are negative.
  if (shapes[1][0] < 0 || shapes[2][0] < 0) return {-1};
  return {2 * shapes[1][0] + (shapes[2][0] - 1) * shapes[4][0]};
}

std::vector<int64_t> adapted_output_headInferShape(int *ranks, int64_t **shapes, AotExtra *extra) {
  return output_headInferShape(ranks, shapes, extra);
}

}  // extern "C"
