// All kernels for one instruction set; compiled once for each, with KERNEL_ISA as its name.
#include "attention.h"
#include "blocks.h"
#include "linear.h"

namespace KERNEL_ISA {
namespace {

// Memory that lives from one call to the next; only one region runs at a time.
struct Workspace {
  std::vector<float> normed, qkv, angles, attended, gate_up, gated;
  Input input, second;  // of a half's first and second product
};
Workspace workspace;
thread_local std::vector<float> scratch, sums;
thread_local Attending attending;

float *sized(std::vector<float> &buffer, int64_t count) {
  if (int64_t(buffer.size()) < count) buffer.resize(count);
  return buffer.data();
}

// Panels that a thread takes at a time: as many as read x while it is near, and as one call of the kernels takes.
int64_t panels_at_once(const Input &input) { return input.tiles == 1 ? 4 : 8; }

// Lets a thread that waits fetch the first panels of the matrix that comes next.
void expect(Member &me, const Matrix &w, const Input &input) {
  constexpr int64_t MOST = 384 << 10;  // of a second-level cache
  if (input.tiles == 1) me.expect(w.data, std::min(MOST, 4 * panel_bytes(w.format, w.columns)));
}

// Arranges x, of `Input::reserve`.
void arrange(Member &me, Input &input) {
  if (input.pieces()) me.share(input.pieces(), 1, [&](int64_t piece) { input.arrange(piece); });
}

// Calls finish(row, rows, token, y) for every 16 rows or fewer of every token, with
// y [rows] = x W^T.
template <class Finish>
void linear_phase(Member &me, const Matrix &w, Input &input, const Finish &finish) {
  me.share_runs(w.panels(), panels_at_once(input), [&](int64_t first, int64_t panels) {
    float *buffer = sized(sums, panels * input.slots() * PANEL);
    linear_range({w, first, panels, input, buffer}, scratch);
    // Token by token, because a token's rows are neighbours where they are written to.
    for (int64_t token = 0; token < input.tokens; token++)
      for (int64_t panel = 0; panel < panels; panel++) {
        const int64_t row = (first + panel) * PANEL, rows = std::min(PANEL, w.rows - row);
        finish(row, rows, token, buffer + (panel * input.slots() + token) * PANEL);
      }
  });
}

// out [tokens, rows] = x W^T + bias + residual, of which the last two may be null.
void linear_into(Member &me, const Matrix &w, Input &input, const float *bias, const float *residual, float *out) {
  linear_phase(me, w, input, [&](int64_t row, int64_t rows, int64_t token, const float *y) {
    const int64_t at = token * w.rows + row;
    for (int64_t r = 0; r < rows; r++) {
      const float biased = bias ? y[r] + bias[row + r] : y[r];
      out[at + r] = residual ? residual[at + r] + biased : biased;
    }
  });
}

void norm_phase(Member &me, const float *x, const float *weight, int64_t tokens, int64_t width, float eps, float *out) {
  me.share(tokens, 1, [&](int64_t t) { rms_norm_row(x + t * width, weight, width, eps, out + t * width); });
}

void attention_phase(Member &me, const AttentionLayer &layer, const Step &step, float *qkv, float *out) {
  const float *angles = workspace.angles.data();
  const int64_t heads = layer.heads + 2 * layer.kv_heads;
  me.share(step.tokens * heads, 8, [&](int64_t i) {
    if (layer.half_cache) place_head<CacheHalf>(layer, step, angles, qkv, i / heads, i % heads);
    else place_head<CacheFloat>(layer, step, angles, qkv, i / heads, i % heads);
  });
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
  team.run([&](Member &me) {
    arrange(me, workspace.input);
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
  const bool is_turned = step.turned == layer.frequencies;
  step.turned = layer.frequencies;
  workspace.input.reserve(layer.qkv, normed, tokens);
  workspace.second.reserve(layer.output, attended, tokens);
  team.run([&](Member &me) {
    expect(me, layer.qkv, workspace.input);
    if (!is_turned)
      me.share(tokens, 1, [&](int64_t t) {
        turn(layer.frequencies, step.positions[t], layer.head_size, angles + t * layer.head_size);
      });
    norm_phase(me, x, layer.norm, tokens, layer.hidden, layer.eps, normed);
    arrange(me, workspace.input);
    expect(me, layer.output, workspace.input);
    linear_into(me, layer.qkv, workspace.input, layer.qkv_bias, nullptr, qkv);
    attention_phase(me, layer, step, qkv, attended);
    arrange(me, workspace.second);
    linear_into(me, layer.output, workspace.second, layer.output_bias, step.adds_residual ? x : nullptr, x);
  });
}

// out = silu(gate) * up.
void activate(const float *gate, const float *up, int64_t count, float *out) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(out + i, silu(load(gate + i)) * load(up + i));
  for (; i < count; i++) out[i] = silu(broadcast(gate[i]))[0] * up[i];
}

// Where gate and up begin at panels: both of some columns at once, so that only their product is written.
void gated_phase(Member &me, const FeedForwardLayer &layer, Input &input, float *gated) {
  const Matrix &w = layer.gate_up;
  const int64_t width = layer.width, all = width / PANEL;
  const float *gate_bias = layer.gate_up_bias, *up_bias = gate_bias ? gate_bias + width : nullptr;
  expect(me, layer.down, input);
  me.share_runs(all, panels_at_once(input), [&](int64_t first, int64_t panels) {
    const int64_t size = panels * input.slots() * PANEL;
    float *gate = sized(sums, 2 * size), *up = gate + size;
    linear_range({w, first, panels, input, gate}, scratch);
    linear_range({w, all + first, panels, input, up}, scratch);
    for (int64_t token = 0; token < input.tokens; token++)
      for (int64_t panel = 0; panel < panels; panel++) {
        const int64_t at = (panel * input.slots() + token) * PANEL, column = (first + panel) * PANEL;
        for (int64_t i = 0; gate_bias && i < PANEL; i++)
          gate[at + i] += gate_bias[column + i], up[at + i] += up_bias[column + i];
        activate(gate + at, up + at, PANEL, gated + token * width + column);
      }
  });
}

// Where they do not: gate and up first, then their product.
void ungrouped_gated_phase(Member &me, const FeedForwardLayer &layer, Input &input, float *gate_up, float *gated) {
  const int64_t width = layer.width;
  linear_into(me, layer.gate_up, input, layer.gate_up_bias, nullptr, gate_up);
  me.share(input.tokens, 1, [&](int64_t token) {
    const float *gate = gate_up + token * 2 * width;
    activate(gate, gate + width, width, gated + token * width);
  });
}

void feed_forward_half(Team &team, const FeedForwardLayer &layer, const Step &step, float *x) {
  const int64_t tokens = step.tokens;
  const bool is_grouped = layer.width % PANEL == 0;
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  float *gate_up = is_grouped ? nullptr : sized(workspace.gate_up, tokens * 2 * layer.width);
  float *gated = sized(workspace.gated, tokens * layer.width);
  workspace.input.reserve(layer.gate_up, normed, tokens);
  workspace.second.reserve(layer.down, gated, tokens);
  team.run([&](Member &me) {
    expect(me, layer.gate_up, workspace.input);
    norm_phase(me, x, layer.norm, tokens, layer.hidden, layer.eps, normed);
    arrange(me, workspace.input);
    if (is_grouped) gated_phase(me, layer, workspace.input, gated);
    else ungrouped_gated_phase(me, layer, workspace.input, gate_up, gated);
    arrange(me, workspace.second);
    linear_into(me, layer.down, workspace.second, layer.down_bias, step.adds_residual ? x : nullptr, x);
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

void head(Team &team, const Head &layer, const float *x, int64_t tokens, const Choice &choice) {
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  rms_norm(x, layer.norm, tokens, layer.hidden, layer.eps, normed);
  workspace.input.reserve(layer.weight, normed, tokens);
  std::vector<float *> logits(tokens, nullptr);
  for (int64_t s = 0; s < choice.logit_count; s++)
    logits[choice.logit_rows[s]] = choice.logits + s * layer.weight.rows;
  std::vector<std::vector<Best>> best(team.size(), std::vector<Best>(tokens));
  team.run([&](Member &me) {
    arrange(me, workspace.input);
    linear_phase(me, layer.weight, workspace.input, [&](int64_t row, int64_t rows, int64_t token, const float *y) {
      best[me.thread()][token].see(y, row, rows);
      if (logits[token]) std::copy_n(y, rows, logits[token] + row);
    });
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
void quantise_group(Format format, const float *x, uint8_t *scale_at, uint8_t *words, int64_t lane) {
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

void pack_quantised(Format format, const float *x, int64_t columns, int64_t lane, uint8_t *panel) {
  for (int64_t g = 0; g < padded(columns) / GROUP; g++) {
    alignas(64) float group[GROUP] = {};
    const int64_t count = std::max<int64_t>(0, std::min(GROUP, columns - g * GROUP));
    std::copy_n(x + std::min(g * GROUP, columns), count, group);
    uint8_t *pair = panel + g / 2 * pair_bytes(format), *scales = pair + g % 2 * PANEL * 2;
    uint8_t *words = pair + SCALE_BYTES + g % 2 * words_of_group(format) * WORD_BYTES;
    quantise_group(format, group, scales, words, lane);
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
      for (int64_t r = 0; r < rows; r++) pack_quantised(format, values + r * columns, columns, lane + r, panel);
  }
}

}  // namespace

extern const Kernels table;
const Kernels table = {KERNEL_NAME, linear, rms_norm, attention_half, feed_forward_half, head, unpack,
                       pack};

}  // namespace KERNEL_ISA
