// The passes between the matrix products of a layer (`rows.h`) over all rows, for a model that calls them one by one.

#include <omp.h>

#include "rows.h"

namespace {

constexpr int64_t THREADED = 1 << 16;  // values that are worth a thread

inline int team(int64_t values) { return values < THREADED ? 1 : omp_get_max_threads(); }

}  // namespace

extern "C" {

// y = residual + norm(x) * weight, all (rows, width) and contiguous; a null residual is left out.
void add_norm(const uint16_t* residual, const uint16_t* x, const uint16_t* weight, float eps, int64_t rows,
              int64_t width, uint16_t* y) {
  const int threads = team(rows * width);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < rows; row++)
    add_norm_row(residual ? residual + row * width : nullptr, x + row * width, weight, eps, width, y + row * width);
}

// In place, on rows that begin with `queries` and then `keys` heads of `size`: each head normalised, then rotated by its
// row's position. `turns` is (positions, size), cosines before sines; null leaves the rotation out.
void norm_rope(uint16_t* x, int64_t rows, int64_t stride, int64_t queries, int64_t keys, int64_t size,
               const uint16_t* query_weight, const uint16_t* key_weight, float eps, const int64_t* positions,
               const uint16_t* turns) {
  const int threads = team(rows * (queries + keys) * size);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t head = 0; head < queries + keys; head++)
      norm_rope_head(x + row * stride + head * size, size, head < queries ? query_weight : key_weight, eps,
                     turns ? turns + positions[row] * size : nullptr);
}

// y = silu(gate) * up for x (rows, 2 width) of gate and up side by side, y (rows, width), both contiguous.
void silu_mul(const uint16_t* x, int64_t rows, int64_t width, uint16_t* y) {
  const int threads = team(rows * width);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) silu_mul_row(x + row * 2 * width, width, y + row * width);
}

}  // extern "C"
