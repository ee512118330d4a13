// Products with weights that are restored to bfloat16; restored.h says what they become.
//
// FEW rows are multiplied by vectors, which add in the order in which tiles do. Up to two tiles of rows pass once by W, whose
// tiles are each restored while the one before is multiplied. Of more rows, blocks of x stay in L2, and a chunk of W that was
// restored for the first two tiles stays in L1 for the others.

#include "restored.h"

#include <cstring>

#include "halves.h"
#include "tiles.h"

constexpr int64_t FEW = 4;              // rows that are multiplied faster without tiles, by the same sums
constexpr uint16_t SMALLEST = 0x0d80;  // of x, 2^-100 in bfloat16; zero else, since tiles know no smaller numbers than 2^-126

#if defined(__linux__) && defined(__AVX512F__) && defined(__AVX512BW__)
#define TILES
#include <immintrin.h>
#endif

#ifdef TILES

#define WITH_TILES __attribute__((target("amx-tile,amx-bf16")))
#define INLINE __attribute__((always_inline))

namespace {

constexpr int64_t TILE = TILE_ROWS * SHARED;  // bfloat16 of a tile: rows of x, or 16 columns of weights, by SHARED of k
constexpr int64_t TILE_BYTES = 2 * TILE;
constexpr int64_t SUMS = PANELS * PANEL;      // of a row and a group
constexpr int64_t CHUNK = 4;                  // units that are restored together: 32 KiB of L1
constexpr int64_t AHEAD = 8 << 10;            // bytes of weights that are under way when all of them are read once

// x, restored weights and sums of one product and group.
struct Job {
  const QuantizedWeights& weights;
  const uint8_t* x;
  int64_t group;

  const uint8_t* rows(int64_t tile, int64_t place) const { return x + (tile * 2 * weights.units() + place) * TILE_BYTES; }
};

// SHARED weights of each of 16 columns. The bits of a q are put where they are the first of a fraction, which makes
// 256 + (q + 128), or 16 + q.
template <int BITS>
class Half {
 public:
  INLINE Half(const uint8_t* block, int64_t half)
      : values_(block + (BITS == 8 ? 2 : 4) * HALF_BYTES + half * 256 * BITS / 4) {
    const __m256i* scales = (const __m256i*)block;
    scale_ = _mm512_cvtph_ps(_mm256_loadu_si256(scales + half));
    least_ = BITS == 8 ? _mm512_mul_ps(scale_, _mm512_set1_ps(-384.0f))
                       : _mm512_fmadd_ps(scale_, _mm512_set1_ps(-16.0f),
                                         _mm512_cvtph_ps(_mm256_loadu_si256(scales + 2 + half)));
  }

  // Calls `use(pair, first, second)` for each pair of k with the weights' bits; the lower 16 are to be left out. As many
  // bytes are fetched as are read, `ahead` further on.
  template <class Use>
  INLINE void pairs(int64_t ahead, Use&& use) const {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      const uint8_t* from = values_ + i % BITS * 64;
      const __m512i four = _mm512_loadu_si512(from);
      if (i < BITS) _mm_prefetch((const char*)from + ahead, _MM_HINT_T0);
      if (BITS == 8) {
        use(2 * i, restored(_mm512_slli_epi32(four, 15)), restored(_mm512_slli_epi32(four, 7)));
        use(2 * i + 1, restored(_mm512_srli_epi32(four, 1)), restored(_mm512_srli_epi32(four, 9)));
      } else if (i < 4) {
        use(2 * i, restored(_mm512_slli_epi32(four, 19)), restored(_mm512_slli_epi32(four, 11)));
        use(2 * i + 1, restored(_mm512_slli_epi32(four, 3)), restored(_mm512_srli_epi32(four, 5)));
      } else {
        use(2 * i, restored(_mm512_slli_epi32(four, 15)), restored(_mm512_slli_epi32(four, 7)));
        use(2 * i + 1, restored(_mm512_srli_epi32(four, 1)), restored(_mm512_srli_epi32(four, 9)));
      }
    }
  }

 private:
  const uint8_t* values_;
  __m512 scale_, least_;

  INLINE __m512i restored(__m512i bits) const {
    const __m512i fraction = _mm512_set1_epi32(BITS == 8 ? 0x007f8000 : 0x00780000);
    const __m512i exponent = _mm512_set1_epi32(BITS == 8 ? 0x43c00000 : 0x41800000);  // of 8 bits, the sign is turned over
    const __m512 number = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, fraction, exponent, 0x6a));
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_fmadd_ps(number, scale_, least_)), _mm512_set1_epi32(0x8000));
  }
};

