// Records, with which Python describes sublayers to the kernels. Every record is a struct here and a ctypes.Structure
// with the same fields in inference/kernels/records.py; its layout is compared with `describe_records` when the library
// loads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "blocks.h"
#include "group.h"

enum Kind : int64_t { ATTENTION = 0, FEED_FORWARD = 1, EXPERTS = 2, LATENT = 3, RANKS = 4, HEAD = 5, EMBEDDING = 6 };

// The header of every record: its size, so that no more is read than was written, and its kind.
struct RecordHeader {
  int64_t bytes, kind;
};

struct MatrixRecord {
  int64_t format;
  const uint8_t *data;  // null if there is no such matrix
  Matrix of(int64_t rows, int64_t columns) const { return {data, Format(format), rows, columns}; }
};

#define ATTENTION_FIELDS(FIELD)                                                                                        \
  FIELD(RecordHeader, header)                                                                                          \
  FIELD(int64_t, hidden) FIELD(int64_t, heads) FIELD(int64_t, kv_heads) FIELD(int64_t, head_size)                      \
  FIELD(int64_t, block_size) FIELD(int64_t, window) FIELD(int64_t, cache_type) FIELD(int64_t, scope)                   \
  FIELD(int64_t, reach) FIELD(int64_t, norms_all_heads) FIELD(int64_t, norms_rotated)                                  \
  FIELD(double, eps) FIELD(double, scale) FIELD(double, softcap)                                                       \
  FIELD(const float *, norm) FIELD(const float *, norm_bias) FIELD(const float *, post_norm)                           \
  FIELD(const float *, rotation) FIELD(const float *, slopes) FIELD(const float *, distances)                          \
  FIELD(MatrixRecord, qkv) FIELD(const float *, qkv_bias)                                                              \
  FIELD(const float *, query_norm) FIELD(const float *, key_norm)                                                      \
  FIELD(MatrixRecord, output) FIELD(const float *, output_bias)                                                        \
  FIELD(void *, keys) FIELD(void *, values)                                                                            \
  FIELD(const LoraTable *, qkv_lora) FIELD(const LoraTable *, output_lora)

#define LATENT_FIELDS(FIELD)                                                                                           \
  FIELD(RecordHeader, header)                                                                                          \
  FIELD(int64_t, hidden) FIELD(int64_t, heads) FIELD(int64_t, query_rank) FIELD(int64_t, rank) FIELD(int64_t, nope)    \
  FIELD(int64_t, rope) FIELD(int64_t, value) FIELD(int64_t, block_size) FIELD(int64_t, cache_type)                     \
  FIELD(double, eps) FIELD(double, latent_eps) FIELD(double, scale)                                                    \
  FIELD(const float *, norm) FIELD(const float *, rotation)                                                            \
  FIELD(MatrixRecord, down) FIELD(const float *, down_bias)                                                            \
  FIELD(const float *, query_norm) FIELD(const float *, latent_norm)                                                   \
  FIELD(MatrixRecord, query_up) FIELD(MatrixRecord, key_up) FIELD(MatrixRecord, value_up)                              \
  FIELD(MatrixRecord, output) FIELD(const float *, output_bias) FIELD(void *, cache)                                   \
  FIELD(const LoraTable *, down_lora) FIELD(const LoraTable *, query_up_lora)                                          \
  FIELD(LoraTables, key_up_lora) FIELD(LoraTables, value_up_lora) FIELD(const LoraTable *, output_lora)

#define FEED_FORWARD_FIELDS(FIELD)                                                                                     \
  FIELD(RecordHeader, header)                                                                                          \
  FIELD(int64_t, hidden) FIELD(int64_t, width) FIELD(int64_t, activation) FIELD(int64_t, gated)                        \
  FIELD(int64_t, parallel) FIELD(double, eps)                                                                          \
  FIELD(const float *, norm) FIELD(const float *, norm_bias) FIELD(const float *, post_norm)                           \
  FIELD(MatrixRecord, gate_up) FIELD(const float *, gate_up_bias)                                                      \
  FIELD(MatrixRecord, down) FIELD(const float *, down_bias)                                                            \
  FIELD(const LoraTable *, gate_up_lora) FIELD(const LoraTable *, down_lora)

#define EXPERTS_FIELDS(FIELD)                                                                                          \
  FIELD(RecordHeader, header)                                                                                          \
  FIELD(int64_t, hidden) FIELD(int64_t, width) FIELD(int64_t, shared_width) FIELD(int64_t, shared_gate)                \
  FIELD(int64_t, experts) FIELD(int64_t, chosen) FIELD(int64_t, groups) FIELD(int64_t, chosen_groups)                  \
  FIELD(int64_t, group_best) FIELD(int64_t, sigmoid) FIELD(int64_t, normalize)                                         \
  FIELD(double, routed_scale) FIELD(double, eps)                                                                       \
  FIELD(const float *, norm) FIELD(const float *, correction)                                                          \
  FIELD(MatrixRecord, router) FIELD(MatrixRecord, gate_up) FIELD(MatrixRecord, down)                                   \
  FIELD(MatrixRecord, shared_gate_up) FIELD(MatrixRecord, shared_down)                                                 \
  FIELD(const LoraTable *, router_lora) FIELD(LoraTables, gate_up_lora) FIELD(LoraTables, down_lora)                   \
  FIELD(const LoraTable *, shared_gate_up_lora) FIELD(const LoraTable *, shared_down_lora)

