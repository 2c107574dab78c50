// All kernels for one instruction set; compiled once for each, with KERNEL_ISA as its name.
#include "attention.h"
#include "blocks.h"
#include "latent.h"
#include "linear.h"
#include "routing.h"

namespace KERNEL_ISA {
namespace {

// In one order, whoever calls it: a token's result does not depend on its neighbors.
float dot(const float *a, const float *b, int64_t count) {
  VecF sums[2] = {zero(), zero()};
  int64_t i = 0;
  for (; i + 2 * LANES <= count; i += 2 * LANES)
    for (int part = 0; part < 2; part++) sums[part] += load(a + i + part * LANES) * load(b + i + part * LANES);
  float sum = sum_lanes(sums[0] + sums[1]);
  for (; i < count; i++) sum = multiply_add(a[i], b[i], sum);
  return sum;
}

// What the adapters of its tokens add to a product; nothing where no token has one.
class Adapting {
 public:
  // Makes room; to be called before threads share the work. `adapters` are those of the step's tokens, or null; `rows`
  // says which of these the input's tokens are, where it has not all of them in their order.
  void reserve(const Additions &additions, const int32_t *adapters, const Input &input, const int32_t *rows = nullptr) {
    additions_ = additions, adapters_ = additions.list ? adapters : nullptr, rows_ = rows, tokens_ = input.tokens;
    if (adapters_ && int64_t(low_.size()) < tokens_ * additions.width) low_.resize(tokens_ * additions.width);
  }

  // Pieces of work that `lower` can be asked for, in any order, by any thread, before the product.
  int64_t pieces() const { return adapters_ ? tokens_ * blocks() : 0; }

  // Of some of a token's input what its adapter makes of it.
  void lower(int64_t piece, const Input &input) {
    const int64_t token = piece / blocks(), begin = piece % blocks() * BLOCK, columns = input.columns;
    each(token, [&](const Addition &part) {
      const int64_t first = std::max(begin, part.offset), last = std::min(begin + BLOCK, part.offset + part.rank);
      for (int64_t at = first; at < last; at++)
        low_[token * additions_.width + at] = dot(part.down + (at - part.offset) * columns, input.row(token), columns);
    });
  }

  // Adds to y, the panel of a token's product that begins at `row`.
  void add(int64_t token, int64_t row, float *y) const {
    if (!adapters_) return;
    each(token, [&](const Addition &part) {
      const int64_t panel = row / PANEL - part.first_panel;
      if (panel < 0 || panel >= part.panels) return;
      const float *low = low_.data() + token * additions_.width + part.offset;
      const float *up = part.up + panel * part.rank * PANEL;
      for (int64_t lane = 0; lane < PANEL; lane += LANES) {
        VecF sum = zero();
        for (int64_t k = 0; k < part.rank; k++) sum += load(up + k * PANEL + lane) * low[k];
        store(y + lane, load(y + lane) + sum);
      }
    });
  }

 private:
  static constexpr int64_t BLOCK = 8;  // numbers that a piece makes

  int64_t blocks() const { return (additions_.width + BLOCK - 1) / BLOCK; }

  template <class Work>
  void each(int64_t token, const Work &work) const {
    const int64_t adapter = adapters_[rows_ ? rows_[token] : token];
    if (!adapter || adapter > additions_.adapters) return;
    for (int64_t i = additions_.starts[adapter - 1]; i < additions_.starts[adapter]; i++) work(additions_.list[i]);
  }

  Additions additions_{};
  const int32_t *adapters_ = nullptr, *rows_ = nullptr;
  int64_t tokens_ = 0;
  std::vector<float> low_;  // [tokens, width]
};
const Adapting unadapted;

// An expert that tokens have chosen.
struct Chosen {
  Expert expert;
  Input input, second;  // of its two products
  Adapting adapting, adapting_second;
  float *gated;         // [its tokens, width]
  float *answers;       // [its tokens, hidden]
};

// Memory that lives from one call to the next; only one region runs at a time.
struct Workspace {
  std::vector<float> normed, qkv, angles, attended, gate_up, gated, added, logits, weights, answers;
  Input input, second, third;           // of a half's products
  Adapting adapting, adapting_second, adapting_third;
  std::vector<Chosen> experts;
  std::vector<Input> heads, heads_second;
  std::vector<Adapting> adapting_heads, adapting_heads_second;
  std::vector<float> queries, latents;
  std::vector<int32_t> chosen, rows;
};
Workspace workspace;
thread_local std::vector<float> scratch, sums;
thread_local Attending attending;

float *sized(std::vector<float> &buffer, int64_t count) {
  if (int64_t(buffer.size()) < count) buffer.resize(count);
  return buffer.data();
}

// Work of several lists, one after the other.
class Lists {
 public:
  void add(int64_t count) { ends_.push_back(total() + count); }
  int64_t total() const { return ends_.empty() ? 0 : ends_.back(); }
  // Calls work(list, place in it) for a place in all of them together.
  template <class Work>
  void find(int64_t i, const Work &work) const {
    const int64_t list = std::upper_bound(ends_.begin(), ends_.end(), i) - ends_.begin();
    work(list, list ? i - ends_[list - 1] : i);
  }

