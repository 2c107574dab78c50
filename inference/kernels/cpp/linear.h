// y = x W^T for every weight format, from one token to a long prompt.
//
// The innermost kernel holds R rows of W against T tokens with vector lanes along the columns, so that weights are read
// once, in order, and never repacked. Sums are taken in the same order whatever R and T are: a token's result does not
// depend, to the last bit, on which other tokens are computed with it.
#pragma once

#include <algorithm>
#include <vector>

#include "formats.h"
#include "simd.h"

namespace KERNEL_ISA {

#if defined(__AVX512F__)
constexpr int R_MAX = 4, T_MAX = 6;
#else
constexpr int R_MAX = 2, T_MAX = 6;
#endif
// Columns between two sums across lanes: a block of T_MAX tokens stays in the first-level cache.
constexpr int64_t BLOCK = 1024;

struct LoadFloat {
  typedef float Element;
  static VecF vector(const float *p) { return load(p); }
  static float scalar(float x) { return x; }
};
struct LoadHalf {
  typedef uint16_t Element;
  static VecF vector(const uint16_t *p) { return load_half(p); }
  static float scalar(uint16_t x) { return half_to_float(x); }
};
struct LoadBfloat {
  typedef uint16_t Element;
  static VecF vector(const uint16_t *p) { return load_bfloat(p); }
  static float scalar(uint16_t x) { return bfloat_to_float(x); }
};

// out[t * out_stride + r] += sum over `count` columns of w[r] * x[t].
template <class Load, int R, int T>
inline void dot_block(const typename Load::Element *w, int64_t w_stride, const float *x, int64_t x_stride, int64_t count,
                      float *out, int64_t out_stride) {
  VecF sums[R][T];
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) sums[r][t] = zero();
  int64_t k = 0;
  for (; k + LANES <= count; k += LANES) {
    VecF rows[R];
    for (int r = 0; r < R; r++) rows[r] = Load::vector(w + r * w_stride + k);
    for (int t = 0; t < T; t++) {
      const VecF token = load(x + t * x_stride + k);
      for (int r = 0; r < R; r++) sums[r][t] += rows[r] * token;
    }
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) {
      float sum = sum_lanes(sums[r][t]);
      for (int64_t tail = k; tail < count; tail++) 
        sum = multiply_add(Load::scalar(w[r * w_stride + tail]), x[t * x_stride + tail], sum);
      out[t * out_stride + r] += sum;
    }
}

template <class Load, int R>
inline void dot_tokens(const typename Load::Element *w, int64_t w_stride, const float *x, int64_t x_stride,
                       int64_t count, int tokens, float *out, int64_t out_stride) {
  switch (tokens) {
    case 1: return dot_block<Load, R, 1>(w, w_stride, x, x_stride, count, out, out_stride);
    case 2: return dot_block<Load, R, 2>(w, w_stride, x, x_stride, count, out, out_stride);
    case 3: return dot_block<Load, R, 3>(w, w_stride, x, x_stride, count, out, out_stride);
    case 4: return dot_block<Load, R, 4>(w, w_stride, x, x_stride, count, out, out_stride);
    case 5: return dot_block<Load, R, 5>(w, w_stride, x, x_stride, count, out, out_stride);
    default: return dot_block<Load, R, 6>(w, w_stride, x, x_stride, count, out, out_stride);
  }
}

template <class Load>
inline void dot_rows(const typename Load::Element *w, int64_t w_stride, int rows, const float *x, int64_t x_stride,
                     int64_t count, int64_t tokens, float *out, int64_t out_stride) {
  for (int64_t t = 0; t < tokens; t += T_MAX) {
    const int some = int(std::min<int64_t>(T_MAX, tokens - t));
    const float *xt = x + t * x_stride;
    float *ot = out + t * out_stride;
    int r = 0;
    for (; r + R_MAX <= rows; r += R_MAX)
      dot_tokens<Load, R_MAX>(w + r * w_stride, w_stride, xt, x_stride, count, some, ot + r, out_stride);
    for (; r < rows; r++)
      dot_tokens<Load, 1>(w + r * w_stride, w_stride, xt, x_stride, count, some, ot + r, out_stride);
  }
}

// x quantised in groups of 32: values in [-127, 127], a scale for each group, and for each group scale * sum of values,
// which takes the zero point of the weights out again.
struct Quantised {
  int64_t columns = 0, groups = 0;
  std::vector<int8_t> values;
  std::vector<float> scales, sums;

