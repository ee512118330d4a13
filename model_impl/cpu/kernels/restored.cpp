// Products with weights that are restored to bfloat16; restored.h says what they become.
//
// Up to two tiles of rows pass once by W, whose tiles are each restored while the one before is multiplied. Of more rows,
// blocks of x stay in L2, and a chunk of W that was restored for the first two tiles stays in L1 for the others.
//
// A lane of a vector of W has four of k of a column (in 4 bits also the four 16 further on), of which the first and the third
// become a pair, then the second and the fourth, so x is arranged in that order.

#include "restored.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "halves.h"
#include "tiles.h"

constexpr int RAISED = 80;  // x is multiplied by two to the power of it, since tiles know no number under 2^-126
constexpr uint16_t SMALLEST = (127 - 60) << 7;  // of x, 2^-60 in bfloat16; less is zero
constexpr uint16_t INFINITE = 0x7f80;
constexpr float enlarged(int64_t bits) { return bits == 8 ? 32 : 16; }  // weights, to 2^15 or so, as float16 has room for
constexpr int64_t ORDER[4] = {0, 2, 1, 3};  // of four of k

#if defined(__linux__) && defined(__AVX512F__) && defined(__AVX512BW__) && __has_include(<avx512fp16intrin.h>)
#define TILES
#include <immintrin.h>
#endif

#ifdef TILES

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512fp16,avx512bf16,avx512vl")
#define INLINE __attribute__((always_inline))

namespace {

constexpr int64_t TILE = TILE_ROWS * SHARED;  // bfloat16 of a tile: rows of x, or 16 columns of weights, by SHARED of k
constexpr int64_t TILE_BYTES = 2 * TILE;
constexpr int64_t SUMS = PANELS * PANEL;      // of a row and a group
constexpr int64_t CHUNK = 4;                  // units that are restored together: 32 KiB of L1
constexpr int64_t NEAR = 4 * 1088, FAR = 32 * 1088;  // bytes of weights that are on their way to L1 and L2

// x, restored weights and sums of one product and group.
struct Job {
  const QuantizedWeights& weights;
  const uint8_t* x;
  int64_t group;

  const uint8_t* rows(int64_t tile, int64_t place) const { return x + (tile * 2 * weights.units() + place) * TILE_BYTES; }
};

// SHARED weights of each of 16 columns, on their way to bfloat16.
template <int BITS>
class Half {
 public:
  INLINE Half(const uint8_t* block, int64_t half)
      : values_(block + (BITS == 8 ? 2 : 4) * HALF_BYTES + half * SHARED * PANEL * BITS / 8),
        scale_(twice(block, half)),
        least_(BITS == 8 ? _mm512_setzero_ph() : twice(block, 2 + half)),
        small_scale_(_mm512_mul_ph(scale_, both(1.0f / 16))) {}

  // As tiles take them: pairs of k of 16 columns. As many bytes are fetched as are read.
  INLINE void restore(uint8_t* to) const {
#pragma GCC unroll 8
    for (int i = 0; i < BITS; i++) {
      const uint8_t* from = values_ + i * 64;
      const __m512i four = _mm512_loadu_si512(from);
      _mm_prefetch((const char*)from + NEAR, _MM_HINT_T0);
      _mm_prefetch((const char*)from + FAR, _MM_HINT_T1);
      if (BITS == 8) {
        _mm512_store_si512(to + i * 128, restored(number(four, 0x00ff, 0x6480, 1152), scale_));
        _mm512_store_si512(to + i * 128 + 64, restored(_mm512_cvtepi16_ph(_mm512_srai_epi16(four, 8)), scale_));
        continue;
      }
      const __m512i second = _mm512_srli_epi16(four, 8);
      _mm512_store_si512(to + i * 128, restored(number(four, 0x000f, 0x6400, 1024), scale_));
      _mm512_store_si512(to + i * 128 + 64, restored(number(second, 0x000f, 0x6400, 1024), scale_));
      _mm512_store_si512(to + i * 128 + 512, restored(number(four, 0x00f0, 0x6400, 1024), small_scale_));
      _mm512_store_si512(to + i * 128 + 576, restored(number(second, 0x00f0, 0x6400, 1024), small_scale_));
    }
  }

