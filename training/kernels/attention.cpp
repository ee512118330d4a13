// Causal attention for training, forward and backward: bfloat16 products with float32 sums, in blocks, so that neither
// scores nor probabilities leave the caches (FlashAttention-2, arXiv 2307.08691).
//
// Sizes: B rows of T tokens, H query heads, K KV heads, G = H / K, C numbers a head (a multiple of 32). Heads of a token
// lie behind each other. `window` is how many tokens a token sees, itself included; 0 for all before it.
//
// A vector is SPAN tokens of one query head, one a lane; those of a KV head are numbered by token, then head, and two
// that follow each other are a tile. So short rows waste little of a tile, and with an even G both its vectors are of
// the same tokens. Scores of a tile lie with a key a row, so that sums and maxima over keys are those of registers.
//
// A key may count several times: its `bias`, the logarithm of how many over `scale`, is added to its products with all
// queries.
//
// Sums are taken in an order that depends on shapes alone: results are the same bits whatever the threads.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "memory.h"
#include "product.h"
#include "rows.h"

namespace {

constexpr int SPAN = LANES;      // tokens of a vector
constexpr int TILE = 2 * SPAN;   // queries of a tile
constexpr int CHUNK = 32;        // numbers of a head that are taken at a time: two registers of sums
constexpr int GROUP = 8;         // keys, or queries, that are summed for together
constexpr int64_t TILES = 8;     // of a unit of the forward pass, for which keys and values are packed
constexpr int64_t KEYS = 128;    // of a block in the forward pass
constexpr int64_t KEYS_BACK = 64;  // and in the backward pass: with their sums they fill most of the L1 cache
constexpr float LEAST = -1e30f;  // below all scores
constexpr float NEVER = -2e30f;  // of a key that is not seen: below that even where a query sees none of a block
constexpr float FAR = 1e30f;     // the logarithm of a sum that makes all probabilities zero: of a query that is not there
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

struct Shape {
  int64_t rows, tokens, heads, kv_heads, size;
  float scale;
  int64_t window;
  const float* bias;  // [B][T], or null for none

  int64_t group() const { return heads / kv_heads; }
  int64_t vectors() const { return (tokens + SPAN - 1) / SPAN * group(); }  // of a KV head
  int64_t tiles() const { return (vectors() + 1) / 2; }
  int64_t token(int64_t vector) const { return vector / group() * SPAN; }  // its first
  int64_t head(int64_t kv_head, int64_t vector) const { return kv_head * group() + vector % group(); }
  int64_t present(int64_t vector) const {  // how many of its tokens are there
    return std::max<int64_t>(0, std::min<int64_t>(SPAN, tokens - token(vector)));
  }
};

// Of a row: [T][heads][C], tokens `stride` numbers apart.
template <typename Number>
struct Heads {
  Number* numbers;
  int64_t stride;

  Number* at(const Shape& shape, int64_t row, int64_t token, int64_t head) const {
    return numbers + (row * shape.tokens + token) * stride + head * shape.size;
  }
};
using Given = Heads<const uint16_t>;
using Made = Heads<uint16_t>;

// Keys [low, high) of a block that a tile sees some of, to whole groups, and those that all of it sees.
struct Seen {
  int64_t low, high, all_low, all_high;
};

Seen seen_by(const Shape& shape, int64_t tile, int64_t from, int64_t to) {
  const int64_t first = shape.token(2 * tile);
  const int64_t last_vector = shape.token(2 * tile + 1), last = std::min(last_vector + SPAN, shape.tokens) - 1;
  const int64_t lowest = shape.window ? first - shape.window + 1 : 0;
  const int64_t all_lowest = shape.window ? last_vector + SPAN - shape.window : 0;
  Seen seen;
  seen.low = std::max(from, lowest) / GROUP * GROUP;  // blocks begin at multiples of GROUP
  seen.high = (std::min(to, last + 1) + GROUP - 1) / GROUP * GROUP;
  seen.all_low = all_lowest;
  seen.all_high = first + 1;
  return seen;
}

// Which of a vector's tokens, the first of which is `token`, see `key`.
inline __mmask16 sees(int64_t token, int64_t key, int64_t window) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i distance = _mm512_add_epi32(lane, _mm512_set1_epi32((int)(token - key)));
  const __mmask16 before = _mm512_cmpge_epi32_mask(distance, _mm512_setzero_si512());
  return window ? before & _mm512_cmplt_epi32_mask(distance, _mm512_set1_epi32((int)window)) : before;
}

