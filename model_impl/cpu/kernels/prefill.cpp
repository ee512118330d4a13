// Attention of many new tokens over vLLM's pages on CPU: bfloat16 products with float32 sums, softmax in one pass
// (Milakov & Gimelshein, arXiv 1805.02867, as in FlashAttention), so that scores never leave the L1 cache. Products are in
// vectors, or in tiles (AMX) where the processor has them; their last bits differ, as those of its other products do.
//
// Keys are taken in blocks of KEYS at multiples of KEYS: a token's result depends neither on the other tokens of the
// batch nor on how its prompt was cut, but for what is left of it being a single token. That, as the token of a request
// that decodes, is computed as in a decode step, so that what is drawn does not depend on whose prompts are computed beside.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <vector>

#include "memory.h"
#include "pages.h"
#include "product.h"
#include "rows.h"
#include "single.h"
#include "tiles.h"

namespace {

constexpr int MOST_ROWS = 16;     // of a tile; a row is one head of one token
constexpr int STEP = 2 * LANES;   // keys, or numbers of a value, that a tile takes at a time
constexpr int64_t KEYS = 256;     // of a block: packed, 64 KiB for heads of 128
constexpr int64_t UNIT = 128;     // rows that a block is packed for
constexpr int64_t ALL = -1;       // KV heads
constexpr float LEAST = -1e30f;   // below all scores
constexpr float NEVER = -2e30f;   // of a key that is not seen: below that even where a row sees none of a block
constexpr float LOG2_E = 1.44269504f;

struct Job {
  const uint16_t* query;  // [tokens][heads][size], tokens `query_stride` apart
  int64_t query_stride;
  uint16_t* out;  // as query
  int64_t out_stride;
  const void* pages;  // [page][KV head], strides in numbers
  int64_t page_number, page_stride, head_stride, page;  // the first: bytes of a number
  const int32_t* table;  // [request][page of its context]
  int64_t table_stride;
  const int32_t* starts;   // [requests + 1] first token of each
  const int32_t* lengths;  // [requests] of the contexts, new tokens included
  int64_t group, kv_heads, size;
  float scale;
  int64_t window;  // tokens that are seen, itself included; 0 for all
};

// The tokens [first, last) of a request, for one KV head, or its only token for all.
struct Unit {
  int64_t request, kv_head, first, last;
};

struct Scratch {
  Pair* query;       // [tiles], each as `Vectors` or `Tiles` arrange it
  float* mixed;      // [tiles][ROWS][size]: sums over values so far, times the weights of the largest score so far
  float* largest;    // [tiles][ROWS]
  float* total;      // [tiles][ROWS]
  uint16_t* keys;    // [KEYS / STEP][size / 2][STEP][2]
  uint16_t* values;  // [size / STEP][KEYS / 2][STEP][2]
  float* scores;     // [ROWS][KEYS]
  uint16_t* weights; // [ROWS][KEYS]
};

const __m512i LOW = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                     36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
const __m512i LANE = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
const __m512i HIGH = _mm512_add_epi16(LOW, _mm512_set1_epi16(16));

// Two rows of STEP numbers to STEP pairs.
inline void pair_up(__m512i a, __m512i b, uint16_t* to) {
  _mm512_store_si512(to, _mm512_permutex2var_epi16(a, LOW, b));
  _mm512_store_si512(to + STEP, _mm512_permutex2var_epi16(a, HIGH, b));
}

// Keys and values [from, to) to pairs; `from` is a multiple of STEP, and beyond `to` values are zeros up to the next.
template <class Number>
void pack(const Job& job, const Unit& unit, int64_t from, int64_t to, Scratch& scratch) {
  const int64_t size = job.size;
  for (int64_t at = from; at < to; at += STEP) {
    const int32_t number = job.table[unit.request * job.table_stride + at / job.page];
    const Number* keys = (const Number*)job.pages + number * job.page_stride + unit.kv_head * job.head_stride;
    const Number* values = keys + size * job.page + at % job.page * size;
    keys += at % job.page;
    uint16_t* packed = scratch.keys + (at - from) * size;
    for (int64_t d = 0; d < size; d += 2)
      pair_up(load_group(keys + d * job.page), load_group(keys + (d + 1) * job.page), packed + d * STEP);
    for (int64_t t = 0; t < STEP; t += 2)
      for (int64_t d = 0; d < size; d += STEP) {
        const __m512i zero = _mm512_setzero_si512();
        const __m512i a = at + t < to ? load_group(values + t * size + d) : zero;
        const __m512i b = at + t + 1 < to ? load_group(values + (t + 1) * size + d) : zero;
        pair_up(a, b, scratch.values + d * KEYS + (at - from + t) * STEP);
      }
  }
}

// The products of a tile of 8 rows in vectors.
struct Vectors {
  static constexpr int ROWS = 8;

