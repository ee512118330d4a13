// Draws a token per row of logits within temperature, min-p, top-k and top-p, as sampler_draw.py says it, in one pass
// over the row and a few over what is near the last token that is kept. No sort: the bits of positive floats are in
// their order, so the value of that token is searched among them, eight intervals at a time.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "memory.h"
#include "rows.h"

namespace {

constexpr int64_t BLOCK = 128;         // masses whose sum is one number of the draw
constexpr int INTERVALS = 8;           // that a search tells apart in one pass
constexpr int64_t FLUSH = 32;          // registers that are summed in float32 before they count in double
constexpr float SMALLEST = -100.0f;    // of an exponent: exp of less is nothing beside the largest mass, 1
constexpr int64_t THREADED = 1 << 15;  // logits that are worth a thread

struct Limits {
  double uniform, top_p, min_p;  // top_p 1, min_p 0: no limit
  int64_t top_k;                 // 0: no limit
};

inline int32_t bits_of(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Sums of what is at least `least` [INTERVALS] (ascending) of `count` values: their mass, or their number.
template <bool NUMBER>
void sums_above(const float* values, int64_t count, const float* least, double* sums) {
  std::fill(sums, sums + INTERVALS, 0.0);
  for (int64_t begin = 0; begin < count; begin += FLUSH * LANES) {
    const int64_t end = std::min(count, begin + FLUSH * LANES);
    __m512 sum[INTERVALS];
    for (int i = 0; i < INTERVALS; i++) sum[i] = _mm512_setzero_ps();
    for (int64_t at = begin; at < end; at += LANES) {
      const __mmask16 there = end - at >= LANES ? 0xffff : (1 << (end - at)) - 1;
      const __m512 value = _mm512_maskz_loadu_ps(there, values + at), unit = NUMBER ? _mm512_set1_ps(1.0f) : value;
#pragma GCC unroll 16
      for (int i = 0; i < INTERVALS; i++) {
        const __mmask16 above = _mm512_mask_cmp_ps_mask(there, value, _mm512_set1_ps(least[i]), _CMP_GE_OQ);
        sum[i] = _mm512_mask_add_ps(sum[i], above, sum[i], unit);
      }
    }
    for (int i = 0; i < INTERVALS; i++) sums[i] += _mm512_reduce_add_ps(sum[i]);
  }
}

// Those of `count` values that are in [least, limit), to `to`; how many they are.
int64_t select(const float* values, int64_t count, float least, float limit, float* to) {
  int64_t found = 0;
  for (int64_t at = 0; at < count; at += LANES) {
    const __mmask16 there = count - at >= LANES ? 0xffff : (1 << (count - at)) - 1;
    const __m512 value = _mm512_maskz_loadu_ps(there, values + at);
    const __mmask16 inside = _mm512_mask_cmp_ps_mask(there, value, _mm512_set1_ps(least), _CMP_GE_OQ) &
                             _mm512_mask_cmp_ps_mask(there, value, _mm512_set1_ps(limit), _CMP_LT_OQ);
    _mm512_storeu_ps(to + found, _mm512_maskz_compress_ps(inside, value));  // compressed stores are slow on Zen 4
    found += __builtin_popcount(inside);
  }
  return found;
}

// The largest value of which, with all that are larger, there is at least `goal`; `larger` is what those come to. Values
// are at most 1, and from `least` on there is enough. `room` takes as many values as there are.
template <bool NUMBER>
float search(const float* values, int64_t count, float least, double goal, float* room, double* larger) {
  int32_t low = bits_of(least), high = bits_of(1.0f) + 1;
  *larger = 0.0;
  while (high - low > 1) {
    const int32_t step = std::max((high - low) / INTERVALS, 1);
    float bounds[INTERVALS];
    double sums[INTERVALS];
    for (int i = 0; i < INTERVALS; i++) bounds[i] = float_of(std::min(low + (i + 1) * step, high));
    sums_above<NUMBER>(values, count, bounds, sums);
    int chosen = 0;  // the first interval above which there is not enough
    while (chosen < INTERVALS - 1 && *larger + sums[chosen] >= goal) chosen++;
    const bool beyond = *larger + sums[chosen] >= goal;  // the last, what the division left
    const int32_t end = beyond ? high : std::min(low + (chosen + 1) * step, high);
    if (!beyond) *larger += sums[chosen];
    low = std::min(low + (chosen + beyond) * step, high - 1);
    high = end;
    count = select(values, count, float_of(low), float_of(high), room);
    values = room;
  }
  return float_of(low);
}

// exp((logits - largest) / temperature), filled up with zeros to whole blocks; false where a row has no finite largest.
bool masses_of(const float* logits, int64_t count, float temperature, float* masses) {
  __m512 most = _mm512_set1_ps(-INFINITY);
  __mmask16 unknown = 0;
  for (int64_t at = 0; at < count; at += LANES) {
    const __mmask16 there = count - at >= LANES ? 0xffff : (1 << (count - at)) - 1;
    const __m512 value = _mm512_mask_loadu_ps(most, there, logits + at);
    unknown |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    most = _mm512_max_ps(most, value);
  }
  const float largest = _mm512_reduce_max_ps(most);
  if (unknown || !std::isfinite(largest)) return false;
  const __m512 top = _mm512_set1_ps(largest), divisor = _mm512_set1_ps(temperature);
  for (int64_t at = 0; at < count; at += LANES) {
    const __mmask16 there = count - at >= LANES ? 0xffff : (1 << (count - at)) - 1;
    const __m512 power = _mm512_div_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(there, logits + at), top), divisor);
    const __mmask16 counts = _mm512_mask_cmp_ps_mask(there, power, _mm512_set1_ps(SMALLEST), _CMP_GE_OQ);
    _mm512_storeu_ps(masses + at, _mm512_maskz_mov_ps(counts, exponential(power)));
  }
  for (int64_t at = (count + LANES - 1) / LANES * LANES; at % BLOCK; at++) masses[at] = 0.0f;
  return true;
}

