// How a map is cut for pyramid pooling. The edges of all windows of all levels cut each axis into segments; a pair of
// segments is an elementary rectangle, and every window is a block of whole rectangles. Windows are adaptive pooling's:
// window i of b covers floor(i * L / b) to ceil((i + 1) * L / b) of an axis of length L, so that windows overlap where
// b does not divide L.
#pragma once

#include <cstdint>
#include <vector>

namespace psp_fast {

// One axis. Pointers lead into the numbers of PyramidPlanStorage, or into a copy of them in device memory.
struct AxisPlan {
  int32_t length;
  int32_t segments;
  const int32_t* edge;     // (segments + 1): segment r is [edge[r], edge[r + 1])
  const int32_t* segment;  // (length): the segment of a position
  const int32_t* window;   // (cells, 2): first and end segment of cell i of level l, at first[l] + i
  const int32_t* cover;    // (levels, segments, 2): first and end cell of a level that cover a segment
};

struct PyramidPlan {
  int32_t levels;
  const int32_t* bins;   // (levels)
  const int32_t* first;  // (levels + 1): sum of the bins of earlier levels
  AxisPlan row, column;
};

// Builds and owns a plan. Bins and sides are at least 1.
class PyramidPlanStorage {
 public:
  PyramidPlanStorage(int32_t height, int32_t width, const std::vector<int32_t>& bins);

  // The plan with pointers into `base`: this object's numbers, or a copy of them elsewhere.
  PyramidPlan at(const int32_t* base) const;
  PyramidPlan here() const { return at(numbers_.data()); }
  const std::vector<int32_t>& numbers() const { return numbers_; }
  int32_t rectangles() const { return segments_[0] * segments_[1]; }

 private:
  void add_axis(int axis, const std::vector<int32_t>& bins);

  int32_t levels_, cells_;
  int32_t length_[2], segments_[2];
  std::vector<int32_t> numbers_;
};

}  // namespace psp_fast
