// The sublayers of a decoder layer and the output head; each is one parallel region of a few phases.
//
// All arguments are plain pointers and sizes, so that the same code serves MindSpore's graph and the tests.
#pragma once

#include <cstdint>

#include "formats.h"
#include "pool.h"

// Names follow inference/kernels/stock: T tokens, B sequences, H query heads, K key/value heads, D head size.
struct Step {
  int64_t tokens, sequences, table_width;
  // If ranks share a model, their results are summed: only one rank adds the residual, and `partial` [T, hidden]
  // receives results that are normalized before they are added to x. True and null if the model is not shared.
  bool adds_residual;
  float *partial;
  const int32_t *positions;     // [T]
  const int32_t *slots;         // [T]
  const int32_t *block_tables;  // [B, table_width]
  const int32_t *query_starts;  // [B + 1]: sequence b's tokens are [query_starts[b], query_starts[b + 1])
  mutable const float *angles_of;  // the rotation that this step's angles were last computed for; layers share them
  // In a decoder's step: where the encoder wrote the keys and values of each sequence's source. Null for other models.
  int64_t cross_width;
  const int32_t *cross_tables;   // [B, cross_width]
  const int32_t *cross_lengths;  // [B]
  const int32_t *adapters;       // [T]: each token's adapter, from 1, 0 for none; null if no token has one
};

// An adapter's addition to some rows of a product: up (down x). Written by inference/kernels/records.py.
struct LoraEntry {
  int64_t first_panel, panels;          // of the product's rows
  int64_t rank, offset;                 // index of its part of down x within its adapter's
  const float *down;                    // [rank, columns]
  const float *up;                      // [panels, rank, 16]
};

// All adapters' additions to one product; an adapter's entries are contiguous.
struct LoraTable {
  int64_t adapters;                     // number of the last adapter with entries
  int64_t width;                        // maximum number of values that an adapter computes per token
  const int64_t *starts;                // adapter a's are [starts[a - 1], starts[a])
  const LoraEntry *list;                // null if there are none

  static LoraTable at(const LoraTable *table) { return table ? *table : LoraTable{}; }
};

// Tables for products by parts of a matrix (heads, experts), each with its own input.
struct LoraTables {
  const LoraTable *const *tables;       // one per part; null if no part has any
  LoraTable of(int64_t part) const { return LoraTable::at(tables ? tables[part] : nullptr); }
};

// Tokens that a token attends to: those up to itself; all of its sequence, which is entirely in the step; or its
// sequence's source. STORE attends to nothing: it writes the keys and values that CROSS reads.
enum Scope : int64_t { CAUSAL = 0, WHOLE = 1, CROSS = 2, STORE = 3 };

// Numbered as in inference/kernels/shapes.py. An int8 block of a head holds its values and then its scales, one float
// per position (two in a latent cache: of the latent, of the rotated key).
enum CacheType : int64_t { CACHE_FLOAT32 = 0, CACHE_FLOAT16 = 1, CACHE_INT8 = 2 };

struct AttentionLayer {
  int64_t hidden, heads, kv_heads, head_size, block_size, window;
  CacheType cache_type;
  float eps;
  float scale;                          // multiplies the scores
  float softcap;                        // bounds scores with tanh; 0 for no bound
  const float *norm;                    // [hidden], or null for a layer that reads x as it is
  const float *norm_bias;               // or null; with a bias the norm is LayerNorm, without one RMSNorm
  const float *rotation;                // [2, D / 2]: angle per position and magnitude of each rotated pair, or null
  const float *slopes;                  // [H]: added to scores per position of distance (ALiBi), or null
  Matrix qkv;                           // [(H + 2K) * D, hidden]; CROSS has only the queries, STORE all but the queries
  const float *qkv_bias;                // or null
  const float *query_norm, *key_norm;   // [D], or null; [H * D] and [K * D] if `norms_all_heads`
  bool norms_all_heads;                 // one norm spans all heads of a token, instead of one per head
  bool norms_rotated;                   // heads are normalized after their rotation
  Matrix output;                        // [hidden, H * D]
  const float *output_bias;             // or null
  const float *post_norm;               // [hidden]: RMSNorm of the value added to x, or null
  void *keys;                           // [blocks, K, D, block_size]
  void *values;                         // [blocks, K, block_size, D]
  Scope scope;
  int64_t reach;                        // larger distances count as this one
  const float *distances;               // [H, 2 * reach + 1]: added to scores by distance, starting at -reach; or null
  LoraTable qkv_lora, output_lora;

  // Heads in a row of the output of `qkv`.
  int64_t queries() const { return scope == STORE ? 0 : heads; }
  int64_t stored() const { return scope == CROSS ? 0 : kv_heads; }
  int64_t columns() const { return (queries() + 2 * stored()) * head_size; }
};