// 2^x, to 3e-6 of it; nothing where x is below what float32 can hold.
inline __m512 power_of_two(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(9.570101276e-3f);  // least relative error for [-1/2, 1/2]
  for (float c : {5.591786280e-2f, 2.402474433e-1f, 6.931217909e-1f, 9.999992847e-1f})
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

// Rows a and b of 32 numbers to 32 pairs.
inline void pair_up(__m512i a, __m512i b, Pair* to) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                       5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  _mm512_store_si512(to, _mm512_permutex2var_epi16(a, low, b));
  _mm512_store_si512(to + LANES, _mm512_permutex2var_epi16(a, high, b));
}

// 16 rows of 16 pairs to 16 columns, TILE pairs apart.
inline __attribute__((always_inline)) void transpose(__m512i (&row)[16], Pair* to) {
  __m512i part[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    part[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    part[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      row[i + 2 * j] = _mm512_unpacklo_epi64(part[i + j], part[i + j + 2]);
      row[i + 2 * j + 1] = _mm512_unpackhi_epi64(part[i + j], part[i + j + 2]);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {  // row[4 i + j] holds the columns j, 4 + j, 8 + j, 12 + j of the rows 4 i to 4 i + 3
    const __m512i a = _mm512_shuffle_i32x4(row[j], row[4 + j], 0x88), b = _mm512_shuffle_i32x4(row[j], row[4 + j], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0xdd);
    _mm512_store_si512(to + j * TILE, _mm512_shuffle_i32x4(a, c, 0x88));
    _mm512_store_si512(to + (4 + j) * TILE, _mm512_shuffle_i32x4(b, d, 0x88));
    _mm512_store_si512(to + (8 + j) * TILE, _mm512_shuffle_i32x4(a, c, 0xdd));
    _mm512_store_si512(to + (12 + j) * TILE, _mm512_shuffle_i32x4(b, d, 0xdd));
  }
}

// A tile's queries, or the like, to columns [C / 2][TILE] and, unless that is null, to pairs of queries [TILE / 2][C].
void pack_tile(const Shape& shape, Given from, int64_t row, int64_t kv_head, int64_t tile, Pair* columns, Pair* pairs) {
  for (int v = 0; v < 2; v++) {
    const int64_t vector = 2 * tile + v, present = shape.present(vector);
    const uint16_t* first = from.at(shape, row, shape.token(vector), shape.head(kv_head, vector));
    for (int64_t c = 0; c < shape.size; c += CHUNK) {
      __m512i number[SPAN];
#pragma GCC unroll 16
      for (int i = 0; i < SPAN; i++)  // what is not there is not read
        number[i] = _mm512_maskz_loadu_epi32(i < present ? 0xffff : 0, first + i * from.stride + c);
      if (pairs)
#pragma GCC unroll 8
        for (int i = 0; i < SPAN; i += 2)
          pair_up(number[i], number[i + 1], pairs + (v * SPAN + i) / 2 * shape.size + c);
      transpose(number, columns + c / 2 * TILE + v * SPAN);
    }
  }
}

// Keys, or values, [from, to) to rows [keys][C] and to pairs of keys [keys / 2][C], either of which may be null; zeros
// follow up to whole groups.
void pack_keys(const Shape& shape, Given given, int64_t row, int64_t kv_head, int64_t from, int64_t to, uint16_t* rows,
               Pair* pairs) {
  const int64_t size = shape.size;
  auto load = [&](int64_t key, int64_t c) {
    return key < to ? _mm512_loadu_si512(given.at(shape, row, key, kv_head) + c) : _mm512_setzero_si512();
  };
  for (int64_t k = from; k < (to + GROUP - 1) / GROUP * GROUP; k += 2)
    for (int64_t c = 0; c < size; c += CHUNK) {
      const __m512i a = load(k, c), b = load(k + 1, c);
      if (rows) {
        _mm512_store_si512(rows + (k - from) * size + c, a);
        _mm512_store_si512(rows + (k - from + 1) * size + c, b);
      }
      if (pairs) pair_up(a, b, pairs + (k - from) / 2 * size + c);
    }
}

// The bias of the keys [from, to) of a row; zeros follow up to whole groups.
void pack_bias(const Shape& shape, int64_t row, int64_t from, int64_t to, float* bias) {
  const int64_t present = shape.bias ? to - from : 0;
  if (present) std::copy_n(shape.bias + row * shape.tokens + from, present, bias);
  std::fill(bias + present, bias + (to - from + GROUP - 1) / GROUP * GROUP, 0.0f);
}

// sum[n] += rows[n] · columns, for N rows [C] and a tile's columns [C / 2][TILE]. SIZE is C where that is known.
template <int SIZE, int N>
inline __attribute__((always_inline)) void dots(const uint16_t* rows, const Pair* columns, int64_t size,
                                                __m512 (&sum)[N][2]) {
  const int64_t width = SIZE ? SIZE : size;
  for (int64_t p = 0; p < width / 2; p++) {
    const __m512bh a = (__m512bh)_mm512_load_si512(columns + p * TILE);
    const __m512bh b = (__m512bh)_mm512_load_si512(columns + p * TILE + LANES);
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(((const Pair*)(rows + n * width))[p]);
      sum[n][0] = _mm512_dpbf16_ps(sum[n][0], pair, a);
      sum[n][1] = _mm512_dpbf16_ps(sum[n][1], pair, b);
    }
  }
}

// GROUP rows of sums [C], times a factor each unless that is null, += the products of `steps` pairs with pairs [C]; those
// of a row are BETWEEN_STEPS, the rows BETWEEN_ROWS pairs apart.
template <int SIZE, int BETWEEN_ROWS, int BETWEEN_STEPS>
inline void add_products(float* sums, const float* factor, const Pair* a, const Pair* b, int64_t steps, int64_t size) {
  const int64_t width = SIZE ? SIZE : size;
  for (int64_t c = 0; c < width; c += CHUNK) {
    __m512 sum[GROUP][2];
#pragma GCC unroll 8
    for (int r = 0; r < GROUP; r++) {
      sum[r][0] = _mm512_load_ps(sums + r * width + c);
      sum[r][1] = _mm512_load_ps(sums + r * width + c + LANES);
    }
    if (factor)
#pragma GCC unroll 8
      for (int r = 0; r < GROUP; r++) {
        const __m512 f = _mm512_set1_ps(factor[r]);
        sum[r][0] = _mm512_mul_ps(f, sum[r][0]);
        sum[r][1] = _mm512_mul_ps(f, sum[r][1]);
      }
    for (int64_t s = 0; s < steps; s++) {
      const __m512bh low = (__m512bh)_mm512_load_si512(b + s * width + c);
      const __m512bh high = (__m512bh)_mm512_load_si512(b + s * width + c + LANES);
#pragma GCC unroll 8
      for (int r = 0; r < GROUP; r++) {
        const __m512bh pair = (__m512bh)_mm512_set1_epi32(a[r * BETWEEN_ROWS + s * BETWEEN_STEPS]);
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], pair, low);
        sum[r][1] = _mm512_dpbf16_ps(sum[r][1], pair, high);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < GROUP; r++) {
      _mm512_store_ps(sums + r * width + c, sum[r][0]);
      _mm512_store_ps(sums + r * width + c + LANES, sum[r][1]);
    }
  }
}

void store_row(const float* from, float factor, int64_t size, uint16_t* to) {
  for (int64_t c = 0; c < size; c += LANES)
    store(to + c, _mm512_mul_ps(_mm512_set1_ps(factor), _mm512_load_ps(from + c)));
}

// Parts of a buffer, each at a multiple of 64 bytes.
class Parts {
 public:
  explicit Parts(char* start) : start_(start) {}

  template <typename Number>
  Number* take(int64_t count) {
    Number* part = (Number*)(start_ + bytes_);
    bytes_ += (count * (int64_t)sizeof(Number) + 63) / 64 * 64;
    return part;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* start_;
  int64_t bytes_ = 0;
};

// Room laid out by `Room(Shape, Parts&)`, once to know its size and once in the buffer.
template <typename Room>
Room room_in(Buffer& buffer, const Shape& shape) {
  Parts measure(nullptr);
  Room(shape, measure);
  Parts parts((char*)buffer.need((size_t)measure.bytes()));
  return Room(shape, parts);
}

struct ForwardRoom {
  Pair* queries;   // [TILES][C / 2][TILE]
  float* mixed;    // [TILES][TILE][C]: sums over values so far, times the weights of the largest score so far
  float* largest;  // [TILES][TILE]
  float* total;    // [TILES][TILE]
  float* factor;   // [TILE]
  uint16_t* keys;  // [KEYS][C]
  float* bias;     // [KEYS]
  Pair* values;    // [KEYS / 2][C]
  float* scores;   // [KEYS][TILE]
  Pair* weights;   // [KEYS / 2][TILE]

  ForwardRoom(const Shape& shape, Parts& parts)
      : queries(parts.take<Pair>(TILES * TILE * shape.size / 2)),
        mixed(parts.take<float>(TILES * TILE * shape.size)),
        largest(parts.take<float>(TILES * TILE)),
        total(parts.take<float>(TILES * TILE)),
        factor(parts.take<float>(TILE)),
        keys(parts.take<uint16_t>(KEYS * shape.size)),
        bias(parts.take<float>(KEYS)),
        values(parts.take<Pair>(KEYS / 2 * shape.size)),
        scores(parts.take<float>(KEYS * TILE)),
        weights(parts.take<Pair>(KEYS / 2 * TILE)) {}
};

// Scores of a tile's queries with the keys [seen.low, seen.high) of the block at `from`; the largest in `most`.
template <int SIZE>
void score(const Shape& shape, int64_t tile, int64_t from, Seen seen, const Pair* queries, const ForwardRoom& room,
           __m512 (&most)[2]) {
  for (int64_t k = seen.low; k < seen.high; k += GROUP) {
    __m512 sum[GROUP][2];
#pragma GCC unroll 8
    for (int n = 0; n < GROUP; n++) sum[n][0] = sum[n][1] = _mm512_set1_ps(room.bias[k - from + n]);
    dots<SIZE, GROUP>(room.keys + (k - from) * shape.size, queries, shape.size, sum);
    if (k < seen.all_low || k + GROUP > seen.all_high)
#pragma GCC unroll 8
      for (int n = 0; n < GROUP; n++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++)
          sum[n][v] = _mm512_mask_blend_ps(sees(shape.token(2 * tile + v), k + n, shape.window),
                                           _mm512_set1_ps(NEVER), sum[n][v]);
#pragma GCC unroll 8
    for (int n = 0; n < GROUP; n++)
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++) {
        most[v] = _mm512_max_ps(most[v], sum[n][v]);
        _mm512_store_ps(room.scores + (k - from + n) * TILE + v * LANES, sum[n][v]);
      }
  }
}

// The scores to pairs of weights; `most` are the largest ones.
void weigh(float factor, int64_t low, int64_t high, const __m512 (&most)[2], float* largest, float* total,
           const ForwardRoom& room) {
  const __m512i interleaved = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                               6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512 by = _mm512_set1_ps(factor);
  __m512 shift[2], sum[2][2];
#pragma GCC unroll 2
  for (int v = 0; v < 2; v++) {
    const __m512 before = _mm512_load_ps(largest + v * LANES), after = _mm512_max_ps(before, most[v]);
    const __m512 less = power_of_two(_mm512_mul_ps(by, _mm512_sub_ps(before, after)));
    _mm512_store_ps(largest + v * LANES, after);
    _mm512_store_ps(room.factor + v * LANES, less);
    shift[v] = _mm512_mul_ps(by, after);
    sum[v][0] = _mm512_mul_ps(less, _mm512_load_ps(total + v * LANES));
    sum[v][1] = _mm512_setzero_ps();
  }
  for (int64_t k = low; k < high; k += 2)
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) {
      const float* scores = room.scores + k * TILE + v * LANES;
      const __m512 a = power_of_two(_mm512_fmsub_ps(by, _mm512_load_ps(scores), shift[v]));
      const __m512 b = power_of_two(_mm512_fmsub_ps(by, _mm512_load_ps(scores + TILE), shift[v]));
      sum[v][0] = _mm512_add_ps(sum[v][0], a);
      sum[v][1] = _mm512_add_ps(sum[v][1], b);
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
      _mm512_store_si512(room.weights + k / 2 * TILE + v * LANES, _mm512_permutexvar_epi16(interleaved, both));
    }
#pragma GCC unroll 2
  for (int v = 0; v < 2; v++) _mm512_store_ps(total + v * LANES, _mm512_add_ps(sum[v][0], sum[v][1]));
}

