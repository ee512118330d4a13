// Whether matrices can be multiplied in tiles: registers of 16 rows of 64 bytes, which some x86-64 have (AMX).

#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr int64_t TILE_ROWS = 16;

// Whether products are computed in tiles (weights.cpp).
bool multiplies_in_tiles();

// The shapes of a thread's tiles.
struct TileShapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];

  void set(int tile, int64_t its_rows, int64_t bytes) {
    palette = 1;
    rows[tile] = (uint8_t)its_rows;
    row_bytes[tile] = (uint16_t)bytes;
  }

  // All tiles have them from now on. GCC's intrinsic tells the compiler of the first 8 bytes alone.
  void use() const { asm volatile("ldtilecfg %0" : : "m"(*this)); }
};

static_assert(sizeof(TileShapes) == 64);

// Whether the system lets this process have tiles, where the processor has them.
inline bool may_have_tiles() {
#if defined(__linux__)
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // arch_prctl(2)
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return false;
#endif
}
