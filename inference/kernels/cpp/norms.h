// RMSNorm and LayerNorm of one row.
#pragma once

#include <cmath>
#include <cstdint>

#include "simd.h"

namespace KERNEL_ISA {

inline void rms_norm_row(const float *x, const float *weight, int64_t width, float eps, float *out) {
  VecF sums = zero();
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) sums += load(x + i) * load(x + i);
  float sum = sum_lanes(sums);
  for (; i < width; i++) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum / float(width) + eps);
  for (i = 0; i + LANES <= width; i += LANES) store(out + i, load(x + i) * scale * load(weight + i));
  for (; i < width; i++) out[i] = x[i] * scale * weight[i];
}

// (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016).
inline void layer_norm_row(const float *x, const float *weight, const float *bias, int64_t width, float eps,
                           float *out) {
  VecF sums = zero();
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) sums += load(x + i);
  float sum = sum_lanes(sums);
  for (; i < width; i++) sum += x[i];
  const float mean = sum / float(width);
  VecF squares = zero();
  for (i = 0; i + LANES <= width; i += LANES) squares += (load(x + i) - mean) * (load(x + i) - mean);
  float square = sum_lanes(squares);
  for (; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / std::sqrt(square / float(width) + eps);
  for (i = 0; i + LANES <= width; i += LANES)
    store(out + i, (load(x + i) - mean) * scale * load(weight + i) + load(bias + i));
  for (; i < width; i++) out[i] = multiply_add((x[i] - mean) * scale, weight[i], bias[i]);
}

inline void norm_row(const float *x, const float *weight, const float *bias, int64_t width, float eps, float *out) {
  if (bias) layer_norm_row(x, weight, bias, width, eps, out);
  else rms_norm_row(x, weight, width, eps, out);
}

}  // namespace KERNEL_ISA