// The tiles [begin, end) of a KV head, at most TILES.
template <int SIZE>
void forward_unit(const Shape& shape, Given q, Given k, Given v, Made out, float* lse, int64_t row, int64_t kv_head,
                  int64_t begin, int64_t end, const ForwardRoom& room) {
  const int64_t size = SIZE ? SIZE : shape.size;
  const float factor = shape.scale * LOG2_E;
  for (int64_t tile = begin; tile < end; tile++)
    pack_tile(shape, q, row, kv_head, tile, room.queries + (tile - begin) * TILE * size / 2, nullptr);
  std::fill_n(room.mixed, (end - begin) * TILE * size, 0.0f);
  std::fill_n(room.largest, (end - begin) * TILE, LEAST);
  std::fill_n(room.total, (end - begin) * TILE, 0.0f);

  const int64_t last = std::min(shape.tokens, shape.token(2 * end - 1) + SPAN);
  const int64_t lowest = shape.window ? std::max<int64_t>(0, shape.token(2 * begin) - shape.window + 1) : 0;
  for (int64_t from = lowest / GROUP * GROUP; from < last; from += KEYS) {
    const int64_t to = std::min(from + KEYS, last);
    pack_keys(shape, k, row, kv_head, from, to, room.keys, nullptr);
    pack_keys(shape, v, row, kv_head, from, to, nullptr, room.values);
    pack_bias(shape, row, from, to, room.bias);
    for (int64_t tile = begin; tile < end; tile++) {
      const Seen seen = seen_by(shape, tile, from, to);
      if (seen.low >= seen.high) continue;
      const int64_t at = (tile - begin) * TILE, low = seen.low - from, high = seen.high - from;
      __m512 most[2] = {_mm512_set1_ps(LEAST), _mm512_set1_ps(LEAST)};
      score<SIZE>(shape, tile, from, seen, room.queries + at * size / 2, room, most);
      weigh(factor, low, high, most, room.largest + at, room.total + at, room);
      for (int64_t r = 0; r < TILE; r += GROUP)
        add_products<SIZE, 1, TILE>(room.mixed + (at + r) * size, room.factor + r, room.weights + low / 2 * TILE + r,
                                    room.values + low / 2 * size, (high - low) / 2, size);
    }
  }

  for (int64_t i = 0; i < (end - begin) * TILE; i++) {
    const int64_t vector = 2 * begin + i / SPAN, token = shape.token(vector) + i % SPAN;
    if (i % SPAN >= shape.present(vector)) continue;
    const int64_t head = shape.head(kv_head, vector);
    store_row(room.mixed + i * size, 1.0f / room.total[i], size, out.at(shape, row, token, head));
    lse[(row * shape.heads + head) * shape.tokens + token] =
        room.largest[i] * shape.scale + std::log(room.total[i]);
  }
}