  // A row of a tile's queries, [size / 2][ROWS].
  static void arrange(const uint16_t* row, int64_t number, int64_t size, Pair* to) {
    for (int64_t p = 0; p < size / 2; p++) to[p * ROWS + number] = ((const Pair*)row)[p];
  }

  // scores[r][k] for `count` keys, a multiple of STEP.
  static void score(const Pair* query, const Scratch& scratch, int64_t count, int64_t pairs) {
    for (int64_t k = 0; k < count; k += STEP) {
      const uint16_t* keys = scratch.keys + k * 2 * pairs;
      __m512 sum[ROWS][2];
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
      for (int64_t p = 0; p < pairs; p++) {
        const __m512bh a = (__m512bh)_mm512_load_si512(keys + p * 2 * STEP);
        const __m512bh b = (__m512bh)_mm512_load_si512(keys + p * 2 * STEP + STEP);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
          const __m512bh q = (__m512bh)_mm512_set1_epi32(query[p * ROWS + r]);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], q, a);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], q, b);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        _mm512_store_ps(scratch.scores + r * KEYS + k, sum[r][0]);
        _mm512_store_ps(scratch.scores + r * KEYS + k + LANES, sum[r][1]);
      }
    }
  }

  // mixed[r] = mixed[r] * factor[r] + weights[r] · values.
  static void mix(const Scratch& scratch, float* mixed, const float* factor, int64_t count, int64_t size) {
    for (int64_t d = 0; d < size; d += STEP) {
      const uint16_t* values = scratch.values + d * KEYS;
      __m512 sum[ROWS][2];
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        const __m512 f = _mm512_set1_ps(factor[r]);
        sum[r][0] = _mm512_mul_ps(f, _mm512_load_ps(mixed + r * size + d));
        sum[r][1] = _mm512_mul_ps(f, _mm512_load_ps(mixed + r * size + d + LANES));
      }
      for (int64_t t = 0; t < count / 2; t++) {
        const __m512bh a = (__m512bh)_mm512_load_si512(values + t * 2 * STEP);
        const __m512bh b = (__m512bh)_mm512_load_si512(values + t * 2 * STEP + STEP);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
          const __m512bh w = (__m512bh)_mm512_set1_epi32(((const Pair*)(scratch.weights + r * KEYS))[t]);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], w, a);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], w, b);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        _mm512_store_ps(mixed + r * size + d, sum[r][0]);
        _mm512_store_ps(mixed + r * size + d + LANES, sum[r][1]);
      }
    }
  }
};

#define WITH_TILES __attribute__((target("amx-tile,amx-bf16")))

// The same of 16 rows where the processor has registers of that shape. All their shapes are full: 16 rows of 64 bytes.
struct Tiles {
  static constexpr int ROWS = 16;

