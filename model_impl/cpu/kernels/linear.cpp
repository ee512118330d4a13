// y = x W^T + bias in bfloat16 with float32 sums, for AVX512-BF16; W is packed once, in the order in which it is read.
//
// Every element of y is one sum over k in ascending order, two products at a time, whatever the number of rows and
// threads: a row has the same result alone and in any batch.
//
// Few rows are bound by reading W, so each thread streams its share of W once, prefetching. Many rows are bound by
// arithmetic: blocks of x stay in L2 while chunks of W, small enough for L1, pass by. One inner loop serves both. How W
// lies in memory is in weights.h.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "memory.h"
#include "product.h"
#include "weights.h"

namespace {

constexpr int ROWS = Product::ROWS;
constexpr int UNROLL = UNIT;             // pairs of k between two prefetches
constexpr int64_t CHUNK = 128;           // pairs of k: 24 KiB of a group, half of L1
constexpr int64_t RESTORED = 32;         // pairs of compact weights that only one tile uses
constexpr int64_t X_BYTES = 1 << 19;     // of x: half of L2
constexpr int64_t AHEAD = 12 << 10;      // bytes of W that are under way when all of it is read once
constexpr int64_t THREADED = 4'000'000;  // operations (two a product, of at least ROWS rows) that are worth a thread

// What is prefetched while a tile is computed: so many cache lines every UNROLL pairs.
struct Ahead {
  const char* next;
  int lines;
  bool past;  // the caches, which are left to what is read again
};

struct Out {
  uint16_t* y;
  int64_t stride;
  const uint16_t* bias;  // or null
  __mmask16 last;        // the columns that exist of the last register
};

// R rows by W registers of columns. Sums start at zero or in `partial` and go on there, or to `out` if that is given.
// x is [pairs][STRIDE]. Compact weights come from `reader` to `w`, where the tiles of the next rows find them: each UNROLL
// pairs just before they are multiplied, so that memory, restoring and multiplying go on at the same time.
template <int R, int W, int STRIDE>
void tile(const Pair* x, uint16_t* w, int64_t pairs, float* partial, bool first, const Out* out, Ahead ahead,
          CompactReader* reader) {
  __m512 sum[R][W];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 3
    for (int c = 0; c < W; c++)
      sum[r][c] = first ? _mm512_setzero_ps() : _mm512_load_ps(partial + (r * W + c) * LANES);

  auto step = [&](int64_t p) __attribute__((always_inline)) {
    __m512bh weight[W];
#pragma GCC unroll 3
    for (int c = 0; c < W; c++) weight[c] = (__m512bh)_mm512_load_si512(w + (p * W + c) * 2 * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const __m512bh value = (__m512bh)_mm512_set1_epi32(x[p * STRIDE + r]);
#pragma GCC unroll 3
      for (int c = 0; c < W; c++) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], value, weight[c]);
    }
  };
  int64_t p = 0;
  for (; p + UNROLL <= pairs; p += UNROLL, ahead.next += 64 * ahead.lines) {
    if (ahead.past)
      for (int i = 0; i < ahead.lines; i++) _mm_prefetch(ahead.next + 64 * i, _MM_HINT_NTA);
    else
      for (int i = 0; i < ahead.lines; i++) _mm_prefetch(ahead.next + 64 * i, _MM_HINT_T0);
    if (reader) reader->next<W>(w + p * W * 2 * LANES);
#pragma GCC unroll 4
    for (int u = 0; u < UNROLL; u++) step(p + u);
  }
  for (; p < pairs; p++) step(p);

  if (!out) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 3
      for (int c = 0; c < W; c++) _mm512_store_ps(partial + (r * W + c) * LANES, sum[r][c]);
    return;
  }
#pragma GCC unroll 3
  for (int c = 0; c < W; c++) {
    const __mmask16 mask = c == W - 1 ? out->last : (__mmask16)0xffff;
    __m512 bias = _mm512_setzero_ps();
    if (out->bias) bias = widen(_mm256_maskz_loadu_epi16(mask, out->bias + c * LANES));
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
      _mm256_mask_storeu_epi16(out->y + r * out->stride + c * LANES, mask,
                               (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(sum[r][c], bias)));
  }
}

using Tile = void (*)(const Pair*, uint16_t*, int64_t, float*, bool, const Out*, Ahead, CompactReader*);

template <int W>
constexpr Tile OF_WIDTH[ROWS + 1] = {tile<1, W, 1>,    tile<1, W, ROWS>, tile<2, W, ROWS>,
                                     tile<3, W, ROWS>, tile<4, W, ROWS>, tile<5, W, ROWS>,
                                     tile<6, W, ROWS>, tile<7, W, ROWS>, tile<8, W, ROWS>};
constexpr const Tile* TILES[WIDTH] = {OF_WIDTH<1>, OF_WIDTH<2>, OF_WIDTH<3>};  // [registers - 1][rows; 0: a row as it is]

// 8 rows of 8 pairs, from pair p on, to 8 pairs of 8 rows.
void transpose(const Pair* const* rows, int64_t p, Pair* out) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_si256((const __m256i*)(rows[i] + p));
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    _mm256_store_si256((__m256i*)(out + i * ROWS), _mm256_permute2x128_si256(a[i], a[4 + i], 0x20));
    _mm256_store_si256((__m256i*)(out + (4 + i) * ROWS), _mm256_permute2x128_si256(a[i], a[4 + i], 0x31));
  }
}