struct BackwardRoom {
  // Of all queries of a KV head, by tile
  Pair* query_columns;  // [tiles][C / 2][TILE]
  Pair* query_pairs;    // [tiles][TILE / 2][C]
  Pair* grad_columns;   // as these, of the gradients of what is mixed
  Pair* grad_pairs;
  float* lse;        // [tiles][TILE], in powers of two
  float* delta;      // [tiles][TILE]: gradient · what was mixed
  float* query_sum;  // [tiles][TILE][C]: the gradient but for the scale
  // Of a block of keys
  uint16_t* keys;    // [KEYS_BACK][C]
  float* bias;       // [KEYS_BACK]
  Pair* key_pairs;   // [KEYS_BACK / 2][C]
  uint16_t* values;  // [KEYS_BACK][C]
  float* key_sum;    // [KEYS_BACK][C]
  float* value_sum;  // [KEYS_BACK][C]
  // Of a tile with a block of keys
  Pair* weights;      // [KEYS_BACK][TILE / 2]: probabilities
  Pair* scores;       // [KEYS_BACK][TILE / 2]: gradients of scores
  Pair* score_pairs;  // [KEYS_BACK / 2][TILE]: the same in pairs of keys

  BackwardRoom(const Shape& shape, Parts& parts)
      : query_columns(parts.take<Pair>(shape.tiles() * TILE * shape.size / 2)),
        query_pairs(parts.take<Pair>(shape.tiles() * TILE * shape.size / 2)),
        grad_columns(parts.take<Pair>(shape.tiles() * TILE * shape.size / 2)),
        grad_pairs(parts.take<Pair>(shape.tiles() * TILE * shape.size / 2)),
        lse(parts.take<float>(shape.tiles() * TILE)),
        delta(parts.take<float>(shape.tiles() * TILE)),
        query_sum(parts.take<float>(shape.tiles() * TILE * shape.size)),
        keys(parts.take<uint16_t>(KEYS_BACK * shape.size)),
        bias(parts.take<float>(KEYS_BACK)),
        key_pairs(parts.take<Pair>(KEYS_BACK / 2 * shape.size)),
        values(parts.take<uint16_t>(KEYS_BACK * shape.size)),
        key_sum(parts.take<float>(KEYS_BACK * shape.size)),
        value_sum(parts.take<float>(KEYS_BACK * shape.size)),
        weights(parts.take<Pair>(KEYS_BACK * TILE / 2)),
        scores(parts.take<Pair>(KEYS_BACK * TILE / 2)),
        score_pairs(parts.take<Pair>(KEYS_BACK / 2 * TILE)) {}
};

