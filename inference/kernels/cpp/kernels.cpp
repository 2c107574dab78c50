// The attention sublayers, and the table of all kernels for one instruction set. Compiled once per set, with KERNEL_ISA
// as the namespace.
#include "attention.h"
#include "experts.h"
#include "feed_forward.h"
#include "latent.h"
#include "output_head.h"
#include "pack.h"
#include "phases.h"

namespace KERNEL_ISA {
namespace {

// Normalizes the queries of all heads of a token together, and its keys.
void all_heads_norm_phase(Member &me, const AttentionLayer &layer, int64_t tokens, float *qkv) {
  const int64_t queries = layer.queries() * layer.head_size, keys = layer.stored() * layer.head_size;
  me.share(tokens, 1, [&](int64_t t) {
    float *row = qkv + t * layer.columns();
    rms_norm_row(row, layer.query_norm, queries, layer.eps, row);
    rms_norm_row(row + queries, layer.key_norm, keys, layer.eps, row + queries);
  });
}

void attention_phase(Member &me, const AttentionLayer &layer, const Step &step, float *qkv, float *out) {
  const float *angles = workspace.angles.data();
  if (layer.norms_all_heads) all_heads_norm_phase(me, layer, step.tokens, qkv);
  const int64_t heads = layer.queries() + 2 * layer.stored();
  me.share(step.tokens * heads, 8, [&](int64_t i) {
    with_cache(layer.cache_type,
               [&](auto cache) { store_head<decltype(cache)>(layer, step, angles, qkv, i / heads, i % heads); });
  });
  if (layer.scope == STORE) return;
  const int64_t group = layer.heads / layer.kv_heads;
  const auto vectors_of = [&](int64_t b) { return (step.query_starts[b + 1] - step.query_starts[b]) * group; };
  const auto tiles_of = [&](int64_t b) { return (vectors_of(b) + TILE - 1) / TILE; };
  int64_t count = 0;
  for (int64_t b = 0; b < step.sequences; b++) count += tiles_of(b) * layer.kv_heads;
  // A thread gets its pieces in order, so it walks through the sequences once.
  int64_t b = 0, before = 0;
  me.share(count, 1, [&](int64_t i) {
    for (int64_t tasks; i >= before + (tasks = tiles_of(b) * layer.kv_heads); b++) before += tasks;
    // Last tiles first: they have the longest context, so the shortest work comes last and balances the threads.
    const int64_t task = i - before, tile = tiles_of(b) - 1 - task / layer.kv_heads;
    const Tile work{b, task % layer.kv_heads, tile * TILE, int(std::min<int64_t>(TILE, vectors_of(b) - tile * TILE))};
    with_cache(layer.cache_type,
               [&](auto cache) { attend_tile<decltype(cache)>(layer, step, qkv, out, work, attention_work); });
  });
}

void linear(Team &team, const Matrix &w, const float *x, int64_t tokens, const float *bias, const float *residual,
            float *out) {
  workspace.input.reserve(w, x, tokens);
  workspace.lora.reserve({}, nullptr, workspace.input);
  team.run([&](Member &me) {
    arrange(me, workspace.input, workspace.lora);
    linear_into(me, w, workspace.input, bias, residual, out);
  });
}

void rms_norm(const float *x, const float *weight, int64_t tokens, int64_t width, float eps, float *out) {
  for (int64_t t = 0; t < tokens; t++) rms_norm_row(x + t * width, weight, width, eps, out + t * width);
}

void attention_sublayer(Team &team, const AttentionLayer &layer, const Step &step, float *x) {
  const int64_t tokens = step.tokens;
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  float *qkv = sized(workspace.qkv, tokens * layer.qkv.rows);
  float *attended = sized(workspace.attended, tokens * layer.output.columns);
  float *angles = sized(workspace.angles, tokens * layer.head_size);
  if (layer.post_norm) sized(workspace.added, tokens * layer.hidden);
  const bool has_angles = !layer.rotation || step.angles_of == layer.rotation;
  if (layer.rotation) step.angles_of = layer.rotation;
  workspace.input.reserve(layer.qkv, layer.norm ? normed : x, tokens);
  const bool attends = layer.scope != STORE;
  if (attends) workspace.second.reserve(layer.output, attended, tokens);
  workspace.lora.reserve(layer.qkv_lora, step.adapters, workspace.input);
  if (attends) workspace.lora_second.reserve(layer.output_lora, step.adapters, workspace.second);
  team.run([&](Member &me) {
    prefetch(me, layer.qkv, workspace.input);
    if (!has_angles)
      me.share(tokens, 1, [&](int64_t t) {
        rope_angles(layer.rotation, step.positions[t], layer.head_size, angles + t * layer.head_size);
      });
    if (layer.norm) norm_phase(me, x, layer.norm, layer.norm_bias, tokens, layer.hidden, layer.eps, normed);
    arrange(me, workspace.input, workspace.lora);
    if (attends) prefetch(me, layer.output, workspace.input);
    linear_into(me, layer.qkv, workspace.input, layer.qkv_bias, nullptr, qkv, workspace.lora);
    attention_phase(me, layer, step, qkv, attended);
    if (!attends) return;
    arrange(me, workspace.second, workspace.lora_second);
    add_linear(me, layer.output, workspace.second, layer.output_bias, layer.post_norm, layer.eps, step, x,
               workspace.lora_second);
  });
}

// Writes latents and rotated keys to the cache; normalizes compressed queries in place before their projection.
void latent_phase(Member &me, const LatentLayer &layer, const Step &step, float *down) {
  const float *angles = workspace.angles.data();
  const int64_t first = layer.down.rows - layer.width(), rope = layer.rope;
  me.share(step.tokens, 1, [&](int64_t t) {
    float *row = down + t * layer.down.rows, *entry = row + first;
    if (layer.query_rank) rms_norm_row(row, layer.query_norm, layer.query_rank, layer.latent_eps, row);
    rms_norm_row(entry, layer.latent_norm, layer.rank, layer.latent_eps, entry);
    apply_rope(entry + layer.rank, angles + t * rope, angles + t * rope + rope / 2, rope);
    with_cache(layer.cache_type, [&](auto cache) { store_latent<decltype(cache)>(layer, step, t, entry); });
  });
}

// Copies the rotated part of each head's query to where the scores read it.
void rope_queries_phase(Member &me, const LatentLayer &layer, int64_t tokens, const float *query, int64_t stride,
                        float *queries) {
  const float *angles = workspace.angles.data();
  const int64_t rope = layer.rope;
  me.share(tokens * layer.heads, 8, [&](int64_t i) {
    const int64_t token = i / layer.heads, head = i % layer.heads;
    const float *from = query + token * stride + head * (layer.nope + rope) + layer.nope;
    float *to = queries + i * layer.width() + layer.rank;
    std::copy_n(from, rope, to);
    apply_rope(to, angles + token * rope, angles + token * rope + rope / 2, rope);
    for (int64_t d = 0; d < rope; d++) to[d] *= layer.scale;
  });
}

// One product per head, on inputs prepared by `Input::reserve`: calls finish(head, row, rows, token, y).
template <class MatrixOf, class Finish>
void heads_phase(Member &me, std::vector<Input> &inputs, std::vector<Lora> &lora, int64_t heads,
                 const MatrixOf &matrix_of, const Finish &finish) {
  const auto input = [&](int64_t head) -> Input & { return inputs[head]; };
  arrange_all(me, heads, input, [&](int64_t head) -> Lora & { return lora[head]; });
  const auto panels_in = [&](int64_t head) { return matrix_of(head).panels(); };
  share_panels(me, heads, input, panels_in, [&](int64_t head, int64_t first, int64_t panels) {
    const auto finish_head = [&](int64_t row, int64_t rows, int64_t token, const float *y) {
      finish(head, row, rows, token, y);
    };
    product_panels(matrix_of(head), inputs[head], first, panels, finish_head, lora[head]);
  });
}

void attend_latents_phase(Member &me, const LatentLayer &layer, const Step &step, float *queries, float *out) {
  Lists tiles;
  const auto vectors_of = [&](int64_t b) {
    return (step.query_starts[b + 1] - step.query_starts[b]) * layer.heads;
  };
  for (int64_t b = 0; b < step.sequences; b++) tiles.add((vectors_of(b) + TILE - 1) / TILE);
  me.share(tiles.total(), 1, [&](int64_t i) {
    tiles.find(i, [&](int64_t b, int64_t tile) {
      // Last tiles first, as in attention_phase.
      const int64_t first = ((vectors_of(b) - 1) / TILE - tile) * TILE;
      const int count = int(std::min<int64_t>(TILE, vectors_of(b) - first));
      with_cache(layer.cache_type, [&](auto cache) {
        attend_latent_tile<decltype(cache)>(layer, step, queries, out, b, first, count, attention_work);
      });
    });
  });
}

void latent_sublayer(Team &team, const LatentLayer &layer, const Step &step, float *x) {
  const int64_t tokens = step.tokens, heads = layer.heads, width = layer.width();
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  float *down = sized(workspace.qkv, tokens * layer.down.rows);
  float *projected = layer.query_rank ? sized(workspace.gated, tokens * layer.query()) : down;
  const int64_t stride = layer.query_rank ? layer.query() : layer.down.rows;
  float *queries = sized(workspace.queries, tokens * heads * width);
  float *latents = sized(workspace.latents, tokens * heads * layer.rank);
  float *attended = sized(workspace.attended, tokens * layer.output.columns);
  float *angles = sized(workspace.angles, tokens * layer.rope);
  const bool has_angles = step.angles_of == layer.rotation;
  step.angles_of = layer.rotation;
  workspace.input.reserve(layer.down, normed, tokens);
  workspace.second.reserve(layer.output, attended, tokens);
  workspace.lora.reserve(layer.down_lora, step.adapters, workspace.input);
  workspace.lora_second.reserve(layer.output_lora, step.adapters, workspace.second);
  if (layer.query_rank) {
    workspace.third.reserve(layer.query_up, down, tokens, nullptr, layer.down.rows);
    workspace.lora_third.reserve(layer.query_up_lora, step.adapters, workspace.third);
  }
  if (int64_t(workspace.heads.size()) < heads) {
    workspace.heads.resize(heads), workspace.heads_second.resize(heads);
    workspace.lora_heads.resize(heads), workspace.lora_heads_second.resize(heads);
  }
  for (int64_t h = 0; h < heads; h++) {
    Input &query = workspace.heads[h], &latent = workspace.heads_second[h];
    query.reserve(layer.key_up_of(h), projected + h * (layer.nope + layer.rope), tokens, nullptr, stride);
    latent.reserve(layer.value_up_of(h), latents + h * layer.rank, tokens, nullptr, heads * layer.rank);
    workspace.lora_heads[h].reserve(layer.key_up_lora.of(h), step.adapters, query);
    workspace.lora_heads_second[h].reserve(layer.value_up_lora.of(h), step.adapters, latent);
  }
  team.run([&](Member &me) {
    prefetch(me, layer.down, workspace.input);
    if (!has_angles)
      me.share(tokens, 1, [&](int64_t t) {
        rope_angles(layer.rotation, step.positions[t], layer.rope, angles + t * layer.rope);
      });
    norm_phase(me, x, layer.norm, nullptr, tokens, layer.hidden, layer.eps, normed);
    arrange(me, workspace.input, workspace.lora);
    linear_into(me, layer.down, workspace.input, layer.down_bias, nullptr, down, workspace.lora);
    latent_phase(me, layer, step, down);
    if (layer.query_rank) {
      arrange(me, workspace.third, workspace.lora_third);
      linear_into(me, layer.query_up, workspace.third, nullptr, nullptr, projected, workspace.lora_third);
    }
    rope_queries_phase(me, layer, tokens, projected, stride, queries);
    heads_phase(me, workspace.heads, workspace.lora_heads, heads,
                [&](int64_t head) { return layer.key_up_of(head); },
                [&](int64_t head, int64_t row, int64_t rows, int64_t token, const float *y) {
                  float *to = queries + (token * heads + head) * width + row;
                  for (int64_t r = 0; r < rows; r++) to[r] = y[r] * layer.scale;
                });
    prefetch(me, layer.output, workspace.second);
    attend_latents_phase(me, layer, step, queries, latents);
    heads_phase(me, workspace.heads_second, workspace.lora_heads_second, heads,
                [&](int64_t head) { return layer.value_up_of(head); },
                [&](int64_t head, int64_t row, int64_t rows, int64_t token, const float *y) {
                  std::copy_n(y, rows, attended + (token * heads + head) * layer.value + row);
                });
    arrange(me, workspace.second, workspace.lora_second);
    linear_into(me, layer.output, workspace.second, layer.output_bias, step.adds_residual ? x : nullptr, x,
                workspace.lora_second);
  });
}

void add_normed(Team &team, float *added, const float *norm, int64_t tokens, int64_t width, float eps, float *x) {
  team.run([&](Member &me) { add_normed_phase(me, added, norm, tokens, width, eps, x); });
}

}  // namespace

extern const Kernels table;
const Kernels table = {KERNEL_NAME, linear, rms_norm, attention_sublayer, latent_sublayer,
                       feed_forward_sublayer, experts_sublayer, add_normed, head, unpack, pack};

}  // namespace KERNEL_ISA
