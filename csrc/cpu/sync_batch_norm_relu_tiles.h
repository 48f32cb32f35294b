// How batch norm's maps are cut, and their channels' parameters; internal linkage, as in scalar.h.
#pragma once

#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/sync_batch_norm_relu.h"
#include "cpu/sync_batch_norm_relu_lanes.h"

namespace psp_fast {
namespace {

constexpr int64_t kStretch = 64 * 64;  // of one plane: fits the L1 cache, and sums of 64 values a lane lose little

template <class A>
void clear(A* sum, int64_t count) {
  for (int64_t k = 0; k < count; ++k) sum[k] = 0;
}

// Calls f(first, length) for the stretches of a plane.
template <class F>
[[gnu::always_inline]] inline void for_stretches(int64_t pixels, F f) {
  for (int64_t first = 0; first < pixels; first += kStretch) {
    f(first, pixels - first < kStretch ? pixels - first : kStretch);
  }
}

// Calls f(row, number) for rows [first, last), four at a time as long as there are so many: what all rows share, such
// as a channel's parameters, is then read once for four.
template <class F>
[[gnu::always_inline]] inline void for_rows(int64_t first, int64_t last, F f) {
  for (; first + 4 <= last; first += 4) f(first, std::integral_constant<int, 4>{});
  for (; first < last; ++first) f(first, std::integral_constant<int, 1>{});
}

// How the rows of a channels-last map (one a pixel) are cut: into blocks that stay in the cache, and those into
// sections, the pieces of parallel work. Both depend on the shape alone, so that sums do not depend on the threads.
struct RowBlocks {
  int64_t rows, block, blocks, sections;

  explicit RowBlocks(const BatchNormArgs& args) : rows(args.n * args.pixels) {
    constexpr int64_t kElements = 1 << 14, kLeast = 8, kMost = 256, kSections = 64;  // sums of few lose little
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

// Whether this layer's results are written past the caches: maps too large to be found there by who reads them next,
// whose vectors are aligned.
inline bool streams(const BatchNormArgs& args, const void* result) {
  constexpr int64_t kLarge = 8 << 20, kAligned = 64;  // as stream needs it
  const bool aligned =
      reinterpret_cast<uintptr_t>(result) % kAligned == 0 && (!args.channels_last || args.c % kLanes == 0);
  return aligned && args.n * args.c * args.pixels * size_of(args.dtype) >= kLarge;
}

// ReLU's mask of one run, a bit an element: of a plane, whose vectors are those of the whole map, or of a row.
inline int64_t mask_words(const BatchNormArgs& args) {
  return args.channels_last ? (args.c + kLanes - 1) / kLanes : (args.pixels + kLanes - 1) / kLanes + 1;
}
template <class Span>
[[gnu::always_inline]] inline int64_t mask_word(Span span, int64_t offset) {
  return (span.at + offset) / kLanes;
}

// How many of so many planes or channels a thread takes at a time: neighbours, so that what is fetched ahead is its
// own.
inline int64_t share_of(const BatchNormArgs& args, int64_t count) {
  const int64_t shares = 8 * args.threads;
  return count > shares ? (count + shares - 1) / shares : 1;
}

// Calls f(plane, channel) for all planes.
template <class F>
void for_planes(const BatchNormArgs& args, F f) {
  const int64_t planes = args.n * args.c;
  [[maybe_unused]] const int64_t share = share_of(args, planes);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic, share)
  for (int64_t plane = 0; plane < planes; ++plane) {
    f(plane, plane % args.c);
    end_streaming();
  }
}

// Calls f(row) for all rows, from the last block: the pass before this one went forward and has left it in the caches.
template <class F>
void for_rows_backwards(const BatchNormArgs& args, F f) {
  const RowBlocks cut(args);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic)
  for (int64_t i = 0; i < cut.blocks; ++i) {
    const int64_t b = cut.blocks - 1 - i;
    for (int64_t row = cut.first_row(b); row < cut.first_row(b + 1); ++row) f(row);
    end_streaming();
  }
}

}  // namespace
}  // namespace psp_fast
