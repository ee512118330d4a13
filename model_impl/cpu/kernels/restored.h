// Products with weights in 8 or 4 bits that are restored to bfloat16 as they are needed, and multiplied in tiles (AMX-BF16).
//
// A weight is scale * q + least rounded to float16, then to bfloat16, ties away from zero; it is zero under 2^-28 of what the
// matrix's largest can be. x stays as it is from 2^-60 on, is zero below, and infinite from 2^48 on. Every element of y is one sum in
// float32 over k, 32 products at a time in ascending order, the same for any number of rows and threads.

#pragma once

#include <cstdint>

#include "quantized.h"

// Whether the processor has such tiles, and AVX512-FP16 to restore with.
bool restores();

// The bytes that arranged rows of x take: whole tiles of 16 rows.
int64_t arranged_bytes(const QuantizedWeights& weights, int64_t rows);

// k bfloat16 to where tiles find that row.
void arrange_row(const uint16_t* x, int64_t row, const QuantizedWeights& weights, void* arranged);

// The sums of arranged rows [first, last), the first of a tile, with a group of columns: [rows][PANELS][PANEL], with room for
// whole tiles.
void sum_restored(const QuantizedWeights& weights, const void* arranged, int64_t group, int64_t first, int64_t last,
                  float* sums);

// What a weight is restored to, in its matrix's unit.
float restored_weight(const QuantizedWeights& weights, int q, float scale, float least);

// What to multiply sums with, beside that unit.
float of_restored_sums(const QuantizedWeights& weights);
