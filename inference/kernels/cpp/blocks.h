// The sublayers of a decoder layer and the output head, each one parallel region of a few phases.
//
// All arguments are plain pointers and sizes, so that the same code serves MindSpore's graph and the tests.
#pragma once

#include <cstdint>

#include "formats.h"
#include "pool.h"

// Names are those of inference/kernels/stock.py: T tokens, B sequences, H query and K key/value heads, D head size.
struct Step {
  int64_t tokens, sequences, table_width;
  // Of ranks that share a model, whose results are added: false on all but one; and where a sublayer puts what is to be normed
  // before it is added to x, [T, hidden]. True and null where a model is not shared.
  bool adds_residual;
  float *partial;
  const int32_t *positions;     // [T]
  const int32_t *slots;         // [T]
  const int32_t *block_tables;  // [B, table_width]
  const int32_t *query_starts;  // [B + 1]: sequence b's tokens are [query_starts[b], query_starts[b + 1])
  mutable const float *angles_of;  // the rotation that this step's angles were last made for: layers share them
  // Of a decoder's step: where its encoder left keys and values of each sequence's source. Null for other models.
  int64_t cross_width;
  const int32_t *cross_tables;   // [B, cross_width]
  const int32_t *cross_lengths;  // [B]
  const int32_t *adapters;       // [T]: each token's adapter, from 1, 0 for none; null where no token has one
};

// What an adapter adds to some rows of a product: up (down x). As inference/kernels/records.py writes it.
struct LoraEntry {
  int64_t first_panel, panels;          // of the product's rows
  int64_t rank, offset;                 // where its part of down x begins among those of its adapter
  const float *down;                    // [rank, columns]
  const float *up;                      // [panels, rank, 16]
};

// What all adapters add to one product, an adapter's entries one after the other.
struct LoraTable {
  int64_t adapters;                     // the last that has any
  int64_t width;                        // numbers that an adapter makes of a token, at most
  const int64_t *starts;                // adapter a's are [starts[a - 1], starts[a])
  const LoraEntry *list;                // null if there are none

  static LoraTable at(const LoraTable *table) { return table ? *table : LoraTable{}; }
};

// The same for products by parts of a matrix, each of which has an input of its own: heads, experts.
struct LoraTables {
  const LoraTable *const *tables;       // one a part; null if no part has any
  LoraTable of(int64_t part) const { return LoraTable::at(tables ? tables[part] : nullptr); }
};

// What a token attends to: those up to itself; all of its sequence, every token of which is in the step; or the source of
// its sequence. STORE attends to nothing: it leaves the keys and values that CROSS will find.
enum Scope : int64_t { CAUSAL = 0, WHOLE = 1, CROSS = 2, STORE = 3 };

struct AttentionLayer {
  int64_t hidden, heads, kv_heads, head_size, block_size, window;
  bool half_cache;
  float eps;
  float scale;                          // of scores
  float softcap;                        // bounds scores by a tanh; 0 for no bound
  const float *norm;                    // [hidden]
  const float *norm_bias;               // or null: with a bias the norm is LayerNorm, without RMSNorm
  const float *rotation;                // [2, D / 2]: angle per position of each rotated pair, and its magnitude; or null
  const float *slopes;                  // [H]: added to scores for each position of distance (ALiBi), or null
  Matrix qkv;                           // [(H + 2K) * D, hidden]; only the queries of CROSS, all but those of STORE
  const float *qkv_bias;                // or null
  const float *query_norm, *key_norm;   // [D], or null
  Matrix output;                        // [hidden, H * D]
  const float *output_bias;             // or null
  const float *post_norm;               // [hidden]: RMSNorm of what is added to x, or null
  void *keys;                           // [blocks, K, D, block_size]
  void *values;                         // [blocks, K, block_size, D]
  Scope scope;
  int64_t reach;                        // distances farther than this are as this
  const float *distances;               // [H, 2 * reach + 1]: added to scores by distance, from -reach on; or null
  LoraTable qkv_lora, output_lora;

  // Heads in a row of what `qkv` gives.
  int64_t queries() const { return scope == STORE ? 0 : heads; }
  int64_t stored() const { return scope == CROSS ? 0 : kv_heads; }
  int64_t columns() const { return (queries() + 2 * stored()) * head_size; }
};

