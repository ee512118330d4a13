// Attention of one token over the pages of its request, in chunks that do not depend on anything but its position.
//
// Logits, probabilities and sums are float32; over pages of bytes, probabilities are rounded to bfloat16 for the products
// with values. Pages of many requests fit into no cache: while one is computed with, the next one is fetched.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "pages.h"
#include "product.h"
#include "rows.h"

namespace {

constexpr int64_t CHUNK_TOKENS = 512;
constexpr int MOST_HEADS = 4;

struct Heads {
  int64_t queries, keys, size;
  float scale;
  int64_t per_key() const { return queries / keys; }
};

// Tokens of a chunk that lie in one page: `place` counts from where the chunk starts, `offset` in the page.
struct Run {
  int64_t page, offset, place, count;
};

// A chunk's runs of a layer's pages.
struct Chunk {
  Run runs[CHUNK_TOKENS / GROUP];
  int64_t count = 0;

  Chunk() = default;
  // Of the tokens [first, last), which lie in one chunk.
  Chunk(const int32_t* table, int64_t tokens, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; token += runs[count++].count) {
      const int64_t offset = token % tokens;
      runs[count] = {table[token / tokens], offset, token % CHUNK_TOKENS, std::min(last - token, tokens - offset)};
    }
  }
};

// What comes next: a KV head of a chunk, or nothing.
struct Ahead {
  const Chunk* chunk;
  int64_t head;
  const Run* run(int64_t number) const { return chunk && number < chunk->count ? chunk->runs + number : nullptr; }
};

// What a chunk gives for each query head: the largest logit, the sum of exponentials and values weighted by them.
struct Partial {
  float *largest, *sum, *values;
  static int64_t floats(const Heads& heads) { return (heads.queries * (heads.size + 2) + LANES - 1) / LANES * LANES; }
  Partial(float* at, const Heads& heads)
      : largest(at + heads.queries * heads.size), sum(largest + heads.queries), values(at) {}
};

// A head's new key and value into their slot.
template <class Number>
void keep(const Heads& heads, const Pages<Number>& pages, int64_t slot, int64_t head, const uint16_t* key,
          const uint16_t* value) {
  const int64_t page = slot / pages.tokens, offset = slot % pages.tokens, size = heads.size;
  Number* to = pages.key(page, head, size) + offset;
  for (int64_t i = 0; i < size; i += GROUP) {
    Number part[GROUP];
    to_pages(key + i, GROUP, part);
    for (int64_t j = 0; j < GROUP; j++) to[(i + j) * pages.tokens] = part[j];
  }
  to_pages(value, size, pages.value(page, head, size) + offset * size);
}

inline void fetch(const void* at) { _mm_prefetch((const char*)at, _MM_HINT_T0); }

