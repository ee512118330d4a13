// Attention of one token over the pages of its request, in chunks that do not depend on anything but its position.
//
// A page holds for each KV head the keys, [size][tokens], and then the values, [tokens][size]: the layout of vLLM's CPU
// attention for vectors ("vec"; csrc/cpu/cpu_attn_vec.hpp), which fills and reads the same pages. Logits, probabilities
// and sums are float32.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "product.h"
#include "rows.h"

namespace {

constexpr int64_t CHUNK_TOKENS = 512;
constexpr int GROUP = 32;  // tokens, or values of a head, in 512 bits of bfloat16
constexpr int MOST_HEADS = 4;

struct Heads {
  int64_t queries, keys, size;
  float scale;
  int64_t per_key() const { return queries / keys; }
};

// A layer's pages and one request's table of them.
struct Pages {
  uint16_t* first;
  int64_t stride, tokens;  // values between pages, tokens in one
  uint16_t* key(int64_t page, int64_t head, int64_t size) const {
    return first + page * stride + head * 2 * tokens * size;
  }
  uint16_t* value(int64_t page, int64_t head, int64_t size) const { return key(page, head, size) + tokens * size; }
};

// Tokens of a chunk that lie in one page: `place` counts from where the chunk starts, `offset` in the page.
struct Run {
  int64_t page, offset, place, count;
};

// What a chunk gives for each query head: the largest logit, the sum of exponentials and values weighted by them.
struct Partial {
  float *largest, *sum, *values;
  static int64_t floats(const Heads& heads) { return (heads.queries * (heads.size + 2) + LANES - 1) / LANES * LANES; }
  Partial(float* at, const Heads& heads)
      : largest(at + heads.queries * heads.size), sum(largest + heads.queries), values(at) {}
};

// A row's new keys and values into their slot.
inline void keep(const Heads& heads, const Pages& pages, int64_t slot, const uint16_t* keys, const uint16_t* values) {
  const int64_t page = slot / pages.tokens, offset = slot % pages.tokens, size = heads.size;
  for (int64_t head = 0; head < heads.keys; head++) {
    uint16_t* key = pages.key(page, head, size) + offset;
    for (int64_t i = 0; i < size; i++) key[i * pages.tokens] = keys[head * size + i];
    memcpy(pages.value(page, head, size) + offset * size, values + head * size, size * sizeof(uint16_t));
  }
}

// Logits of G heads of queries with N groups of keys; pairs of the head's values are summed at a time.
template <int G, int N>
void dots(const Pair* query, const uint16_t* key, const Heads& heads, int64_t tokens, float* logits) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  const int64_t pairs = heads.size / 2;
  __m512 sum[G][N][2];
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) sum[g][n][0] = sum[g][n][1] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; p++, key += 2 * tokens) {
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      const __m512i even = _mm512_loadu_si512(key + n * GROUP), odd = _mm512_loadu_si512(key + tokens + n * GROUP);
      const __m512bh a = (__m512bh)_mm512_unpacklo_epi16(even, odd), b = (__m512bh)_mm512_unpackhi_epi16(even, odd);
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) {
        const __m512bh value = (__m512bh)_mm512_set1_epi32(query[g * pairs + p]);
        sum[g][n][0] = _mm512_dpbf16_ps(sum[g][n][0], a, value);
        sum[g][n][1] = _mm512_dpbf16_ps(sum[g][n][1], b, value);
      }
    }
  }
  const __m512 scale = _mm512_set1_ps(heads.scale);
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {  // unpacking took 4 tokens from each side in turn
      const __m512 a = _mm512_mul_ps(sum[g][n][0], scale), b = _mm512_mul_ps(sum[g][n][1], scale);
      float* to = logits + g * CHUNK_TOKENS + n * GROUP;
      _mm512_store_ps(to, _mm512_permutex2var_ps(a, low, b));
      _mm512_store_ps(to + LANES, _mm512_permutex2var_ps(a, high, b));
    }
}