 private:
  const uint8_t* values_;
  __m512h scale_, least_, small_scale_;

  static INLINE __m512h both(float value) { return _mm512_set1_ph((_Float16)value); }

  // Numbers of the columns, enlarged, each for a pair.
  static INLINE __m512h twice(const uint8_t* block, int64_t which) {
    const __m512i numbers = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)block + which));
    const __m512i pairs = _mm512_or_si512(numbers, _mm512_slli_epi32(numbers, 16));
    return _mm512_mul_ph(_mm512_castsi512_ph(pairs), both(enlarged(BITS)));
  }

  // What `mask` leaves of each 16 bits, put where it is the last of a fraction, which makes `zero` and more.
  static INLINE __m512h number(__m512i bits, int mask, int exponent, float zero) {
    const __m512i of_zero =
        _mm512_ternarylogic_epi32(bits, _mm512_set1_epi16((short)mask), _mm512_set1_epi16((short)exponent), 0x6a);
    return _mm512_sub_ph(_mm512_castsi512_ph(of_zero), both(zero));
  }

  // A float16 has three bits of a fraction more than a bfloat16, and three of the exponent less.
  INLINE __m512i restored(__m512h q, __m512h scale) const {
    const __m512h weight = BITS == 8 ? _mm512_mul_ph(q, scale) : _mm512_fmadd_ph(q, scale, least_);
    const __m512i eighth = _mm512_mulhrs_epi16(_mm512_castph_si512(weight), _mm512_set1_epi16(1 << 12));
    return _mm512_and_si512(eighth, _mm512_set1_epi16((short)0x8fff));
  }
};

inline INLINE void prefetch(const uint8_t* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char*)from + i, _MM_HINT_T0);
}

// What is multiplied at once: tiles of rows, `x_step` bytes from one to the next, by panels from `block` on, whose next unit
// is `stride` bytes further on. `restored`: tiles of all panels of a place, for `slots` of them, a power of two.
struct Span {
  const uint8_t* x;
  int64_t x_step, places;
  const uint8_t* block;
  int64_t stride, block_bytes;
  uint8_t* restored;
  int64_t slots, slot_bytes;
  bool begins;  // else the sums go on
  float* sums;
  const uint8_t* next;  // from there on `share` bytes are fetched with each place
  int64_t share;

  INLINE uint8_t* slot(int64_t place, int64_t panel) const {
    return restored + (place & (slots - 1)) * slot_bytes + panel * TILE_BYTES;
  }
};