  void reserve(int64_t tokens, int64_t width) {
    columns = padded(width);
    // Rows of scales are padded to whole vectors of 16, read beyond the last group.
    groups = (columns / GROUP + 15) / 16 * 16;
    values.resize(tokens * columns);
    scales.resize(tokens * groups);
    sums.resize(tokens * groups);
  }

  void quantise(int64_t token, const float *x, int64_t width) {
    int8_t *q = values.data() + token * columns;
    float *scale = scales.data() + token * groups, *sum = sums.data() + token * groups;
    for (int64_t g = 0; g < groups; g++) {
      const int64_t begin = g * GROUP, count = std::max<int64_t>(0, std::min(GROUP, width - begin));
      float largest = 0;
      bool finite = true;
      for (int64_t i = 0; i < count; i++) {
        const float magnitude = std::fabs(x[begin + i]);
        finite &= magnitude <= 3.4e38f;
        largest = magnitude > largest ? magnitude : largest;
      }
      if (begin < columns && count < GROUP) std::memset(q + begin + count, 0, GROUP - count);
      // What is no number must not be rounded to one: the group's results become NaN.
      scale[g] = finite ? largest / 127.0f : NAN;
      const float inverse = finite && largest > 0 ? 127.0f / largest : 0;
      int total = 0;
      for (int64_t i = 0; i < count; i++) {
        const int value = finite ? int(std::lrintf(x[begin + i] * inverse)) : 0;
        q[begin + i] = int8_t(value);
        total += value;
      }
      sum[g] = scale[g] * float(total);
    }
  }
};

// Products of one pair of groups (64 columns), 32-bit sums: on AVX-512 lanes 0-7 belong to the first group.
#if defined(__AVX512F__) && defined(__AVX512BW__)
inline __m512i pair_product(__m512i unsigned_w, __m512i x) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(_mm512_setzero_si512(), unsigned_w, x);
#else
  // Without VNNI: even and odd bytes apart, so that no sum of two products passes 16 bits.
  const __m512i even = _mm512_maddubs_epi16(_mm512_and_si512(unsigned_w, _mm512_set1_epi16(0x00ff)), x);
  const __m512i odd = _mm512_maddubs_epi16(_mm512_andnot_si512(_mm512_set1_epi16(0x00ff), unsigned_w), x);
  const __m512i ones = _mm512_set1_epi16(1);
  return _mm512_add_epi32(_mm512_madd_epi16(even, ones), _mm512_madd_epi16(odd, ones));
#endif
}

template <Format F>
inline __m512i load_pair(const uint8_t *row, int64_t pair) {
  if (F == INT8) return _mm512_loadu_si512(row + pair * PAIR);
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row + pair * GROUP));
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i low = _mm256_and_si256(bytes, mask);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// Pairs [0, COUNT) of at most eight, whose sixteen group scales lie in one register for each row and token.
template <Format F, int R, int T>
inline void add_pairs(int count, const uint8_t *const *values, const int8_t *const *tokens, const __m512 (&scale)[R][T],
                      __m512 (&sums)[R][T]) {
  __m512i lanes = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
#pragma GCC unroll 8
  for (int i = 0; i < count; i++) {
    __m512i rows[R];
    for (int r = 0; r < R; r++) rows[r] = load_pair<F>(values[r], i);
    for (int t = 0; t < T; t++) {
      const __m512i token = _mm512_loadu_si512(tokens[t] + i * PAIR);
      for (int r = 0; r < R; r++) {
        const __m512 product = _mm512_cvtepi32_ps(pair_product(rows[r], token));
        sums[r][t] = _mm512_fmadd_ps(product, _mm512_permutexvar_ps(lanes, scale[r][t]), sums[r][t]);
      }
    }
    lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(2));
  }
}

