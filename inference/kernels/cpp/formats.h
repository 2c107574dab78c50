// How a weight matrix [rows, columns] lies in memory. Each row is contiguous and can be cut out, which is what tensor
// parallelism and memory-mapping need.
//
//   FLOAT32            4 bytes an element
//   FLOAT16, BFLOAT16  2 bytes an element
//   INT8, INT4         columns are padded to a multiple of 64; a row is its quantised values followed by one float16
//                      scale for every group of 32. A value is (q - zero) * scale, q unsigned.
//     INT8  q = 1 byte, zero = 128
//     INT4  q = 4 bits, zero = 8; byte i of a 32-byte run holds element i of its first group in the low half and
//           element i of its second group in the high half, so that one load gives two whole groups
#pragma once

#include <cstdint>

enum Format : int32_t { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, INT8 = 3, INT4 = 4 };

constexpr int64_t GROUP = 32;
constexpr int64_t PAIR = 2 * GROUP;

inline int64_t padded(int64_t columns) { return (columns + PAIR - 1) / PAIR * PAIR; }

inline int64_t row_bytes(Format format, int64_t columns) {
  switch (format) {
    case FLOAT32: return 4 * columns;
    case FLOAT16:
    case BFLOAT16: return 2 * columns;
    case INT8: return padded(columns) + padded(columns) / GROUP * 2;
    case INT4: return padded(columns) / 2 + padded(columns) / GROUP * 2;
  }
  return 0;
}

struct Matrix {
  const uint8_t *data;
  Format format;
  int64_t rows, columns;
  int64_t stride() const { return row_bytes(format, columns); }
  const uint8_t *row(int64_t index) const { return data + index * stride(); }
  bool quantised() const { return format == INT8 || format == INT4; }
};