// Latent attention; see inference/kernels/shapes.py. A head's rows in `key_up` and `value_up` begin at panel
// boundaries.
struct LatentLayer {
  int64_t hidden, heads, query_rank, rank, nope, rope, value, block_size;
  CacheType cache_type;
  float eps, latent_eps, scale;
  const float *norm;                    // [hidden]
  const float *rotation;                // [2, rope / 2], as in AttentionLayer
  Matrix down;                          // [query_rank or query(), then rank + rope, hidden]
  const float *down_bias;               // or null
  const float *query_norm;              // [query_rank]
  const float *latent_norm;             // [rank]
  Matrix query_up;                      // [query(), query_rank]
  Matrix key_up;                        // [H * room of rank, nope]
  Matrix value_up;                      // [H * room of value, rank]
  Matrix output;                        // [hidden, H * value]
  const float *output_bias;             // or null
  void *cache;                          // [blocks, block_size, rank + rope]
  LoraTable down_lora, query_up_lora, output_lora;
  LoraTables key_up_lora, value_up_lora;
  int64_t width() const { return rank + rope; }
  int64_t query() const { return heads * (nope + rope); }
  Matrix key_up_of(int64_t head) const {
    return {key_up.panel(head * panels_of(rank)), key_up.format, rank, nope};
  }
  Matrix value_up_of(int64_t head) const {
    return {value_up.panel(head * panels_of(value)), value_up.format, value, rank};
  }
};

// Numbered as in inference/kernels/shapes.py.
enum Activation : int64_t { SILU = 0, GELU_TANH = 1, GELU = 2, RELU = 3 };

struct FeedForwardLayer {
  int64_t hidden, width;
  float eps;
  Activation activation;
  bool gated;
  bool parallel;                        // reads the normalized input of the preceding attention sublayer
  const float *norm, *norm_bias;        // as in AttentionLayer
  Matrix gate_up;                       // [2 * width, hidden]; [width, hidden] without a gate
  const float *gate_up_bias;
  Matrix down;                          // [hidden, width]
  const float *down_bias;
  const float *post_norm;               // as in AttentionLayer
  LoraTable gate_up_lora, down_lora;
};

// See inference/kernels/shapes.py.
struct Routing {
  int64_t experts, chosen, groups, chosen_groups, group_best;
  bool sigmoid, normalize;
  float scale;
  const float *correction;              // [experts]: added to scores only for choosing experts, or null
};

// A feed-forward whose matrices are slices of larger ones: gate and up begin at panel boundaries and are padded to
// whole panels.
struct Expert {
  int64_t width;
  Matrix gate_up;                       // [2 * room of the width, hidden]
  Matrix down;                          // [hidden, width]
  LoraTable gate_up_lora, down_lora;
};

struct ExpertsLayer {
  int64_t hidden, width, shared_width;  // shared_width 0: no shared expert
  bool shared_gate;                     // scales the shared expert by the sigmoid of the router's last row
  float eps;
  const float *norm;
  Routing routing;
  Matrix router;                        // [experts, or one more, hidden]
  Matrix gate_up, down;                 // of all experts, stacked, each padded to whole panels
  Matrix shared_gate_up, shared_down;
  LoraTable router_lora, shared_gate_up_lora, shared_down_lora;
  LoraTables gate_up_lora, down_lora;

  // Expert `index`; the shared expert comes last.
  Expert expert(int64_t index) const {
    if (index == routing.experts)
      return {shared_width, shared_gate_up, shared_down, shared_gate_up_lora, shared_down_lora};
    const int64_t up = panels_of(width), panels = panels_of(hidden);
    return {width, {gate_up.panel(index * 2 * up), gate_up.format, 2 * up * PANEL, hidden},
            {down.panel(index * panels), down.format, hidden, width}, gate_up_lora.of(index),
            down_lora.of(index)};
  }
};

struct Head {
  int64_t hidden;
  float eps;
  float softcap;                        // bounds logits with tanh; 0 for no bound
  const float *norm, *norm_bias;        // as in AttentionLayer
  Matrix weight;                        // [vocabulary, hidden]
  const float *bias;                    // or null
  LoraTable lora;
};

// The requested outputs for the logits of R tokens. A row's best token is the first of those with the largest logit; -1
// if one of its logits is NaN or +inf, and then its value is NaN, or if all are -inf.
struct Choice {
  const int32_t *logit_rows;            // [S]: which of the R tokens' logits are requested
  int64_t logit_count;
  float *best;                          // [R]: an integer below 2^24
  float *value;                         // [R]: its logit
  float *logits;                        // [S, vocabulary]
};

// One function table per instruction set.
struct Kernels {
  const char *name;
  void (*linear)(Team &, const Matrix &, const float *x, int64_t tokens, const float *bias, const float *residual,
                 float *out);
  void (*rms_norm)(const float *x, const float *weight, int64_t tokens, int64_t width, float eps, float *out);
  // Each adds to x [T, hidden] in place, or writes the value to be added.
  void (*attention_sublayer)(Team &, const AttentionLayer &, const Step &, float *x);
  void (*latent_sublayer)(Team &, const LatentLayer &, const Step &, float *x);
  void (*feed_forward_sublayer)(Team &, const FeedForwardLayer &, const Step &, float *x);
  void (*experts_sublayer)(Team &, const ExpertsLayer &, const Step &, float *x);
  // x [tokens, width] += norm(added); `added` is normalized in place.
  void (*add_normed)(Team &, float *added, const float *norm, int64_t tokens, int64_t width, float eps, float *x);
  // `adapters` [tokens]: as in Step.
  void (*head)(Team &, const Head &, const float *x, int64_t tokens, const int32_t *adapters, const Choice &);
  void (*unpack)(const Matrix &, int64_t row, float *out);
  // Writes rows, float32 or (is_packed) the format's own 16-bit elements, into a panel starting at its row `lane`.
  void (*pack)(Format, const void *x, bool is_packed, int64_t rows, int64_t columns, int64_t lane, uint8_t *panel);
};
