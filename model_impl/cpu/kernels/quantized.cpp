// y = x W^T + bias with weights in 8 or 4 bits; quantized.h says what they are.
//
// Plain loops for any x86-64 and AVX512-VNNI round x and give the same bits. Where there are tiles (AMX-BF16), weights are
// restored instead (restored.h). What there is when this is compiled, which is on the machine that it runs on, and what the
// processor has decide.

#include "quantized.h"

#include <omp.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "halves.h"
#include "restored.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__) && defined(__FMA__)
#define VECTORS
#include <immintrin.h>
#endif

namespace {

constexpr int64_t X_BYTES = 1 << 19;       // of prepared rows that are passed by at once; twice as many where there are tiles
constexpr int64_t CHUNK_BYTES = 20 << 10;  // of a group that stay in L1 while rows pass by
constexpr int64_t AHEAD = 8 << 10;        // bytes of weights that are under way
constexpr int64_t THREADED = 2'000'000;   // products of two numbers that are worth a thread
constexpr float SMALLEST = 1e-30f;        // of a group of x; all zeros else

enum Way { PLAIN, VECTOR, TILE, BEST };

// The sums of rows [first, last) with one group of columns go on in `partial`, [rows][PANELS][PANEL], with these units.
struct Piece {
  const QuantizedWeights& weights;
  const uint8_t* rows;
  int64_t group, first, last, unit, units;
  float* partial;

  RoundedRow row(int64_t index) const {
    return RoundedRow::at(rows + index * RoundedRow::bytes(weights.units()), weights.units());
  }
  float* sums(int64_t row, int64_t panel) const { return partial + ((row - first) * PANELS + panel) * PANEL; }
  bool begins() const { return unit == 0; }
};

// Weight number `i` of the SHARED from `half` on of a block's column.
int weight_of(const QuantizedWeights& weights, const uint8_t* block, int64_t half, int64_t column, int64_t i) {
  const uint8_t* values = block + weights.scales_bytes();
  if (weights.bits == 8) return ((const int8_t*)values)[(half * 8 + i / 4) * 64 + column * 4 + i % 4];
  const uint8_t pair = values[(half * 4 + i / 4 % 4) * 64 + column * 4 + i % 4];
  return i < 16 ? pair & 15 : pair >> 4;
}

float half_at(const uint8_t* block, int64_t which, int64_t column) {
  uint16_t bits;
  memcpy(&bits, block + which * HALF_BYTES + column * 2, 2);
  return half_to_float(bits);
}

void plain(const Piece& piece) {
  const QuantizedWeights& weights = piece.weights;
  int8_t values[SHARED];
  for (int64_t panel = 0; panel < weights.width(piece.group); panel++)
    for (int64_t column = 0; column < PANEL; column++) {
      for (int64_t unit = piece.unit; unit < piece.unit + piece.units; unit++)
        for (int64_t half = 0; half < 2; half++) {
          const uint8_t* block = weights.block(piece.group, unit, panel);
          const float scale = half_at(block, half, column);
          const float least = weights.bits == 8 ? 0 : half_at(block, 2 + half, column);
          for (int64_t i = 0; i < SHARED; i++) values[i] = (int8_t)weight_of(weights, block, half, column, i);
          const int64_t place = unit * 2 + half;
          for (int64_t row = piece.first; row < piece.last; row++) {
            const RoundedRow x = piece.row(row);
            int32_t dot = 0;
            for (int64_t i = 0; i < SHARED; i++) dot += values[i] * x.values[place * SHARED + i];
            float* sum = piece.sums(row, panel) + column;
            const float before = place == 0 ? 0.0f : *sum;
            float after = std::fma((float)dot * scale, x.scales[place], before);
            if (weights.bits == 4) {
              float whole;
              memcpy(&whole, x.words + place, 4);
              after = std::fma(least, whole, after);
            }
            *sum = after;
          }
        }
    }
}

#ifdef VECTORS

// R rows by C panels from `panel` on.
template <int BITS, int R, int C>
void vectors(const Piece& piece, int64_t first, int64_t panel) {
  const QuantizedWeights& weights = piece.weights;
  const int64_t width = weights.width(piece.group), block_bytes = weights.block_bytes();
  const uint8_t* block = weights.block(piece.group, piece.unit, panel);
  const __m512i mask = _mm512_set1_epi8(0x0f), sign = _mm512_set1_epi8((char)0x80);
  RoundedRow rows[R];
  __m512 sum[R][C];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
    rows[r] = piece.row(first + r);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++)
      sum[r][c] = piece.begins() ? _mm512_setzero_ps() : _mm512_loadu_ps(piece.sums(first + r, panel + c));
  }
  for (int64_t place = piece.unit * 2; place < (piece.unit + piece.units) * 2; place++) {
    const int64_t half = place % 2;
    __m512i dot[R][C];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) dot[r][c] = BITS == 8 ? _mm512_set1_epi32(rows[r].words[place]) : _mm512_setzero_si512();
    const uint8_t* values = block + (BITS == 8 ? 2 : 4) * HALF_BYTES + half * 256 * BITS / 4;
