// The passes between the matrix products of a layer in training, forward and backward, over all rows.
//
// Matrices are bfloat16 (uint16_t), the residual stream and its gradient float32; nothing is rounded on the way from what
// is read to what is written. A gain's gradient is a sum over rows: blocks of rows add up on their own, then the blocks
// in their order, so that it does not depend on the number of threads.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "../../model_impl/cpu/kernels/rows.h"

namespace {

constexpr int64_t THREADED = 1 << 16;  // values that are worth a thread
constexpr int64_t BLOCK = 256;         // rows whose part of a sum is one thread's

inline int team(int64_t values) { return values < THREADED ? 1 : omp_get_max_threads(); }

inline int64_t blocks_of(int64_t rows) { return (rows + BLOCK - 1) / BLOCK; }

inline __m512 inverse_rms(__m512 squares, int64_t width, float eps) {
  return _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / (float)width + eps));
}

// sum(block) adds its rows' part to zeros it is given; `total` gets the parts' sum.
template <typename Sum>
void in_blocks(int64_t rows, int64_t width, int threads, float* total, Sum sum) {
  const int64_t blocks = blocks_of(rows);
  std::vector<float> parts(blocks * width, 0.0f);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t block = 0; block < blocks; block++)
    sum(block * BLOCK, std::min(rows, (block + 1) * BLOCK), parts.data() + block * width);
  for (int64_t i = 0; i < width; i++) {
    float value = 0.0f;
    for (int64_t block = 0; block < blocks; block++) value += parts[block * width + i];
    total[i] = value;
  }
}

inline void add_to(float* sum, __m512 values) { _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), values)); }

// The sum of squares, still to be reduced.
inline __m512 squares_of(const uint16_t* x, int64_t size) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < size; i += LANES) sum = _mm512_fmadd_ps(load(x + i), load(x + i), sum);
  return sum;
}

void norm_rope_head(const uint16_t* x, int64_t size, const float* gain, float eps, const float* turn, uint16_t* y) {
  const int64_t half = size / 2;
  const __m512 inverse = inverse_rms(squares_of(x, size), size, eps);
  for (int64_t i = 0; i < half; i += LANES) {
    const __m512 real = _mm512_mul_ps(_mm512_mul_ps(load(x + i), inverse), _mm512_loadu_ps(gain + i));
    const __m512 imaginary =
        _mm512_mul_ps(_mm512_mul_ps(load(x + half + i), inverse), _mm512_loadu_ps(gain + half + i));
    if (!turn) {
      store(y + i, real);
      store(y + half + i, imaginary);
      continue;
    }
    const __m512 cosine = _mm512_loadu_ps(turn + i), sine = _mm512_loadu_ps(turn + half + i);
    store(y + i, _mm512_fmsub_ps(real, cosine, _mm512_mul_ps(imaginary, sine)));
    store(y + half + i, _mm512_fmadd_ps(imaginary, cosine, _mm512_mul_ps(real, sine)));
  }
}

