// Weights in 8 or 4 bits as they lie in memory, and rows of x rounded for them.
//
// Columns of y come in panels of 16, panels in groups of 4 (the last of 1 to 4), k in units of 64, filled up with zeros.
// A group is [units][panels] of blocks, in the order in which a product reads them. A block is 64 weights of each of 16
// columns: scales (and smallest values) of its two groups of 32 weights, in float16, then the weights, four of k beside
// each other for each column, as dot products of 8-bit numbers take them.
//
// 8 bits: scale * q, q from -127 to 127; with its scale a weight takes 8.5 bits.
// 4 bits: scale * q + least, q from 0 to 15; a byte has two of them, 16 of k apart. 5 bits with both.
// All of it times `unit`, a power of two that puts the matrix's largest weight where float16 has room on either side: no
// weight is too large, and a scale is off by at most 2^-35 of the largest weight.
//
// Where there are tiles (AMX-BF16, AVX512-FP16), weights are restored to bfloat16 (restored.h). Else rows of x are rounded to 8 bits, a
// scale for each 32, so that a product's terms are whole numbers. Their sums over 32 are exact; each is scaled and added in
// float32, in ascending order of k. In both ways the result is the same for any number of rows and threads; of rounded rows,
// also whether vectors or plain loops compute it.

#pragma once

#include <algorithm>
#include <cstdint>

constexpr int64_t SHARED = 32;   // weights, or values of x, that share a scale
constexpr int64_t UNIT_K = 64;   // of k that a block has
constexpr int64_t PANEL = 16;    // columns
constexpr int64_t PANELS = 4;    // of a group
constexpr int64_t HALF_BYTES = PANEL * 2;  // PANEL float16

struct QuantizedWeights {
  int64_t columns, k;
  int64_t bits;  // 8 or 4; where weights.h's have 0 or 1
  float unit;
  int32_t unused[9];  // to a cache line

  int64_t units() const { return (k + UNIT_K - 1) / UNIT_K; }
  int64_t panels() const { return (columns + PANEL - 1) / PANEL; }
  int64_t groups() const { return (panels() + PANELS - 1) / PANELS; }
  int64_t width(int64_t group) const { return std::min(PANELS, panels() - group * PANELS); }
  int64_t scales_bytes() const { return (bits == 8 ? 2 : 4) * HALF_BYTES; }
  int64_t block_bytes() const { return scales_bytes() + UNIT_K * PANEL * bits / 8; }
  int64_t bytes() const { return (int64_t)sizeof(*this) + panels() * units() * block_bytes(); }
  const uint8_t* block(int64_t group, int64_t unit, int64_t panel) const {
    return (const uint8_t*)(this + 1) + ((group * PANELS * units()) + unit * width(group) + panel) * block_bytes();
  }
  uint8_t* block(int64_t group, int64_t unit, int64_t panel) {
    return const_cast<uint8_t*>(((const QuantizedWeights*)this)->block(group, unit, panel));
  }

  // `packed`: of these or of weights.h's weights.
  static const QuantizedWeights* of(const void* packed) {
    const QuantizedWeights* weights = (const QuantizedWeights*)packed;
    return weights && (weights->bits == 8 || weights->bits == 4) ? weights : nullptr;
  }
};

static_assert(sizeof(QuantizedWeights) == 64);

// A row of x in 8 bits: values, then for each SHARED of them its scale, and a word of its own for either kind of weights:
// for 8 bits -128 times the sum of the values, in int32; for 4 bits their sum times the scale, in float32.
struct RoundedRow {
  const int8_t* values;
  const float* scales;
  const int32_t* words;

  static int64_t bytes(int64_t units) { return units * (UNIT_K + 2 * 8); }
  static RoundedRow at(const void* memory, int64_t units) {
    const int8_t* values = (const int8_t*)memory;
    const float* scales = (const float*)(values + units * UNIT_K);
    return {values, scales, (const int32_t*)(scales + 2 * units)};
  }
};

// The bytes that rows of x take as a product with those weights reads them.
int64_t prepared_bytes(const QuantizedWeights& weights, int64_t rows);

// k bfloat16 to that row.
void prepare_row(const uint16_t* x, int64_t row, const QuantizedWeights& weights, void* prepared);

// y = x W^T + bias for prepared rows; y (rows, columns) in bfloat16. By each thread of a team.
void multiply_quantized(const QuantizedWeights& weights, const void* prepared, int64_t rows, const uint16_t* bias,
                        uint16_t* y, int64_t thread, int64_t threads);

// The weights of one column, k of them, in bfloat16.
void restore_column(const QuantizedWeights& weights, int64_t column, uint16_t* to);