// Probabilities, and gradients of scores, of a tile's queries with the keys [seen.low, seen.high) of the block at `from`.
template <int SIZE>
void differentiate(const Shape& shape, int64_t tile, int64_t from, Seen seen, const BackwardRoom& room) {
  constexpr int AT_ONCE = 4;  // keys: their sums of two kinds are half of the registers
  const int64_t size = SIZE ? SIZE : shape.size, at = tile * TILE;
  const __m512 factor = _mm512_set1_ps(shape.scale * LOG2_E);
  const __m512 lse[2] = {_mm512_load_ps(room.lse + at), _mm512_load_ps(room.lse + at + LANES)};
  const __m512 delta[2] = {_mm512_load_ps(room.delta + at), _mm512_load_ps(room.delta + at + LANES)};
  const Pair *queries = room.query_columns + at * size / 2, *grads = room.grad_columns + at * size / 2;
  for (int64_t k = seen.low; k < seen.high; k += AT_ONCE) {
    __m512 weight[AT_ONCE][2], score[AT_ONCE][2];
#pragma GCC unroll 4
    for (int n = 0; n < AT_ONCE; n++) {
      weight[n][0] = weight[n][1] = _mm512_set1_ps(room.bias[k - from + n]);
      score[n][0] = score[n][1] = _mm512_setzero_ps();
    }
    dots<SIZE, AT_ONCE>(room.keys + (k - from) * size, queries, size, weight);
    dots<SIZE, AT_ONCE>(room.values + (k - from) * size, grads, size, score);
#pragma GCC unroll 4
    for (int n = 0; n < AT_ONCE; n++)
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++)
        weight[n][v] = power_of_two(_mm512_fmsub_ps(factor, weight[n][v], lse[v]));
    if (k < seen.all_low || k + AT_ONCE > seen.all_high)
#pragma GCC unroll 4
      for (int n = 0; n < AT_ONCE; n++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++)
          weight[n][v] =
              _mm512_maskz_mov_ps(sees(shape.token(2 * tile + v), k + n, shape.window), weight[n][v]);
    __m512i row[AT_ONCE];
#pragma GCC unroll 4
    for (int n = 0; n < AT_ONCE; n++) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++) score[n][v] = _mm512_mul_ps(weight[n][v], _mm512_sub_ps(score[n][v], delta[v]));
      row[n] = (__m512i)_mm512_cvtne2ps_pbh(score[n][1], score[n][0]);
      _mm512_store_si512(room.weights + (k - from + n) * TILE / 2,
                         (__m512i)_mm512_cvtne2ps_pbh(weight[n][1], weight[n][0]));
      _mm512_store_si512(room.scores + (k - from + n) * TILE / 2, row[n]);
    }