// Logits of G heads of queries with N groups of keys; pairs of the head's values are summed at a time. `lines` groups of
// the keys `ahead` are fetched.
template <int G, int N, class Number>
void dots(const Pair* query, const Number* key, const Heads& heads, int64_t tokens, float* logits, const Number* ahead,
          int64_t lines) {
  constexpr int64_t LINE = 64 / sizeof(Number);
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  const int64_t pairs = heads.size / 2;
  __m512 sum[G][N][2];
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) sum[g][n][0] = sum[g][n][1] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; p++, key += 2 * tokens, ahead += 2 * tokens) {
    for (int64_t at = 0; at < lines * GROUP; at += LINE) {
      fetch(ahead + at);
      if (tokens >= LINE) fetch(ahead + tokens + at);
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      const __m512i even = load_group(key + n * GROUP), odd = load_group(key + tokens + n * GROUP);
      const __m512bh a = (__m512bh)_mm512_unpacklo_epi16(even, odd), b = (__m512bh)_mm512_unpackhi_epi16(even, odd);
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) {
        const __m512bh value = (__m512bh)_mm512_set1_epi32(query[g * pairs + p]);
        sum[g][n][0] = _mm512_dpbf16_ps(sum[g][n][0], a, value);
        sum[g][n][1] = _mm512_dpbf16_ps(sum[g][n][1], b, value);
      }
    }
  }
  const __m512 scale = _mm512_set1_ps(heads.scale * UNIT_OF<Number>);
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
void weigh(const float* weights, const Chunk& chunk, const Heads& heads, const Pages<uint16_t>& pages, int64_t head,
           int64_t column, float* out, Ahead next) {
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
  for (int64_t number = 0; number < chunk.count; number++) {
    const Run *run = chunk.runs + number, *run_ahead = next.run(number);
    const uint16_t* value = pages.value(run->page, head, heads.size) + run->offset * heads.size + column;
    const uint16_t* ahead = value;
    int64_t count_ahead = 0;
    if (run_ahead) {
      ahead = pages.value(run_ahead->page, next.head, heads.size) + run_ahead->offset * heads.size + column;
      count_ahead = run_ahead->count;
    }
    const float* weight = weights + run->place;
    auto add = [&](int64_t t, int s) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int w = 0; w < W; w++) {
        if (t < count_ahead) fetch(ahead + t * heads.size + w * GROUP);
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

// The same of bytes: two tokens at a time, whose exponentials are pairs of bfloat16, CHUNK_TOKENS of each head. Those
// outside of the chunk are zeros.
template <int G, int W>
void weigh(const uint16_t* weights, const Chunk& chunk, const Heads& heads, const Pages<uint8_t>& pages, int64_t head,
           int64_t column, float* out, Ahead next) {
  constexpr int TURNS = G * W >= 4 ? 1 : 4 / (G * W);
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  const int64_t size = heads.size;
  __m512 sum[TURNS][G][W][2];
#pragma GCC unroll 4
  for (int s = 0; s < TURNS; s++)
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 4
      for (int w = 0; w < W; w++) sum[s][g][w][0] = sum[s][g][w][1] = _mm512_setzero_ps();
  for (int64_t number = 0; number < chunk.count; number++) {
    const Run *run = chunk.runs + number, *run_ahead = next.run(number);
    const int64_t odd = run->offset % 2, pairs = (odd + run->count + 1) / 2;
    const uint8_t* value = pages.value(run->page, head, size) + (run->offset - odd) * size + column;
    const uint8_t* ahead = value;
    int64_t pairs_ahead = 0;
    if (run_ahead) {
      ahead = pages.value(run_ahead->page, next.head, size) + run_ahead->offset * size + column;
      pairs_ahead = (run_ahead->count + 1) / 2;
    }
    const uint16_t* weight = weights + run->place - odd;
    auto add = [&](int64_t t, int s) __attribute__((always_inline)) {
      if (t < pairs_ahead && column % (2 * GROUP) == 0) {
#pragma GCC unroll 4
        for (int w = 0; w < W; w += 2) {
          fetch(ahead + 2 * t * size + w * GROUP);
          if (size > GROUP) fetch(ahead + (2 * t + 1) * size + w * GROUP);
        }
      }
#pragma GCC unroll 4
      for (int w = 0; w < W; w++) {
        const __m512i first = load_group(value + 2 * t * size + w * GROUP);
        const __m512i second = load_group(value + (2 * t + 1) * size + w * GROUP);
        const __m512bh a = (__m512bh)_mm512_unpacklo_epi16(first, second);
        const __m512bh b = (__m512bh)_mm512_unpackhi_epi16(first, second);
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
          const __m512bh factor = (__m512bh)_mm512_set1_epi32(((const Pair*)(weight + g * CHUNK_TOKENS))[t]);
          sum[s][g][w][0] = _mm512_dpbf16_ps(sum[s][g][w][0], a, factor);
          sum[s][g][w][1] = _mm512_dpbf16_ps(sum[s][g][w][1], b, factor);
        }
      }
    };
    int64_t t = 0;
    for (; t + TURNS <= pairs; t += TURNS)
#pragma GCC unroll 4
      for (int s = 0; s < TURNS; s++) add(t + s, s);
    for (; t < pairs; t++) add(t, 0);
  }
  const __m512 unit = _mm512_set1_ps(UNIT_OF<uint8_t>);
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) {
#pragma GCC unroll 4
      for (int s = 1; s < TURNS; s++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) sum[0][g][w][i] = _mm512_add_ps(sum[0][g][w][i], sum[s][g][w][i]);
      const __m512 a = _mm512_mul_ps(sum[0][g][w][0], unit), b = _mm512_mul_ps(sum[0][g][w][1], unit);
      float* to = out + g * size + column + w * GROUP;
      _mm512_storeu_ps(to, _mm512_permutex2var_ps(a, low, b));
      _mm512_storeu_ps(to + LANES, _mm512_permutex2var_ps(a, high, b));
    }
}