#pragma GCC unroll 8
    for (int i = 0; i < BITS; i++) {
      __m512i weight[C], high[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) {
        const uint8_t* from = values + c * block_bytes + i * 64;
        const __m512i bytes = _mm512_loadu_si512(from);
        _mm_prefetch((const char*)from + AHEAD, _MM_HINT_T0);
        weight[c] = BITS == 8 ? _mm512_xor_si512(bytes, sign) : _mm512_and_si512(bytes, mask);
        if (BITS == 4) high[c] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
      }
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        const int32_t* x = (const int32_t*)(rows[r].values + place * SHARED);
        const __m512i four = _mm512_set1_epi32(x[i]);
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) dot[r][c] = _mm512_dpbusd_epi32(dot[r][c], weight[c], four);
        if (BITS == 4) {
          const __m512i later = _mm512_set1_epi32(x[i + 4]);
#pragma GCC unroll 4
          for (int c = 0; c < C; c++) dot[r][c] = _mm512_dpbusd_epi32(dot[r][c], high[c], later);
        }
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      const __m256i* scales = (const __m256i*)(block + c * block_bytes);
      _mm_prefetch((const char*)scales + (BITS == 4 ? half * 64 : 0) + AHEAD, _MM_HINT_T0);
      const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales + half));
      __m512 least;
      if (BITS == 4) least = _mm512_cvtph_ps(_mm256_loadu_si256(scales + 2 + half));
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[r][c]), scale);
        sum[r][c] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(rows[r].scales[place]), sum[r][c]);
        if (BITS == 4)
          sum[r][c] = _mm512_fmadd_ps(least, _mm512_castsi512_ps(_mm512_set1_epi32(rows[r].words[place])), sum[r][c]);
      }
    }
    if (half) block += width * block_bytes;
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) _mm512_storeu_ps(piece.sums(first + r, panel + c), sum[r][c]);
}

template <int BITS, int R>
void vectors_of_rows(const Piece& piece, int64_t first) {
  constexpr int C = R <= 3 ? 4 : 2;
  int64_t panel = 0;
  const int64_t width = piece.weights.width(piece.group);
  for (; panel + C <= width; panel += C) vectors<BITS, R, C>(piece, first, panel);
  if (C == 4 && panel + 2 <= width) {
    vectors<BITS, R, 2>(piece, first, panel);
    panel += 2;
  }
  if (panel < width) vectors<BITS, R, 1>(piece, first, panel);
}

template <int BITS>
void vectors(const Piece& piece) {
  using Rows = void (*)(const Piece&, int64_t);
  static constexpr Rows OF[] = {nullptr,
                                vectors_of_rows<BITS, 1>,
                                vectors_of_rows<BITS, 2>,
                                vectors_of_rows<BITS, 3>,
                                vectors_of_rows<BITS, 4>,
                                vectors_of_rows<BITS, 5>,
                                vectors_of_rows<BITS, 6>};
  for (int64_t row = piece.first; row < piece.last;) {
    const int64_t left = piece.last - row, count = left > 6 && left < 12 ? (left + 1) / 2 : std::min<int64_t>(left, 6);
    OF[count](piece, row);
    row += count;
  }
}

#endif

Way best_way() {
  if (restores()) return TILE;
#ifdef VECTORS
  return VECTOR;
#else
  return PLAIN;
#endif
}

