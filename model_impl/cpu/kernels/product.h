// One matrix product as work for a team of threads: `linear.cpp`'s with bfloat16 weights, `quantized.cpp`'s with others.

#pragma once

#include <algorithm>
#include <cstdint>

#include "quantized.h"

typedef int32_t __attribute__((may_alias, aligned(2))) Pair;  // two bfloat16

// y = x W^T + bias: x (rows, 2 pairs) with `stride` between rows, bias (columns) or null, y (rows, columns), contiguous.
struct Product {
  static constexpr int ROWS = 8;  // that are computed together: a tile

  const uint16_t* x;
  int64_t rows, pairs, stride;
  const uint8_t* packed;  // weights.h, or quantized.h; null where nothing is multiplied
  int64_t columns;
  const uint16_t* bias;
  uint16_t* y;
  Pair* arranged;  // room for arranged_size(), at a multiple of 32 bytes

  int64_t tiles() const { return (rows + ROWS - 1) / ROWS; }
  int64_t arranged_size() const;  // of a product in bfloat16
  int64_t tile_end(int64_t tile) const { return std::min(rows, (tile + 1) * ROWS); }  // its last row + 1

  // First for each tile, by whoever knows that its rows of x are there ...
  void arrange(int64_t tile) const;
  // ... and then, when all tiles are arranged, by each thread of the team.
  void multiply(int64_t thread, int64_t threads) const;
};
