// How bfloat16 weights become weights in 8 or 4 bits; quantized.h says what those are.

#include <omp.h>

#include <cmath>
#include <cstring>

#include "halves.h"
#include "quantized.h"

namespace {

constexpr int N = SHARED;
constexpr float WHOLE = 12582912.0f;  // 1.5 * 2^23: added and taken away, the nearest whole number is left
constexpr float HALF_MOST = 65504.0f;

// SHARED weights of a column on their way: what is stored of them.
struct Rounded {
  uint16_t scale, least;
  int8_t values[N];
};

// The power of two of which `largest` is 1024 to 2048 times; at least 2^-126, whose inverse is a number too.
float unit_for(float largest) {
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0f, std::max(exponent - 11, -126));
}

float kept(float value) { return half_to_float(float_to_half(std::fmin(std::fmax(value, -HALF_MOST), HALF_MOST))); }

void to_8_bits(const float* w, Rounded* to) {
  float most = 0;
  for (int i = 0; i < N; i++) most = std::fmax(most, std::fabs(w[i]));
  uint16_t half = float_to_half(most / 127.0f);
  if (half_to_float(half) * 127.5f < most) half++;  // very small ones are rounded much, and nothing may be cut off
  const float scale = half_to_float(half), by = scale > 0 ? 1.0f / scale : 0.0f;
  to->scale = half;
  to->least = 0;
  for (int i = 0; i < N; i++) {
    const float nearest = (w[i] * by + WHOLE) - WHOLE;
    to->values[i] = (int8_t)(int)std::fmin(std::fmax(nearest, -127.0f), 127.0f);
  }
}

// The squared error of w as the nearest of scale * (0 to 15) + least, each weight counted by `weight`; the sums with which
// least squares finds a better scale for those integers are left in `sums`: q, q q, w, w q, each times its weight.
float error_of(const float* w, const float* weight, float scale, float least, float* sums) {
  const float by = scale > 0 ? 1.0f / scale : 0.0f;
  float error = 0, q1 = 0, q2 = 0, w1 = 0, wq = 0;
#pragma omp simd reduction(+ : error, q1, q2, w1, wq)
  for (int i = 0; i < N; i++) {
    float q = ((w[i] - least) * by + WHOLE) - WHOLE;
    q = q < 0 ? 0 : q > 15 ? 15 : q;
    const float off = scale * q + least - w[i], counted = weight[i];
    error += counted * off * off;
    q1 += counted * q;
    q2 += counted * q * q;
    w1 += counted * w[i];
    wq += counted * w[i] * q;
  }
  sums[0] = q1, sums[1] = q2, sums[2] = w1, sums[3] = wq;
  return error;
}

// Large weights count more, as they do more: by their size beside the group's.
void to_4_bits(const float* w, Rounded* to) {
  constexpr int TRIES = 12;
  float low = 0, high = 0, square = 0, weight[N], sums[4], total = 0;
  for (int i = 0; i < N; i++) {
    low = std::fmin(low, w[i]);
    high = std::fmax(high, w[i]);
    square += w[i] * w[i];
  }
  const float usual = std::sqrt(square / N);
  for (int i = 0; i < N; i++) total += weight[i] = usual + std::fabs(w[i]);
  float best_scale = kept((high - low) / 15.0f), best_least = kept(low);
  float best = error_of(w, weight, best_scale, best_least, sums);
  for (int i = 0; i < TRIES && high > low; i++) {  // a smaller range rounds most weights less
    float scale = (high - low) / (14.2f + 0.2f * (float)i), least = low;
    for (int again = 0; again < 2; again++) {
      scale = kept(scale), least = kept(least);
      const float error = error_of(w, weight, scale, least, sums);
      if (error < best) best = error, best_scale = scale, best_least = least;
      const float determinant = total * sums[1] - sums[0] * sums[0];
      if (!(determinant > 0)) break;
      scale = (total * sums[3] - sums[0] * sums[2]) / determinant;
      least = (sums[2] - scale * sums[0]) / total;
      if (!(scale > 0)) break;
    }
  }
  to->scale = float_to_half(best_scale);
  to->least = float_to_half(best_least);
  const float by = best_scale > 0 ? 1.0f / best_scale : 0.0f;
  for (int i = 0; i < N; i++) {
    const float nearest = ((w[i] - best_least) * by + WHOLE) - WHOLE;
    to->values[i] = (int8_t)(int)std::fmin(std::fmax(nearest, 0.0f), 15.0f);
  }
}