Way asked = BEST;  // tests and measurements ask for others

// Whether products restore weights, else they round x.
bool restoring() { return std::min(asked, best_way()) == TILE; }

// The sums of the rows [first, last) with a group, all of k.
void sum_rounded(const QuantizedWeights& weights, const void* rounded, int64_t group, int64_t first, int64_t last,
                 float* sums) {
  const int64_t units = weights.units(), bytes = weights.width(group) * weights.block_bytes();
  const int64_t chunk = last - first <= 6 ? units : std::max<int64_t>(1, CHUNK_BYTES / bytes);  // 6 pass once
  Piece piece{weights, (const uint8_t*)rounded, group, first, last, 0, 0, sums};
  for (; piece.unit < units; piece.unit += chunk) {
    piece.units = std::min(chunk, units - piece.unit);
#ifdef VECTORS
    if (std::min(asked, best_way()) != PLAIN) {
      weights.bits == 8 ? vectors<8>(piece) : vectors<4>(piece);
      continue;
    }
#endif
    plain(piece);
  }
}

// The rows [first, last) of a group, rounded, with the bias, to y.
void write(const QuantizedWeights& weights, const float* sums, int64_t group, int64_t first, int64_t last,
           const uint16_t* bias, uint16_t* y) {
  const int64_t column = group * PANELS * PANEL, count = std::min(PANELS * PANEL, weights.columns - column);
  const float times = restoring() ? of_restored_sums(weights) : 1.0f;
  for (int64_t row = first; row < last; row++, sums += PANELS * PANEL) {
    uint16_t* to = y + row * weights.columns + column;
    for (int64_t c = 0; c < count; c++)
      to[c] = float_to_bfloat(sums[c] * times * weights.unit + (bias ? bfloat_to_float(bias[column + c]) : 0.0f));
  }
}

void round_row(const uint16_t* x, const QuantizedWeights& weights, void* to) {
  const int64_t units = weights.units(), k = weights.k;
  const RoundedRow row = RoundedRow::at(to, units);
  int8_t* values = const_cast<int8_t*>(row.values);
  float* scales = const_cast<float*>(row.scales);
  int32_t* words = const_cast<int32_t*>(row.words);
  for (int64_t place = 0; place < 2 * units; place++) {
    const int64_t count = std::max<int64_t>(0, std::min(SHARED, k - place * SHARED));
    uint16_t padded[SHARED] = {};
    const uint16_t* from = x + place * SHARED;
    if (count < SHARED) from = (const uint16_t*)memcpy(padded, from, count * 2);
    uint16_t most = 0;  // as bits: a nan is more than an infinity, and that more than all others
    for (int64_t i = 0; i < SHARED; i++) most = std::max<uint16_t>(most, from[i] & 0x7fff);
    const float largest = bfloat_to_float(most);
    const bool empty = largest < SMALLEST;
    const float scale = empty ? 0.0f : largest / 127.0f, by = empty ? 0.0f : 127.0f / largest;
    float nearest[SHARED];
    constexpr float WHOLE = 12582912.0f;  // 1.5 * 2^23: added and taken away, the nearest whole number is left
    for (int64_t i = 0; i < SHARED; i++) nearest[i] = (bfloat_to_float(from[i]) * by + WHOLE) - WHOLE;
    int32_t sum = 0;
    for (int64_t i = 0; i < SHARED; i++) {
      const int8_t value = (int8_t)(int32_t)nearest[i];
      values[place * SHARED + i] = value;
      sum += value;
    }
    scales[place] = scale;
    const float whole = (float)sum * scale;
    if (weights.bits == 8)
      words[place] = -128 * sum;
    else
      memcpy(words + place, &whole, 4);
  }
}

// Room that a thread keeps, at a cache line's start: rows of tiles are such lines.
void* room_in(std::vector<uint8_t>& kept, int64_t bytes) {
  if ((int64_t)kept.size() < bytes + 64) kept.resize(bytes + 64);
  return (void*)(((uintptr_t)kept.data() + 63) / 64 * 64);
}

thread_local std::vector<uint8_t> partials, prepared_rows;

}  // namespace

