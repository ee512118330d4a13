// How weights are packed and made compact; weights.h says what for. Packed are a Header, compact ones' Groups, the groups'
// weights and the rare weights.

#include "weights.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "tiles.h"

struct Header {
  int64_t columns, pairs, compact, groups_at, weights_at, rare_at;  // places in bytes
  int64_t unused[2];                                                // to a cache line
};

namespace {

constexpr int64_t CACHED_BYTES = 4 << 20;  // a larger matrix passes by the caches: its model does not fit into them

struct Group {
  uint8_t keys[KEYS];
  int64_t first_rare, rares;
};

constexpr int64_t THREADED = 1'000'000;  // weights of looked-up columns that are worth a thread

bool wanted = true;  // tests ask for the other way

struct Matrix {
  const uint16_t* values;  // (columns, k)
  int64_t columns, k;

  int64_t groups() const { return (columns + COLUMNS - 1) / COLUMNS; }
  int64_t padded() const { return (columns + LANES - 1) / LANES * LANES; }
  int64_t bytes() const { return 2 * padded() * k; }
  int64_t width(int64_t group) const { return std::min<int64_t>(COLUMNS, padded() - group * COLUMNS); }
  int64_t column(int64_t group, int64_t i) const {  // those that are not there repeat the group's first
    return group * COLUMNS + i < columns ? group * COLUMNS + i : group * COLUMNS;
  }
};

int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// The upper halves that most of a group's weights have, and how many weights have another.
Group keys_of(const Matrix& matrix, int64_t index) {
  uint32_t counts[4][256] = {};  // four, as one would wait for its own last addition
  for (int64_t c = 0; c < matrix.width(index); c++) {
    const uint16_t* row = matrix.values + matrix.column(index, c) * matrix.k;
    for (int64_t i = 0; i < matrix.k; i++) counts[i % 4][row[i] >> 8]++;
  }
  int64_t total[256];
  int order[256];
  for (int i = 0; i < 256; i++) total[i] = (int64_t)counts[0][i] + counts[1][i] + counts[2][i] + counts[3][i];
  std::iota(order, order + 256, 0);
  std::partial_sort(order, order + KEYS, order + 256, [&](int a, int b) { return total[a] > total[b]; });
  Group group{{}, 0, matrix.width(index) * matrix.k};
  for (int i = 0; i < KEYS; i++) {
    group.keys[i] = (uint8_t)order[i];
    group.rares -= total[order[i]];
  }
  return group;
}

// Empty where the matrix is better left as it is.
std::vector<Group> groups_of(const Matrix& matrix) {
  if (multiplies_in_tiles() || matrix.bytes() <= CACHED_BYTES || matrix.k % (2 * UNIT)) return {};
  std::vector<Group> groups(matrix.groups());
#pragma omp parallel for schedule(static)
  for (int64_t g = 0; g < (int64_t)groups.size(); g++) groups[g] = keys_of(matrix, g);
  int64_t rares = 0;
  for (Group& group : groups) {
    group.first_rare = rares;
    rares += group.rares;
  }
  return rares * (int64_t)sizeof(Rare) > matrix.bytes() / 16 ? std::vector<Group>() : groups;
}

Header header_of(const Matrix& matrix, const std::vector<Group>& groups) {
  Header header{matrix.columns, matrix.k / 2, !groups.empty(), sizeof(Header), 0, 0, {}};
  header.weights_at = whole_lines(header.groups_at + groups.size() * sizeof(Group));
  header.rare_at = header.weights_at + (groups.empty() ? matrix.bytes() : matrix.bytes() / (2 * BLOCK) * BLOCK_BYTES);
  return header;
}

void pack_group(const Matrix& matrix, int64_t group, uint16_t* to) {
  const int64_t width = matrix.width(group);
  for (int64_t c = 0; c < width; c++) {
    const uint16_t* row = matrix.values + matrix.column(group, c) * matrix.k;
    for (int64_t i = 0; i < matrix.k; i++) to[(i / 2 * width + c) * 2 + i % 2] = row[i];
  }
}

// Where the weight at `i` of a block has its lower half, so that unpacking bytes within 128 bits restores the order.
int64_t place_in_block(int64_t i) { return i / 64 * 64 + i % 32 / 8 * 16 + i % 64 / 32 * 8 + i % 8; }

void compact_group(const uint16_t* values, int64_t count, const Group& group, uint8_t* to, Rare* rare) {
  int code_of[256];
  std::fill(code_of, code_of + 256, -1);
  for (int i = 0; i < KEYS; i++) code_of[group.keys[i]] = i;
  memset(to, 0, count / BLOCK * BLOCK_BYTES);
  for (int64_t i = 0; i < count; i++) {
    uint8_t* block = to + i / BLOCK * BLOCK_BYTES;
    const int64_t place = place_in_block(i % BLOCK);
    const int code = code_of[values[i] >> 8];
    if (code < 0) *rare++ = {(uint32_t)i, values[i], 0};
    block[place] = (uint8_t)values[i];
    block[BLOCK + place % 64] |= (uint8_t)(std::max(code, 0) << (place / 64 * 4));
  }
}

}  // namespace

