// The levels of a pyramid and their bilinear interpolation to a map; internal linkage, as in scalar.h.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/pyramid_level.h"

namespace psp_fast {
namespace {

// A position between two cells of an axis. At the ends both are the same cell; the second term stays (0 * inf is NaN),
// so that values that are not finite spread as in PyTorch.
template <class A>
struct Blend {
  int32_t cell[2];
  A weight[2];
};

// PyTorch's coordinates, always in double; as there, a level of the map's own size is not interpolated.
template <class A>
Blend<A> blend(int64_t position, int64_t length, int64_t cells, bool align_corners) {
  if (cells == length) return {{static_cast<int32_t>(position), static_cast<int32_t>(position)}, {1, 0}};
  double source = 0;
  if (align_corners) {
    if (length > 1) source = static_cast<double>(cells - 1) / static_cast<double>(length - 1) * position;
  } else {
    source = static_cast<double>(cells) / static_cast<double>(length) * (position + 0.5) - 0.5;
    if (source < 0) source = 0;
  }
  int32_t low = static_cast<int32_t>(source);
  if (low > cells - 1) low = static_cast<int32_t>(cells - 1);
  double share = source - low;
  if (share > 1) share = 1;
  const int32_t high = low < cells - 1 ? low + 1 : low;
  return {{low, high}, {static_cast<A>(1 - share), static_cast<A>(share)}};
}

// The blends of every position of one axis, for every level.
template <class A>
class AxisBlends {
 public:
  AxisBlends(const PyramidLevels& levels, int64_t PyramidLevel::* cells, int64_t length, bool align_corners)
      : blends_(levels.count, length) {
    for (int32_t level = 0; level < levels.count; ++level) {
      for (int64_t p = 0; p < length; ++p) {
        blends_.of(level)[p] = blend<A>(p, length, levels.level[level].*cells, align_corners);
      }
    }
  }
  const Blend<A>* of(int32_t level) const { return blends_.of(level); }

 private:
  Scratch<Blend<A>> blends_;
};

}  // namespace
}  // namespace psp_fast
