// Numbers of 16 bits to float32 and back, on any processor.

#pragma once

#include <cstdint>
#include <cstring>

inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline float bfloat_to_float(uint16_t bits) { return bits_to_float((uint32_t)bits << 16); }

// To the nearest, ties to even; a nan stays one.
inline uint16_t float_to_bfloat(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (bits & 0x7fffffff) > 0x7f800000 ? (uint16_t)(bits >> 16 | 0x40) : (uint16_t)rounded;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) {  // too small for an exponent of its own: a multiple of 2^-24
    const float value = (float)fraction * 5.9604644775390625e-8f;
    return sign ? -value : value;
  }
  return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
}

// To the nearest, ties to even; beyond the largest is infinite.
inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
  if (magnitude < 0x38800000) {  // the sum's last bit is worth 2^-24, so the addition rounds
    const float shifted = bits_to_float(magnitude) + 0.5f;
    return (uint16_t)(sign | (float_to_bits(shifted) - float_to_bits(0.5f)));
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return (uint16_t)(sign | (magnitude - 0x38000000 + 0xfff + odd) >> 13);
}