// As tiles take them: pairs of k of 16 columns.
template <int BITS>
inline INLINE void restore(const uint8_t* block, int64_t half, int64_t ahead, uint8_t* to) {
  const __m512i upper = _mm512_set1_epi32(0xffff0000);
  Half<BITS>(block, half).pairs(ahead, [&](int pair, __m512i first, __m512i second) INLINE {
    _mm512_store_si512(to + pair * 64, _mm512_ternarylogic_epi32(_mm512_srli_epi32(first, 16), second, upper, 0xf8));
  });
}

inline INLINE void prefetch(const uint8_t* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char*)from + i, _MM_HINT_T0);
}

// The sums of R rows of float32 with a group of W panels, as tiles add them: the first and the second products of a tile's
// pairs apart, each from zero, then both.
template <int BITS, int R, int W>
void few(const Job& job, float* sums) {
  const __m512i upper = _mm512_set1_epi32(0xffff0000);
  const int64_t places = 2 * job.weights.units(), bytes = job.weights.block_bytes();
  const uint8_t* block = job.weights.block(job.group, 0, 0);
  const float* x = (const float*)job.x;
  __m512 sum[W][R] = {};
  for (int64_t place = 0; place < places; place += 2, x += 2 * SHARED)
    for (int panel = 0; panel < W; panel++, block += bytes)
      for (int half = 0; half < 2; half++) {
        __m512 first[R] = {}, second[R] = {};
        if (half == 0) prefetch(block + AHEAD, 64);
        Half<BITS>(block, half).pairs(AHEAD, [&](int pair, __m512i one, __m512i other) INLINE {
          const __m512 weight = _mm512_castsi512_ps(_mm512_and_si512(one, upper));
          const __m512 next = _mm512_castsi512_ps(_mm512_and_si512(other, upper));
#pragma GCC unroll 4
          for (int r = 0; r < R; r++) {
            const float* of_row = x + r * places * SHARED + half * SHARED + 2 * pair;
            first[r] = _mm512_fmadd_ps(_mm512_set1_ps(of_row[0]), weight, first[r]);
            second[r] = _mm512_fmadd_ps(_mm512_set1_ps(of_row[1]), next, second[r]);
          }
        });
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sum[panel][r] = _mm512_add_ps(sum[panel][r], _mm512_add_ps(first[r], second[r]));
      }
  for (int panel = 0; panel < W; panel++)
    for (int r = 0; r < R; r++) _mm512_storeu_ps(sums + r * SUMS + panel * PANEL, sum[panel][r]);
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

// The sums of R tiles of rows by C panels, one or two of either. With RESTORE, a tile of weights is restored while the one
// before it is multiplied, since tiles cannot be loaded at once from what has been stored; else all are. Tiles: 0 to 3 sums,
// 4 and 5 x, 6 and 7 weights.
template <int BITS, int R, int C, bool RESTORE>
WITH_TILES void multiply(const Span& span) {
  constexpr int64_t STRIDE = 4 * SUMS;
  float *sums = span.sums, *below = sums + TILE_ROWS * SUMS;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (!span.begins) {
    _tile_loadd(0, sums, STRIDE);
    if (C > 1) _tile_loadd(1, sums + PANEL, STRIDE);
    if (R > 1) _tile_loadd(2, below, STRIDE);
    if (R > 1 && C > 1) _tile_loadd(3, below + PANEL, STRIDE);
  }
  auto restore_at = [&](int64_t place, int64_t panel) INLINE {
    if (!RESTORE || place == span.places) return;
    const uint8_t* block = span.block + place / 2 * span.stride + panel * span.block_bytes;
    if (place % 2 == 0) prefetch(block + 2 * span.stride, 64);
    restore<BITS>(block, place % 2, 2 * span.stride, span.slot(place, panel));
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
  }
  _tile_stored(0, sums, STRIDE);
  if (C > 1) _tile_stored(1, sums + PANEL, STRIDE);
  if (R > 1) _tile_stored(2, below, STRIDE);
  if (R > 1 && C > 1) _tile_stored(3, below + PANEL, STRIDE);
}

// The sums of the tiles [first, last) of rows with a group. Where they are more than two, each chunk of weights stays in
// L1 for those after the first two.
template <int BITS>
void tiles(const Job& job, int64_t first, int64_t last, float* sums) {
  using Multiply = decltype(&multiply<BITS, 1, 1, true>);
  static constexpr Multiply BY[2][2][2] = {  // [restored before][tiles of rows - 1][panels - 1]
      {{multiply<BITS, 1, 1, true>, multiply<BITS, 1, 2, true>}, {multiply<BITS, 2, 1, true>, multiply<BITS, 2, 2, true>}},
      {{multiply<BITS, 1, 1, false>, multiply<BITS, 1, 2, false>},
       {multiply<BITS, 2, 1, false>, multiply<BITS, 2, 2, false>}}};
  alignas(64) uint8_t restored[2 * CHUNK * PANELS * TILE_BYTES];
  const int64_t units = job.weights.units(), width = job.weights.width(job.group), bytes = job.weights.block_bytes();
  const bool once = last - first <= 2;
  const int64_t chunk = once ? units : CHUNK;
  for (int64_t unit = 0; unit < units; unit += chunk) {
    const int64_t count = std::min(chunk, units - unit);
    const uint8_t* block = job.weights.block(job.group, unit, 0);
    const int64_t steps = ((last - first + 1) / 2 - 1) * ((width + 1) / 2) * 2 * count;  // that fetch the next chunk
    const int64_t share = once ? 0 : (chunk * width * bytes / steps + 63) / 64 * 64;
    const uint8_t* next = block + count * width * bytes;
    for (int64_t tile = first; tile < last; tile += 2)
      for (int64_t panel = 0; panel < width; panel += 2) {
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
        BY[!is_first][std::min<int64_t>(last - tile, 2) - 1][std::min<int64_t>(width - panel, 2) - 1](span);
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
  WITH_TILES ~Shapes() { _tile_release(); }
};

template <int BITS>
void sum(const Job& job, int64_t rows, int64_t first, int64_t last, float* sums) {
  using Few = decltype(&few<BITS, 1, 1>);
  static constexpr Few FEW_OF[FEW][PANELS] = {
      {few<BITS, 1, 1>, few<BITS, 1, 2>, few<BITS, 1, 3>, few<BITS, 1, 4>},
      {few<BITS, 2, 1>, few<BITS, 2, 2>, few<BITS, 2, 3>, few<BITS, 2, 4>},
      {few<BITS, 3, 1>, few<BITS, 3, 2>, few<BITS, 3, 3>, few<BITS, 3, 4>},
      {few<BITS, 4, 1>, few<BITS, 4, 2>, few<BITS, 4, 3>, few<BITS, 4, 4>},
  };
  const int64_t width = job.weights.width(job.group), tile = first / TILE_ROWS;
  if (rows <= FEW) return FEW_OF[rows - 1][width - 1](job, sums);
  const Shapes shapes(last - first);
  tiles<BITS>(job, tile, (last + TILE_ROWS - 1) / TILE_ROWS, sums);
}

}  // namespace

bool restores() {
  static const bool granted = __builtin_cpu_supports("amx-bf16") && may_have_tiles();
  return granted;
}

void sum_restored(const QuantizedWeights& weights, const void* arranged, int64_t rows, int64_t group, int64_t first,
                  int64_t last, float* sums) {
  const Job job{weights, (const uint8_t*)arranged, group};
  weights.bits == 8 ? sum<8>(job, rows, first, last, sums) : sum<4>(job, rows, first, last, sums);
}

#else

bool restores() { return false; }
void sum_restored(const QuantizedWeights&, const void*, int64_t, int64_t, int64_t, int64_t, float*) {}

#endif

int64_t arranged_bytes(const QuantizedWeights& weights, int64_t rows) {
  return (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS * weights.units() * UNIT_K * 2;
}

void arrange_row(const uint16_t* x, int64_t row, int64_t rows, const QuantizedWeights& weights, void* arranged) {
  const int64_t units = weights.units();
  float* widened = (float*)arranged + row * units * UNIT_K;
  uint16_t* to = (uint16_t*)arranged + row / TILE_ROWS * TILE_ROWS * units * UNIT_K + row % TILE_ROWS * SHARED;
  for (int64_t k = 0; k < units * UNIT_K; k += SHARED, to += TILE_ROWS * SHARED) {
    const int64_t count = std::max<int64_t>(0, std::min(SHARED, weights.k - k));
    uint16_t values[SHARED] = {};
    memcpy(values, x + k, count * 2);
    for (int64_t i = 0; i < SHARED; i++) values[i] = (values[i] & 0x7fff) < SMALLEST ? 0 : values[i];
    if (rows > FEW)
      memcpy(to, values, sizeof(values));
    else
      for (int64_t i = 0; i < SHARED; i++) widened[k + i] = bfloat_to_float(values[i]);
  }
}