 private:
  std::vector<int64_t> ends_;
};

// Panels that a thread takes at a time: as many as read x while it is near, and as one call of the kernels takes.
int64_t panels_at_once(const Input &input) { return input.tiles == 1 ? 4 : 8; }

// Panels that a thread takes at least, where there are as many left.
int64_t panels_together(const Input &input) { return input.tiles == 1 || input.quantized ? 1 : HELD_PANELS; }

// Lets a thread that waits fetch the first panels of the matrix that comes next.
void expect(Member &me, const Matrix &w, const Input &input) {
  constexpr int64_t MOST = 384 << 10;  // of a second-level cache
  if (input.tiles == 1) me.expect(w.data, std::min(MOST, 4 * panel_bytes(w.format, w.columns)));
}

// A piece of the work that comes before a product.
void prepare(Input &input, Adapting &adapting, int64_t piece) {
  if (piece < input.pieces()) input.arrange(piece);
  else adapting.lower(piece - input.pieces(), input);
}

// Arranges x, of `Input::reserve`, and makes of it what adapters do.
void arrange(Member &me, Input &input, Adapting &adapting) {
  const int64_t pieces = input.pieces() + adapting.pieces();
  if (pieces) me.share(pieces, 1, [&](int64_t piece) { prepare(input, adapting, piece); });
}

// Calls finish(row, rows, token, y) for every 16 rows or fewer of some panels and every token, with
// y [rows] = x W^T.
template <class Finish>
void product_panels(const Matrix &w, const Input &input, int64_t first, int64_t panels, const Finish &finish,
                    const Adapting &adapting = unadapted) {
  float *buffer = sized(sums, panels * input.slots() * PANEL);
  linear_range({w, first, panels, input, buffer}, scratch);
  // Token by token, because a token's rows are neighbors where they are written to.
  for (int64_t token = 0; token < input.tokens; token++)
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t row = (first + panel) * PANEL, rows = std::min(PANEL, w.rows - row);
      float *y = buffer + (panel * input.slots() + token) * PANEL;
      adapting.add(token, row, y);
      finish(row, rows, token, y);
    }
}

template <class Finish>
void linear_phase(Member &me, const Matrix &w, Input &input, const Finish &finish,
                  const Adapting &adapting = unadapted) {
  me.share_runs(w.panels(), panels_at_once(input), panels_together(input),
                [&](int64_t first, int64_t panels) { product_panels(w, input, first, panels, finish, adapting); });
}

// out [tokens, rows] = x W^T + bias + residual, of which the last two may be null.
void linear_into(Member &me, const Matrix &w, Input &input, const float *bias, const float *residual, float *out,
                 const Adapting &adapting = unadapted) {
  const auto finish = [&](int64_t row, int64_t rows, int64_t token, const float *y) {
    const int64_t at = token * w.rows + row;
    for (int64_t r = 0; r < rows; r++) {
      const float biased = bias ? y[r] + bias[row + r] : y[r];
      out[at + r] = residual ? residual[at + r] + biased : biased;
    }
  };
  linear_phase(me, w, input, finish, adapting);
}

// The same for several products at once: `input_of(i)` is the input of the one that is called i.
template <class InputOf, class AdaptingOf>
void arrange_all(Member &me, int64_t count, const InputOf &input_of, const AdaptingOf &adapting_of) {
  Lists pieces;
  for (int64_t i = 0; i < count; i++) pieces.add(input_of(i).pieces() + adapting_of(i).pieces());
  if (!pieces.total()) return;
  me.share(pieces.total(), 1, [&](int64_t at) {
    pieces.find(at, [&](int64_t i, int64_t piece) { prepare(input_of(i), adapting_of(i), piece); });
  });
}

// Calls work(i, first, panels) for runs of the panels that the products have, of which `panels_in(i)` are i's.
template <class InputOf, class PanelsIn, class Work>
void share_panels(Member &me, int64_t count, const InputOf &input_of, const PanelsIn &panels_in, const Work &work) {
  Lists runs;
  for (int64_t i = 0; i < count; i++) {
    const int64_t most = panels_at_once(input_of(i));
    runs.add((panels_in(i) + most - 1) / most);
  }
  me.share(runs.total(), 1, [&](int64_t at) {
    runs.find(at, [&](int64_t i, int64_t run) {
      const int64_t most = panels_at_once(input_of(i)), first = run * most;
      work(i, first, std::min(most, panels_in(i) - first));
    });
  });
}

void norm_phase(Member &me, const float *x, const float *weight, const float *bias, int64_t tokens, int64_t width,
                float eps, float *out) {
  me.share(tokens, 1, [&](int64_t t) { norm_row(x + t * width, weight, bias, width, eps, out + t * width); });
}

void add_normed_phase(Member &me, float *added, const float *norm, int64_t tokens, int64_t width, float eps, float *x) {
  me.share(tokens, 1, [&](int64_t t) {
    float *row = added + t * width;
    rms_norm_row(row, norm, width, eps, row);
    for (int64_t i = 0; i < width; i++) x[t * width + i] += row[i];
  });
}

// x [tokens, rows] += y W^T + bias, y being `Input::reserve`d; normed before it is added where there is a norm. Of ranks
// that share a model all but one leave out what was in x; where there is a norm, all leave x alone, and what they have
// goes to `step.partial`.
void add_linear(Member &me, const Matrix &w, Input &input, const float *bias, const float *norm, float eps,
                const Step &step, float *x, const Adapting &adapting) {
  if (!norm) return linear_into(me, w, input, bias, step.adds_residual ? x : nullptr, x, adapting);
  float *added = step.partial ? step.partial : workspace.added.data();
  linear_into(me, w, input, bias, nullptr, added, adapting);
  if (!step.partial) add_normed_phase(me, added, norm, input.tokens, w.rows, eps, x);
}

void attention_phase(Member &me, const AttentionLayer &layer, const Step &step, float *qkv, float *out) {
  const float *angles = workspace.angles.data();
  const int64_t heads = layer.queries() + 2 * layer.stored();
  me.share(step.tokens * heads, 8, [&](int64_t i) {
    if (layer.half_cache) place_head<CacheHalf>(layer, step, angles, qkv, i / heads, i % heads);
    else place_head<CacheFloat>(layer, step, angles, qkv, i / heads, i % heads);
  });
  if (layer.scope == STORE) return;
  const int64_t group = layer.heads / layer.kv_heads;
  const auto vectors_of = [&](int64_t b) { return (step.query_starts[b + 1] - step.query_starts[b]) * group; };
  const auto tiles_of = [&](int64_t b) { return (vectors_of(b) + TILE - 1) / TILE; };
  int64_t count = 0;
  for (int64_t b = 0; b < step.sequences; b++) count += tiles_of(b) * layer.kv_heads;
  // A thread's pieces come in order, so it walks through the sequences once.
  int64_t b = 0, before = 0;
  me.share(count, 1, [&](int64_t i) {
    for (int64_t tasks; i >= before + (tasks = tiles_of(b) * layer.kv_heads); b++) before += tasks;
    // Last tiles first: they see the longest context, and the shortest work evens out the end.
    const int64_t task = i - before, tile = tiles_of(b) - 1 - task / layer.kv_heads;
    const Tile work{b, task % layer.kv_heads, tile * TILE, int(std::min<int64_t>(TILE, vectors_of(b) - tile * TILE))};
    if (layer.half_cache) attend_tile<CacheHalf>(layer, step, qkv, out, work, attending);
    else attend_tile<CacheFloat>(layer, step, qkv, out, work, attending);
  });
}

void linear(Team &team, const Matrix &w, const float *x, int64_t tokens, const float *bias, const float *residual,
            float *out) {
  workspace.input.reserve(w, x, tokens);
  workspace.adapting.reserve({}, nullptr, workspace.input);
  team.run([&](Member &me) {
    arrange(me, workspace.input, workspace.adapting);
    linear_into(me, w, workspace.input, bias, residual, out);
  });
}

void rms_norm(const float *x, const float *weight, int64_t tokens, int64_t width, float eps, float *out) {
  for (int64_t t = 0; t < tokens; t++) rms_norm_row(x + t * width, weight, width, eps, out + t * width);
}

void attention_half(Team &team, const AttentionLayer &layer, const Step &step, float *x) {
  const int64_t tokens = step.tokens;
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  float *qkv = sized(workspace.qkv, tokens * layer.qkv.rows);
  float *attended = sized(workspace.attended, tokens * layer.output.columns);
  float *angles = sized(workspace.angles, tokens * layer.head_size);
  if (layer.post_norm) sized(workspace.added, tokens * layer.hidden);
  const bool is_turned = !layer.rotation || step.turned == layer.rotation;
  if (layer.rotation) step.turned = layer.rotation;
  workspace.input.reserve(layer.qkv, normed, tokens);
  const bool attends = layer.scope != STORE;
  if (attends) workspace.second.reserve(layer.output, attended, tokens);
  workspace.adapting.reserve(layer.qkv_additions, step.adapters, workspace.input);
  if (attends) workspace.adapting_second.reserve(layer.output_additions, step.adapters, workspace.second);
  team.run([&](Member &me) {
    expect(me, layer.qkv, workspace.input);
    if (!is_turned)
      me.share(tokens, 1, [&](int64_t t) {
        turn(layer.rotation, step.positions[t], layer.head_size, angles + t * layer.head_size);
      });
    norm_phase(me, x, layer.norm, layer.norm_bias, tokens, layer.hidden, layer.eps, normed);
    arrange(me, workspace.input, workspace.adapting);
    if (attends) expect(me, layer.output, workspace.input);
    linear_into(me, layer.qkv, workspace.input, layer.qkv_bias, nullptr, qkv, workspace.adapting);
    attention_phase(me, layer, step, qkv, attended);
    if (!attends) return;
    arrange(me, workspace.second, workspace.adapting_second);
    add_linear(me, layer.output, workspace.second, layer.output_bias, layer.post_norm, layer.eps, step, x,
               workspace.adapting_second);
  });
}

// Latents and rotated keys to the cache; compressed queries, which are to be projected, are normed where they are.
void latent_phase(Member &me, const LatentLayer &layer, const Step &step, float *down) {
  const float *angles = workspace.angles.data();
  const int64_t first = layer.down.rows - layer.width(), rope = layer.rope;
  me.share(step.tokens, 1, [&](int64_t t) {
    float *row = down + t * layer.down.rows, *entry = row + first;
    if (layer.query_rank) rms_norm_row(row, layer.query_norm, layer.query_rank, layer.latent_eps, row);
    rms_norm_row(entry, layer.latent_norm, layer.rank, layer.latent_eps, entry);
    rotate(entry + layer.rank, angles + t * rope, angles + t * rope + rope / 2, rope);
    if (layer.half_cache) place_latent<CacheHalf>(layer, step, t, entry);
    else place_latent<CacheFloat>(layer, step, t, entry);
  });
}

// The rotated part of each head's query to where the scores want it.
void turn_queries_phase(Member &me, const LatentLayer &layer, int64_t tokens, const float *query, int64_t stride,
                        float *queries) {
  const float *angles = workspace.angles.data();
  const int64_t rope = layer.rope;
  me.share(tokens * layer.heads, 8, [&](int64_t i) {
    const int64_t token = i / layer.heads, head = i % layer.heads;
    const float *from = query + token * stride + head * (layer.nope + rope) + layer.nope;
    float *to = queries + i * layer.width() + layer.rank;
    std::copy_n(from, rope, to);
    rotate(to, angles + token * rope, angles + token * rope + rope / 2, rope);
    for (int64_t d = 0; d < rope; d++) to[d] *= layer.scale;
  });
}

// A product for each head, of inputs that have been `Input::reserve`d: finish(head, row, rows, token, y).
template <class MatrixOf, class Finish>
void heads_phase(Member &me, std::vector<Input> &inputs, std::vector<Adapting> &adapting, int64_t heads,
                 const MatrixOf &matrix_of, const Finish &finish) {
  const auto input = [&](int64_t head) -> Input & { return inputs[head]; };
  arrange_all(me, heads, input, [&](int64_t head) -> Adapting & { return adapting[head]; });
  const auto panels_in = [&](int64_t head) { return matrix_of(head).panels(); };
  share_panels(me, heads, input, panels_in, [&](int64_t head, int64_t first, int64_t panels) {
    const auto finish_head = [&](int64_t row, int64_t rows, int64_t token, const float *y) {
      finish(head, row, rows, token, y);
    };
    product_panels(matrix_of(head), inputs[head], first, panels, finish_head, adapting[head]);
  });
}

void attend_latents_phase(Member &me, const LatentLayer &layer, const Step &step, const float *queries, float *out) {
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
      if (layer.half_cache) attend_latent_tile<CacheHalf>(layer, step, queries, out, b, first, count, attending);
      else attend_latent_tile<CacheFloat>(layer, step, queries, out, b, first, count, attending);
    });
  });
}