#pragma GCC unroll 2
    for (int n = 0; n < AT_ONCE; n += 2)
      pair_up(row[n], row[n + 1], room.score_pairs + (k - from + n) / 2 * TILE);
  }
}

// What does not depend on keys: a tile's queries and gradients packed, its sums.
void prepare_tile(const Shape& shape, Given q, Given out, const float* lse, Given grad, int64_t row, int64_t kv_head,
                  int64_t tile, const BackwardRoom& room) {
  const int64_t size = shape.size, at = tile * TILE;
  pack_tile(shape, q, row, kv_head, tile, room.query_columns + at * size / 2, room.query_pairs + at * size / 2);
  pack_tile(shape, grad, row, kv_head, tile, room.grad_columns + at * size / 2, room.grad_pairs + at * size / 2);
  for (int v = 0; v < 2; v++) {
    const int64_t vector = 2 * tile + v, token = shape.token(vector), head = shape.head(kv_head, vector);
    const int64_t present = shape.present(vector);
    const uint16_t *one = out.at(shape, row, token, head), *other = grad.at(shape, row, token, head);
    float *logarithm = room.lse + at + v * SPAN, *delta = room.delta + at + v * SPAN;
    for (int64_t i = 0; i < present; i++, one += out.stride, other += grad.stride) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t c = 0; c < size; c += CHUNK)
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(one + c), (__m512bh)_mm512_loadu_si512(other + c));
      delta[i] = _mm512_reduce_add_ps(sum);
    }
    std::fill(delta + present, delta + SPAN, 0.0f);
    const float* given = lse + (row * shape.heads + head) * shape.tokens + token;
    const __mmask16 there = (__mmask16)((1 << present) - 1);
    const __m512 powers = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, given), _mm512_set1_ps(LOG2_E));
    _mm512_store_ps(logarithm, _mm512_mask_mov_ps(_mm512_set1_ps(FAR), there, powers));
  }
  std::fill_n(room.query_sum + at * size, TILE * size, 0.0f);
}

