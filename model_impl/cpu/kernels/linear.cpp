// y = x W^T + bias in bfloat16 with float32 sums, for AVX512-BF16; W is packed once, in the order in which it is read.
//
// Every element of y is one sum over k in ascending order, two products at a time, whatever the number of rows and
// threads: a row has the same result alone and in any batch. Where the processor has tiles (AMX-BF16) they compute all of
// it, single rows too: they add 32 products at a time, so that the last bits are others than without.
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
#include "tiles.h"
#include "weights.h"

namespace {

constexpr int ROWS = Product::ROWS;
constexpr int UNROLL = UNIT;             // pairs of k between two prefetches
constexpr int64_t CHUNK = 128;           // pairs of k: 24 KiB of a group, half of L1
constexpr int64_t RESTORED = 32;         // pairs of compact weights that only one tile uses
constexpr int64_t X_BYTES = 1 << 19;     // of x: half of L2
constexpr int64_t AHEAD = 12 << 10;      // bytes of W that are under way when all of it is read once
constexpr int64_t AHEAD_OF_TILES = 20 << 10;
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

// Where a group's columns go, from `row` on.
Out out_of(const Product& job, int64_t group, int64_t row) {
  const int64_t column = group * COLUMNS, rest = std::min<int64_t>(COLUMNS, job.columns - column) % LANES;
  const __mmask16 last = rest ? (1 << rest) - 1 : 0xffff;
  return {job.y + row * job.columns + column, job.columns, job.bias ? job.bias + column : nullptr, last};
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

#define WITH_TILES __attribute__((target("amx-tile,amx-bf16")))

constexpr int64_t TILE_PAIRS = 16;  // of k, in a tile

// The shapes of this thread's tiles: 0 to 2 are sums, 3 is x, 4 to 6 are weights. They end with this.
class Shapes {
 public:
  WITH_TILES ~Shapes() {
    if (rows_) _tile_release();
  }

  WITH_TILES void set(int64_t rows, int64_t pairs) {
    if (rows == rows_ && pairs == pairs_) return;
    alignas(64) TileShapes shapes{};
    for (int register_ = 0; register_ < WIDTH; register_++) {
      shapes.set(register_, rows, 64);
      shapes.set(WIDTH + 1 + register_, pairs, 64);
    }
    shapes.set(WIDTH, rows, 4 * pairs);
    shapes.use();
    rows_ = rows;
    pairs_ = pairs;
  }

 private:
  int64_t rows_ = 0, pairs_ = 0;
};

// Rows of x, `stride` bytes apart, by W registers of columns; `pairs` fill whole tiles of those shapes, `step` values of
// x from one to the next. The sums, COLUMNS of each row, start at zero or go on. From `next` on, `lines` are prefetched
// with each tile.
template <int W>
WITH_TILES void tiles(const uint16_t* x, int64_t stride, int64_t step, const uint16_t* w, int64_t pairs, float* sums,
                      bool first, const char* next, int lines) {
  constexpr int64_t SUM_BYTES = COLUMNS * sizeof(float), WEIGHT_BYTES = W * 4 * LANES;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  if (!first) {
    _tile_loadd(0, sums, SUM_BYTES);
    if (W > 1) _tile_loadd(1, sums + LANES, SUM_BYTES);
    if (W > 2) _tile_loadd(2, sums + 2 * LANES, SUM_BYTES);
  }
  for (int64_t p = 0; p < pairs; p += TILE_PAIRS, x += step, w += TILE_PAIRS * W * 2 * LANES) {
    for (int i = 0; i < lines; i++) _mm_prefetch(next + 64 * i, _MM_HINT_T1);  // tiles are read from L2 as well
    next += 64 * lines;
    _tile_loadd(3, x, stride);
    _tile_loadd(4, w, WEIGHT_BYTES);
    _tile_dpbf16ps(0, 3, 4);
    if (W > 1) {
      _tile_loadd(5, w + 2 * LANES, WEIGHT_BYTES);
      _tile_dpbf16ps(1, 3, 5);
    }
    if (W > 2) {
      _tile_loadd(6, w + 4 * LANES, WEIGHT_BYTES);
      _tile_dpbf16ps(2, 3, 6);
    }
  }
  _tile_stored(0, sums, SUM_BYTES);
  if (W > 1) _tile_stored(1, sums + LANES, SUM_BYTES);
  if (W > 2) _tile_stored(2, sums + 2 * LANES, SUM_BYTES);
}

constexpr decltype(&tiles<1>) IN_TILES[WIDTH] = {tiles<1>, tiles<2>, tiles<3>};  // [registers - 1]

// `rows` of sums, rounded, to y.
void write(const float* sums, int64_t rows, int width, const Out& out) {
  for (int c = 0; c < width; c++) {
    const __mmask16 mask = c == width - 1 ? out.last : (__mmask16)0xffff;
    __m512 bias = _mm512_setzero_ps();
    if (out.bias) bias = widen(_mm256_maskz_loadu_epi16(mask, out.bias + c * LANES));
    for (int64_t r = 0; r < rows; r++) {
      const __m512 sum = _mm512_add_ps(_mm512_loadu_ps(sums + r * COLUMNS + c * LANES), bias);
      _mm256_mask_storeu_epi16(out.y + r * out.stride + c * LANES, mask, (__m256i)_mm512_cvtneps_pbh(sum));
    }
  }
}

int64_t tiles_of_k(int64_t pairs) { return (pairs + TILE_PAIRS - 1) / TILE_PAIRS; }

// A row to where tiles find it: its pairs in a tile after those of the row before, tile after tile, then the next 16 rows.
void arrange_in_tiles(const uint16_t* x, int64_t row, int64_t pairs, Pair* arranged) {
  Pair* to = arranged + (row / TILE_ROWS * tiles_of_k(pairs) * TILE_ROWS + row % TILE_ROWS) * TILE_PAIRS;
  for (int64_t p = 0; p < pairs; p += TILE_PAIRS, to += TILE_ROWS * TILE_PAIRS)
    memcpy(to, x + 2 * p, std::min(TILE_PAIRS, pairs - p) * sizeof(Pair));
}

// Where the tiles of a product's rows lie.
struct Rows {
  explicit Rows(const Product& job) {
    const bool alone = job.rows <= TILE_ROWS;  // and so not arranged
    start = alone ? job.x : (const uint16_t*)job.arranged;
    stride = alone ? job.stride : 2 * TILE_PAIRS;
    step = alone ? 2 * TILE_PAIRS : 2 * TILE_PAIRS * TILE_ROWS;
    tile_of_rows = tiles_of_k(job.pairs) * step;
  }

  const uint16_t* at(int64_t row, int64_t pair) const {
    return start + row / TILE_ROWS * tile_of_rows + pair / TILE_PAIRS * step;
  }

  const uint16_t* start;
  int64_t stride, step, tile_of_rows;
};

// As `multiply_group`, in tiles.
void multiply_group_in_tiles(const Product& job, int64_t group, int64_t first, int64_t last, float* sums,
                             Shapes& shapes) {
  const Weights weights(job.packed);
  const Rows x(job);
  const int64_t begin = first * ROWS, rows = std::min(job.rows, last * ROWS) - begin;
  const int64_t count = (rows + TILE_ROWS - 1) / TILE_ROWS, chunk = count > 1 ? CHUNK : job.pairs;
  const int width = weights.width(group);
  const int lines = (int)((width * TILE_PAIRS + count - 1) / count);  // each fetches its share of what comes next
  for (int64_t p = 0; p < job.pairs; p += chunk) {
    const int64_t pairs = std::min(chunk, job.pairs - p), whole = pairs / TILE_PAIRS * TILE_PAIRS;
    const uint16_t* w = (const uint16_t*)weights.at(group, p);
    const char* next = (const char*)w + (count > 1 ? pairs * width * 4 * LANES : AHEAD_OF_TILES);
    for (int64_t row = 0; row < rows; row += TILE_ROWS) {
      const int64_t those = std::min(TILE_ROWS, rows - row);
      float* of_rows = sums + (chunk < job.pairs ? row * COLUMNS : 0);
      auto multiply = [&](int64_t from, int64_t to, int64_t in_tile) {
        if (from == to) return;
        shapes.set(those, in_tile);
        IN_TILES[width - 1](x.at(begin + row, p + from), 2 * x.stride, x.step, w + from * width * 2 * LANES, to - from,
                            of_rows, p + from == 0, next, lines);
        next += whole / TILE_PAIRS * 64 * lines;
      };
      multiply(0, whole, TILE_PAIRS);
      multiply(whole, pairs, pairs - whole);
      if (p + pairs == job.pairs) write(of_rows, those, width, out_of(job, group, begin + row));
    }
  }
}

// One group of columns for the tiles [first, last) of rows.
void multiply_group(const Product& job, int64_t group, int64_t first, int64_t last, float* partial) {
  const Weights weights(job.packed);
  const int64_t count = last - first, stride = job.rows == 1 ? 1 : ROWS;
  const Pair* x = job.rows == 1 ? (const Pair*)job.x : job.arranged;
  const int width = weights.width(group);
  const int64_t unit_bytes = weights.unit_bytes(group);
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
      const Out out = out_of(job, group, row);
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
    for (int64_t row = tile * ROWS; row < tile_end(tile); row++)
      prepare_row(x + row * stride, row, *weights, arranged);
  } else if (packed && multiplies_in_tiles()) {
    for (int64_t row = tile * ROWS; rows > TILE_ROWS && row < tile_end(tile); row++)
      arrange_in_tiles(x + row * stride, row, pairs, arranged);
  } else if (rows > 1 && packed)
    ::arrange(x + tile * ROWS * stride, stride, tile_end(tile) - tile * ROWS, pairs, arranged + tile * ROWS * pairs);
}

int64_t Product::arranged_size() const {
  if (!multiplies_in_tiles()) return rows == 1 ? 0 : tiles() * ROWS * pairs;
  return rows <= TILE_ROWS ? 0 : (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS * tiles_of_k(pairs) * TILE_PAIRS;
}

void Product::multiply(int64_t thread, int64_t threads) const {
  if (const QuantizedWeights* weights = QuantizedWeights::of(packed))
    return multiply_quantized(*weights, arranged, rows, bias, y, thread, threads);
  const int64_t groups = (columns + COLUMNS - 1) / COLUMNS;
  int64_t per_block = std::max<int64_t>(X_BYTES / (4 * pairs * ROWS), 4);
  int64_t blocks = (tiles() + per_block - 1) / per_block;
  while (threads > 1 && blocks * groups < 4 * threads && blocks < tiles()) blocks = std::min(2 * blocks, tiles());
  per_block = (tiles() + blocks - 1) / blocks;
  if (multiplies_in_tiles()) per_block = (per_block * ROWS + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS / ROWS;
  blocks = (tiles() + per_block - 1) / per_block;
  const int64_t tasks = blocks * groups;
  float* partial = (float*)partials.need(per_block * ROWS * COLUMNS * sizeof(float));
  Shapes shapes;
  for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
    const int64_t group = task % groups, first = task / groups * per_block, last = std::min(tiles(), first + per_block);
    if (multiplies_in_tiles())
      multiply_group_in_tiles(*this, group, first, last, partial, shapes);
    else
      multiply_group(*this, group, first, last, partial);
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