void latent_half(Team &team, const LatentLayer &layer, const Step &step, float *x) {
  const int64_t tokens = step.tokens, heads = layer.heads, width = layer.width();
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  float *down = sized(workspace.qkv, tokens * layer.down.rows);
  float *projected = layer.query_rank ? sized(workspace.gated, tokens * layer.query()) : down;
  const int64_t stride = layer.query_rank ? layer.query() : layer.down.rows;
  float *queries = sized(workspace.queries, tokens * heads * width);
  float *latents = sized(workspace.latents, tokens * heads * layer.rank);
  float *attended = sized(workspace.attended, tokens * layer.output.columns);
  float *angles = sized(workspace.angles, tokens * layer.rope);
  const bool is_turned = step.turned == layer.rotation;
  step.turned = layer.rotation;
  workspace.input.reserve(layer.down, normed, tokens);
  workspace.second.reserve(layer.output, attended, tokens);
  workspace.adapting.reserve(layer.down_additions, step.adapters, workspace.input);
  workspace.adapting_second.reserve(layer.output_additions, step.adapters, workspace.second);
  if (layer.query_rank) {
    workspace.third.reserve(layer.query_up, down, tokens, nullptr, layer.down.rows);
    workspace.adapting_third.reserve(layer.query_up_additions, step.adapters, workspace.third);
  }
  if (int64_t(workspace.heads.size()) < heads) {
    workspace.heads.resize(heads), workspace.heads_second.resize(heads);
    workspace.adapting_heads.resize(heads), workspace.adapting_heads_second.resize(heads);
  }
  for (int64_t h = 0; h < heads; h++) {
    Input &query = workspace.heads[h], &latent = workspace.heads_second[h];
    query.reserve(layer.key_up_of(h), projected + h * (layer.nope + layer.rope), tokens, nullptr, stride);
    latent.reserve(layer.value_up_of(h), latents + h * layer.rank, tokens, nullptr, heads * layer.rank);
    workspace.adapting_heads[h].reserve(layer.key_up_additions.of(h), step.adapters, query);
    workspace.adapting_heads_second[h].reserve(layer.value_up_additions.of(h), step.adapters, latent);
  }
  team.run([&](Member &me) {
    expect(me, layer.down, workspace.input);
    if (!is_turned)
      me.share(tokens, 1, [&](int64_t t) {
        turn(layer.rotation, step.positions[t], layer.rope, angles + t * layer.rope);
      });
    norm_phase(me, x, layer.norm, nullptr, tokens, layer.hidden, layer.eps, normed);
    arrange(me, workspace.input, workspace.adapting);
    linear_into(me, layer.down, workspace.input, layer.down_bias, nullptr, down, workspace.adapting);
    latent_phase(me, layer, step, down);
    if (layer.query_rank) {
      arrange(me, workspace.third, workspace.adapting_third);
      linear_into(me, layer.query_up, workspace.third, nullptr, nullptr, projected, workspace.adapting_third);
    }
    turn_queries_phase(me, layer, tokens, projected, stride, queries);
    heads_phase(me, workspace.heads, workspace.adapting_heads, heads,
                [&](int64_t head) { return layer.key_up_of(head); },
                [&](int64_t head, int64_t row, int64_t rows, int64_t token, const float *y) {
                  float *to = queries + (token * heads + head) * width + row;
                  for (int64_t r = 0; r < rows; r++) to[r] = y[r] * layer.scale;
                });
    expect(me, layer.output, workspace.second);
    attend_latents_phase(me, layer, step, queries, latents);
    heads_phase(me, workspace.heads_second, workspace.adapting_heads_second, heads,
                [&](int64_t head) { return layer.value_up_of(head); },
                [&](int64_t head, int64_t row, int64_t rows, int64_t token, const float *y) {
                  std::copy_n(y, rows, attended + (token * heads + head) * layer.value + row);
                });
    arrange(me, workspace.second, workspace.adapting_second);
    linear_into(me, layer.output, workspace.second, layer.output_bias, step.adds_residual ? x : nullptr, x,
                workspace.adapting_second);
  });
}