  // While it lives, this thread has them.
  class Use {
   public:
    Use() {
      alignas(64) TileShapes shapes{};
      for (int tile = 0; tile < 8; tile++) shapes.set(tile, TILE_ROWS, 64);
      shapes.use();
    }
    WITH_TILES ~Use() { _tile_release(); }
  };

  // [ROWS][size].
  static void arrange(const uint16_t* row, int64_t number, int64_t size, Pair* to) {
    memcpy(to + number * size / 2, row, size * sizeof(uint16_t));
  }

  // scores[r][k] for `count` keys, a multiple of STEP.
  WITH_TILES static void score(const Pair* query, const Scratch& scratch, int64_t count, int64_t pairs) {
    constexpr int64_t STRIDE = KEYS * sizeof(float), PACKED = 2 * STEP * sizeof(uint16_t);
    for (int64_t k = 0; k < count; k += STEP) {
      const uint16_t* keys = scratch.keys + k * 2 * pairs;
      _tile_zero(0);
      _tile_zero(1);
      for (int64_t p = 0; p < pairs; p += TILE_ROWS) {
        _tile_loadd(2, query + p, pairs * sizeof(Pair));
        _tile_loadd(3, keys + p * 2 * STEP, PACKED);
        _tile_loadd(4, keys + p * 2 * STEP + STEP, PACKED);
        _tile_dpbf16ps(0, 2, 3);
        _tile_dpbf16ps(1, 2, 4);
      }
      _tile_stored(0, scratch.scores + k, STRIDE);
      _tile_stored(1, scratch.scores + k + LANES, STRIDE);
    }
  }

  // mixed[r] = mixed[r] * factor[r] + weights[r] · values.
  WITH_TILES static void mix(const Scratch& scratch, float* mixed, const float* factor, int64_t count, int64_t size) {
    constexpr int64_t PACKED = 2 * STEP * sizeof(uint16_t);
    const int64_t stride = size * sizeof(float);
    for (int r = 0; r < ROWS; r++) {
      const __m512 f = _mm512_set1_ps(factor[r]);
      float* row = mixed + r * size;
      for (int64_t d = 0; factor[r] != 1 && d < size; d += LANES)
        _mm512_store_ps(row + d, _mm512_mul_ps(f, _mm512_load_ps(row + d)));
    }
    for (int64_t d = 0; d < size; d += STEP) {
      const uint16_t* values = scratch.values + d * KEYS;
      _tile_loadd(0, mixed + d, stride);
      _tile_loadd(1, mixed + d + LANES, stride);
      for (int64_t t = 0; t < count; t += STEP) {
        _tile_loadd(2, scratch.weights + t, KEYS * sizeof(uint16_t));
        _tile_loadd(3, values + t * STEP, PACKED);
        _tile_loadd(4, values + t * STEP + STEP, PACKED);
        _tile_dpbf16ps(0, 2, 3);
        _tile_dpbf16ps(1, 2, 4);
      }
      _tile_stored(0, mixed + d, stride);
      _tile_stored(1, mixed + d + LANES, stride);
    }
  }
};