// The sums of R tiles of rows by C panels: 1 by 1 to 4, or 2 by 1 or 2. With RESTORE, a tile of weights is restored while the
// one before it is multiplied, since tiles cannot be loaded at once from what has been stored; else all are. Tiles: 0 to 3
// sums, 4 and 5 x, 6 and 7 weights.
template <int BITS, int R, int C, bool RESTORE>
void multiply(const Span& span) {
  constexpr int64_t STRIDE = 4 * SUMS;
  float *sums = span.sums, *third = R > 1 ? sums + TILE_ROWS * SUMS : sums + 2 * PANEL;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (!span.begins) {
    _tile_loadd(0, sums, STRIDE);
    if (C > 1) _tile_loadd(1, sums + PANEL, STRIDE);
    if (R > 1 || C > 2) _tile_loadd(2, third, STRIDE);
    if (R * C > 3) _tile_loadd(3, third + PANEL, STRIDE);
  }
  auto restore_at = [&](int64_t place, int64_t panel) INLINE {
    if (!RESTORE || place == span.places) return;
    const uint8_t* block = span.block + place / 2 * span.stride + panel * span.block_bytes;
    if (place % 2 == 0) prefetch(block + NEAR, 64);
    Half<BITS>(block, place % 2).restore(span.slot(place, panel));
  };
  for (int panel = 0; panel < C; panel++) restore_at(0, panel);
  const uint8_t *x = span.x, *next = span.next;
  for (int64_t place = 0; place < span.places; place++, x += TILE_BYTES, next += span.share) {
    prefetch(next, span.share);
    _tile_loadd(4, x, 64);
    if (R > 1) _tile_loadd(5, x + span.x_step, 64);
    restore_at(place + 1, 0);
    _tile_loadd(6, span.slot(place, 0), 64);
    _tile_dpbf16ps(0, 4, 6);
    if (R > 1) _tile_dpbf16ps(2, 5, 6);
    if (C > 1) {
      restore_at(place + 1, 1);
      _tile_loadd(7, span.slot(place, 1), 64);
      _tile_dpbf16ps(1, 4, 7);
      if (R > 1) _tile_dpbf16ps(3, 5, 7);
    }
    if (C > 2) {
      restore_at(place + 1, 2);
      _tile_loadd(6, span.slot(place, 2), 64);
      _tile_dpbf16ps(2, 4, 6);
    }
    if (C > 3) {
      restore_at(place + 1, 3);
      _tile_loadd(7, span.slot(place, 3), 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, sums, STRIDE);
  if (C > 1) _tile_stored(1, sums + PANEL, STRIDE);
  if (R > 1 || C > 2) _tile_stored(2, third, STRIDE);
  if (R * C > 3) _tile_stored(3, third + PANEL, STRIDE);
}

using Multiply = void (*)(const Span&);

template <int BITS>
Multiply multiply_for(int64_t tiles, int64_t panels, bool restored_before) {
  static constexpr Multiply ONE[] = {multiply<BITS, 1, 1, true>, multiply<BITS, 1, 2, true>, multiply<BITS, 1, 3, true>,
                                     multiply<BITS, 1, 4, true>};
  static constexpr Multiply TWO[] = {multiply<BITS, 2, 1, true>, multiply<BITS, 2, 2, true>};
  static constexpr Multiply RESTORED[2][2] = {{multiply<BITS, 1, 1, false>, multiply<BITS, 1, 2, false>},
                                              {multiply<BITS, 2, 1, false>, multiply<BITS, 2, 2, false>}};
  if (restored_before) return RESTORED[tiles - 1][panels - 1];
  return (tiles == 1 ? ONE : TWO)[panels - 1];
}

// The sums of the tiles [first, last) of rows with a group. Where they are more than two, each chunk of weights stays in
// L1 for those after the first two.
template <int BITS>
void tiles(const Job& job, int64_t first, int64_t last, float* sums) {
  alignas(64) uint8_t restored[2 * CHUNK * PANELS * TILE_BYTES];
  const int64_t units = job.weights.units(), width = job.weights.width(job.group), bytes = job.weights.block_bytes();
  const int64_t at_once = last - first == 1 ? PANELS : 2;  // panels
  const bool once = last - first <= 2;
  const int64_t chunk = once ? units : CHUNK;
  for (int64_t unit = 0; unit < units; unit += chunk) {
    const int64_t count = std::min(chunk, units - unit);
    const uint8_t* block = job.weights.block(job.group, unit, 0);
    const int64_t steps = ((last - first + 1) / 2 - 1) * ((width + 1) / 2) * 2 * count;  // that fetch the next chunk
    const int64_t share = once ? 0 : (chunk * width * bytes / steps + 63) / 64 * 64;
    const uint8_t* next = block + count * width * bytes;
    for (int64_t tile = first; tile < last; tile += 2)
      for (int64_t panel = 0; panel < width; panel += at_once) {
        const bool is_first = tile == first;
        const Span span{job.rows(tile, 2 * unit),
                        2 * units * TILE_BYTES,
                        2 * count,
                        block + panel * bytes,
                        width * bytes,
                        bytes,
                        restored + panel * TILE_BYTES,
                        once ? 2 : 2 * CHUNK,
                        width * TILE_BYTES,
                        unit == 0,
                        sums + (tile - first) * TILE_ROWS * SUMS + panel * PANEL,
                        next,
                        is_first ? 0 : share};
        multiply_for<BITS>(std::min<int64_t>(last - tile, 2), std::min(width - panel, at_once), !is_first)(span);
        if (!is_first) next += 2 * count * share;
      }
  }
}

// This thread's tiles of x and sums have `rows`, until this ends.
class Shapes {
 public:
  explicit Shapes(int64_t rows) {
    alignas(64) TileShapes shapes{};
    for (int tile = 0; tile < 8; tile++) shapes.set(tile, TILE_ROWS, 64);
    if (rows < TILE_ROWS)
      for (int tile = 0; tile < 5; tile++) shapes.set(tile, rows, 64);
    shapes.use();
  }
  ~Shapes() { _tile_release(); }
};

}  // namespace

#pragma GCC pop_options

bool restores() {
  static const bool granted = __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("avx512fp16") && may_have_tiles();
  return granted;
}

void sum_restored(const QuantizedWeights& weights, const void* arranged, int64_t group, int64_t first, int64_t last,
                  float* sums) {
  const Shapes shapes(last - first);
  (weights.bits == 8 ? tiles<8> : tiles<4>)({weights, (const uint8_t*)arranged, group}, first / TILE_ROWS,
                                            (last + TILE_ROWS - 1) / TILE_ROWS, sums);
}

#else

bool restores() { return false; }
void sum_restored(const QuantizedWeights&, const void*, int64_t, int64_t, int64_t, float*) {}

#endif

int64_t arranged_bytes(const QuantizedWeights& weights, int64_t rows) {
  return (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS * weights.units() * UNIT_K * 2;
}

namespace {

uint16_t raised(uint16_t x) {
  const uint16_t magnitude = x & 0x7fff, sign = x & 0x8000;
  if (magnitude >= INFINITE) return x;
  if (magnitude < SMALLEST) return 0;
  return (uint16_t)(sign | std::min<int>(magnitude + (RAISED << 7), INFINITE));
}

}  // namespace

void arrange_row(const uint16_t* x, int64_t row, const QuantizedWeights& weights, void* arranged) {
  const int64_t units = weights.units();
  uint16_t* to = (uint16_t*)arranged + row / TILE_ROWS * TILE_ROWS * units * UNIT_K + row % TILE_ROWS * SHARED;
  for (int64_t k = 0; k < units * UNIT_K; k += SHARED, to += TILE_ROWS * SHARED) {
    const int64_t count = std::max<int64_t>(0, std::min(SHARED, weights.k - k));
    uint16_t given[SHARED] = {};
    memcpy(given, x + k, count * 2);
    for (int64_t i = 0; i < SHARED; i++) given[i] = raised(given[i]);
    for (int64_t i = 0; i < SHARED; i++) to[i] = given[i / 4 * 4 + ORDER[i % 4]];
  }
}

namespace {

// What can be rounded to float16 as `exact` itself would be: where bits are lost, the last that is left is 1.
float rounded_to_odd(double exact) {
  const float nearest = (float)exact;
  if (nearest == exact) return nearest;
  const uint32_t bits = float_to_bits(nearest);
  return bits_to_float((std::fabs(nearest) > std::fabs(exact) ? bits - 1 : bits) | 1);
}

}  // namespace

float restored_weight(const QuantizedWeights& weights, int q, float scale, float least) {
  const double times = enlarged(weights.bits);
  const uint16_t half = float_to_half(rounded_to_odd(times * ((double)q * scale + least)));
  const uint16_t eighth = (uint16_t)(((half & 0x7fff) + 4) >> 3);
  const float magnitude = eighth < 0x80 ? 0 : bfloat_to_float(eighth) * (0x1p112f / enlarged(weights.bits));
  return half & 0x8000 ? -magnitude : magnitude;
}

float of_restored_sums(const QuantizedWeights& weights) {
  return std::ldexp(1.0f, 112 - RAISED) / enlarged(weights.bits);
}
