// Products with weights in 8 or 4 bits that are restored to bfloat16 as they are needed, and multiplied in tiles (AMX-BF16).
//
// A weight is scale * q + least, rounded to bfloat16, ties away from zero. x stays as it is. Every element of y is one sum
// in float32 over k in ascending order, 32 products at a time, for any number of rows and threads.

#pragma once

#include <cstdint>

#include "quantized.h"

// Whether the processor has such tiles.
bool restores();

// The bytes that arranged rows of x take: whole tiles of 16 rows.
int64_t arranged_bytes(const QuantizedWeights& weights, int64_t rows);

// k bfloat16 to where tiles find that row of so many.
void arrange_row(const uint16_t* x, int64_t row, int64_t rows, const QuantizedWeights& weights, void* arranged);

// The sums of arranged rows [first, last), the first of a tile, with a group of columns: [rows][PANELS][PANEL], with room for
// whole tiles.
void sum_restored(const QuantizedWeights& weights, const void* arranged, int64_t rows, int64_t group, int64_t first,
                  int64_t last, float* sums);
