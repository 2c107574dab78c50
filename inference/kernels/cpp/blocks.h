// The two halves of a decoder layer and the output head, each one parallel region of a few phases.
//
// All arguments are plain pointers and sizes, so that the same code serves MindSpore's graph and the tests.
#pragma once

#include <cstdint>

#include "formats.h"
#include "pool.h"

// Names are those of inference/kernels/stock.py: T tokens, B sequences, H query and K key/value heads, D head size.
struct Step {
  int64_t tokens, sequences, table_width;
  bool adds_residual;           // false on all ranks but one of those that share a model: their results are added
  const int32_t *positions;     // [T]
  const int32_t *slots;         // [T]
  const int32_t *block_tables;  // [B, table_width]
  const int32_t *query_starts;  // [B + 1]: sequence b's tokens are [query_starts[b], query_starts[b + 1])
  mutable const float *turned;  // the frequencies that this step's angles were last made for: layers share them
};

struct AttentionLayer {
  int64_t hidden, heads, kv_heads, head_size, block_size, window;
  bool half_cache;
  float eps;
  const float *norm;                    // [hidden]
  const float *frequencies;             // [D / 2]: angle per position of each rotated pair
  Matrix qkv;                           // [(H + 2K) * D, hidden]
  const float *qkv_bias;                // or null
  const float *query_norm, *key_norm;   // [D], or null
  Matrix output;                        // [hidden, H * D]
  const float *output_bias;             // or null
  void *keys;                           // [blocks, K, D, block_size]
  void *values;                         // [blocks, K, block_size, D]
};

struct FeedForwardLayer {
  int64_t hidden, width;
  float eps;
  const float *norm;
  Matrix gate_up;                       // [2 * width, hidden]
  const float *gate_up_bias;
  Matrix down;                          // [hidden, width]
  const float *down_bias;
};

struct Head {
  int64_t hidden;
  float eps;
  const float *norm;
  Matrix weight;                        // [vocabulary, hidden]
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
  void (*attention_half)(Team &, const AttentionLayer &, const Step &, float *x);
  void (*feed_forward_half)(Team &, const FeedForwardLayer &, const Step &, float *x);
  void (*head)(Team &, const Head &, const float *x, int64_t tokens, const Choice &);
  void (*unpack)(const Matrix &, int64_t row, float *out);
  // Writes rows, float32 or (is_packed) of the format's own 16-bit elements, into a panel from its row `lane` on.
  void (*pack)(Format, const void *x, bool is_packed, int64_t rows, int64_t columns, int64_t lane, uint8_t *panel);
};