inline double sum_of(const float* masses, int64_t count) {
  double sum = 0.0;
  for (int64_t at = 0; at < count; at += BLOCK) {
    __m512 part = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int64_t i = 0; i < BLOCK; i += LANES) part = _mm512_add_ps(part, _mm512_loadu_ps(masses + at + i));
    sum += _mm512_reduce_add_ps(part);
  }
  return sum;
}

// Sets what is below `smallest` to zero, and of what equals it all but the first `ties`.
void keep(float* masses, int64_t count, float smallest, int64_t ties) {
  for (int64_t at = 0; at < count; at += LANES) {
    const __m512 value = _mm512_loadu_ps(masses + at), bound = _mm512_set1_ps(smallest);
    __mmask16 kept = _mm512_cmp_ps_mask(value, bound, _CMP_GT_OQ);
    __mmask16 equal = _mm512_cmp_ps_mask(value, bound, _CMP_EQ_OQ);
    for (; equal && ties > 0; equal &= equal - 1, ties--) kept |= equal & -equal;
    _mm512_storeu_ps(masses + at, _mm512_maskz_mov_ps(kept, value));
  }
}

// At most the k-th largest mass: the k-th of those that are the largest of their blocks, or else `least`.
float kth_peak(const float* masses, int64_t count, int64_t k, float least, float* room) {
  if (k > count / BLOCK) return least;
  for (int64_t at = 0; at < count; at += BLOCK) {
    __m512 most = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int64_t i = 0; i < BLOCK; i += LANES) most = _mm512_max_ps(most, _mm512_loadu_ps(masses + at + i));
    room[at / BLOCK] = _mm512_reduce_max_ps(most);
  }
  double larger;
  return search<true>(room, count / BLOCK, least, (double)k, room, &larger);
}

// Sets what the limits leave out to zero. `room` takes as many values as there are.
void narrow(float* masses, int64_t count, const Limits& limits, float* room) {
  float smallest = std::max((float)limits.min_p, float_of(1));  // a mass of zero is never kept
  if ((double)smallest < limits.min_p) smallest = std::nextafter(smallest, 2.0f);
  const float* left = masses;  // what min-p and top-k leave: from `smallest` on, in the order of the ids
  int64_t number = count, ties = count;
  double larger;
  if (limits.top_k || limits.min_p > 0) {
    if (limits.top_k) smallest = kth_peak(masses, count, limits.top_k, smallest, room);
    number = select(masses, count, smallest, 2.0f, room);
    if (limits.top_k && number > limits.top_k) {
      smallest = search<true>(room, number, smallest, (double)limits.top_k, room, &larger);
      number = select(masses, count, smallest, 2.0f, room);
    }
    std::fill(room + number, room + (number + BLOCK - 1) / BLOCK * BLOCK, 0.0f);
    left = room;
  } else if (limits.top_p >= 1) {
    return;
  }
  if (limits.top_p < 1) {
    const double whole = sum_of(left, number), goal = limits.top_p * whole;
    const float spare = (float)((whole - goal) / number / 2);  // all that are smaller come to less than may be left out
    smallest = search<false>(left, number, std::max(smallest, spare), goal, room, &larger);
    ties = std::max<int64_t>(1, (int64_t)std::ceil((goal - larger) / smallest));
  }
  keep(masses, count, smallest, ties);
}

// Where the running sum passes the share of the whole.
int64_t pass(const float* masses, int64_t count, double share) {
  const double whole = sum_of(masses, count), goal = std::min(share * whole, std::nextafter(whole, 0.0));
  double before = 0.0, size = 0.0;
  int64_t block = 0;
  for (; block < count; block += BLOCK) {
    size = sum_of(masses + block, BLOCK);
    if (before + size > goal) break;
    before += size;
  }
  double inside = 0.0, running = 0.0;
  for (int64_t i = 0; i < BLOCK; i++) inside += masses[block + i];
  const double rest = std::min((goal - before) / size * inside, std::nextafter(inside, 0.0));
  for (int64_t i = 0; i < BLOCK; i++)
    if ((running += masses[block + i]) > rest) return block + i;
  return block;  // not reached: rest is below the last running sum
}

thread_local Buffer scratch;

}  // namespace

extern "C" {

// A token id for each of `count` rows of logits (rows, vocabulary), contiguous; -1 where a row has a nan or nothing finite
// at its top. Limits are those of sampler_draw.py, a value a row; null where no row has one.
void draw(const float* logits, const int64_t* rows, int64_t count, int64_t vocabulary, const float* temperature,
          const double* uniforms, const int64_t* top_k, const double* top_p, const double* min_p, int64_t* tokens) {
  const int64_t padded = (vocabulary + BLOCK - 1) / BLOCK * BLOCK;
  const int threads = (int)std::min<int64_t>({count, omp_get_max_threads(), count * vocabulary / THREADED + 1});
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < count; i++) {
    float* masses = (float*)scratch.need(2 * padded * sizeof(float));
    const int64_t k = top_k && top_k[i] < vocabulary ? top_k[i] : 0;
    const Limits limits{uniforms[i], top_p ? top_p[i] : 1.0, min_p ? min_p[i] : 0.0, k};
    if (!masses_of(logits + rows[i] * vocabulary, vocabulary, temperature[i], masses)) {
      tokens[i] = -1;
      continue;
    }
    narrow(masses, padded, limits, masses + padded);
    tokens[i] = pass(masses, padded, limits.uniform);
  }
}

}  // extern "C"