template <class Function>
void activate(const Function &function, const float *gate, const float *up, int64_t count, float *out) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const VecF y = function(load(gate + i));
    store(out + i, up ? y * load(up + i) : y);
  }
  for (; i < count; i++) {
    const float y = function(broadcast(gate[i]))[0];
    out[i] = up ? y * up[i] : y;
  }
}

// out = activation(gate) * up; activation(gate) where `up` is null.
void activate(Activation kind, const float *gate, const float *up, int64_t count, float *out) {
  switch (kind) {
    case SILU: return activate([](VecF x) { return silu(x); }, gate, up, count, out);
    case GELU_TANH: return activate([](VecF x) { return gelu_tanh(x); }, gate, up, count, out);
    case GELU: return activate([](VecF x) { return gelu(x); }, gate, up, count, out);
    case RELU: return activate([](VecF x) { return relu(x); }, gate, up, count, out);
  }
}

// Panels [first, first + panels) of gate, and those of up, which begin `room` panels on: only their product is written.
void gated_panels(const Matrix &gate_up, int64_t room, int64_t width, const float *gate_bias, Activation activation,
                  const Input &input, int64_t first, int64_t panels, float *gated, const Adapting &adapting = unadapted) {
  const float *up_bias = gate_bias ? gate_bias + width : nullptr;
  const int64_t size = panels * input.slots() * PANEL;
  float *gate = sized(sums, 2 * size), *up = gate + size;
  linear_range({gate_up, first, panels, input, gate}, scratch);
  linear_range({gate_up, room + first, panels, input, up}, scratch);
  for (int64_t token = 0; token < input.tokens; token++)
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t at = (panel * input.slots() + token) * PANEL, column = (first + panel) * PANEL;
      const int64_t columns = std::min(PANEL, width - column);
      adapting.add(token, column, gate + at);
      adapting.add(token, room * PANEL + column, up + at);
      for (int64_t i = 0; gate_bias && i < columns; i++)
        gate[at + i] += gate_bias[column + i], up[at + i] += up_bias[column + i];
      activate(activation, gate + at, up + at, columns, gated + token * width + column);
    }
}

