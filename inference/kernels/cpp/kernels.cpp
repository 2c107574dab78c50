// All kernels for one instruction set; compiled once for each, with KERNEL_ISA as its name.
#include "attention.h"
#include "blocks.h"
#include "linear.h"

namespace KERNEL_ISA {
namespace {

// Rows of a matrix that a thread takes at a time.
constexpr int CHUNK = 32;

// Memory that lives from one call to the next; only one region runs at a time.
struct Workspace {
  std::vector<float> normed, qkv, angles, attended, gated;
  Quantised quantised;
};
Workspace workspace;
thread_local std::vector<float> scratch, partial;
thread_local Attending attending;

float *sized(std::vector<float> &buffer, int64_t count) {
  if (int64_t(buffer.size()) < count) buffer.resize(count);
  return buffer.data();
}

template <class Work>
void share(Team &team, int64_t count, int64_t grain, const Work &work) {
  for (int64_t begin; (begin = int64_t(team.next()) * grain) < count;)
    for (int64_t i = begin; i < std::min(count, begin + grain); i++) work(i);
}

// Quantises every token where the weights need it; ends with a barrier.
Input prepare(Team &team, const Matrix &w, const float *x, int64_t tokens) {
  if (w.quantised()) {
    share(team, tokens, 1, [&](int64_t t) { workspace.quantised.quantise(t, x + t * w.columns, w.columns); });
  }
  team.barrier();
  return {x, &workspace.quantised, tokens};
}

// Called before a region: buffers must not move while threads use them.
void reserve(const Matrix &w, int64_t tokens) {
  if (w.quantised()) workspace.quantised.reserve(tokens, w.columns);
}

// Calls finish(row, rows, values, stride) for every chunk of rows: values [tokens, stride], x W^T without a bias.
template <class Finish>
void linear_phase(Team &team, const Matrix &w, const Input &input, const Finish &finish) {
  const int64_t chunks = (w.rows + CHUNK - 1) / CHUNK;
  share(team, chunks, 1, [&](int64_t chunk) {
    const int64_t row = chunk * CHUNK;
    const int rows = int(std::min<int64_t>(CHUNK, w.rows - row));
    float *out = sized(partial, input.tokens * CHUNK);
    std::fill(out, out + input.tokens * CHUNK, 0.0f);
    linear_rows(w, row, rows, input, out, CHUNK, scratch);
    finish(row, rows, out);
  });
}

void write_rows(const Matrix &w, int64_t tokens, int64_t row, int rows, const float *values, const float *bias,
                const float *residual, float *out) {
  for (int64_t t = 0; t < tokens; t++)
    for (int r = 0; r < rows; r++) {
      float y = values[t * CHUNK + r];
      if (bias) y += bias[row + r];
      const int64_t at = t * w.rows + row + r;
      out[at] = residual ? residual[at] + y : y;
    }
}

void linear_into(Team &team, const Matrix &w, const float *x, int64_t tokens, const float *bias, const float *residual,
                 float *out) {
  const Input input = prepare(team, w, x, tokens);
  linear_phase(team, w, input, [&](int64_t row, int rows, const float *values) {
    write_rows(w, tokens, row, rows, values, bias, residual, out);
  });
}

void norm_phase(Team &team, const float *x, const float *weight, int64_t tokens, int64_t width, float eps, float *out) {
  share(team, tokens, 1, [&](int64_t t) { rms_norm_row(x + t * width, weight, width, eps, out + t * width); });
  team.barrier();
}

void attention_phase(Team &team, const AttentionLayer &layer, const Step &step, float *qkv, float *out) {
  float *angles = workspace.angles.data();
  share(team, step.tokens, 1, [&](int64_t t) { turn(step, t, layer.head_size, angles + t * layer.head_size); });
  team.barrier();
  const int64_t heads = layer.heads + 2 * layer.kv_heads;
  share(team, step.tokens * heads, 8, [&](int64_t i) {
    if (layer.half_cache) place_head<CacheHalf>(layer, step, angles, qkv, i / heads, i % heads);
    else place_head<CacheFloat>(layer, step, angles, qkv, i / heads, i % heads);
  });
  team.barrier();
  const int64_t group = layer.heads / layer.kv_heads;
  int64_t before = 0, mine = team.next();
  for (int64_t b = 0; b < step.sequences; b++) {
    const int64_t vectors = (step.query_starts[b + 1] - step.query_starts[b]) * group;
    const int64_t tiles = (vectors + TILE - 1) / TILE, tasks = tiles * layer.kv_heads;
    for (; mine < before + tasks; mine = team.next()) {
      // Last tiles first: they see the longest context, and the shortest work evens out the end.
      const int64_t task = mine - before, tile = tiles - 1 - task / layer.kv_heads;
      const Tile work{b, task % layer.kv_heads, tile * TILE, int(std::min<int64_t>(TILE, vectors - tile * TILE))};
      if (layer.half_cache) attend_tile<CacheHalf>(layer, step, qkv, out, work, attending);
      else attend_tile<CacheFloat>(layer, step, qkv, out, work, attending);
    }
    before += tasks;
  }
  team.barrier();
}

void linear(Team &team, const Matrix &w, const float *x, int64_t tokens, const float *bias, const float *residual,
            float *out) {
  reserve(w, tokens);
  team.run([&](Team &t, int) { linear_into(t, w, x, tokens, bias, residual, out); });
}

void rms_norm(const float *x, const float *weight, int64_t tokens, int64_t width, float eps, float *out) {
  for (int64_t t = 0; t < tokens; t++) rms_norm_row(x + t * width, weight, width, eps, out + t * width);
}

void attention(Team &team, const AttentionLayer &layer, const Step &step, const float *qkv, float *out) {
  const int64_t count = step.tokens * (layer.heads + 2 * layer.kv_heads) * layer.head_size;
  float *copy = sized(workspace.qkv, count);
  sized(workspace.angles, step.tokens * layer.head_size);
  std::copy(qkv, qkv + count, copy);
  team.run([&](Team &t, int) { attention_phase(t, layer, step, copy, out); });
}

void attention_half(Team &team, const AttentionLayer &layer, const Step &step, const float *x, float *out) {
  const int64_t tokens = step.tokens;
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  float *qkv = sized(workspace.qkv, tokens * layer.qkv.rows);
  float *attended = sized(workspace.attended, tokens * layer.output.columns);
  sized(workspace.angles, tokens * layer.head_size);
  reserve(layer.qkv, tokens);
  team.run([&](Team &t, int) {
    norm_phase(t, x, layer.norm, tokens, layer.hidden, layer.eps, normed);
    linear_into(t, layer.qkv, normed, tokens, layer.qkv_bias, nullptr, qkv);
    t.barrier();
    attention_phase(t, layer, step, qkv, attended);
  });
  // Between the regions, because the buffers of the second product may be larger.
  linear(team, layer.output, attended, tokens, layer.output_bias, x, out);
}

void feed_forward_half(Team &team, const FeedForwardLayer &layer, int64_t tokens, const float *x, float *out) {
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  float *gated = sized(workspace.gated, tokens * layer.width);
  reserve(layer.gate_up, tokens);
  const int64_t width = layer.width, chunks = (width + CHUNK - 1) / CHUNK;
  team.run([&](Team &t, int) {
    norm_phase(t, x, layer.norm, tokens, layer.hidden, layer.eps, normed);
    const Input input = prepare(t, layer.gate_up, normed, tokens);
    share(t, chunks, 1, [&](int64_t chunk) {
      const int64_t row = chunk * CHUNK, stride = 2 * CHUNK;
      const int rows = int(std::min<int64_t>(CHUNK, width - row));
      float *both = sized(partial, tokens * stride);
      std::fill(both, both + tokens * stride, 0.0f);
      linear_rows(layer.gate_up, row, rows, input, both, stride, scratch);
      linear_rows(layer.gate_up, width + row, rows, input, both + CHUNK, stride, scratch);
      for (int64_t token = 0; token < tokens; token++)
        for (int r = 0; r < rows; r++) {
          float gate = both[token * stride + r], up = both[token * stride + CHUNK + r];
          if (layer.gate_up_bias) gate += layer.gate_up_bias[row + r], up += layer.gate_up_bias[width + row + r];
          gated[token * width + row + r] = gate / (1.0f + std::exp(-gate)) * up;
        }
    });
  });
  linear(team, layer.down, gated, tokens, layer.down_bias, x, out);
}

void head(Team &team, const Head &layer, const float *x, int64_t tokens, float *logits) {
  float *normed = sized(workspace.normed, tokens * layer.hidden);
  rms_norm(x, layer.norm, tokens, layer.hidden, layer.eps, normed);
  linear(team, layer.weight, normed, tokens, nullptr, nullptr, logits);
}

void unpack(const Matrix &w, int64_t row, float *out) {
  const uint8_t *bytes = w.row(row);
  switch (w.format) {
    case FLOAT32: std::memcpy(out, bytes, 4 * w.columns); return;
    case FLOAT16: return widen<LoadHalf>(reinterpret_cast<const uint16_t *>(bytes), 0, 1, w.columns, out);
    case BFLOAT16: return widen<LoadBfloat>(reinterpret_cast<const uint16_t *>(bytes), 0, 1, w.columns, out);
    default: break;
  }
  const int64_t value_bytes = w.format == INT8 ? padded(w.columns) : padded(w.columns) / 2;
  for (int64_t i = 0; i < w.columns; i++) {
    const int64_t group = i / GROUP;
    uint16_t half;
    std::memcpy(&half, bytes + value_bytes + 2 * group, 2);
    const int nibbles = bytes[group / 2 * GROUP + i % GROUP];
    const int q = w.format == INT8 ? int(bytes[i]) - 128 : ((group & 1 ? nibbles >> 4 : nibbles) & 15) - 8;
    out[i] = float(q) * half_to_float(half);
  }
}

// Scale of a group by its largest magnitude, for int4 tried a little smaller and larger: the one with the least
// squared error stays.
float best_scale(Format format, const float *x, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; i++) largest = std::max(largest, std::fabs(x[i]));
  if (format == INT8) return largest / 127.0f;
  float best = 0, least = INFINITY;
  for (int step = 0; step < 24 && largest > 0; step++) {
    // Signs differ: a negative scale puts the extra level of [-8, 7] on the other side.
    const float magnitude = largest / (6.0f + 0.2f * float(step % 12)), scale = step < 12 ? magnitude : -magnitude;
    float error = 0;
    for (int64_t i = 0; i < count; i++) {
      const float q = std::min(7.0f, std::max(-8.0f, std::nearbyint(x[i] / scale)));
      error += (x[i] - q * scale) * (x[i] - q * scale);
    }
    if (error < least) least = error, best = scale;
  }
  return best;
}

void quantise(Format format, const float *x, int64_t columns, uint8_t *row) {
  const int64_t width = padded(columns), value_bytes = format == INT8 ? width : width / 2;
  std::memset(row, 0, row_bytes(format, columns));
  for (int64_t g = 0; g < width / GROUP; g++) {
    const int64_t begin = g * GROUP, count = std::max<int64_t>(0, std::min(GROUP, columns - begin));
    const uint16_t half = float_to_half(best_scale(format, x + begin, count));
    std::memcpy(row + value_bytes + 2 * g, &half, 2);
    const float scale = half_to_float(half), inverse = scale != 0 ? 1.0f / scale : 0.0f;
    for (int64_t i = 0; i < GROUP; i++) {
      const float value = i < count ? std::nearbyint(x[begin + i] * inverse) : 0.0f;
      if (format == INT8) {
        row[begin + i] = uint8_t(int(std::min(127.0f, std::max(-127.0f, value))) + 128);
      } else {
        const int q = int(std::min(7.0f, std::max(-8.0f, value))) + 8;
        row[g / 2 * GROUP + i] |= uint8_t(g & 1 ? q << 4 : q);
      }
    }
  }
}

}  // namespace

extern const Kernels table;
const Kernels table = {KERNEL_NAME, linear, rms_norm, attention, attention_half, feed_forward_half, head, unpack,
                       quantise};

}  // namespace KERNEL_ISA