bool multiplies_in_tiles() {
  static const bool granted = __builtin_cpu_supports("amx-bf16") && may_have_tiles();
  return granted && wanted;
}

bool Weights::are_for(int64_t columns, int64_t pairs) const {
  return header().columns == columns && header().pairs == pairs;
}

bool Weights::compact() const { return header().compact; }

bool Weights::past() const { return 4 * header().columns * header().pairs > CACHED_BYTES; }

int Weights::width(int64_t group) const {
  return (int)std::min<int64_t>(WIDTH, (header().columns - group * COLUMNS + LANES - 1) / LANES);
}

const uint8_t* Weights::at(int64_t group, int64_t pair) const {
  const int64_t before = group * WIDTH * header().pairs + pair * width(group);  // registers' weights
  return bytes_ + header().weights_at + before * (compact() ? BLOCK_BYTES / UNIT : BLOCK * 2 / UNIT);
}

int64_t Weights::unit_bytes(int64_t group) const { return width(group) * (compact() ? BLOCK_BYTES : BLOCK * 2); }

CompactReader Weights::reader(int64_t group) const {
  const Group& own = ((const Group*)(bytes_ + header().groups_at))[group];
  const Rare* first = (const Rare*)(bytes_ + header().rare_at) + own.first_rare;
  return {at(group, 0), own.keys, first, first + own.rares, 0};
}

void Weights::column(int64_t column, uint16_t* to) const {
  const int64_t group = column / COLUMNS, first = column % COLUMNS * 2, stride = width(group) * LANES * 2;
  if (!compact()) {
    const uint16_t* from = (const uint16_t*)at(group, 0) + first;
    for (int64_t p = 0; p < header().pairs; p++) memcpy(to + 2 * p, from + p * stride, 2 * sizeof(uint16_t));
    return;
  }
  const CompactReader own = reader(group);
  for (int64_t k = 0; k < 2 * header().pairs; k++) {
    const int64_t i = k / 2 * stride + first + k % 2, place = place_in_block(i % BLOCK);
    const uint8_t* block = own.from + i / BLOCK * BLOCK_BYTES;
    to[k] = (uint16_t)(own.keys[block[BLOCK + place % 64] >> (place / 64 * 4) & 0x0f] << 8 | block[place]);
  }
  for (const Rare* rare = own.rare; rare < own.end; rare++)
    if (rare->place % stride / 2 == first / 2) to[rare->place / stride * 2 + rare->place % 2] = rare->weight;
}

extern "C" {

// Whether weights that are packed from now on are multiplied in tiles: where `want` and the processor say so.
bool use_tiles(bool want) {
  wanted = want;
  return multiplies_in_tiles();
}

// The bytes that a packed matrix takes: weight (columns, k), contiguous, k even.
int64_t packed_size(const uint16_t* weight, int64_t columns, int64_t k) {
  const Matrix matrix{weight, columns, k};
  const std::vector<Group> groups = groups_of(matrix);
  const int64_t rares = groups.empty() ? 0 : groups.back().first_rare + groups.back().rares;
  return header_of(matrix, groups).rare_at + rares * (int64_t)sizeof(Rare);
}

// The same matrix to `packed`, of as many bytes, at a multiple of 64.
void pack(const uint16_t* weight, int64_t columns, int64_t k, uint8_t* packed) {
  const Matrix matrix{weight, columns, k};
  const std::vector<Group> groups = groups_of(matrix);
  const Header header = header_of(matrix, groups);
  memcpy(packed, &header, sizeof(header));
  if (!groups.empty()) memcpy(packed + header.groups_at, groups.data(), groups.size() * sizeof(Group));
#pragma omp parallel
  {
    std::vector<uint16_t> values(groups.empty() ? 0 : COLUMNS * k);
#pragma omp for schedule(static)
    for (int64_t g = 0; g < matrix.groups(); g++) {
      uint8_t* to = (uint8_t*)Weights(packed).at(g, 0);
      pack_group(matrix, g, groups.empty() ? (uint16_t*)to : values.data());
      if (!groups.empty())
        compact_group(values.data(), matrix.width(g) * k, groups[g], to,
                      (Rare*)(packed + header.rare_at) + groups[g].first_rare);
    }
  }
}

// The columns `ids`, weights of an embedding, to y (count, k). Those that there are not, are zeros.
void packed_lookup(const uint8_t* packed, const int64_t* ids, int64_t count, uint16_t* y) {
  const Header& header = *(const Header*)packed;
  const int64_t k = 2 * header.pairs;
  const int threads = k * count < THREADED ? 1 : omp_get_max_threads();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < count; i++) {
    if (ids[i] >= 0 && ids[i] < header.columns)
      Weights(packed).column(ids[i], y + i * k);
    else
      memset(y + i * k, 0, k * sizeof(uint16_t));
  }
}

}  // extern "C"
