// New keys and values of any number of tokens into pages of bytes, as a decode step keeps those of its own.

#include <cstdint>

#include "attention.h"

// keys and values (tokens, heads, size), tokens `stride` numbers apart; slots (tokens): where each goes, or negative.
extern "C" void keep_tokens(const uint16_t* keys, int64_t key_stride, const uint16_t* values, int64_t value_stride,
                            const int64_t* slots, int64_t tokens, uint8_t* first, int64_t page_stride, int64_t page,
                            int64_t heads, int64_t size) {
  const Pages<uint8_t> pages{first, page_stride, page};
#pragma omp parallel for schedule(static) if (tokens > 1)
  for (int64_t token = 0; token < tokens; token++) {
    if (slots[token] < 0) continue;
    for (int64_t head = 0; head < heads; head++)
      keep({heads, heads, size, 0}, pages, slots[token], head, keys + token * key_stride + head * size,
           values + token * value_stride + head * size);
  }
}