template <Format F, int R, int T>
inline void dot_quantised(const uint8_t *w, int64_t stride, const Quantised &x, int64_t token, float *out,
                          int64_t out_stride) {
  constexpr float ZERO = F == INT8 ? 128.0f : 8.0f;
  constexpr int64_t BYTES = F == INT8 ? PAIR : GROUP;  // of a pair's values
  const int64_t pairs = x.columns / PAIR, scales_at = pairs * BYTES;
  __m512 sums[R][T], corrections[R][T];
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) sums[r][t] = corrections[r][t] = _mm512_setzero_ps();
  for (int64_t first = 0; first < pairs; first += 8) {
    const int some = int(std::min<int64_t>(8, pairs - first));
    const __mmask16 valid = __mmask16((1u << (2 * some)) - 1);
    const uint8_t *values[R];
    const int8_t *tokens[T];
    __m512 scale[R][T];
    for (int t = 0; t < T; t++) tokens[t] = x.values.data() + (token + t) * x.columns + first * PAIR;
    for (int r = 0; r < R; r++) {
      const uint8_t *row = w + r * stride;
      values[r] = row + first * BYTES;
      const __m512 ws = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(valid, row + scales_at + first * 4));
      for (int t = 0; t < T; t++) {
        const int64_t at = (token + t) * x.groups + first * 2;
        scale[r][t] = _mm512_mul_ps(ws, _mm512_loadu_ps(x.scales.data() + at));
        corrections[r][t] = _mm512_fmadd_ps(ws, _mm512_loadu_ps(x.sums.data() + at), corrections[r][t]);
      }
    }
    if (some == 8) add_pairs<F, R, T>(8, values, tokens, scale, sums);
    else add_pairs<F, R, T>(some, values, tokens, scale, sums);
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++)
      out[t * out_stride + r] += _mm512_reduce_add_ps(sums[r][t]) - ZERO * _mm512_reduce_add_ps(corrections[r][t]);
}
#else
// A group of 32 at a time. Products of weights, made signed again, with x; AVX2 multiplies unsigned by signed bytes, so
// the sign of a weight is moved to x.
inline float scale_of(const uint8_t *scales, int64_t group) {
  uint16_t half;
  std::memcpy(&half, scales + 2 * group, 2);
#if defined(__F16C__)
  return _cvtsh_ss(half);
#else
  return half_to_float(half);
#endif
}

