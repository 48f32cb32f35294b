// How both directions of the pyramid's convolution cut their work; internal linkage, as in scalar.h.
//
// A task is a tile of kTile output channels, side by side in one vector. For each image it keeps
//   products (9 taps, cells, kTile): Q, level after level;
//   rows (rows, W, kTile): Q contracted along x; level b has 3 * height_b rows, row 3 * i + dy.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/pyramid_conv3x3.h"
#include "cpu/pyramid_weights.h"
#include "cpu/scalar.h"

namespace psp_fast {
namespace {

constexpr int64_t kTile = 16;
constexpr int64_t kTaps = 9;

#if defined(__AVX512F__)
constexpr int kRegister = 64;
constexpr int kRegisters = 2;  // vectors of cells (or channels) a small product keeps for each of its 9 taps
#elif defined(__AVX2__)
constexpr int kRegister = 32;
constexpr int kRegisters = 1;
#else
constexpr int kRegister = 16;
constexpr int kRegisters = 1;
#endif

template <class A>
constexpr int kLanes = kRegister / static_cast<int>(sizeof(A));
// Cells (and channels) are padded to what a small product handles at a time.
template <class A>
constexpr int64_t kStep = kRegisters * kLanes<A>;

template <class A>
using Tile = typename Lanes<A, kTile>::type;

template <class V, class A>
inline void read(V& value, const A* p) {
  std::memcpy(&value, p, sizeof value);
}

template <class V, class A>
inline void write(A* p, const V& value) {
  std::memcpy(p, &value, sizeof value);
}

// sum += weight * what lies at p.
template <class V, class A>
inline void add_scaled(V& sum, A weight, const A* p) {
  V value;
  read(value, p);
  sum += weight * value;
}

// As above, the sum in memory too.
template <class V, class A>
inline void add_scaled_to(A* to, A weight, const A* p) {
  V sum;
  read(sum, to);
  add_scaled(sum, weight, p);
  write(to, sum);
}

template <class A>
void clear(A* x, int64_t count) {
  for (int64_t k = 0; k < count; ++k) x[k] = 0;
}

// Where one level's part begins in each array.
struct LevelPlace {
  int64_t cells;         // of one image
  int64_t padded;        // cells of all images, rounded up to kStep
  int64_t channels;      // rounded up to kStep
  int64_t first_cell;    // cells of earlier levels, all images
  int64_t first_padded;  // padded cells of earlier levels
  int64_t first_row;
  int64_t first_channel;
  int64_t packed;  // c * padded of earlier levels
  int64_t turned;  // cells of all images * channels of earlier levels
};

template <class A>
class Places {
 public:
  explicit Places(const PyramidConvArgs& args) : places_(1, args.levels.count + 1) {
    const auto up = [](int64_t count) { return (count + kStep<A> - 1) / kStep<A> * kStep<A>; };
    LevelPlace next{};
    for (int32_t l = 0; l < args.levels.count; ++l) {
      const PyramidLevel& level = args.levels.level[l];
      next.cells = level.height * level.width;
      next.padded = up(args.n * next.cells);
      next.channels = up(level.c);
      places_.of(0)[l] = next;
      next.first_cell += args.n * next.cells;
      next.first_padded += next.padded;
      next.first_row += 3 * level.height;
      next.first_channel += level.c;
      next.packed += level.c * next.padded;
      next.turned += args.n * next.cells * next.channels;
    }
    places_.of(0)[args.levels.count] = next;  // the sums over all levels
  }
  const LevelPlace& operator[](int32_t level) const { return places_.of(0)[level]; }

 private:
  Scratch<LevelPlace> places_;
};

// One term of the contraction along y: row `row` with this weight.
template <class A>
struct RowTerm {
  int64_t row;
  A weight;
};

// The terms of every row of the map, at most 6 a level.
template <class A>
class RowTerms {
 public:
  RowTerms(const PyramidConvArgs& args, const Places<A>& places)
      : terms_(args.height, 6 * args.levels.count), counts_(1, args.height) {
    const AxisBlends<A> blends(args.levels, &PyramidLevel::height, args.height, args.align_corners);
    for (int64_t h = 0; h < args.height; ++h) {
      RowTerm<A>* next = terms_.of(h);
      for (int32_t l = 0; l < args.levels.count; ++l) {
        for (int64_t dy = 0; dy < 3; ++dy) {
          if (h + dy < 1 || h + dy > args.height) continue;
          const Blend<A>& b = blends.of(l)[h + dy - 1];
          for (int k = 0; k < 2; ++k) *next++ = {places[l].first_row + 3 * b.cell[k] + dy, b.weight[k]};
        }
      }
      counts_.of(0)[h] = next - terms_.of(h);
    }
  }
  const RowTerm<A>* begin(int64_t h) const { return terms_.of(h); }
  const RowTerm<A>* end(int64_t h) const { return begin(h) + counts_.of(0)[h]; }

 private:
  Scratch<RowTerm<A>> terms_;
  Scratch<int64_t> counts_;
};

// The offset of each tap in a weight.
struct Taps {
  int64_t offset[kTaps];
  explicit Taps(const PyramidWeight& weight) {
    for (int64_t t = 0; t < kTaps; ++t) offset[t] = t / 3 * weight.stride_y + t % 3 * weight.stride_x;
  }
};

// Calls f(product, row, weight) for every term of the contraction along x of one image: `product` and `row` are where
// the vectors of the term begin in products and rows.
template <class A, class F>
void for_column_terms(const PyramidConvArgs& args, const Places<A>& places, const AxisBlends<A>& columns, int64_t n,
                      int32_t l, F f) {
  const PyramidLevel& level = args.levels.level[l];
  const LevelPlace& place = places[l];
  const int64_t all_cells = args.n * place.cells;
  for (int64_t r = 0; r < 3 * level.height; ++r) {
    const int64_t tap = r % 3 * 3;
    const int64_t first = place.first_cell * kTaps + n * place.cells + r / 3 * level.width;
    for (int64_t w = 0; w < args.width; ++w) {
      const int64_t row = ((place.first_row + r) * args.width + w) * kTile;
      for (int64_t dx = 0; dx < 3; ++dx) {
        if (w + dx < 1 || w + dx > args.width) continue;
        const Blend<A>& b = columns.of(l)[w + dx - 1];
        for (int k = 0; k < 2; ++k) f((first + (tap + dx) * all_cells + b.cell[k]) * kTile, row, b.weight[k]);
      }
    }
  }
}

}  // namespace
}  // namespace psp_fast
