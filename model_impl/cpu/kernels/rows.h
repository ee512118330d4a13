// What lies between the matrix products of a layer, for one row each. Values are rounded to bfloat16 where the operations
// that these stand for would round theirs, so that the results are the same.

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "memory.h"

namespace {

inline __m512 load(const uint16_t* values) { return widen(_mm256_loadu_si256((const __m256i*)values)); }

inline __m256i narrow(__m512 values) { return (__m256i)_mm512_cvtneps_pbh(values); }

inline __m512 rounded(__m512 values) { return widen(narrow(values)); }

inline void store(uint16_t* to, __m512 values) { _mm256_storeu_si256((__m256i*)to, narrow(values)); }

// 1 / sqrt(mean of squares + eps) of a row whose width is a multiple of LANES.
inline __m512 scale_of(const uint16_t* x, int64_t width, float eps) {
  __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 2 * LANES <= width; i += 2 * LANES) {
    const __m512 a = load(x + i), b = load(x + i + LANES);
    even = _mm512_fmadd_ps(a, a, even);
    odd = _mm512_fmadd_ps(b, b, odd);
  }
  if (i < width) even = _mm512_fmadd_ps(load(x + i), load(x + i), even);
  const float mean = _mm512_reduce_add_ps(_mm512_add_ps(even, odd)) / (float)width;
  return _mm512_set1_ps(1.0f / std::sqrt(mean + eps));
}

inline __m512 normalised(const uint16_t* x, __m512 scale, const uint16_t* weight) {
  return rounded(_mm512_mul_ps(rounded(_mm512_mul_ps(load(x), scale)), load(weight)));
}

// To about a unit in the last place of float32: 2^n times a polynomial of the rest (Cephes' expf).
inline __m512 exponential(__m512 x) {
  x = _mm512_min_ps(_mm512_set1_ps(100.0f), _mm512_max_ps(_mm512_set1_ps(-100.0f), x));  // keeps a nan, as x comes last
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

// y = residual + norm(x) * weight; a null residual is left out. y may be the residual.
inline void add_norm_row(const uint16_t* residual, const uint16_t* x, const uint16_t* weight, float eps, int64_t width,
                         uint16_t* y) {
  const __m512 scale = scale_of(x, width, eps);
  for (int64_t i = 0; i < width; i += LANES) {
    __m512 value = normalised(x + i, scale, weight + i);
    if (residual) value = _mm512_add_ps(load(residual + i), value);
    store(y + i, value);
  }
}

// A head in place: normalised, then rotated (its halves are real and imaginary parts). `turn` has cosines before sines;
// null leaves the rotation out.
inline void norm_rope_head(uint16_t* x, int64_t size, const uint16_t* weight, float eps, const uint16_t* turn) {
  const int64_t half = size / 2;
  const __m512 scale = scale_of(x, size, eps);
  for (int64_t i = 0; i < half; i += LANES) {
    const __m512 real = normalised(x + i, scale, weight + i);
    const __m512 imaginary = normalised(x + half + i, scale, weight + half + i);
    if (!turn) {
      store(x + i, real);
      store(x + half + i, imaginary);
      continue;
    }
    const __m512 cosine = load(turn + i), sine = load(turn + half + i);
    store(x + i, _mm512_fmsub_ps(real, cosine, _mm512_mul_ps(imaginary, sine)));
    store(x + half + i, _mm512_fmadd_ps(imaginary, cosine, _mm512_mul_ps(real, sine)));
  }
}

// y = silu(gate) * up for a row of gate and up side by side.
inline void silu_mul_row(const uint16_t* gate, int64_t width, uint16_t* y) {
  const uint16_t* up = gate + width;
  for (int64_t i = 0; i < width; i += LANES) {
    const __m512 g = load(gate + i), one = _mm512_set1_ps(1.0f);
    const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), g))));
    store(y + i, _mm512_mul_ps(rounded(silu), load(up + i)));
  }
}

}  // namespace