// Where gate and up begin at panels: both of some columns at once.
void gated_phase(Member &me, const FeedForwardLayer &layer, Input &input, float *gated, const Adapting &adapting) {
  const int64_t room = layer.width / PANEL;
  expect(me, layer.down, input);
  me.share_runs(room, panels_at_once(input), panels_together(input), [&](int64_t first, int64_t panels) {
    gated_panels(layer.gate_up, room, layer.width, layer.gate_up_bias, layer.activation, input, first, panels, gated,
                 adapting);
  });
}

// Where they do not: gate and up first, then their product.
void ungrouped_gated_phase(Member &me, const FeedForwardLayer &layer, Input &input, float *gate_up, float *gated,
                           const Adapting &adapting) {
  const int64_t width = layer.width;
  linear_into(me, layer.gate_up, input, layer.gate_up_bias, nullptr, gate_up, adapting);
  me.share(input.tokens, 1, [&](int64_t token) {
    const float *gate = gate_up + token * 2 * width;
    activate(layer.activation, gate, gate + width, width, gated + token * width);
  });
}

// Without a gate: activation(x W^T + bias).
void ungated_phase(Member &me, const FeedForwardLayer &layer, Input &input, float *activated,
                   const Adapting &adapting) {
  expect(me, layer.down, input);
  const auto finish = [&](int64_t row, int64_t rows, int64_t token, const float *y) {
    float biased[PANEL];
    for (int64_t r = 0; r < rows; r++) biased[r] = layer.gate_up_bias ? y[r] + layer.gate_up_bias[row + r] : y[r];
    activate(layer.activation, biased, nullptr, rows, activated + token * layer.width + row);
  };
  linear_phase(me, layer.gate_up, input, finish, adapting);
}

void feed_forward_half(Team &team, const FeedForwardLayer &layer, const Step &step, float *x) {
  const int64_t tokens = step.tokens;
  const bool is_grouped = layer.width % PANEL == 0;
  if (layer.post_norm) sized(workspace.added, tokens * layer.hidden);
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  float *gate_up = is_grouped || !layer.gated ? nullptr : sized(workspace.gate_up, tokens * 2 * layer.width);
  float *gated = sized(workspace.gated, tokens * layer.width);
  workspace.input.reserve(layer.gate_up, normed, tokens);
  workspace.second.reserve(layer.down, gated, tokens);
  const Adapting &adapting = workspace.adapting;
  workspace.adapting.reserve(layer.gate_up_additions, step.adapters, workspace.input);
  workspace.adapting_second.reserve(layer.down_additions, step.adapters, workspace.second);
  team.run([&](Member &me) {
    expect(me, layer.gate_up, workspace.input);
    norm_phase(me, x, layer.norm, layer.norm_bias, tokens, layer.hidden, layer.eps, normed);
    arrange(me, workspace.input, workspace.adapting);
    if (!layer.gated) ungated_phase(me, layer, workspace.input, gated, adapting);
    else if (is_grouped) gated_phase(me, layer, workspace.input, gated, adapting);
    else ungrouped_gated_phase(me, layer, workspace.input, gate_up, gated, adapting);
    arrange(me, workspace.second, workspace.adapting_second);
    add_linear(me, layer.down, workspace.second, layer.down_bias, layer.post_norm, layer.eps, step, x,
               workspace.adapting_second);
  });
}

