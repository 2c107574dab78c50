// The innermost kernels: P panels of W times a tile of T tokens, with the sums in registers.
//
// A sum runs over the columns in order, in one accumulator, regardless of P, T and where it is split. So a token's result
// is bitwise independent of the other tokens computed with it.
#pragma once

#include "formats.h"
#include "simd.h"

namespace KERNEL_ISA {

constexpr int PARTS = int(PANEL) / LANES;  // vectors for one value of every row of a panel

// Prefetch distance of a panel: memory latency exceeds the hardware prefetcher's look-ahead.
constexpr int64_t AHEAD = 2048;  // bytes

// Loads the sums of P panels times T tokens, [T][16] each and `apart` floats apart, into registers, and stores them.
template <int P, int T>
inline void load_sums(const float *sums, int64_t apart, VecF (&acc)[P][T][PARTS]) {
#pragma GCC unroll 4
  for (int p = 0; p < P; p++)
#pragma GCC unroll 16
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
      for (int i = 0; i < PARTS; i++) acc[p][t][i] = load(sums + p * apart + t * PANEL + i * LANES);
}

template <int P, int T>
inline void store_sums(const VecF (&acc)[P][T][PARTS], float *sums, int64_t apart) {
#pragma GCC unroll 4
  for (int p = 0; p < P; p++)
#pragma GCC unroll 16
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
      for (int i = 0; i < PARTS; i++) store(sums + p * apart + t * PANEL + i * LANES, acc[p][t][i]);
}

// sums += `count` columns of P panels, `stride` elements apart, times x [count][T].
template <class Load, int P, int T>
inline void multiply_panels(const typename Load::Element *w, int64_t stride, const float *x, int64_t count,
                            float *sums, int64_t apart) {
  VecF acc[P][T][PARTS];
  load_sums(sums, apart, acc);
  for (int64_t k = 0; k < count; k++) {
    VecF rows[P][PARTS];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) {
#pragma GCC unroll 4
      for (int i = 0; i < PARTS; i++) rows[p][i] = Load::vector(w + p * stride + k * PANEL + i * LANES);
      __builtin_prefetch(w + p * stride + k * PANEL + AHEAD / int64_t(sizeof(*w)));
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; t++) {
      const VecF token = broadcast(x[k * T + t]);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++)
#pragma GCC unroll 4
        for (int i = 0; i < PARTS; i++) acc[p][t][i] += rows[p][i] * token;
    }
  }
  store_sums(acc, sums, apart);
}

// Dot products of four columns, a byte each, of LANES rows with the same four columns of a token; specific to each
// instruction set. CENTERED: the weights' zero point is already subtracted.
#if defined(__AVX512VNNI__)
template <Format F>
struct Dot {
  typedef VecI Sum;
  static constexpr bool CENTERED = false;
  static Sum start(VecI correction) { return correction; }
  static Sum add(Sum sum, VecI w, VecI x) {
    return (VecI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
  }
  static VecI finish(Sum sum, VecI) { return sum; }
};
#elif defined(__AVX2__)
#if defined(__AVX512BW__)
typedef int16_t VecS __attribute__((vector_size(64)));
inline VecS multiply_bytes(VecI w, VecI x) { return (VecS)_mm512_maddubs_epi16((__m512i)w, (__m512i)x); }
inline VecI add_pairs(VecS x) { return (VecI)_mm512_madd_epi16((__m512i)x, _mm512_set1_epi16(1)); }
#else
typedef int16_t VecS __attribute__((vector_size(32)));
inline VecS multiply_bytes(VecI w, VecI x) { return (VecS)_mm256_maddubs_epi16((__m256i)w, (__m256i)x); }
inline VecI add_pairs(VecS x) { return (VecI)_mm256_madd_epi16((__m256i)x, _mm256_set1_epi16(1)); }
#endif
template <Format F>
struct Dot;
template <>
struct Dot<INT4> {  // 16 bits hold a whole group: 8 words * 2 products * 15 * 127 = 30480
  typedef VecS Sum;
  static constexpr bool CENTERED = false;
  static Sum start(VecI) { return Sum{}; }
  static Sum add(Sum sum, VecI w, VecI x) { return sum + multiply_bytes(w, x); }
  static VecI finish(Sum sum, VecI correction) { return add_pairs(sum) + correction; }
};
template <>
struct Dot<INT8> {
  typedef VecI Sum;
#if defined(__AVX512BW__)
  // Even and odd bytes are separate, so that no sum of two products exceeds 16 bits.
  static constexpr bool CENTERED = false;
  static Sum add(Sum sum, VecI w, VecI x) {
    const VecI even = w & 0x00ff00ff;
    return sum + add_pairs(multiply_bytes(even, x)) + add_pairs(multiply_bytes(w - even, x));
  }
#else
  // The instruction multiplies unsigned by signed bytes, so the sign of a weight moves to x.
  static constexpr bool CENTERED = true;
  static Sum add(Sum sum, VecI w, VecI x) {
    const VecI size = (VecI)_mm256_abs_epi8((__m256i)w), signed_x = (VecI)_mm256_sign_epi8((__m256i)x, (__m256i)w);
    return sum + add_pairs(multiply_bytes(size, signed_x));
  }
#endif
  static Sum start(VecI correction) { return CENTERED ? VecI{} : correction; }
  static VecI finish(Sum sum, VecI) { return sum; }
};
#else
template <Format F>
struct Dot {
  typedef VecI Sum;
  static constexpr bool CENTERED = true;
  static Sum start(VecI) { return VecI{}; }
  static VecI finish(Sum sum, VecI) { return sum; }
#if defined(__ARM_FEATURE_DOTPROD)
  static Sum add(Sum sum, VecI w, VecI x) { return (VecI)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x); }
#elif defined(__ARM_NEON) && defined(__aarch64__)
  static Sum add(Sum sum, VecI w, VecI x) {
    const int16x8_t low = vmull_s8(vget_low_s8((int8x16_t)w), vget_low_s8((int8x16_t)x));
    const int16x8_t high = vmull_high_s8((int8x16_t)w, (int8x16_t)x);
    return (VecI)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));
  }