#if defined(__AVX2__)
typedef __m256i Bytes;
typedef VecF GroupSum;
inline Bytes load_x(const int8_t *x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x)); }
template <Format F>
inline Bytes load_group(const uint8_t *row, int64_t group) {
  if (F == INT8) {
    const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row + group * GROUP));
    return _mm256_xor_si256(q, _mm256_set1_epi8(char(0x80)));
  }
  __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row + group / 2 * GROUP));
  if (group & 1) bytes = _mm256_srli_epi16(bytes, 4);
  return _mm256_sub_epi8(_mm256_and_si256(bytes, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
}
inline GroupSum group_product(Bytes w, Bytes x) {
  const __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return (VecF)_mm256_cvtepi32_ps(_mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}
inline float group_total(GroupSum sum) { return sum_lanes(sum); }
#else
struct Bytes {
  int8_t v[GROUP];
};
typedef float GroupSum;
inline Bytes load_x(const int8_t *x) {
  Bytes bytes;
  std::memcpy(bytes.v, x, GROUP);
  return bytes;
}
template <Format F>
inline Bytes load_group(const uint8_t *row, int64_t group) {
  Bytes bytes;
  for (int i = 0; i < GROUP; i++) {
    if (F == INT8) bytes.v[i] = int8_t(int(row[group * GROUP + i]) - 128);
    else bytes.v[i] = int8_t(int((row[group / 2 * GROUP + i] >> (group & 1 ? 4 : 0)) & 15) - 8);
  }
  return bytes;
}
inline GroupSum group_product(const Bytes &w, const Bytes &x) {
  int32_t sum = 0;
  for (int i = 0; i < GROUP; i++) sum += int32_t(w.v[i]) * x.v[i];
  return float(sum);
}
inline float group_total(GroupSum sum) { return sum; }
#endif

template <Format F, int R, int T>
inline void dot_quantised(const uint8_t *w, int64_t stride, const Quantised &x, int64_t token, float *out,
                          int64_t out_stride) {
  const int64_t value_bytes = F == INT8 ? x.columns : x.columns / 2, groups = x.columns / GROUP;
  GroupSum sums[R][T] = {};
  for (int64_t g = 0; g < groups; g++) {
    Bytes rows[R];
    float scale[R];
    for (int r = 0; r < R; r++) {
      rows[r] = load_group<F>(w + r * stride, g);
      scale[r] = scale_of(w + r * stride + value_bytes, g);
    }
    for (int t = 0; t < T; t++) {
      const Bytes tokens = load_x(x.values.data() + (token + t) * x.columns + g * GROUP);
      const float x_scale = x.scales[(token + t) * x.groups + g];
      for (int r = 0; r < R; r++) sums[r][t] += group_product(rows[r], tokens) * (scale[r] * x_scale);
    }
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) out[t * out_stride + r] += group_total(sums[r][t]);
}
#endif

template <Format F, int R>
inline void quantised_tokens(const uint8_t *w, int64_t stride, const Quantised &x, int64_t token, int tokens, float *out,
                             int64_t out_stride) {
  switch (tokens) {
    case 1: return dot_quantised<F, R, 1>(w, stride, x, token, out, out_stride);
    case 2: return dot_quantised<F, R, 2>(w, stride, x, token, out, out_stride);
    case 3: return dot_quantised<F, R, 3>(w, stride, x, token, out, out_stride);
    default: return dot_quantised<F, R, 4>(w, stride, x, token, out, out_stride);
  }
}

template <Format F>
inline void quantised_rows(const Matrix &w, int64_t row, int rows, const Quantised &x, int64_t tokens, float *out,
                           int64_t out_stride) {
  // One token is bound by how fast weights come: four rows at once keep more of them under way.
  constexpr int R = 2, T = 4, R_ONE = 4;
  const int64_t stride = w.stride();
  for (int64_t t = 0; t < tokens; t += T) {
    const int some = int(std::min<int64_t>(T, tokens - t));
    int r = 0;
    for (; some == 1 && r + R_ONE <= rows; r += R_ONE)
      dot_quantised<F, R_ONE, 1>(w.row(row + r), stride, x, t, out + t * out_stride + r, out_stride);
    for (; r + R <= rows; r += R)
      quantised_tokens<F, R>(w.row(row + r), stride, x, t, some, out + t * out_stride + r, out_stride);
    for (; r < rows; r++)
      quantised_tokens<F, 1>(w.row(row + r), stride, x, t, some, out + t * out_stride + r, out_stride);
  }
}

template <class Load>
inline void widen(const typename Load::Element *w, int64_t stride, int rows, int64_t count, float *out) {
  for (int r = 0; r < rows; r++) {
    int64_t k = 0;
    for (; k + LANES <= count; k += LANES) store(out + r * count + k, Load::vector(w + r * stride + k));
    for (; k < count; k++) out[r * count + k] = Load::scalar(w[r * stride + k]);
  }
}

template <class Load>
inline void float_rows(const Matrix &w, int64_t row, int rows, const float *x, int64_t tokens, float *out,
                       int64_t out_stride, std::vector<float> &scratch) {
  const auto *data = reinterpret_cast<const typename Load::Element *>(w.row(row));
  const bool is_float = w.format == FLOAT32;
  for (int64_t k = 0; k < w.columns; k += BLOCK) {
    const int64_t count = std::min(BLOCK, w.columns - k);
    if (is_float || tokens <= T_MAX) {
      dot_rows<Load>(data + k, w.columns, rows, x + k, w.columns, count, tokens, out, out_stride);
    } else {
      // Many tokens: convert the block once instead of once for every T_MAX tokens.
      scratch.resize(rows * BLOCK);
      widen<Load>(data + k, w.columns, rows, count, scratch.data());
      dot_rows<LoadFloat>(scratch.data(), count, rows, x + k, w.columns, count, tokens, out, out_stride);
    }
  }
}

// x as a linear layer reads it: float32 [tokens, columns], and quantised where the weights are.
struct Input {
  const float *x;
  const Quantised *quantised;
  int64_t tokens;
};

// out [tokens, out_stride] += rows [row, row + rows) of W against every token.
inline void linear_rows(const Matrix &w, int64_t row, int rows, const Input &input, float *out, int64_t out_stride,
                        std::vector<float> &scratch) {
  switch (w.format) {
    case FLOAT32: return float_rows<LoadFloat>(w, row, rows, input.x, input.tokens, out, out_stride, scratch);
    case FLOAT16: return float_rows<LoadHalf>(w, row, rows, input.x, input.tokens, out, out_stride, scratch);
    case BFLOAT16: return float_rows<LoadBfloat>(w, row, rows, input.x, input.tokens, out, out_stride, scratch);
    case INT8: return quantised_rows<INT8>(w, row, rows, *input.quantised, input.tokens, out, out_stride);
    case INT4: return quantised_rows<INT4>(w, row, rows, *input.quantised, input.tokens, out, out_stride);
  }
}

}  // namespace KERNEL_ISA