// A KV head and its query heads.
template <int SIZE>
void backward_unit(const Shape& shape, Given q, Given k, Given v, Given out, const float* lse, Given grad, Made dq,
                   Made dk, Made dv, int64_t row, int64_t kv_head, const BackwardRoom& room) {
  const int64_t size = SIZE ? SIZE : shape.size, tiles = shape.tiles();
  for (int64_t tile = 0; tile < tiles; tile++) prepare_tile(shape, q, out, lse, grad, row, kv_head, tile, room);
  for (int64_t from = 0; from < shape.tokens; from += KEYS_BACK) {
    const int64_t to = std::min(from + KEYS_BACK, shape.tokens);
    pack_keys(shape, k, row, kv_head, from, to, room.keys, room.key_pairs);
    pack_keys(shape, v, row, kv_head, from, to, room.values, nullptr);
    pack_bias(shape, row, from, to, room.bias);
    std::fill_n(room.key_sum, KEYS_BACK * size, 0.0f);
    std::fill_n(room.value_sum, KEYS_BACK * size, 0.0f);
    for (int64_t tile = from / SPAN * shape.group() / 2; tile < tiles; tile++) {
      if (shape.window && shape.token(2 * tile) - shape.window + 1 >= to) break;
      const Seen seen = seen_by(shape, tile, from, to);
      if (seen.low >= seen.high) continue;
      const int64_t at = tile * TILE, low = seen.low - from, high = seen.high - from;
      differentiate<SIZE>(shape, tile, from, seen, room);
      for (int64_t key = low; key < high; key += GROUP) {
        add_products<SIZE, TILE / 2, 1>(room.value_sum + key * size, nullptr, room.weights + key * TILE / 2,
                                        room.grad_pairs + at * size / 2, TILE / 2, size);
        add_products<SIZE, TILE / 2, 1>(room.key_sum + key * size, nullptr, room.scores + key * TILE / 2,
                                        room.query_pairs + at * size / 2, TILE / 2, size);
      }
      for (int64_t r = 0; r < TILE; r += GROUP)
        add_products<SIZE, 1, TILE>(room.query_sum + (at + r) * size, nullptr, room.score_pairs + low / 2 * TILE + r,
                                    room.key_pairs + low / 2 * size, (high - low) / 2, size);
    }
    for (int64_t key = from; key < to; key++) {
      store_row(room.key_sum + (key - from) * size, shape.scale, size, dk.at(shape, row, key, kv_head));
      store_row(room.value_sum + (key - from) * size, 1.0f, size, dv.at(shape, row, key, kv_head));
    }
  }
  for (int64_t i = 0; i < tiles * TILE; i++) {
    const int64_t vector = i / SPAN;
    if (i % SPAN < shape.present(vector))
      store_row(room.query_sum + i * size, shape.scale, size,
                dq.at(shape, row, shape.token(vector) + i % SPAN, shape.head(kv_head, vector)));
  }
}

}  // namespace