#else
  static Sum add(Sum sum, VecI w, VecI x) {
    for (int shift = 0; shift < 32; shift += 8) sum += ((w << (24 - shift)) >> 24) * ((x << (24 - shift)) >> 24);
    return sum;
  }
#endif
};
#endif

template <Format F>
constexpr int32_t zero_point() { return F == INT8 ? 128 : 8; }

// The words of a group of 32 columns, PARTS vectors each: word i of INT8 gives one, word i of INT4 gives i and i + 4.
template <Format F>
inline void decode(const uint8_t *p, VecI *out) {
  const VecI word = load_bytes(p);
  if (F == INT8) {
    out[0] = Dot<F>::CENTERED ? word ^ int32_t(0x80808080) : word;
    return;
  }
  out[0] = word & 0x0f0f0f0f;
  out[1] = (word >> 4) & 0x0f0f0f0f;
  if (Dot<F>::CENTERED) {
    // Converts a nibble n to n - 8 in a byte: flipping its top bit gives n - 8 modulo 16; the upper bits get its sign.
    for (int i = 0; i < 2; i++) {
      const VecI sign = (out[i] ^ 0x08080808) & 0x08080808;
      out[i] = (out[i] ^ 0x08080808) | (sign << 1) | (sign << 2) | (sign << 3) | (sign << 4);
    }
  }
}

// sums += `pairs` pairs of groups of P panels, `stride` bytes apart, times a tile of T tokens.
template <Format F, int P, int T>
inline void multiply_quantized(const uint8_t *w, int64_t stride, const int32_t *x, const float *x_scales,
                               const int32_t *x_sums, int64_t pairs, float *sums, int64_t apart) {
  constexpr Format B = without_minimum(F);
  constexpr int WORDS = int(words_of_group(F)), HALVES = B == INT8 ? 1 : 2;
  typedef typename Dot<B>::Sum Sum;
  VecF acc[P][T][PARTS];
  load_sums(sums, apart, acc);
  for (int64_t g = 0; g < 2 * pairs; g++) {
    const uint8_t *pair = w + g / 2 * pair_bytes(F);
    const uint8_t *values = pair + values_at(F) + (g & 1) * WORDS * WORD_BYTES;
    Sum products[P][T][PARTS];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++)
#pragma GCC unroll 16
      for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int i = 0; i < PARTS; i++)
          products[p][t][i] = Dot<B>::start(broadcast(-zero_point<B>() * x_sums[g * T + t]));
#pragma GCC unroll 8
    for (int word = 0; word < WORDS; word++)
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) {
        __builtin_prefetch(values + p * stride + word * WORD_BYTES + AHEAD);
#pragma GCC unroll 4
        for (int i = 0; i < PARTS; i++) {
          VecI bytes[2];
          decode<B>(values + p * stride + word * WORD_BYTES + i * LANES * 4, bytes);
#pragma GCC unroll 2
          for (int half = 0; half < HALVES; half++)
#pragma GCC unroll 16
            for (int t = 0; t < T; t++)
              products[p][t][i] = Dot<B>::add(products[p][t][i], bytes[half],
                                              broadcast(x[(g * 8 + half * 4 + word) * T + t]));
        }
      }
#pragma GCC unroll 4
    for (int p = 0; p < P; p++)
#pragma GCC unroll 4
      for (int i = 0; i < PARTS; i++) {
        const VecF scale =
            load_half(reinterpret_cast<const uint16_t *>(pair + p * stride + (g & 1) * PANEL * 2) + i * LANES);
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) {
          const VecI sum = Dot<B>::finish(products[p][t][i], broadcast(-zero_point<B>() * x_sums[g * T + t]));
          acc[p][t][i] += __builtin_convertvector(sum, VecF) * (scale * x_scales[g * T + t]);
        }
        if (has_minimum(F)) {
          const uint8_t *minimums = pair + p * stride + SCALE_BYTES + (g & 1) * PANEL * 2;
          const VecF minimum = load_half(reinterpret_cast<const uint16_t *>(minimums) + i * LANES);
#pragma GCC unroll 16
          for (int t = 0; t < T; t++) acc[p][t][i] += minimum * (x_scales[g * T + t] * float(x_sums[g * T + t]));
        }
      }
  }
  store_sums(acc, sums, apart);
}

}  // namespace KERNEL_ISA
