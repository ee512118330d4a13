// y = x W^T + bias in bfloat16 with float32 sums, for AVX512-BF16; W is packed once, in the order in which it is read.
//
// Every element of y is one sum over k in ascending order, two products at a time, whatever the number of rows and
// threads: a row has the same result alone and in any batch.
//
// Few rows are bound by reading W, so each thread streams its share of W once, prefetching. Many rows are bound by
// arithmetic: blocks of x stay in L2 while chunks of W, small enough for L1, pass by. One inner loop serves both.
//
// Packed W: columns of y in groups of 48 (the last of 16, 32 or 48, filled up with zeros); a group is [k / 2][columns][2].

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "memory.h"
#include "product.h"

namespace {

constexpr int LANES = 16;                // float32 in a register
constexpr int WIDTH = 3;                 // registers of a group: 8 rows x 3 leave 8 of 32 registers for operands
constexpr int COLUMNS = WIDTH * LANES;
constexpr int ROWS = Product::ROWS;
constexpr int UNROLL = 4;                // pairs of k between two prefetches
constexpr int64_t CHUNK = 128;           // pairs of k: 24 KiB of a group, half of L1
constexpr int64_t BLOCK_BYTES = 1 << 19; // of x: half of L2
constexpr int64_t AHEAD = 12 << 10;      // bytes of W that are under way when all of it is read once
constexpr int64_t CACHED_BYTES = 4 << 20; // a larger W passes by the caches: its model does not fit into them
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
// x is [pairs][STRIDE].
template <int R, int W, int STRIDE>
void tile(const Pair* x, const uint16_t* w, int64_t pairs, float* partial, bool first, const Out* out, Ahead ahead) {
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

using Tile = void (*)(const Pair*, const uint16_t*, int64_t, float*, bool, const Out*, Ahead);

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
  const int64_t column = group * COLUMNS, count = last - first, stride = job.rows == 1 ? 1 : ROWS;
  const Pair* x = job.rows == 1 ? (const Pair*)job.x : job.arranged;
  const int width = (int)std::min<int64_t>(WIDTH, (job.columns - column + LANES - 1) / LANES);
  const int64_t rest = job.columns - column - (width - 1) * LANES;
  const __mmask16 mask = rest >= LANES ? 0xffff : (1 << rest) - 1;
  const int64_t chunk = count == 1 ? job.pairs : CHUNK;
  const bool past = 4 * job.columns * job.pairs > CACHED_BYTES;
  const int lines = (int)((UNROLL * width + count - 1) / count);  // each tile fetches its share of what comes next
  for (int64_t p = 0; p < job.pairs; p += chunk) {
    const int64_t pairs = std::min(chunk, job.pairs - p);
    const uint16_t* w = job.packed + column * 2 * job.pairs + p * width * 2 * LANES;
    Ahead ahead{(const char*)w + (count == 1 ? AHEAD : pairs * width * 64), lines, past};
    for (int64_t t = first; t < last; t++) {
      const int64_t row = t * ROWS, rows = std::min<int64_t>(ROWS, job.rows - row);
      const Out out{job.y + row * job.columns + column, job.columns, job.bias ? job.bias + column : nullptr, mask};
      TILES[width - 1][job.rows == 1 ? 0 : rows](x + row * job.pairs + p * stride, w, pairs,
                                                 partial + (t - first) * ROWS * COLUMNS, p == 0,
                                                 p + pairs == job.pairs ? &out : nullptr, ahead);
      ahead.next += pairs / UNROLL * 64 * lines;
    }
  }
}

thread_local Buffer arranged, partials;

}  // namespace

void Product::arrange(int64_t tile) const {
  if (rows > 1)
    ::arrange(x + tile * ROWS * stride, stride, tile_end(tile) - tile * ROWS, pairs, arranged + tile * ROWS * pairs);
}

void Product::multiply(int64_t thread, int64_t threads) const {
  const int64_t groups = (columns + COLUMNS - 1) / COLUMNS;
  int64_t per_block = std::max<int64_t>(BLOCK_BYTES / (4 * pairs * ROWS), 4);
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

// The bfloat16 values that a packed (columns, k) matrix takes.
int64_t packed_size(int64_t columns, int64_t k) { return (columns + LANES - 1) / LANES * LANES * k; }

// weight (columns, k), contiguous, k even, to packed, which lies at a multiple of 64 bytes.
void pack(const uint16_t* weight, int64_t columns, int64_t k, uint16_t* packed) {
  const int64_t groups = (columns + COLUMNS - 1) / COLUMNS, pairs = k / 2;
#pragma omp parallel for schedule(static)
  for (int64_t g = 0; g < groups; g++) {
    const int64_t first = g * COLUMNS;
    const int64_t width = std::min<int64_t>(WIDTH, (columns - first + LANES - 1) / LANES) * LANES;
    Pair* out = (Pair*)(packed + first * k);
    for (int64_t c = 0; c < width; c++) {
      const bool inside = first + c < columns;
      const Pair* row = (const Pair*)(weight + (inside ? first + c : 0) * k);
      for (int64_t p = 0; p < pairs; p++) out[p * width + c] = inside ? row[p] : 0;
    }
  }
}

// x (rows, k) with `stride` between rows, bias (columns) or null, to y (rows, columns), contiguous.
void linear(const uint16_t* x, int64_t rows, int64_t k, int64_t stride, const uint16_t* packed, int64_t columns,
            const uint16_t* bias, uint16_t* y) {
  if (rows == 0) return;
  const int threads = 2 * k * columns * std::max<int64_t>(rows, ROWS) < THREADED ? 1 : omp_get_max_threads();
  Product job{x, rows, k / 2, stride, packed, columns, bias, y, nullptr};
  job.arranged = (Pair*)arranged.need(job.arranged_size() * sizeof(Pair));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < job.tiles(); tile++) job.arrange(tile);
    job.multiply(omp_get_thread_num(), omp_get_num_threads());
  }
}

}  // extern "C"