int64_t prepared_bytes(const QuantizedWeights& weights, int64_t rows) {
  return restoring() ? arranged_bytes(weights, rows) : rows * RoundedRow::bytes(weights.units());
}

void prepare_row(const uint16_t* x, int64_t row, const QuantizedWeights& weights, void* prepared) {
  if (restoring())
    arrange_row(x, row, weights, prepared);
  else
    round_row(x, weights, (uint8_t*)prepared + row * RoundedRow::bytes(weights.units()));
}

void multiply_quantized(const QuantizedWeights& weights, const void* prepared, int64_t rows, const uint16_t* bias,
                        uint16_t* y, int64_t thread, int64_t threads) {
  const int64_t groups = weights.groups();
  int64_t blocks = prepared_bytes(weights, rows) / (X_BYTES * (restoring() ? 2 : 1)) + 1;
  while (threads > 1 && blocks * groups < 4 * threads && blocks * 32 < rows) blocks *= 2;
  const int64_t per_block = ((rows + blocks - 1) / blocks + 31) / 32 * 32;
  blocks = (rows + per_block - 1) / per_block;
  const int64_t tasks = blocks * groups;
  const int64_t most = std::min(per_block, (rows + 15) / 16 * 16);
  float* sums = (float*)room_in(partials, most * PANELS * PANEL * sizeof(float));
  for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
    const int64_t first = task / groups * per_block, last = std::min(rows, first + per_block), group = task % groups;
    if (restoring())
      sum_restored(weights, prepared, group, first, last, sums);
    else
      sum_rounded(weights, prepared, group, first, last, sums);
    write(weights, sums, group, first, last, bias, y);
  }
}

void restore_column(const QuantizedWeights& weights, int64_t column, uint16_t* to) {
  const int64_t panel = column / PANEL, group = panel / PANELS;
  for (int64_t place = 0; place * SHARED < weights.k; place++) {
    const uint8_t* block = weights.block(group, place / 2, panel % PANELS);
    const float scale = half_at(block, place % 2, column % PANEL);
    const float least = weights.bits == 8 ? 0 : half_at(block, 2 + place % 2, column % PANEL);
    const int64_t count = std::min(SHARED, weights.k - place * SHARED);
    for (int64_t i = 0; i < count; i++) {
      const int q = weight_of(weights, block, place % 2, column % PANEL, i);
      to[place * SHARED + i] = float_to_bfloat(restored_weight(weights, q, scale, least) * weights.unit);
    }
  }
}

extern "C" {

// x (rows, k) with `stride` between rows, bias (columns) or null, to y (rows, columns), contiguous. False, with nothing
// done, where the packed weights are not (columns, k).
bool quantized_linear(const uint16_t* x, int64_t rows, int64_t k, int64_t stride, const uint8_t* packed, int64_t columns,
                      const uint16_t* bias, uint16_t* y) {
  const QuantizedWeights* weights = QuantizedWeights::of(packed);
  if (!weights || weights->k != k || weights->columns != columns) return false;
  if (rows == 0) return true;
  void* prepared = room_in(prepared_rows, prepared_bytes(*weights, rows));
  const int threads = k * columns * rows < THREADED ? 1 : omp_get_max_threads();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) prepare_row(x + row * stride, row, *weights, prepared);
    multiply_quantized(*weights, prepared, rows, bias, y, omp_get_thread_num(), omp_get_num_threads());
  }
  return true;
}

// The columns `ids`, weights of an embedding, to y (count, k). Those that there are not, are zeros.
void quantized_lookup(const uint8_t* packed, const int64_t* ids, int64_t count, uint16_t* y) {
  const QuantizedWeights& weights = *QuantizedWeights::of(packed);
  const int threads = weights.k * count < THREADED ? 1 : omp_get_max_threads();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < count; i++) {
    if (ids[i] >= 0 && ids[i] < weights.columns)
      restore_column(weights, ids[i], y + i * weights.k);
    else
      memset(y + i * weights.k, 0, weights.k * 2);
  }
}

// Products are computed this way from now on (0 plain, 1 vectors, 2 tiles, 3 the best for a number of rows), or the next
// before it that there is, which is returned.
int64_t quantized_by(int64_t way) {
  asked = (Way)way;
  return std::min(asked, best_way());
}

}  // extern "C"
