// Attention of one token as a decode step computes it, for steps in which others compute prompts.

#pragma once

#include <cstdint>

struct Token {
  const uint16_t* query;  // (queries, size)
  uint16_t* out;
  const int32_t* table;  // pages of its request
  int64_t length;        // tokens of the request, this one included
};

struct Layout {
  const void* pages;
  int64_t page_number, page_stride, page_tokens;  // bytes of a number, numbers between pages
  int64_t queries, keys, size;
  float scale;
  int64_t window;  // 0: everything
};

// The same bits as in a decode step.
void attend_token(const Layout& layout, const Token& token);
