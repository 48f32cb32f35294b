// How batch norm's maps are cut, and sums over the pieces; internal linkage, as in scalar.h.
#pragma once

#include "cpu/parallel.h"
#include "cpu/scalar.h"
#include "cpu/sync_batch_norm_relu.h"
#include "cpu/sync_batch_norm_relu_stream.h"

namespace psp_fast {
namespace {

// A parameter that all lanes share, where a pointer is a parameter for each lane.
template <class A>
struct Same {
  A value;
  A operator[](int64_t) const { return value; }
};
template <class A>
Same(A) -> Same<A>;

// Rows of `lanes` values that lie side by side; one row begins `stride` after the other.
struct Tile {
  int64_t rows, lanes, stride;
};

// A stretch of a channel's plane is summed as rows of kLanes: many sums at once are fast, and exact.
constexpr int64_t kLanes = 64;
constexpr int64_t kStretch = 64 * kLanes;  // of one plane: fits the L1 cache

// Calls f(tile, first element) for the one or two tiles that make up a stretch.
template <class F>
[[gnu::always_inline]] inline void for_tiles(int64_t length, F f) {
  const int64_t rows = length / kLanes, rest = length % kLanes;
  if (rows > 0) f(Tile{rows, kLanes, kLanes}, int64_t{0});
  if (rest > 0) f(Tile{1, rest, kLanes}, rows * kLanes);
}

template <class A>
void clear(A* sum, int64_t lanes) {
  for (int64_t k = 0; k < lanes; ++k) sum[k] = 0;
}

// The sum of kLanes values, always in the same order; clears them.
template <class A>
double collect(A* sum) {
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t k = 0; k < width; ++k) sum[k] += sum[k + width];
  }
  const double total = sum[0];
  clear(sum, kLanes);
  return total;
}

// How the rows of a channels-last map (one a pixel) are cut: into blocks that stay in the cache, and those into
// sections, the pieces of parallel work. Both depend on the shape alone, so that sums do not depend on the threads.
struct RowBlocks {
  int64_t rows, block, blocks, sections;

  explicit RowBlocks(const BatchNormArgs& args) : rows(args.n * args.pixels) {
    constexpr int64_t kElements = 1 << 14, kLeast = 8, kMost = 256, kSections = 64;  // sums of few are exact
    const int64_t wanted = args.c > 0 ? kElements / args.c : kMost;
    block = wanted < kLeast ? kLeast : wanted > kMost ? kMost : wanted;
    blocks = (rows + block - 1) / block;
    sections = blocks < kSections ? blocks : kSections;
  }

  int64_t first_block(int64_t section) const { return blocks * section / sections; }
  int64_t first_row(int64_t b) const { return b < blocks ? b * block : rows; }
  int64_t rows_of(int64_t section) const {
    return first_row(first_block(section + 1)) - first_row(first_block(section));
  }
};

template <class A>
A scale_of(const BatchNormArgs& args, int64_t c) {
  const A *invstd = static_cast<const A*>(args.invstd), *weight = static_cast<const A*>(args.weight);
  return weight == nullptr ? invstd[c] : weight[c] * invstd[c];
}

template <class A>
A shift_of(const BatchNormArgs& args, int64_t c) {
  return args.bias == nullptr ? A(0) : static_cast<const A*>(args.bias)[c];
}

// What each channel is normalised by: (x - mean) * scale + shift.
template <class A>
struct Scales {
  const A* mean;
  Scratch<A> memory;
  A *scale, *shift;

  explicit Scales(const BatchNormArgs& args)
      : mean(static_cast<const A*>(args.mean)), memory(1, 2 * args.c), scale(memory.of(0)), shift(scale + args.c) {
    for (int64_t c = 0; c < args.c; ++c) {
      scale[c] = scale_of<A>(args, c);
      shift[c] = shift_of<A>(args, c);
    }
  }
};

constexpr int64_t kPiece = 512;  // results that stay in the L1 cache until they are written

// Cuts a run into pieces: calls f(first, number) for each.
template <class F>
[[gnu::always_inline]] inline void for_pieces(int64_t length, F f) {
  for (int64_t at = 0; at < length; at += kPiece) f(at, length - at < kPiece ? length - at : kPiece);
}

// Whether this layer's results are written past the caches.
[[maybe_unused]] inline bool streams(const BatchNormArgs& args) {
  const int64_t run = args.channels_last ? args.c : args.pixels;
  return streams(args.n * args.c * args.pixels * size_of(args.dtype)) && run >= 64;
}

// Where a run of results is written: in pieces, by way of a buffer if the map is streamed.
template <class T>
struct Output {
  T* to;  // may be null: nothing is written
  bool streamed;
  alignas(64) T buffer[kPiece];

  Output(void* map, int64_t first, bool streamed)
      : to(map == nullptr ? nullptr : static_cast<T*>(map) + first), streamed(streamed) {}

  T* piece(int64_t at) { return to == nullptr ? nullptr : streamed ? buffer : to + at; }
  void finish(int64_t at, int64_t count) {
    if (to != nullptr && streamed) stream(to + at, buffer, count * static_cast<int64_t>(sizeof(T)));
  }
};

// Calls f(first element, number of elements, channel) for every plane, or every pixel of a channels-last map, these
// from the last: the pass before this one went forward and has left them in the caches. channel(vector of C, k) are the
// parameters of the run's elements from k on.
template <class F>
void for_runs(const BatchNormArgs& args, F f) {
  if (!args.channels_last) {
    const int64_t planes = args.n * args.c;
    [[maybe_unused]] const int64_t share = planes / (8 * args.threads) + 1;
#pragma omp parallel for num_threads(args.threads) schedule(dynamic, share)
    for (int64_t plane = 0; plane < planes; ++plane) {
      const int64_t c = plane % args.c;
      f(plane * args.pixels, args.pixels, [c](const auto* vector, int64_t) { return Same{vector[c]}; });
      end_streaming();
    }
    return;
  }
  const RowBlocks cut(args);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic)
  for (int64_t i = 0; i < cut.blocks; ++i) {
    const int64_t b = cut.blocks - 1 - i;
    for (int64_t row = cut.first_row(b); row < cut.first_row(b + 1); ++row) {
      f(row * args.c, args.c, [](const auto* vector, int64_t at) { return vector + at; });
    }
    end_streaming();
  }
}

}  // namespace
}  // namespace psp_fast