// out[b, t, h] = softmax over the tokens s that t sees (scale * (q[b, t, h] · k[b, s, h / G] + bias[b, s])) ·
// v[b, s, h / G], and the logarithm of what that softmax divides by. q (B, T, H, C), k and v (B, T, K, C) with strides
// from token to token; bias (B, T) or null; out (B, T, H, C) and lse (B, H, T), contiguous.
extern "C" void attention_forward(const uint16_t* q, int64_t q_stride, const uint16_t* k, int64_t k_stride,
                                  const uint16_t* v, int64_t v_stride, const float* bias, uint16_t* out, float* lse,
                                  int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, float scale, int64_t window) {
  const Shape shape{B, T, H, K, C, scale, window, bias};
  const auto unit = C == 32 ? forward_unit<32> : C == 64 ? forward_unit<64> : C == 128 ? forward_unit<128> : forward_unit<0>;
  const int64_t tiles = shape.tiles(), parts = (tiles + TILES - 1) / TILES;
#pragma omp parallel
  {
    static thread_local Buffer buffer;
    const ForwardRoom room = room_in<ForwardRoom>(buffer, shape);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < parts * B * K; i++) {
      const int64_t begin = (parts - 1 - i / (B * K)) * TILES;  // those that see most go first
      unit(shape, {q, q_stride}, {k, k_stride}, {v, v_stride}, {out, H * C}, lse, i / K % B, i % K, begin,
           std::min(begin + TILES, tiles), room);
    }
  }
}

// The gradients dq, dk and dv, laid out as q, k and v, from `dout`, the one of `out`, and what the forward pass gave.
extern "C" void attention_backward(const uint16_t* q, int64_t q_stride, const uint16_t* k, int64_t k_stride,
                                   const uint16_t* v, int64_t v_stride, const float* bias, const uint16_t* out,
                                   const float* lse, const uint16_t* dout, uint16_t* dq, int64_t dq_stride,
                                   uint16_t* dk, int64_t dk_stride, uint16_t* dv, int64_t dv_stride, int64_t B,
                                   int64_t T, int64_t H, int64_t K, int64_t C, float scale, int64_t window) {
  const Shape shape{B, T, H, K, C, scale, window, bias};
  const auto unit =
      C == 32 ? backward_unit<32> : C == 64 ? backward_unit<64> : C == 128 ? backward_unit<128> : backward_unit<0>;
#pragma omp parallel
  {
    static thread_local Buffer buffer;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < B * K; i++)
      unit(shape, {q, q_stride}, {k, k_stride}, {v, v_stride}, {out, H * C}, lse, {dout, H * C}, {dq, dq_stride},
           {dk, dk_stride}, {dv, dv_stride}, i / K, i % K, room_in<BackwardRoom>(buffer, shape));
  }
}