// The ranks that share each of the following sublayers, and whether this one adds the residual.
#define RANKS_FIELDS(FIELD) FIELD(RecordHeader, header) FIELD(Group *, group) FIELD(int64_t, adds_residual)

#define HEAD_FIELDS(FIELD)                                                                                             \
  FIELD(RecordHeader, header)                                                                                          \
  FIELD(int64_t, hidden) FIELD(int64_t, vocabulary) FIELD(double, eps) FIELD(double, softcap)                          \
  FIELD(const float *, norm) FIELD(const float *, norm_bias) FIELD(MatrixRecord, weight) FIELD(const float *, bias)    \
  FIELD(const LoraTable *, lora)

// `group`: the ranks that hold the other tokens of the vocabulary, or null.
#define EMBEDDING_FIELDS(FIELD)                                                                                        \
  FIELD(RecordHeader, header)                                                                                          \
  FIELD(int64_t, hidden) FIELD(int64_t, first_token) FIELD(int64_t, tokens) FIELD(MatrixRecord, weight)                \
  FIELD(Group *, group)

// Fields are multiples of eight bytes, so that no compiler inserts padding.
#define DECLARE_FIELD(type, name) \
  type name;                      \
  static_assert(sizeof(type) % 8 == 0, #name);
#define FIELD_BYTES(type, name) +sizeof(type)
#define DECLARE_RECORD(Name, FIELDS) \
  struct Name {                      \
    FIELDS(DECLARE_FIELD)            \
  };                                 \
  static_assert(sizeof(Name) == 0 FIELDS(FIELD_BYTES), #Name);

DECLARE_RECORD(AttentionRecord, ATTENTION_FIELDS)
DECLARE_RECORD(LatentRecord, LATENT_FIELDS)
DECLARE_RECORD(FeedForwardRecord, FEED_FORWARD_FIELDS)
DECLARE_RECORD(ExpertsRecord, EXPERTS_FIELDS)
DECLARE_RECORD(RanksRecord, RANKS_FIELDS)
DECLARE_RECORD(HeadRecord, HEAD_FIELDS)
DECLARE_RECORD(EmbeddingRecord, EMBEDDING_FIELDS)

// Returns one line per record: its name and size, then name:offset:size of each field.
inline std::string describe_records() {
  std::string text;
#define DESCRIBE_FIELD(type, name) \
  text += " " #name ":" + std::to_string(offsetof(This, name)) + ":" + std::to_string(sizeof(type));
#define DESCRIBE(Name, FIELDS)                               \
  {                                                          \
    using This = Name;                                       \
    text += #Name " " + std::to_string(sizeof(Name));        \
    FIELDS(DESCRIBE_FIELD)                                   \
    text += "\n";                                            \
  }
#define MATRIX_FIELDS(FIELD) FIELD(int64_t, format) FIELD(const uint8_t *, data)
#define HEADER_FIELDS(FIELD) FIELD(int64_t, bytes) FIELD(int64_t, kind)
#define LORA_ENTRY_FIELDS(FIELD)                                                             \
  FIELD(int64_t, first_panel) FIELD(int64_t, panels) FIELD(int64_t, rank) FIELD(int64_t, offset) \
  FIELD(const float *, down) FIELD(const float *, up)
#define LORA_TABLE_FIELDS(FIELD) \
  FIELD(int64_t, adapters) FIELD(int64_t, width) FIELD(const int64_t *, starts) FIELD(const LoraEntry *, list)
  DESCRIBE(RecordHeader, HEADER_FIELDS)
  DESCRIBE(MatrixRecord, MATRIX_FIELDS)
  DESCRIBE(LoraEntry, LORA_ENTRY_FIELDS)
  DESCRIBE(LoraTable, LORA_TABLE_FIELDS)
  DESCRIBE(AttentionRecord, ATTENTION_FIELDS)
  DESCRIBE(LatentRecord, LATENT_FIELDS)
  DESCRIBE(FeedForwardRecord, FEED_FORWARD_FIELDS)
  DESCRIBE(ExpertsRecord, EXPERTS_FIELDS)
  DESCRIBE(RanksRecord, RANKS_FIELDS)
  DESCRIBE(HeadRecord, HEAD_FIELDS)
  DESCRIBE(EmbeddingRecord, EMBEDDING_FIELDS)
  return text;
}

// Returns which number of a record is wrong, by name; null if it is valid. Sizes within these bounds cannot overflow.
constexpr int64_t MOST = int64_t(1) << 31;
inline bool in_range(int64_t least, int64_t most, std::initializer_list<int64_t> values) {
  for (int64_t value : values)
    if (value < least || value > most) return false;
  return true;
}

inline const char *problem(const MatrixRecord &matrix) {
  return in_range(FLOAT32, LAST_FORMAT, {matrix.format}) ? nullptr : "format";
}

inline const char *problem_of_cache(int64_t block_size, int64_t cache_type) {
  if (!in_range(CACHE_FLOAT32, CACHE_INT8, {cache_type})) return "cache_type";
  // Neighboring positions map to lanes of a register; a piece of the softmax is whole blocks.
  return block_size % 16 || block_size < 16 || block_size > 128 ? "block_size" : nullptr;
}

inline const char *problem(const AttentionRecord &r) {
  if (!in_range(1, MOST, {r.hidden, r.heads, r.kv_heads, r.head_size})) return "hidden, heads, kv_heads or head_size";
  if (r.heads % r.kv_heads) return "kv_heads";
  if (!in_range(0, MOST, {r.window, r.reach})) return "window or reach";
  if (!in_range(CAUSAL, STORE, {r.scope})) return "scope";
  if (const char *found = problem_of_cache(r.block_size, r.cache_type)) return found;
  if (!r.qkv.data || !r.keys || !r.values) return "qkv, keys or values";
  if (r.norms_all_heads && (!r.query_norm || !r.key_norm)) return "norms_all_heads";
  if (r.scope != STORE && !r.output.data) return "output";
  if (const char *found = problem(r.qkv)) return found;
  return problem(r.output);
}

inline const char *problem(const LatentRecord &r) {
  if (!in_range(1, MOST, {r.hidden, r.heads, r.rank, r.nope, r.value})) return "hidden, heads, rank, nope or value";
  if (!in_range(0, MOST, {r.query_rank, r.rope})) return "query_rank or rope";
  if (const char *found = problem_of_cache(r.block_size, r.cache_type)) return found;
  if (!r.norm || !r.down.data || !r.output.data || !r.cache) return "norm, down, output or cache";
  for (const MatrixRecord *matrix : {&r.down, &r.query_up, &r.key_up, &r.value_up, &r.output})
    if (const char *found = problem(*matrix)) return found;
  return nullptr;
}

inline const char *problem(const FeedForwardRecord &r) {
  if (!in_range(1, MOST, {r.hidden, r.width})) return "hidden or width";
  if (!in_range(SILU, RELU, {r.activation})) return "activation";
  if (!r.gate_up.data || !r.down.data) return "gate_up or down";
  if (r.parallel && r.norm) return "norm";
  if (const char *found = problem(r.gate_up)) return found;
  return problem(r.down);
}

inline const char *problem(const ExpertsRecord &r) {
  if (!in_range(1, MOST, {r.hidden, r.width, r.experts, r.groups})) return "hidden, width, experts or groups";
  if (!in_range(0, MOST, {r.shared_width})) return "shared_width";
  if (!in_range(1, r.experts, {r.chosen}) || r.experts % r.groups) return "chosen or groups";
  if (!in_range(1, r.groups, {r.chosen_groups})) return "chosen_groups";
  if (!in_range(1, r.experts / r.groups, {r.group_best})) return "group_best";
  if (!r.norm || !r.router.data || !r.gate_up.data || !r.down.data) return "norm, router, gate_up or down";
  for (const MatrixRecord *matrix : {&r.router, &r.gate_up, &r.down, &r.shared_gate_up, &r.shared_down})
    if (const char *found = problem(*matrix)) return found;
  return nullptr;
}

inline const char *problem(const RanksRecord &r) { return r.group ? nullptr : "group"; }

inline const char *problem(const HeadRecord &r) {
  if (!in_range(1, MOST, {r.hidden, r.vocabulary})) return "hidden or vocabulary";
  return r.norm && r.weight.data ? problem(r.weight) : "norm or weight";
}

inline const char *problem(const EmbeddingRecord &r) {
  if (!in_range(1, MOST, {r.hidden, r.tokens}) || !in_range(0, MOST, {r.first_token})) return "hidden or tokens";
  return r.weight.data ? problem(r.weight) : "weight";
}

// Returns the record at `at`, where `numbers` eight-byte numbers are available; null if it does not fit, is of another
// kind or is invalid.
template <class Record>
const Record *record_at(const int64_t *at, int64_t numbers, Kind kind) {
  const Record *record = reinterpret_cast<const Record *>(at);
  if (numbers * 8 < int64_t(sizeof(Record)) || record->header.bytes != sizeof(Record)) return nullptr;
  return record->header.kind == kind && !problem(*record) ? record : nullptr;
}