// 2^x, to 3e-6 of it; nothing where x is below what float32 can hold.
inline __m512 power_of_two(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(9.570101276e-3f);  // least relative error for [-1/2, 1/2]
  for (float c : {5.591786280e-2f, 2.402474433e-1f, 6.931217909e-1f, 9.999992847e-1f})
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

// A row's scores to weights, of which the keys [low, high) have some; the factor for what was mixed before.
float weigh(float* scores, uint16_t* weights, int64_t count, int64_t low, int64_t high, float scale, float* largest,
            float* total) {
  __m512 most = _mm512_set1_ps(*largest);
  for (int64_t k = 0; k < count; k += LANES) {
    __m512 s = _mm512_load_ps(scores + k);
    if (k < low || k + LANES > high) {
      const __m512i key = _mm512_add_epi32(LANE, _mm512_set1_epi32((int)k));
      const __mmask16 seen = _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32((int)low)) &
                             _mm512_cmplt_epi32_mask(key, _mm512_set1_epi32((int)high));
      s = _mm512_mask_blend_ps(seen, _mm512_set1_ps(NEVER), s);
      _mm512_store_ps(scores + k, s);
    }
    most = _mm512_max_ps(most, s);
  }
  const float before = *largest, after = _mm512_reduce_max_ps(most), factor = scale * LOG2_E;
  const __m512 shift = _mm512_set1_ps(-after * factor);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < count; k += LANES) {
    const __m512 weight = power_of_two(_mm512_fmadd_ps(_mm512_load_ps(scores + k), _mm512_set1_ps(factor), shift));
    sum = _mm512_add_ps(sum, weight);
    _mm256_store_si256((__m256i*)(weights + k), (__m256i)_mm512_cvtneps_pbh(weight));
  }
  const float less = std::exp2((before - after) * factor);
  *total = *total * less + _mm512_reduce_add_ps(sum);
  *largest = after;
  return less;
}

// Rows are the tokens' heads, the heads of a token behind each other; those beyond the last repeat it.
template <class Number, class Products>
void attend_unit(const Job& job, const Unit& unit, Scratch& scratch) {
  constexpr int ROWS = Products::ROWS;
  const int64_t size = job.size, pairs = size / 2, group = job.group;
  const int64_t rows = (unit.last - unit.first) * group, tiles = (rows + ROWS - 1) / ROWS;
  const int64_t start = job.starts[unit.request], length = job.lengths[unit.request];
  const int64_t offset = length - (job.starts[unit.request + 1] - start);  // position of the request's first new token
  auto token = [&](int64_t row) { return unit.first + std::min(row, rows - 1) / group; };
  auto place = [&](int64_t row, int64_t stride) {
    return (start + token(row)) * stride + (unit.kv_head * group + std::min(row, rows - 1) % group) * size;
  };
  for (int64_t row = 0; row < tiles * ROWS; row++) {
    const uint16_t* query = job.query + place(row, job.query_stride);
    Products::arrange(query, row % ROWS, size, scratch.query + row / ROWS * pairs * ROWS);
    scratch.largest[row] = LEAST;
    scratch.total[row] = 0;
  }
  std::fill_n(scratch.mixed, tiles * ROWS * size, 0.0f);

  const int64_t end = offset + unit.last;
  const int64_t begin = job.window ? std::max<int64_t>(0, offset + unit.first - job.window + 1) : 0;
  for (int64_t from = begin / STEP * STEP, to; from < end; from = to) {
    to = std::min((from / KEYS + 1) * KEYS, end);
    pack<Number>(job, unit, from, to, scratch);
    const int64_t count = (to - from + STEP - 1) / STEP * STEP;
    for (int64_t tile = 0; tile < tiles; tile++) {
      const int64_t lowest = job.window ? offset + token(tile * ROWS) - job.window + 1 : 0;
      if (offset + token(tile * ROWS + ROWS - 1) < from || lowest >= to) continue;  // the last row of a tile sees most
      Products::score(scratch.query + tile * pairs * ROWS, scratch, count, pairs);
      float factor[ROWS];
      for (int r = 0; r < ROWS; r++) {
        const int64_t row = tile * ROWS + r, position = offset + token(row);
        const int64_t low = job.window ? position - job.window + 1 - from : -from;
        factor[r] = weigh(scratch.scores + r * KEYS, scratch.weights + r * KEYS, count, low, position + 1 - from,
                          job.scale * UNIT_OF<Number>, scratch.largest + row, scratch.total + row);
      }
      Products::mix(scratch, scratch.mixed + tile * ROWS * size, factor, count, size);
    }
  }

  for (int64_t row = 0; row < rows; row++) {
    const __m512 factor = _mm512_set1_ps(UNIT_OF<Number> / scratch.total[row]);
    const float* mixed = scratch.mixed + row * size;
    uint16_t* out = job.out + place(row, job.out_stride);
    for (int64_t d = 0; d < size; d += LANES)
      _mm256_storeu_si256((__m256i*)(out + d),
                          (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(factor, _mm512_load_ps(mixed + d))));
  }
}