// d: in, the gradient of what norm_rope_head gave; out, that of x. The gain's is added to gain_sum.
void norm_rope_head_back(const uint16_t* x, int64_t size, const float* gain, float eps, const float* turn, uint16_t* d,
                         float* gain_sum) {
  const int64_t half = size / 2;
  const __m512 inverse = inverse_rms(squares_of(x, size), size, eps);
  __m512 product = _mm512_setzero_ps();
  for (int64_t i = 0; i < half; i += LANES) {
    __m512 real = load(d + i), imaginary = load(d + half + i);
    if (turn) {
      const __m512 cosine = _mm512_loadu_ps(turn + i), sine = _mm512_loadu_ps(turn + half + i);
      const __m512 turned = real;
      real = _mm512_fmadd_ps(turned, cosine, _mm512_mul_ps(imaginary, sine));
      imaginary = _mm512_fmsub_ps(imaginary, cosine, _mm512_mul_ps(turned, sine));
    }
    const __m512 a = _mm512_mul_ps(real, _mm512_mul_ps(load(x + i), inverse));
    const __m512 b = _mm512_mul_ps(imaginary, _mm512_mul_ps(load(x + half + i), inverse));
    add_to(gain_sum + i, a);
    add_to(gain_sum + half + i, b);
    product = _mm512_fmadd_ps(a, _mm512_loadu_ps(gain + i), product);
    product = _mm512_fmadd_ps(b, _mm512_loadu_ps(gain + half + i), product);
  }
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(product) / (float)size);
  for (int64_t i = 0; i < half; i += LANES) {
    __m512 real = load(d + i), imaginary = load(d + half + i);
    if (turn) {
      const __m512 cosine = _mm512_loadu_ps(turn + i), sine = _mm512_loadu_ps(turn + half + i);
      const __m512 turned = real;
      real = _mm512_fmadd_ps(turned, cosine, _mm512_mul_ps(imaginary, sine));
      imaginary = _mm512_fmsub_ps(imaginary, cosine, _mm512_mul_ps(turned, sine));
    }
    const __m512 a = _mm512_mul_ps(load(x + i), inverse), b = _mm512_mul_ps(load(x + half + i), inverse);
    real = _mm512_fnmadd_ps(a, mean, _mm512_mul_ps(real, _mm512_loadu_ps(gain + i)));
    imaginary = _mm512_fnmadd_ps(b, mean, _mm512_mul_ps(imaginary, _mm512_loadu_ps(gain + half + i)));
    store(d + i, _mm512_mul_ps(real, inverse));
    store(d + half + i, _mm512_mul_ps(imaginary, inverse));
  }
}

// 1 / (1 + 2^-t) for t = x log2(e), to some 6e-5 of it: bfloat16, which the result becomes, tells 4e-3 apart. 2^-t is a
// power of two times a polynomial of the rest, |rest| <= 1/2; infinite, the result is 0.
inline __m512 sigmoid(__m512 x) {
  const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
  const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(t, n);
  __m512 p = _mm512_set1_ps(9.6181291e-3f);  // the terms of exp(r ln 2)
  for (float c : {5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_rcp14_ps(_mm512_add_ps(_mm512_scalef_ps(p, n), _mm512_set1_ps(1.0f)));
}

}  // namespace

extern "C" {

// Rows of x begin with `queries` and then `keys` heads of `size`; y (rows, (queries + keys) size) has each normalised, and
// then rotated by its row's position, its number modulo `length`. `turns` is (length, size), cosines before sines of the
// halves; null leaves the rotation out.
void norm_rope_forward(const uint16_t* x, int64_t rows, int64_t stride, int64_t queries, int64_t keys, int64_t size,
                     const float* query_gain, const float* key_gain, float eps, const float* turns, int64_t length,
                     uint16_t* y) {
  const int64_t heads = queries + keys;
  const int threads = team(rows * heads * size);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t head = 0; head < heads; head++)
      norm_rope_head(x + row * stride + head * size, size, head < queries ? query_gain : key_gain, eps,
                     turns ? turns + row % length * size : nullptr, y + (row * heads + head) * size);
}

// d, of the same stride as x, begins with the gradient of y and gets that of x in its place; gain_gradient (2, size) is
// the query gain's and the key gain's.
void norm_rope_backward(const uint16_t* x, int64_t rows, int64_t stride, int64_t queries, int64_t keys, int64_t size,
                          const float* query_gain, const float* key_gain, float eps, const float* turns, int64_t length,
                          uint16_t* d, float* gain_gradient) {
  const int64_t heads = queries + keys;
  in_blocks(rows, 2 * size, team(rows * heads * size), gain_gradient, [=](int64_t row, int64_t end, float* sum) {
    for (; row < end; row++)
      for (int64_t head = 0; head < heads; head++) {
        const int64_t at = row * stride + head * size;
        norm_rope_head_back(x + at, size, head < queries ? query_gain : key_gain, eps,
                            turns ? turns + row % length * size : nullptr, d + at, head < queries ? sum : sum + size);
      }
  });
}

// y = residual + norm(x) gain, and y in bfloat16, all (rows, width); `inverse` (rows) keeps 1 / rms for the way back.
void add_norm_forward(const float* residual, const uint16_t* x, const float* gain, float eps, int64_t rows, int64_t width,
                    float* y, uint16_t* y_short, float* inverse) {
  const int threads = team(rows * width);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    const int64_t at = row * width;
    const __m512 scale = inverse_rms(squares_of(x + at, width), width, eps);
    inverse[row] = _mm512_cvtss_f32(scale);
    for (int64_t i = 0; i < width; i += LANES) {
      const __m512 value = _mm512_fmadd_ps(_mm512_mul_ps(load(x + at + i), scale), _mm512_loadu_ps(gain + i),
                                           _mm512_loadu_ps(residual + at + i));
      _mm512_storeu_ps(y + at + i, value);
      store(y_short + at + i, value);
    }
  }
}