// Latent attention, as inference/kernels/shapes.py describes it. A head's rows in `key_up` and `value_up` begin at panels.
struct LatentLayer {
  int64_t hidden, heads, query_rank, rank, nope, rope, value, block_size;
  bool half_cache;
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

// As inference/kernels/shapes.py numbers them.
enum Activation : int64_t { SILU = 0, GELU_TANH = 1, GELU = 2, RELU = 3 };

struct FeedForwardLayer {
  int64_t hidden, width;
  float eps;
  Activation activation;
  bool gated;
  const float *norm, *norm_bias;        // as in AttentionLayer
  Matrix gate_up;                       // [2 * width, hidden]; [width, hidden] where there is no gate
  const float *gate_up_bias;
  Matrix down;                          // [hidden, width]
  const float *down_bias;
  const float *post_norm;               // as in AttentionLayer
  LoraTable gate_up_lora, down_lora;
};

// As inference/kernels/shapes.py describes it.
struct Routing {
  int64_t experts, chosen, groups, chosen_groups, group_best;
  bool sigmoid, normalize;
  float scale;
  const float *correction;              // [experts]: added to scores for the choice alone, or null
};

// A feed-forward whose parts are matrices among others: gate and up begin at panels, each with room for whole panels.
struct Expert {
  int64_t width;
  Matrix gate_up;                       // [2 * room of the width, hidden]
  Matrix down;                          // [hidden, width]
  LoraTable gate_up_lora, down_lora;
};

struct ExpertsLayer {
  int64_t hidden, width, shared_width;  // shared_width 0: there is no shared expert
  bool shared_gate;                     // scales the shared expert by the sigmoid of the router's last row
  float eps;
  const float *norm;
  Routing routing;
  Matrix router;                        // [experts, or one more, hidden]
  Matrix gate_up, down;                 // of all experts, one below the other, each with room for whole panels
  Matrix shared_gate_up, shared_down;
  LoraTable router_lora, shared_gate_up_lora, shared_down_lora;
  LoraTables gate_up_lora, down_lora;

  // Expert `index` of the list; the shared one follows the others.
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
  float softcap;                        // bounds logits by a tanh; 0 for no bound
  const float *norm, *norm_bias;        // as in AttentionLayer
  Matrix weight;                        // [vocabulary, hidden]
  LoraTable lora;
};

// What is wanted of the logits of R tokens. A row's best token is the first of those with the largest logit, or -1 where
// one of its logits is no number.
struct Choice {
  const int32_t *logit_rows;            // [S]: of the R tokens, those whose logits are wanted
  int64_t logit_count;
  float *best;                          // [R]: an integer below 2^24
  float *value;                         // [R]: its logit
  float *logits;                        // [S, vocabulary]
};

// One table of functions for each instruction set.
struct Kernels {
  const char *name;
  void (*linear)(Team &, const Matrix &, const float *x, int64_t tokens, const float *bias, const float *residual,
                 float *out);
  void (*rms_norm)(const float *x, const float *weight, int64_t tokens, int64_t width, float eps, float *out);
  // Each adds to x [T, hidden], in place, or writes what it would add.
  void (*attention_sublayer)(Team &, const AttentionLayer &, const Step &, float *x);
  void (*latent_sublayer)(Team &, const LatentLayer &, const Step &, float *x);
  void (*feed_forward_sublayer)(Team &, const FeedForwardLayer &, const Step &, float *x);
  void (*experts_sublayer)(Team &, const ExpertsLayer &, const Step &, float *x);
  // x [tokens, width] += norm(added), which is normed in place.
  void (*add_normed)(Team &, float *added, const float *norm, int64_t tokens, int64_t width, float eps, float *x);
  // `adapters` [tokens]: as those of a step.
  void (*head)(Team &, const Head &, const float *x, int64_t tokens, const int32_t *adapters, const Choice &);
  void (*unpack)(const Matrix &, int64_t row, float *out);
  // Writes rows, float32 or (is_packed) of the format's own 16-bit elements, into a panel from its row `lane` on.
  void (*pack)(Format, const void *x, bool is_packed, int64_t rows, int64_t columns, int64_t lane, uint8_t *panel);
};