void add_normed(Team &team, float *added, const float *norm, int64_t tokens, int64_t width, float eps, float *x) {
  team.run([&](Member &me) { add_normed_phase(me, added, norm, tokens, width, eps, x); });
}

// Each token's experts, [tokens, taken], and their weights; the shared expert is the last of every token's.
void route_phase(Member &me, const ExpertsLayer &layer, int64_t tokens, int64_t taken) {
  float *logits = workspace.logits.data(), *weights = workspace.weights.data();
  int32_t *chosen = workspace.chosen.data();
  me.share(tokens, 1, [&](int64_t t) {
    float *own = logits + t * layer.router.rows;
    route(layer.routing, own, chosen + t * taken, weights + t * taken);
    if (taken == layer.routing.chosen) return;
    chosen[t * taken + taken - 1] = int32_t(layer.routing.experts);
    weights[t * taken + taken - 1] = layer.shared_gate ? 1.0f / (1.0f + std::exp(-own[layer.routing.experts])) : 1.0f;
  });
}

// Sorts tokens by expert: fills the workspace's experts that are chosen at all, and replaces each entry of `chosen` by
// the row of the answer. The number of these experts.
int64_t group_by_expert(const ExpertsLayer &layer, const Step &step, int64_t taken, const float *normed) {
  const int64_t pairs = step.tokens * taken, all = layer.routing.experts + 1;
  workspace.rows.resize(pairs);
  std::vector<int64_t> counts(all), next(all);
  for (int64_t i = 0; i < pairs; i++) counts[workspace.chosen[i]]++;
  float *gated = sized(workspace.gated, pairs * std::max(layer.width, layer.shared_width));
  float *answers = sized(workspace.answers, pairs * layer.hidden);
  int64_t used = 0, first = 0;
  for (int64_t e = 0; e < all; e++) {
    next[e] = first;
    if (!counts[e]) continue;
    if (int64_t(workspace.experts.size()) == used) workspace.experts.emplace_back();
    Chosen &chosen = workspace.experts[used++];
    chosen.expert = layer.expert(e), chosen.gated = gated, chosen.answers = answers + first * layer.hidden;
    const int32_t *rows = workspace.rows.data() + first;
    chosen.input.reserve(chosen.expert.gate_up, normed, counts[e], rows);
    chosen.second.reserve(chosen.expert.down, gated, counts[e]);
    chosen.adapting.reserve(chosen.expert.gate_up_additions, step.adapters, chosen.input, rows);
    chosen.adapting_second.reserve(chosen.expert.down_additions, step.adapters, chosen.second, rows);
    gated += counts[e] * chosen.expert.width, first += counts[e];
  }
  for (int64_t i = 0; i < pairs; i++) {
    const int64_t row = next[workspace.chosen[i]]++;
    workspace.rows[row] = int32_t(i / taken), workspace.chosen[i] = int32_t(row);
  }
  return used;
}

// The answers of experts that are chosen, each for its own tokens.
void experts_phases(Member &me, int64_t experts) {
  const auto chosen = [](int64_t e) -> Chosen & { return workspace.experts[e]; };
  const auto input = [&](int64_t e) -> Input & { return chosen(e).input; };
  const auto second = [&](int64_t e) -> Input & { return chosen(e).second; };
  arrange_all(me, experts, input, [&](int64_t e) -> Adapting & { return chosen(e).adapting; });
  const auto room = [&](int64_t e) { return panels_of(chosen(e).expert.width); };
  share_panels(me, experts, input, room, [&](int64_t e, int64_t first, int64_t panels) {
    const Expert &expert = chosen(e).expert;
    gated_panels(expert.gate_up, room(e), expert.width, nullptr, SILU, input(e), first, panels, chosen(e).gated,
                 chosen(e).adapting);
  });
  arrange_all(me, experts, second, [&](int64_t e) -> Adapting & { return chosen(e).adapting_second; });
  const auto down = [&](int64_t e) { return chosen(e).expert.down.panels(); };
  share_panels(me, experts, second, down, [&](int64_t e, int64_t first, int64_t panels) {
    const Matrix &w = chosen(e).expert.down;
    const auto finish = [&](int64_t row, int64_t rows, int64_t token, const float *y) {
      std::copy_n(y, rows, chosen(e).answers + token * w.rows + row);
    };
    product_panels(w, second(e), first, panels, finish, chosen(e).adapting_second);
  });
}