// Logits in [first, last) to exponentials, zeros around them up to whole registers.
inline void exponentials(float* logits, int64_t first, int64_t last, float* largest, float* sum) {
  auto inside = [&](int64_t i) {
    const int64_t before = std::max<int64_t>(first - i, 0), after = std::max<int64_t>(i + LANES - last, 0);
    return (__mmask16)((0xffff << before) & (0xffff >> after));
  };
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 most = lowest, total = _mm512_setzero_ps();
  const int64_t start = first / LANES * LANES;
  for (int64_t i = start; i < last; i += LANES)
    most = _mm512_max_ps(most, _mm512_mask_loadu_ps(lowest, inside(i), logits + i));
  *largest = _mm512_reduce_max_ps(most);
  for (int64_t i = start; i < last; i += LANES) {
    const __m512 less = _mm512_sub_ps(_mm512_load_ps(logits + i), _mm512_set1_ps(*largest));
    const __m512 value = _mm512_maskz_mov_ps(inside(i), exponential(less));
    _mm512_store_ps(logits + i, value);
    total = _mm512_add_ps(total, value);
  }
  *sum = _mm512_reduce_add_ps(total);
}

// Of G heads: W groups of a head's values, each token's weighted by its exponential. Several sums take turns where few
// would wait for themselves.
template <int G, int W>
void weigh(const float* weights, const Run* runs, int64_t count, const Heads& heads, const Pages& pages, int64_t head,
           int64_t column, float* out) {
  constexpr int TURNS = G * W >= 4 ? 1 : 4 / (G * W);
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const __m512i upper = _mm512_set1_epi32(0xffff0000);
  __m512 sum[TURNS][G][W][2];
#pragma GCC unroll 4
  for (int s = 0; s < TURNS; s++)
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 4
      for (int w = 0; w < W; w++) sum[s][g][w][0] = sum[s][g][w][1] = _mm512_setzero_ps();
  for (const Run* run = runs; run < runs + count; run++) {
    const uint16_t* value = pages.value(run->page, head, heads.size) + run->offset * heads.size + column;
    const float* weight = weights + run->place;
    auto add = [&](int64_t t, int s) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int w = 0; w < W; w++) {
        const __m512i both = _mm512_loadu_si512(value + t * heads.size + w * GROUP);
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(both, upper));
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
          const __m512 factor = _mm512_set1_ps(weight[g * CHUNK_TOKENS + t]);
          sum[s][g][w][0] = _mm512_fmadd_ps(even, factor, sum[s][g][w][0]);
          sum[s][g][w][1] = _mm512_fmadd_ps(odd, factor, sum[s][g][w][1]);
        }
      }
    };
    int64_t t = 0;
    for (; t + TURNS <= run->count; t += TURNS)
#pragma GCC unroll 4
      for (int s = 0; s < TURNS; s++) add(t + s, s);
    for (; t < run->count; t++) add(t, 0);
  }
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) {
#pragma GCC unroll 4
      for (int s = 1; s < TURNS; s++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) sum[0][g][w][i] = _mm512_add_ps(sum[0][g][w][i], sum[s][g][w][i]);
      float* to = out + g * heads.size + column + w * GROUP;
      _mm512_storeu_ps(to, _mm512_permutex2var_ps(sum[0][g][w][0], low, sum[0][g][w][1]));
      _mm512_storeu_ps(to + LANES, _mm512_permutex2var_ps(sum[0][g][w][0], high, sum[0][g][w][1]));
    }
}