// To column `column` of a block, of which all bytes were 0 before.
void put(const Rounded& from, int64_t bits, int64_t half, int64_t column, uint8_t* block) {
  memcpy(block + half * HALF_BYTES + column * 2, &from.scale, 2);
  uint8_t* values = block + (bits == 8 ? 2 : 4) * HALF_BYTES;
  if (bits == 4) memcpy(block + (2 + half) * HALF_BYTES + column * 2, &from.least, 2);
  for (int64_t i = 0; i < N; i++) {
    if (bits == 8)
      values[(half * 8 + i / 4) * 64 + column * 4 + i % 4] = (uint8_t)from.values[i];
    else
      values[(half * 4 + i / 4 % 4) * 64 + column * 4 + i % 4] |= (uint8_t)(from.values[i] << (i < 16 ? 0 : 4));
  }
}

// All groups of SHARED weights of a matrix, made by `make(column, place, &rounded)`; columns that fill up are zeros.
template <typename Make>
void pack_all(QuantizedWeights& weights, Make&& make) {
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t panel = 0; panel < weights.panels(); panel++) {
    const int64_t group = panel / PANELS, within = panel % PANELS;
    const int64_t columns = std::min(PANEL, weights.columns - panel * PANEL);
    for (int64_t unit = 0; unit < weights.units(); unit++) {
      uint8_t* block = weights.block(group, unit, within);
      memset(block, 0, weights.block_bytes());
      for (int64_t half = 0; half < 2; half++)
        for (int64_t column = 0; column < columns; column++) {
          const int64_t place = unit * 2 + half;
          if (place * SHARED >= weights.k) continue;
          Rounded rounded;
          make(panel * PANEL + column, place, &rounded);
          put(rounded, weights.bits, half, column, block);
        }
    }
  }
}

}  // namespace

extern "C" {

// The bytes that a matrix of that size takes in so many bits.
int64_t quantized_size(int64_t columns, int64_t k, int64_t bits) {
  return QuantizedWeights{columns, k, bits, 1.0f, {}}.bytes();
}

// weight (columns, k), bfloat16 and contiguous, to `packed`, of quantized_size() bytes. False where a weight is not finite.
bool quantize(const uint16_t* weight, int64_t columns, int64_t k, int64_t bits, uint8_t* packed) {
  QuantizedWeights& weights = *(QuantizedWeights*)packed;
  uint16_t largest = 0;  // as bits: a nan is more than an infinity, and that more than all others
#pragma omp parallel for schedule(static) reduction(max : largest)
  for (int64_t i = 0; i < columns; i++) {
    uint16_t most = 0;
    for (int64_t j = 0; j < k; j++) most = std::max<uint16_t>(most, weight[i * k + j] & 0x7fff);
    largest = std::max(largest, most);
  }
  if (largest >= 0x7f80) return false;
  const float unit = unit_for(bfloat_to_float(largest)), by = 1.0f / unit;
  weights = {columns, k, bits, unit, {}};
  pack_all(weights, [&](int64_t column, int64_t place, Rounded* to) {
    float w[N] = {};
    const int64_t count = std::min(SHARED, k - place * SHARED);
    for (int64_t i = 0; i < count; i++) w[i] = bfloat_to_float(weight[column * k + place * SHARED + i]) * by;
    if (bits == 8)
      to_8_bits(w, to);
    else
      to_4_bits(w, to);
  });
  return true;
}

// Weights that somebody has quantized: `values` (columns, k), -127 to 127 for 8 bits and 0 to 15 for 4; `scales`, and for 4
// bits `least`, (columns, k / shared) in float32 and finite, `shared` a multiple of 32 or all of k.
void pack_quantized(const int8_t* values, const float* scales, const float* least, int64_t columns, int64_t k,
                    int64_t shared, int64_t bits, uint8_t* packed) {
  QuantizedWeights& weights = *(QuantizedWeights*)packed;
  const int64_t groups = (k + shared - 1) / shared;
  const float most = bits == 8 ? 128 : 16;  // that a scale is multiplied by
  float largest = 0;
  for (int64_t i = 0; i < columns * groups; i++)
    largest = std::fmax(largest, std::fmax(std::fabs(scales[i]) * most, bits == 4 ? std::fabs(least[i]) : 0.0f));
  const float unit = unit_for(largest), by = 1.0f / unit;
  weights = {columns, k, bits, unit, {}};
  pack_all(weights, [&](int64_t column, int64_t place, Rounded* to) {
    const int64_t at = column * groups + place * SHARED / shared;
    to->scale = float_to_half(scales[at] * by);
    to->least = bits == 4 ? float_to_half(least[at] * by) : 0;
    const int64_t count = std::min(SHARED, k - place * SHARED);
    memset(to->values, 0, sizeof(to->values));
    memcpy(to->values, values + column * k + place * SHARED, count);
  });
}

}  // extern "C"