// x += the weighted answers of its experts, in the order of its choice. Of ranks that share a model all but one leave out
// what was in x.
void sum_phase(Member &me, const Step &step, int64_t taken, int64_t hidden, float *x) {
  constexpr int64_t BLOCK = 256;  // columns
  const int64_t blocks = (hidden + BLOCK - 1) / BLOCK;
  me.share(step.tokens * blocks, 1, [&](int64_t i) {
    const int64_t token = i / blocks, begin = i % blocks * BLOCK, end = std::min(hidden, begin + BLOCK);
    if (!step.adds_residual) std::fill(x + token * hidden + begin, x + token * hidden + end, 0.0f);
    for (int64_t k = 0; k < taken; k++) {
      const float weight = workspace.weights[token * taken + k];
      const float *answer = workspace.answers.data() + workspace.chosen[token * taken + k] * hidden;
      for (int64_t c = begin; c < end; c++)
        x[token * hidden + c] = multiply_add(weight, answer[c], x[token * hidden + c]);
    }
  });
}

void experts_half(Team &team, const ExpertsLayer &layer, const Step &step, float *x) {
  const int64_t tokens = step.tokens, taken = layer.routing.chosen + (layer.shared_width ? 1 : 0);
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  float *logits = sized(workspace.logits, tokens * layer.router.rows);
  sized(workspace.weights, tokens * taken);
  workspace.chosen.resize(tokens * taken);
  workspace.input.reserve(layer.router, normed, tokens);
  workspace.adapting.reserve(layer.router_additions, step.adapters, workspace.input);
  team.run([&](Member &me) {
    norm_phase(me, x, layer.norm, nullptr, tokens, layer.hidden, layer.eps, normed);
    arrange(me, workspace.input, workspace.adapting);
    linear_into(me, layer.router, workspace.input, nullptr, nullptr, logits, workspace.adapting);
    route_phase(me, layer, tokens, taken);
  });
  const int64_t experts = group_by_expert(layer, step, taken, normed);
  team.run([&](Member &me) {
    experts_phases(me, experts);
    sum_phase(me, step, taken, layer.hidden, x);
  });
}

// The largest logit that a thread has seen of a token.
struct Best {
  float value = -INFINITY;
  int64_t index = -1;
  bool spoiled = false;  // by a logit that is no number

  void see(const float *y, int64_t row, int64_t rows) {
    if (rows == PANEL) {
      VecF largest = load(y), differences = largest - largest;
      for (int i = LANES; i < PANEL; i += LANES) {
        const VecF some = load(y + i);
        largest = some > largest ? some : largest;
        differences += some - some;
      }
      spoiled |= sum_lanes(differences) != 0.0f;
      if (largest_lane(largest) <= value) return;
    }
    for (int64_t r = 0; r < rows; r++) {
      spoiled |= y[r] - y[r] != 0.0f;
      if (y[r] > value) value = y[r], index = row + r;
    }
  }

  void merge(const Best &other) {
    spoiled |= other.spoiled;
    if (other.value > value || (other.value == value && other.index < index)) value = other.value, index = other.index;
  }
};

void head(Team &team, const Head &layer, const float *x, int64_t tokens, const int32_t *adapters, const Choice &choice) {
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  for (int64_t t = 0; t < tokens; t++)
    norm_row(x + t * layer.hidden, layer.norm, layer.norm_bias, layer.hidden, layer.eps, normed + t * layer.hidden);
  workspace.input.reserve(layer.weight, normed, tokens);
  workspace.adapting.reserve(layer.additions, adapters, workspace.input);
  std::vector<float *> logits(tokens, nullptr);
  for (int64_t s = 0; s < choice.logit_count; s++)
    logits[choice.logit_rows[s]] = choice.logits + s * layer.weight.rows;
  std::vector<std::vector<Best>> best(team.size(), std::vector<Best>(tokens));
  team.run([&](Member &me) {
    arrange(me, workspace.input, workspace.adapting);
    const auto finish = [&](int64_t row, int64_t rows, int64_t token, const float *y) {
      alignas(64) float capped[PANEL];
      if (layer.softcap > 0) {
        for (int64_t i = 0; i < PANEL; i += LANES) store(capped + i, softcap(load(y + i), layer.softcap));
        y = capped;
      }
      best[me.thread()][token].see(y, row, rows);
      if (logits[token]) std::copy_n(y, rows, logits[token] + row);
    };
    linear_phase(me, layer.weight, workspace.input, finish, workspace.adapting);
  });
  for (int64_t token = 0; token < tokens; token++) {
    for (int thread = 1; thread < team.size(); thread++) best[0][token].merge(best[thread][token]);
    choice.best[token] = best[0][token].spoiled ? -1.0f : float(best[0][token].index);
    choice.value[token] = best[0][token].value;
  }
}

void unpack(const Matrix &w, int64_t row, float *out) {
  const uint8_t *panel = w.panel(row / PANEL);
  const int64_t lane = row % PANEL;
  const auto half = [panel](int64_t byte) {
    uint16_t bits;
    std::memcpy(&bits, panel + byte, 2);
    return bits;
  };
  for (int64_t k = 0; k < w.columns; k++) {
    const int64_t at = k * PANEL + lane;
    switch (w.format) {
      case FLOAT32: std::memcpy(out + k, panel + 4 * at, 4); break;
      case FLOAT16: out[k] = half_to_float(half(2 * at)); break;
      case BFLOAT16: out[k] = bfloat_to_float(half(2 * at)); break;
      default: {
        const int64_t pair = k / PAIR * pair_bytes(w.format), group = k / GROUP % 2, i = k % GROUP;
        const bool is_high = w.format == INT4 && i >= GROUP / 2;
        const int64_t byte = w.format == INT4 ? i % (GROUP / 2) : i;
        const int64_t word = group * words_of_group(w.format) + byte / 4;
        const int value = panel[pair + SCALE_BYTES + word * WORD_BYTES + lane * 4 + byte % 4];
        const int q = w.format == INT8 ? value - 128 : (is_high ? value >> 4 : value & 15) - 8;
        out[k] = float(q) * half_to_float(half(pair + (group * PANEL + lane) * 2));
      }
    }
  }
}

