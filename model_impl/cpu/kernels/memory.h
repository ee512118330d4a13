// What the kernels share: memory that a thread keeps between calls, registers of float32, and bfloat16 to those.

#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

constexpr int LANES = 16;  // float32 in a register

// Memory at a page's start that grows as needed; what is in it does not outlast `need`.
class Buffer {
 public:
  ~Buffer() { free(data_); }

  void* need(size_t bytes) {
    if (bytes > size_) {
      free(data_);
      size_ = (bytes + 4095) / 4096 * 4096;
      data_ = aligned_alloc(4096, size_);
      if (!data_) throw std::bad_alloc();  // ends the process: nobody could go on without it
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

inline __m512 widen(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

}  // namespace
