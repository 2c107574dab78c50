// Memory layout of a weight matrix [rows, columns]: panels of 16 rows, so that a vector register holds the same columns
// of neighboring rows, a product needs no sum across lanes, and a thread reads memory sequentially. A panel is as long
// as its rows together; the last one is padded with zeros.
//
//   FLOAT32            [columns][16 rows], 4 bytes per element
//   FLOAT16, BFLOAT16  [columns][16 rows], 2 bytes per element
//   INT8, INT4         columns are padded to pairs of groups of 32. A pair consists of its scales, float16
//                      [2 groups][16 rows], and its values, words of 4 bytes [words][16 rows]. A value is
//                      (q - zero) * scale, q unsigned.
//     INT8  16 words, one byte per element, zero = 128: word i holds columns 4i to 4i + 3 of the pair
//     INT4  8 words, 4 per group, zero = 8: byte i of a group's 16 holds its element i in the low half, i + 16 in the
//           high half
//   INT8_MINIMUM, INT4_MINIMUM  the same, with minimums after a pair's scales, float16 [2 groups][16 rows]: a value is
//                      (q - zero) * scale + minimum
#pragma once

#include <cstdint>

enum Format : int32_t { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, INT8 = 3, INT4 = 4, INT8_MINIMUM = 5, INT4_MINIMUM = 6 };
constexpr int64_t LAST_FORMAT = INT4_MINIMUM;

// Maps a format with minimums to the one without.
constexpr Format without_minimum(Format format) {
  return format == INT8_MINIMUM ? INT8 : format == INT4_MINIMUM ? INT4 : format;
}
constexpr bool has_minimum(Format format) { return format != without_minimum(format); }

constexpr int64_t PANEL = 16;
constexpr int64_t GROUP = 32;
constexpr int64_t PAIR = 2 * GROUP;
// Size of a pair of groups in a panel.
constexpr int64_t SCALE_BYTES = 2 * PANEL * 2;
constexpr int64_t WORD_BYTES = PANEL * 4;

constexpr int64_t words_of_group(Format format) { return without_minimum(format) == INT8 ? 8 : 4; }
// Offset of a pair's values.
constexpr int64_t values_at(Format format) { return has_minimum(format) ? 2 * SCALE_BYTES : SCALE_BYTES; }
constexpr int64_t pair_bytes(Format format) { return values_at(format) + 2 * words_of_group(format) * WORD_BYTES; }

inline int64_t padded(int64_t columns) { return (columns + PAIR - 1) / PAIR * PAIR; }
inline int64_t panels_of(int64_t rows) { return (rows + PANEL - 1) / PANEL; }

inline int64_t panel_bytes(Format format, int64_t columns) {
  switch (format) {
    case FLOAT32: return 4 * PANEL * columns;
    case FLOAT16:
    case BFLOAT16: return 2 * PANEL * columns;
    case INT8:
    case INT4:
    case INT8_MINIMUM:
    case INT4_MINIMUM: return padded(columns) / PAIR * pair_bytes(format);
  }
  return 0;
}

struct Matrix {
  const uint8_t *data;
  Format format;
  int64_t rows, columns;
  int64_t panels() const { return panels_of(rows); }
  const uint8_t *panel(int64_t index) const { return data + index * panel_bytes(format, columns); }
  bool quantized() const { return format >= INT8; }
};
