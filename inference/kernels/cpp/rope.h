// Rotary position embedding of one head (Su et al. 2021).
#pragma once

#include <cmath>
#include <cstdint>

namespace KERNEL_ISA {

// Rotates pairs (i, i + D/2), like Hugging Face's rotate_half.
inline void apply_rope(float *x, const float *cosines, const float *sines, int64_t size) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i++) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosines[i] - b * sines[i];
    x[i + half] = b * cosines[i] + a * sines[i];
  }
}

// Cosines, then sines, of one token's angles, each multiplied by its pair's magnitude, [D].
inline void rope_angles(const float *rotation, int64_t position, int64_t size, float *angles) {
  const float *magnitudes = rotation + size / 2;
  for (int64_t i = 0; i < size / 2; i++) {
    const float angle = float(position) * rotation[i];
    angles[i] = std::cos(angle) * magnitudes[i];
    angles[size / 2 + i] = std::sin(angle) * magnitudes[i];
  }
}

}  // namespace KERNEL_ISA