// Up to ROWS rows of x to [pairs][ROWS]; rows that are not there repeat the last.
void arrange(const uint16_t* x, int64_t stride, int64_t rows, int64_t pairs, Pair* out) {
  const Pair* row[ROWS];
  for (int r = 0; r < ROWS; r++) row[r] = (const Pair*)(x + std::min<int64_t>(r, rows - 1) * stride);
  int64_t p = 0;
  for (; p + 8 <= pairs; p += 8) transpose(row, p, out + p * ROWS);
  for (; p < pairs; p++)
    for (int r = 0; r < ROWS; r++) out[p * ROWS + r] = row[r][p];
}

// One group of columns for the tiles [first, last) of rows.
void multiply_group(const Product& job, int64_t group, int64_t first, int64_t last, float* partial) {
  const Weights weights(job.packed);
  const int64_t column = group * COLUMNS, count = last - first, stride = job.rows == 1 ? 1 : ROWS;
  const Pair* x = job.rows == 1 ? (const Pair*)job.x : job.arranged;
  const int width = weights.width(group);
  const int64_t rest = job.columns - column - (width - 1) * LANES, unit_bytes = weights.unit_bytes(group);
  const __mmask16 mask = rest >= LANES ? 0xffff : (1 << rest) - 1;
  const bool compact = weights.compact(), past = weights.past();
  const int64_t chunk = count > 1 ? CHUNK : compact ? RESTORED : job.pairs;
  const int lines = (int)((unit_bytes / 64 + count - 1) / count);  // each tile fetches its share of what comes next
  alignas(64) uint16_t restored[CHUNK * COLUMNS * 2];
  CompactReader reader{};
  if (compact) reader = weights.reader(group);
  for (int64_t p = 0; p < job.pairs; p += chunk) {
    const int64_t pairs = std::min(chunk, job.pairs - p);
    const uint8_t* from = weights.at(group, p);
    uint16_t* w = compact ? restored : (uint16_t*)from;
    Ahead ahead{(const char*)from + (count == 1 ? AHEAD : pairs / UNIT * unit_bytes), lines, past};
    for (int64_t t = first; t < last; t++) {
      const int64_t row = t * ROWS, rows = std::min<int64_t>(ROWS, job.rows - row);
      const Out out{job.y + row * job.columns + column, job.columns, job.bias ? job.bias + column : nullptr, mask};
      TILES[width - 1][job.rows == 1 ? 0 : rows](x + row * job.pairs + p * stride, w, pairs,
                                                 partial + (t - first) * ROWS * COLUMNS, p == 0,
                                                 p + pairs == job.pairs ? &out : nullptr, ahead,
                                                 compact && t == first ? &reader : nullptr);
      ahead.next += pairs / UNROLL * 64 * lines;
    }
  }
}

thread_local Buffer arranged, partials;

}  // namespace

void Product::arrange(int64_t tile) const {
  if (const QuantizedWeights* weights = QuantizedWeights::of(packed)) {
    const int64_t row_bytes = RoundedRow::bytes(weights->units());
    for (int64_t row = tile * ROWS; row < tile_end(tile); row++)
      round_row(x + row * stride, *weights, (uint8_t*)arranged + row * row_bytes);
  } else if (rows > 1 && packed)
    ::arrange(x + tile * ROWS * stride, stride, tile_end(tile) - tile * ROWS, pairs, arranged + tile * ROWS * pairs);
}

void Product::multiply(int64_t thread, int64_t threads) const {
  if (const QuantizedWeights* weights = QuantizedWeights::of(packed))
    return multiply_quantized(*weights, arranged, rows, bias, y, thread, threads);
  const int64_t groups = (columns + COLUMNS - 1) / COLUMNS;
  int64_t per_block = std::max<int64_t>(X_BYTES / (4 * pairs * ROWS), 4);
  int64_t blocks = (tiles() + per_block - 1) / per_block;
  while (threads > 1 && blocks * groups < 4 * threads && blocks < tiles()) blocks = std::min(2 * blocks, tiles());
  per_block = (tiles() + blocks - 1) / blocks;
  blocks = (tiles() + per_block - 1) / per_block;
  const int64_t tasks = blocks * groups;
  float* partial = (float*)partials.need(per_block * ROWS * COLUMNS * sizeof(float));
  for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
    const int64_t block = task / groups;
    multiply_group(*this, task % groups, block * per_block, std::min(tiles(), (block + 1) * per_block), partial);
  }
}

extern "C" {

// x (rows, k) with `stride` between rows, bias (columns) or null, to y (rows, columns), contiguous. False, with nothing
// done, where the packed weights are not (columns, k).
bool linear(const uint16_t* x, int64_t rows, int64_t k, int64_t stride, const uint8_t* packed, int64_t columns,
            const uint16_t* bias, uint16_t* y) {
  if (k % 2 || !Weights(packed).are_for(columns, k / 2)) return false;
  if (rows == 0) return true;
  const int threads = 2 * k * columns * std::max<int64_t>(rows, ROWS) < THREADED ? 1 : omp_get_max_threads();
  Product job{x, rows, k / 2, stride, packed, columns, bias, y, nullptr};
  job.arranged = (Pair*)arranged.need(job.arranged_size() * sizeof(Pair));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < job.tiles(); tile++) job.arrange(tile);
    job.multiply(omp_get_thread_num(), omp_get_num_threads());
  }
  return true;
}

}  // extern "C"
