// Vectors in an int8 KV cache: one scale per vector, after an orthonormal transform that spreads outliers over
// neighbors.
//
// Queries are transformed like keys, which leaves their products unchanged; the weighted sum of values is transformed
// back. The transform is its own inverse. Each vector is rounded on its own, so it does not depend on its batch.
#pragma once

#include "simd.h"

namespace KERNEL_ISA {

// Multiplies x by Hadamard matrices (Sylvester 1867) of the largest power of two that divides `size`, over its root.
inline void hadamard(float *x, int64_t size) {
  const int64_t order = size & -size;
  for (int64_t half = 1; half < order; half *= 2)
    for (int64_t begin = 0; begin < size; begin += 2 * half)
      for (int64_t i = begin; i < begin + half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
  const float norm = 1.0f / std::sqrt(float(order));
  for (int64_t i = 0; i < size; i++) x[i] *= norm;
}

// Transforms x in place and writes it as int8 to `out`, elements `stride` apart. Returns the scale: NaN if x has a
// value that is not finite, so that no such value is hidden.
inline float quantize_vector(float *x, int64_t size, int8_t *out, int64_t stride) {
  hadamard(x, size);
  float largest = 0, poison = 0;
  for (int64_t i = 0; i < size; i++) {
    largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    poison += x[i] * 0.0f;
  }
  // Below 1e-30 the inverse might overflow.
  const bool is_rounded = poison == 0 && largest > 1e-30f;
  const float inverse = is_rounded ? 127.0f / largest : 0.0f;
  for (int64_t i = 0; i < size; i++) out[i * stride] = is_rounded ? int8_t(std::lrintf(x[i] * inverse)) : 0;
  // 0 times NaN is NaN: a product with such a vector is NaN, too.
  return poison == 0 ? is_rounded ? largest / 127.0f : 0.0f : poison;
}

}  // namespace KERNEL_ISA