// G query heads of one KV head over the runs of a chunk, whose tokens are [first, last) from its start.
template <int G>
void attend_heads(const uint16_t* query, const Run* runs, int64_t count, const Heads& heads, const Pages& pages,
                  int64_t head, float* largest, float* sum, float* values) {
  alignas(64) float logits[G * CHUNK_TOKENS];
  constexpr int MOST = 8 / G < 4 ? 8 / G : 4;  // groups of keys at once
  for (const Run* run = runs; run < runs + count; run++) {
    const int64_t before = run->offset % GROUP;  // whole groups: what is not in the run is left out afterwards
    const uint16_t* key = pages.key(run->page, head, heads.size) + run->offset - before;
    float* to = logits + run->place - before;
    int64_t groups = (before + run->count + GROUP - 1) / GROUP;
    for (; groups >= MOST; groups -= MOST, key += MOST * GROUP, to += MOST * GROUP)
      dots<G, MOST>((const Pair*)query, key, heads, pages.tokens, to);
    for (; groups > 0; groups--, key += GROUP, to += GROUP)
      dots<G, 1>((const Pair*)query, key, heads, pages.tokens, to);
  }
  const int64_t first = runs[0].place, last = runs[count - 1].place + runs[count - 1].count;
  for (int g = 0; g < G; g++) exponentials(logits + g * CHUNK_TOKENS, first, last, largest + g, sum + g);
  int64_t column = 0;
  constexpr int WIDE = MOST_HEADS / G;
  for (; column + WIDE * GROUP <= heads.size; column += WIDE * GROUP)
    weigh<G, WIDE>(logits, runs, count, heads, pages, head, column, values);
  for (; column < heads.size; column += GROUP)
    weigh<G, 1>(logits, runs, count, heads, pages, head, column, values);
}

// All heads of a row's queries over its tokens [first, last), which lie in one chunk.
inline void attend(const uint16_t* query, const Heads& heads, const Pages& pages, const int32_t* table, int64_t first,
                   int64_t last, Partial to) {
  Run runs[CHUNK_TOKENS / GROUP];
  int64_t count = 0;
  for (int64_t token = first; token < last; token += runs[count++].count) {
    const int64_t offset = token % pages.tokens;
    runs[count] = {table[token / pages.tokens], offset, token % CHUNK_TOKENS,
                   std::min(last - token, pages.tokens - offset)};
  }
  const int64_t per_key = heads.per_key();
  for (int64_t head = 0; head < heads.keys; head++)
    for (int64_t done = 0; done < per_key;) {
      const int64_t q = head * per_key + done, left = per_key - done;
      auto part = left >= 4 ? attend_heads<4> : left >= 2 ? attend_heads<2> : attend_heads<1>;
      part(query + q * heads.size, runs, count, heads, pages, head, to.largest + q, to.sum + q,
           to.values + q * heads.size);
      done += left >= 4 ? 4 : left >= 2 ? 2 : 1;
    }
}

// The chunks of a row to its output (queries, size); none, as for a row that is padding, give zeros. `partials` is used up.
inline void merge(float* partials, int64_t count, const Heads& heads, uint16_t* out) {
  const int64_t floats = Partial::floats(heads);
  for (int64_t head = 0; head < heads.queries; head++, out += heads.size) {
    float largest = -std::numeric_limits<float>::infinity(), sum = 0;
    for (int64_t c = 0; c < count; c++) {
      const Partial partial(partials + c * floats, heads);
      largest = std::max(largest, partial.largest[head]);
    }
    for (int64_t c = 0; c < count; c++) {
      const Partial partial(partials + c * floats, heads);
      const float factor = std::exp(partial.largest[head] - largest);
      sum += factor * partial.sum[head];
      partial.largest[head] = factor;
    }
    const __m512 scale = _mm512_set1_ps(sum == 0 ? 0 : 1 / sum);
    for (int64_t i = 0; i < heads.size; i += LANES) {
      __m512 value = _mm512_setzero_ps();
      for (int64_t c = 0; c < count; c++) {
        const Partial partial(partials + c * floats, heads);
        value = _mm512_fmadd_ps(_mm512_loadu_ps(partial.values + head * heads.size + i),
                                _mm512_set1_ps(partial.largest[head]), value);
      }
      store(out + i, _mm512_mul_ps(value, scale));
    }
  }
}

}  // namespace