// From the gradients of y and (unless null) of y in bfloat16: their sum, which is the residual's, that of x, and the
// gain's. dy_sum may be dy.
void add_norm_backward(const float* dy, const uint16_t* dy_short, const uint16_t* x, const float* gain,
                         const float* inverse, int64_t rows, int64_t width, float* dy_sum, uint16_t* dx,
                         float* gain_gradient) {
  in_blocks(rows, width, team(rows * width), gain_gradient, [=](int64_t row, int64_t end, float* sum) {
    for (; row < end; row++) {
      const int64_t at = row * width;
      const __m512 scale = _mm512_set1_ps(inverse[row]);
      __m512 product = _mm512_setzero_ps();
      for (int64_t i = 0; i < width; i += LANES) {
        __m512 d = _mm512_loadu_ps(dy + at + i);
        if (dy_short) d = _mm512_add_ps(d, load(dy_short + at + i));
        _mm512_storeu_ps(dy_sum + at + i, d);
        const __m512 part = _mm512_mul_ps(d, _mm512_mul_ps(load(x + at + i), scale));
        add_to(sum + i, part);
        product = _mm512_fmadd_ps(part, _mm512_loadu_ps(gain + i), product);
      }
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(product) / (float)width);
      for (int64_t i = 0; i < width; i += LANES) {
        const __m512 d = _mm512_mul_ps(_mm512_loadu_ps(dy_sum + at + i), _mm512_loadu_ps(gain + i));
        const __m512 unit = _mm512_mul_ps(load(x + at + i), scale);
        store(dx + at + i, _mm512_mul_ps(_mm512_fnmadd_ps(unit, mean, d), scale));
      }
    }
  });
}

// y = silu(gate) up for x (rows, 2 width) of gate and up side by side, y (rows, width).
void swiglu_forward(const uint16_t* x, int64_t rows, int64_t width, uint16_t* y) {
  const int threads = team(rows * width);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t i = 0; i < width; i += LANES) {
      const __m512 gate = load(x + 2 * row * width + i), up = load(x + (2 * row + 1) * width + i);
      store(y + row * width + i, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), up));
    }
}

// dx (rows, 2 width) from dy; y is computed again rather than kept.
void swiglu_backward(const uint16_t* x, const uint16_t* dy, int64_t rows, int64_t width, uint16_t* dx, uint16_t* y) {
  const int threads = team(rows * width);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t i = 0; i < width; i += LANES) {
      const int64_t at = 2 * row * width + i;
      const __m512 gate = load(x + at), up = load(x + at + width), d = load(dy + row * width + i);
      const __m512 open = sigmoid(gate), silu = _mm512_mul_ps(gate, open);
      // silu' = s (1 + g (1 - s)) = s + silu - silu s
      const __m512 slope = _mm512_fnmadd_ps(silu, open, _mm512_add_ps(open, silu));
      store(y + row * width + i, _mm512_mul_ps(silu, up));
      store(dx + at, _mm512_mul_ps(_mm512_mul_ps(d, up), slope));
      store(dx + at + width, _mm512_mul_ps(d, silu));
    }
}

}  // extern "C"
