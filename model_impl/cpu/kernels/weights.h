// The weights of a matrix product as they lie in memory: packed once, in the order in which a product reads them.
//
// Columns of y come in groups of 48 (the last of 16, 32 or 48, filled up); a group is [k / 2][columns][2] of bfloat16.
// A matrix that fits into caches lies like this. A larger one is read from memory for every token, and that is what the
// token waits for; so it lies there in three quarters of the bytes, without loss: of the 256 values that the upper half
// of a bfloat16 (sign and seven bits of the exponent) can take, 16 make up nearly all of a group's weights. A weight is
// its lower half and a nibble, its upper half's place among those 16. The rare others stand in a list. Where there are
// tiles (AMX) all lie as they are: they are multiplied in less time than they could be restored in.

#pragma once

#include <immintrin.h>

#include <cstdint>

#include "memory.h"

constexpr int WIDTH = 3;  // registers of a group: 8 rows x 3 leave 8 of 32 registers for operands
constexpr int COLUMNS = WIDTH * LANES;
constexpr int KEYS = 16;  // upper halves that a nibble can name
// Weights that are made compact together, four registers: 64 lower halves, 64 more, and 64 bytes with the nibbles of the
// first in their lower and of the others in their upper half.
constexpr int BLOCK = 128;
constexpr int BLOCK_BYTES = BLOCK / 2 * 3;
constexpr int UNIT = 4;  // pairs of k whose weights fill as many blocks as a group has registers

struct Rare {
  uint32_t place;  // in its group
  uint16_t weight, unused;
};

// A compact group on its way back to bfloat16, from its first weight to its last.
struct CompactReader {
  const uint8_t *from, *keys;
  const Rare *rare, *end;  // those to come
  uint32_t place;          // of the next weight

  // The next COUNT blocks to `to`, at a multiple of 64 bytes.
  template <int COUNT>
  inline __attribute__((always_inline)) void next(uint16_t* to) {
    const __m512i named = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)keys)), mask = _mm512_set1_epi8(0x0f);
#pragma GCC unroll 3
    for (int i = 0; i < COUNT; i++, from += BLOCK_BYTES) {
      const __m512i nibbles = _mm512_loadu_si512(from + BLOCK);
      const __m512i high[2] = {_mm512_shuffle_epi8(named, _mm512_and_si512(nibbles, mask)),
                               _mm512_shuffle_epi8(named, _mm512_and_si512(_mm512_srli_epi16(nibbles, 4), mask))};
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        const __m512i low = _mm512_loadu_si512(from + half * 64);
        uint16_t* out = to + i * BLOCK + half * 64;
        _mm512_store_si512(out, _mm512_unpacklo_epi8(low, high[half]));
        _mm512_store_si512(out + 32, _mm512_unpackhi_epi8(low, high[half]));
      }
    }
    for (; __builtin_expect(rare < end && rare->place < place + COUNT * BLOCK, 0); rare++)
      to[rare->place - place] = rare->weight;
    place += COUNT * BLOCK;
  }
};

class Weights {
 public:
  // `packed`: what `pack` wrote.
  explicit Weights(const void* packed) : bytes_((const uint8_t*)packed) {}

  bool are_for(int64_t columns, int64_t pairs) const;
  bool compact() const;  // else a group's values can be read where they lie
  bool past() const;     // too large for caches, which are left to what is read again

  int width(int64_t group) const;                           // registers of a group's columns
  const uint8_t* at(int64_t group, int64_t pair) const;     // of compact weights: pairs at multiples of UNIT
  int64_t unit_bytes(int64_t group) const;                  // that UNIT pairs of a group take
  CompactReader reader(int64_t group) const;                // of a compact group
  void column(int64_t column, uint16_t* to) const;          // its weights as they were before

 private:
  const struct Header& header() const { return *(const Header*)bytes_; }

  const uint8_t* bytes_;
};
