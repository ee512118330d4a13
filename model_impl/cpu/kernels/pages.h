// A layer's pages: for each KV head the keys, [size][tokens], and then the values, [tokens][size]. That is the layout of
// vLLM's CPU attention for vectors ("vec"; csrc/cpu/cpu_attn_vec.hpp), which fills and reads the same pages. A number is
// a bfloat16 or a byte: float8_e4m3fn without a scale.
//
// Bytes are rounded to the nearest here, ties to even, where vLLM's operation cuts off, and what is beyond the largest,
// 448, is taken for that. Nan is not told from it.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "memory.h"

namespace {

constexpr int GROUP = 32;  // tokens, or values of a head, that are read at a time

template <class Number>
struct Pages {
  Number* first;
  int64_t stride, tokens;  // numbers between pages, tokens in one
  Number* key(int64_t page, int64_t head, int64_t size) const {
    return first + page * stride + head * 2 * tokens * size;
  }
  Number* value(int64_t page, int64_t head, int64_t size) const { return key(page, head, size) + tokens * size; }
};

// What `load_group` gives has to be multiplied by.
template <class Number>
constexpr float UNIT_OF = sizeof(Number) == 1 ? 256.0f : 1.0f;

// GROUP numbers as bfloat16.
inline __m512i load_group(const uint16_t* from) { return _mm512_loadu_si512(from); }

// A byte's fraction and exponent are put into a bfloat16's, whose exponent gets 112 more (2^8 too few, which is
// UNIT_OF). Those below 2^-6 have no exponent and are looked up; they are bits to be flipped, not to be set, since
// the fraction is there already. In registers of the products a bfloat16 below 2^-126 would be zero.
inline __m512i load_group(const uint8_t* from) {
  const __m512i small = _mm512_castsi128_si512(_mm_setr_epi16(
      0x0000, 0x3700 ^ 0x10, 0x3780 ^ 0x20, 0x37c0 ^ 0x30, 0x3800 ^ 0x40, 0x3820 ^ 0x50, 0x3840 ^ 0x60, 0x3860 ^ 0x70));
  const __m512i bytes = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from));
  const __mmask32 is_small = _mm512_testn_epi16_mask(bytes, _mm512_set1_epi16(0x78));
  const __m512i exponent = _mm512_mask_permutexvar_epi16(_mm512_set1_epi16(0x3800), is_small, bytes, small);
  return _mm512_ternarylogic_epi32(_mm512_slli_epi16(bytes, 4), _mm512_set1_epi16((short)0x87f0), exponent, 0x6a);
}

// `count` bfloat16 to page numbers, a multiple of LANES.
inline void to_pages(const uint16_t* from, int64_t count, uint16_t* to) { memcpy(to, from, count * sizeof(uint16_t)); }

inline void to_pages(const uint16_t* from, int64_t count, uint8_t* to) {
  const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7ffff), shift = _mm512_set1_epi32(120 << 3);
  const __m512 step = _mm512_set1_ps(16384.0f);  // whose last bit is worth 2^-9, as that of the smallest
  for (int64_t i = 0; i < count; i += LANES) {
    const __m512i bits = _mm512_castps_si512(widen(_mm256_loadu_si256((const __m256i*)(from + i))));
    const __m512i size = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __m512i even = _mm512_and_si512(_mm512_srli_epi32(size, 20), one);
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(size, _mm512_add_epi32(half, even)), 20);
    const __m512i sum = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(size), step));
    const __mmask16 is_small = _mm512_cmplt_epi32_mask(size, _mm512_set1_epi32(121 << 23));
    const __m512i byte = _mm512_mask_sub_epi32(_mm512_sub_epi32(rounded, shift), is_small, sum, _mm512_castps_si512(step));
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
    const __m512i all = _mm512_or_si512(_mm512_min_epi32(byte, _mm512_set1_epi32(0x7e)), sign);
    _mm_storeu_si128((__m128i*)(to + i), _mm512_cvtepi32_epi8(all));
  }
}

}  // namespace