// Exponentials as pages of such numbers are weighed with: as they are, or the same place's bfloat16 of G heads.
template <int G>
const float* weights_for(const Pages<uint16_t>&, float* exponentials, int64_t, int64_t) { return exponentials; }

template <int G>
const uint16_t* weights_for(const Pages<uint8_t>&, float* exponentials, int64_t first, int64_t last) {
  uint16_t* weights = (uint16_t*)exponentials;
  for (int g = 0; g < G; g++)
    for (int64_t i = first / LANES * LANES; i < last; i += LANES)
      store(weights + g * CHUNK_TOKENS + i, _mm512_load_ps(exponentials + g * CHUNK_TOKENS + i));
  return weights;
}

// G query heads of one KV head over a chunk.
template <int G, class Number>
void attend_heads(const uint16_t* query, const Chunk& chunk, const Heads& heads, const Pages<Number>& pages,
                  int64_t head, float* largest, float* sum, float* values, Ahead next) {
  alignas(64) float logits[G * CHUNK_TOKENS];
  constexpr int MOST = 8 / G < 4 ? 8 / G : 4;  // groups of keys at once
  auto groups_of = [](const Run& run) { return (run.offset % GROUP + run.count + GROUP - 1) / GROUP; };
  auto keys_of = [&](const Run& run, int64_t head) {  // whole groups: what is not in the run is left out afterwards
    return pages.key(run.page, head, heads.size) + run.offset / GROUP * GROUP;
  };
  for (int64_t number = 0; number < chunk.count; number++) {
    const Run &run = chunk.runs[number], *run_ahead = next.run(number);
    const Number *key = keys_of(run, head), *ahead = run_ahead ? keys_of(*run_ahead, next.head) : key;
    int64_t lines = run_ahead ? groups_of(*run_ahead) : 0;
    float* to = logits + run.place / GROUP * GROUP;
    for (int64_t groups = groups_of(run), n; groups > 0; groups -= n, key += n * GROUP, to += n * GROUP) {
      n = groups >= MOST ? MOST : 1;
      const int64_t share = n < groups ? std::min(n, lines) : lines;  // the last one fetches what is left
      (n == MOST ? dots<G, MOST, Number> : dots<G, 1, Number>)((const Pair*)query, key, heads, pages.tokens, to, ahead, share);
      ahead += share * GROUP;
      lines -= share;
    }
  }
  const Run& end = chunk.runs[chunk.count - 1];
  for (int g = 0; g < G; g++)
    exponentials(logits + g * CHUNK_TOKENS, chunk.runs[0].place, end.place + end.count, largest + g, sum + g);
  const auto* weights = weights_for<G>(pages, logits, chunk.runs[0].place, end.place + end.count);
  int64_t column = 0;
  constexpr int WIDE = MOST_HEADS / G;
  for (; column + WIDE * GROUP <= heads.size; column += WIDE * GROUP)
    weigh<G, WIDE>(weights, chunk, heads, pages, head, column, values, next);
  for (; column < heads.size; column += GROUP)
    weigh<G, 1>(weights, chunk, heads, pages, head, column, values, next);
}

// The query heads of one KV head over a chunk of their row's tokens.
template <class Number>
void attend(const uint16_t* query, const Chunk& chunk, const Heads& heads, const Pages<Number>& pages, int64_t head,
            Partial to, Ahead next) {
  const int64_t per_key = heads.per_key();
  for (int64_t done = 0; done < per_key; next = {nullptr, 0}) {
    const int64_t q = head * per_key + done, left = per_key - done;
    auto part = left >= 4 ? attend_heads<4, Number> : left >= 2 ? attend_heads<2, Number> : attend_heads<1, Number>;
    part(query + q * heads.size, chunk, heads, pages, head, to.largest + q, to.sum + q, to.values + q * heads.size,
         next);
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
