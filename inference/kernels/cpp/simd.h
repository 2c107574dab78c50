// Vectors of floats as wide as the processor's registers, in the compiler's vector extension (GCC and Clang).
//
// This header is compiled once per instruction set, each time in its own namespace (KERNEL_ISA). Arithmetic is plain C++
// on vector types; only operations that the extension lacks (half-precision conversion, integer dot products, sums
// across lanes) use intrinsics, with plain loops as a fallback.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace KERNEL_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float VecF __attribute__((vector_size(LANES * 4)));
typedef float UnalignedVecF __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t VecI __attribute__((vector_size(LANES * 4)));
typedef int32_t UnalignedVecI __attribute__((vector_size(LANES * 4), aligned(1), may_alias));

inline VecF zero() { return VecF{}; }
inline VecF broadcast(float x) { return x - VecF{}; }
inline VecI broadcast(int32_t x) { return x - VecI{}; }
inline VecF load(const float *p) { return *reinterpret_cast<const UnalignedVecF *>(p); }
inline VecI load_bytes(const uint8_t *p) { return *reinterpret_cast<const UnalignedVecI *>(p); }
inline void store(float *p, VecF x) { *reinterpret_cast<UnalignedVecF *>(p) = x; }

// A fused multiply-add if the processor has one, as in vector code, so that scalar tails do not depend on the compiler.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline float sum_lanes(VecF x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX2__)
  __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
#else
  float s = 0;
  for (int i = 0; i < LANES; i++) s += x[i];
  return s;
#endif
}

inline int32_t sum_lanes(VecI x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)x);
#else
  int32_t s = 0;
  for (int i = 0; i < LANES; i++) s += x[i];
  return s;
#endif
}

// Values in [-128, 127] as bytes.
inline void store_bytes(int8_t *p, VecI x) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8((__m512i)x));
#else
  for (int i = 0; i < LANES; i++) p[i] = int8_t(x[i]);
#endif
}

inline float largest_lane(VecF x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float largest = x[0];
  for (int i = 1; i < LANES; i++) largest = x[i] > largest ? x[i] : largest;
  return largest;
#endif
}

inline VecF magnitude(VecF x) { return (VecF)((VecI)x & 0x7fffffff); }

// Nearest integers, ties to even, of values below 2^22 in magnitude.
inline VecI round_to_int(VecF x) {
  const VecF shifted = x + 12582912.0f;  // 1.5 * 2^23: leaves the integer in the low bits
  return (VecI)shifted - 0x4b400000;
}

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// IEEE 754 binary16. Avoids subnormal float32 intermediates, which some host threads flush to 0.
inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff;
  float x = float(magnitude) * bits_to_float(0x33800000);  // 2^-24: the step of subnormals
  if (magnitude >= 0x7c00) x = bits_to_float(magnitude << 13 | 0x7f800000);
  else if (magnitude >= 0x400) x = bits_to_float((magnitude << 13) + 0x38000000);
  return bits_to_float(float_to_bits(x) | sign);
}

// Rounds to nearest even; overflow becomes infinity, NaN stays NaN.
inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_to_bits(x), sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000) {  // subnormal: let the FPU round at the right bit
    const float shifted = bits_to_float(magnitude) + bits_to_float(0x3f000000);
    return uint16_t(sign | (float_to_bits(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return uint16_t(sign | ((rounded - 0x38000000) >> 13));
}

// Rounds to nearest even; NaN stays NaN.
inline uint16_t float_to_bfloat(float x) {
  const uint32_t bits = float_to_bits(x);
  return x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float bfloat_to_float(uint16_t b) { return bits_to_float(uint32_t(b) << 16); }

inline VecF load_half(const uint16_t *p) {
#if defined(__AVX512F__)
  return (VecF)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
#elif defined(__F16C__)
  return (VecF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return (VecF)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  VecF x;
  for (int i = 0; i < LANES; i++) x[i] = half_to_float(p[i]);
  return x;
#endif
}

inline void store_half(uint16_t *p, VecF x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < LANES; i++) p[i] = float_to_half(x[i]);
#endif
}

inline VecF load_int8(const int8_t *p) {
#if defined(__AVX512F__)
  return (VecF)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#elif defined(__AVX2__)
  return (VecF)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
#else
  VecF x;
  for (int i = 0; i < LANES; i++) x[i] = float(p[i]);
  return x;
#endif
}

inline VecF load_bfloat(const uint16_t *p) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
  return (VecF)_mm512_slli_epi32(wide, 16);
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  return (VecF)_mm256_slli_epi32(wide, 16);
#else
  VecF x;
  for (int i = 0; i < LANES; i++) x[i] = bfloat_to_float(p[i]);
  return x;
#endif
}

// e^x for x <= 0, relative error below 2e-7; below -87 the result is near the smallest normal number, effectively 0 for a
// softmax. Cody-Waite reduction and the Taylor polynomial of degree 7 on [-ln2/2, ln2/2]. NaN stays NaN.
inline VecF exp_nonpositive(VecF x) {
  const VecF low = broadcast(-87.0f);
  x = x < low ? low : x;
  const VecF shifted = x * 1.44269504f + 12582912.0f;  // as in round_to_int
  const VecF n = shifted - 12582912.0f;
  const VecF r = x - n * 0.693145752f - n * 1.42860677e-6f;
  VecF p = broadcast(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const VecI exponent = ((VecI)shifted << 23);
  return (VecF)((VecI)p + exponent);
}

inline VecF relu(VecF x) { return x < 0.0f ? zero() : x; }

// x / (1 + e^-x), with an exponential that cannot overflow.
inline VecF silu(VecF x) {
  const VecF e = exp_nonpositive(-magnitude(x));
  return x * (x < 0.0f ? e : broadcast(1.0f)) / (1.0f + e);
}

// 1 / (1 + e^-x), with an exponential that cannot overflow.
inline VecF sigmoid(VecF x) {
  const VecF e = exp_nonpositive(-magnitude(x));
  return (x < 0.0f ? e : broadcast(1.0f)) / (1.0f + e);
}

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016), as a sigmoid of twice the argument.
inline VecF gelu_tanh(VecF x) { return x * sigmoid(x * 1.59576912f * (1.0f + 0.044715f * x * x)); }

// x / 2 * (1 + erf(x / sqrt(2))), with the error function to 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26).
inline VecF gelu(VecF x) {
  const VecF z = magnitude(x) * 0.707106781f, t = 1.0f / (1.0f + 0.3275911f * z);
  VecF p = broadcast(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const VecF rest = p * t * exp_nonpositive(-z * z);
  return x * (x < 0.0f ? 0.5f * rest : 1.0f - 0.5f * rest);
}

// limit * tanh(x / limit).
inline VecF softcap(VecF x, float limit) {
  const VecF e = exp_nonpositive(magnitude(x) * (-2.0f / limit));
  const VecF bounded = limit * (1.0f - e) / (1.0f + e);
  return x < 0.0f ? -bounded : bounded;
}

// Loads elements from memory as float32 values.
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
struct LoadInt8 {
  typedef int8_t Element;
  static VecF vector(const int8_t *p) { return load_int8(p); }
  static float scalar(int8_t x) { return float(x); }
};
struct LoadBfloat {
  typedef uint16_t Element;
  static VecF vector(const uint16_t *p) { return load_bfloat(p); }
  static float scalar(uint16_t x) { return bfloat_to_float(x); }
};

}  // namespace KERNEL_ISA