template <class Number>
auto attend_units(bool in_tiles) {
  return in_tiles ? attend_unit<Number, Tiles> : attend_unit<Number, Vectors>;
}

void attend_single(const Job& job, int64_t request) {
  const Layout layout{job.pages,    job.page_number, job.page_stride, job.page, job.group * job.kv_heads,
                      job.kv_heads, job.size,        job.scale,       job.window};
  attend_token(layout, {job.query + job.starts[request] * job.query_stride,
                        job.out + job.starts[request] * job.out_stride, job.table + request * job.table_stride,
                        job.lengths[request]});
}

Scratch scratch_of(Buffer& buffer, int64_t size, int64_t rows) {
  rows = (rows + MOST_ROWS - 1) / MOST_ROWS * MOST_ROWS;
  const int64_t counts[] = {rows * size * 2, rows * size * 4, rows * 4,          rows * 4,
                            KEYS * size * 2, KEYS * size * 2, MOST_ROWS * KEYS * 4, MOST_ROWS * KEYS * 2};
  int64_t bytes = 0;
  for (int64_t count : counts) bytes += (count + 63) / 64 * 64;
  char* at = (char*)buffer.need((size_t)bytes);
  void* parts[8];
  for (int i = 0; i < 8; i++) {
    parts[i] = at;
    at += (counts[i] + 63) / 64 * 64;
  }
  return {(Pair*)parts[0],  (float*)parts[1],    (float*)parts[2], (float*)parts[3],
          (uint16_t*)parts[4], (uint16_t*)parts[5], (float*)parts[6], (uint16_t*)parts[7]};
}

}  // namespace

// Arguments as in Job; heads of a multiple of 32 numbers, pages of a multiple of 32 tokens.
extern "C" void attend(const uint16_t* query, int64_t query_stride, uint16_t* out, int64_t out_stride,
                       const void* pages, int64_t page_number, int64_t page_stride, int64_t head_stride, int64_t page,
                       const int32_t* table, int64_t table_stride, const int32_t* starts, const int32_t* lengths,
                       int64_t requests, int64_t group, int64_t kv_heads, int64_t size, float scale, int64_t window) {
  const Job job{query,  query_stride, out,          out_stride, pages,   page_number, page_stride, head_stride, page,
                table,  table_stride, starts,       lengths,    group,   kv_heads,    size,        scale,       window};
  const bool in_tiles = multiplies_in_tiles();
  auto attend_some = page_number == 1 ? attend_units<uint8_t>(in_tiles) : attend_units<uint16_t>(in_tiles);
  const int64_t tokens = std::max<int64_t>(UNIT / group, 1);
  static thread_local std::vector<Unit> units;
  units.clear();
  for (int64_t request = 0; request < requests; request++) {
    const int64_t count = starts[request + 1] - starts[request];
    if (count == 1) {
      units.push_back({request, ALL, 0, 1});
      continue;
    }
    for (int64_t last = count; last > 0; last -= tokens)  // those that see most go first
      for (int64_t kv_head = 0; kv_head < kv_heads; kv_head++)
        units.push_back({request, kv_head, std::max<int64_t>(last - tokens, 0), last});
  }
  const Unit* all = units.data();
  const int64_t count = (int64_t)units.size();
#pragma omp parallel
  {
    static thread_local Buffer buffer;
    Scratch scratch = scratch_of(buffer, job.size, tokens * job.group);
    std::optional<Tiles::Use> use;
    if (in_tiles) use.emplace();
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) {
      if (all[i].kv_head == ALL)
        attend_single(job, all[i].request);
      else
        attend_some(job, all[i], scratch);
    }
  }
}