// Scale of a group of 32 by its largest magnitude, for int4 tried a little smaller and larger: the one with the least
// squared error stays.
float best_scale(Format format, const float *x) {
  VecF sizes = magnitude(load(x));
  for (int i = LANES; i < GROUP; i += LANES) {
    const VecF m = magnitude(load(x + i));
    sizes = m > sizes ? m : sizes;
  }
  const float largest = largest_lane(sizes);
  if (format == INT8) return largest / 127.0f;
  float best = 0, least = INFINITY;
  for (int step = 0; step < 24 && largest > 0; step++) {
    // Signs differ: a negative scale puts the extra level of [-8, 7] on the other side.
    const float size = largest / (6.0f + 0.2f * float(step % 12)), scale = step < 12 ? size : -size;
    const float inverse = 1.0f / scale;
    VecF errors = zero();
    for (int i = 0; i < GROUP; i += LANES) {
      VecF q = __builtin_convertvector(round_to_int(load(x + i) * inverse), VecF);
      q = q > 7.0f ? broadcast(7.0f) : q;
      q = q < -8.0f ? broadcast(-8.0f) : q;
      const VecF error = load(x + i) - q * scale;
      errors += error * error;
    }
    const float error = sum_lanes(errors);
    if (error < least) least = error, best = scale;
  }
  return best;
}

// 32 float32 values as one row of a group: a float16 scale and words of bytes.
void quantize_group(Format format, const float *x, uint8_t *scale_at, uint8_t *words, int64_t lane) {
  const uint16_t half = float_to_half(best_scale(format, x));
  std::memcpy(scale_at + lane * 2, &half, 2);
  const float scale = half_to_float(half), inverse = scale != 0 ? 1.0f / scale : 0.0f;
  uint8_t q[GROUP];
  for (int64_t i = 0; i < GROUP; i++) {
    const float value = std::nearbyint(x[i] * inverse);
    if (format == INT8) q[i] = uint8_t(int(std::min(127.0f, std::max(-127.0f, value))) + 128);
    else q[i] = uint8_t(int(std::min(7.0f, std::max(-8.0f, value))) + 8);
  }
  if (format == INT4)
    for (int64_t i = 0; i < GROUP / 2; i++) q[i] = uint8_t(q[i] | q[i + GROUP / 2] << 4);
  for (int64_t word = 0; word < words_of_group(format); word++)
    std::memcpy(words + word * WORD_BYTES + lane * 4, q + word * 4, 4);
}

// Rows of values to lanes of a panel: a few rows and a block of columns at a time, which stay in the first-level cache.
template <class Element, class Source, class Narrow>
void pack_elements(const Source *x, int64_t rows, int64_t columns, Element *out, const Narrow &narrow) {
  constexpr int64_t ROWS = 8, COLUMNS = 64;
  for (int64_t begin = 0; begin < columns; begin += COLUMNS)
    for (int64_t first = 0; first < rows; first += ROWS)
      for (int64_t k = begin; k < std::min(columns, begin + COLUMNS); k++)
        for (int64_t r = first; r < std::min(rows, first + ROWS); r++) out[k * PANEL + r] = narrow(x[r * columns + k]);
}

void pack_quantized(Format format, const float *x, int64_t columns, int64_t lane, uint8_t *panel) {
  for (int64_t g = 0; g < padded(columns) / GROUP; g++) {
    alignas(64) float group[GROUP] = {};
    const int64_t count = std::max<int64_t>(0, std::min(GROUP, columns - g * GROUP));
    std::copy_n(x + std::min(g * GROUP, columns), count, group);
    uint8_t *pair = panel + g / 2 * pair_bytes(format), *scales = pair + g % 2 * PANEL * 2;
    uint8_t *words = pair + SCALE_BYTES + g % 2 * words_of_group(format) * WORD_BYTES;
    quantize_group(format, group, scales, words, lane);
  }
}

void pack(Format format, const void *x, bool is_packed, int64_t rows, int64_t columns, int64_t lane, uint8_t *panel) {
  const float *values = static_cast<const float *>(x);
  uint16_t *halves = reinterpret_cast<uint16_t *>(panel) + lane;
  const auto same = [](auto value) { return value; };
  if (is_packed) return pack_elements(static_cast<const uint16_t *>(x), rows, columns, halves, same);
  switch (format) {
    case FLOAT32: return pack_elements(values, rows, columns, reinterpret_cast<float *>(panel) + lane, same);
    case FLOAT16: return pack_elements(values, rows, columns, halves, float_to_half);
    case BFLOAT16: return pack_elements(values, rows, columns, halves, float_to_bfloat);
    default:
      for (int64_t r = 0; r < rows; r++) pack_quantized(format, values + r * columns, columns, lane + r, panel);
  }
}

}  // namespace

extern const Kernels table;
const Kernels table = {KERNEL_NAME, linear, rms_norm, attention_half, latent_half,
                       feed_forward_half, experts_half, add_normed, head, unpack, pack};

}  // namespace KERNEL_ISA
