#include "pyramid_plan.h"

#include <algorithm>
#include <numeric>

namespace psp_fast {
namespace {

int32_t window_begin(int64_t i, int64_t length, int64_t bins) { return static_cast<int32_t>(i * length / bins); }

int32_t window_end(int64_t i, int64_t length, int64_t bins) {
  return static_cast<int32_t>(((i + 1) * length + bins - 1) / bins);
}

std::vector<int32_t> axis_edges(int32_t length, const std::vector<int32_t>& bins) {
  std::vector<int32_t> edges;
  for (int32_t b : bins) {
    for (int32_t i = 0; i < b; ++i) {
      edges.push_back(window_begin(i, length, b));
      edges.push_back(window_end(i, length, b));
    }
  }
  std::sort(edges.begin(), edges.end());
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
  return edges;
}

int32_t position(const std::vector<int32_t>& edges, int32_t edge) {
  return static_cast<int32_t>(std::lower_bound(edges.begin(), edges.end(), edge) - edges.begin());
}

}  // namespace

PyramidPlanStorage::PyramidPlanStorage(int32_t height, int32_t width, const std::vector<int32_t>& bins)
    : levels_(static_cast<int32_t>(bins.size())), cells_(std::accumulate(bins.begin(), bins.end(), 0)) {
  length_[0] = height;
  length_[1] = width;
  numbers_ = bins;
  numbers_.push_back(0);
  std::partial_sum(bins.begin(), bins.end(), std::back_inserter(numbers_));
  add_axis(0, bins);
  add_axis(1, bins);
}

void PyramidPlanStorage::add_axis(int axis, const std::vector<int32_t>& bins) {
  const int32_t length = length_[axis];
  const std::vector<int32_t> edges = axis_edges(length, bins);
  const int32_t segments = segments_[axis] = static_cast<int32_t>(edges.size()) - 1;
  numbers_.insert(numbers_.end(), edges.begin(), edges.end());
  for (int32_t r = 0; r < segments; ++r) numbers_.insert(numbers_.end(), edges[r + 1] - edges[r], r);
  for (int32_t b : bins) {
    for (int32_t i = 0; i < b; ++i) {
      numbers_.push_back(position(edges, window_begin(i, length, b)));
      numbers_.push_back(position(edges, window_end(i, length, b)));
    }
  }
  for (int64_t b : bins) {
    for (int32_t r = 0; r < segments; ++r) {  // all positions of a segment are covered by the same cells
      const int64_t h = edges[r];
      numbers_.push_back(static_cast<int32_t>(h * b / length));
      numbers_.push_back(static_cast<int32_t>(((h + 1) * b + length - 1) / length));
    }
  }
}

PyramidPlan PyramidPlanStorage::at(const int32_t* base) const {
  PyramidPlan plan{};
  plan.levels = levels_;
  plan.bins = base;
  plan.first = plan.bins + levels_;
  const int32_t* next = plan.first + levels_ + 1;
  for (int axis = 0; axis < 2; ++axis) {
    AxisPlan& a = axis == 0 ? plan.row : plan.column;
    a.length = length_[axis];
    a.segments = segments_[axis];
    a.edge = next;
    a.segment = a.edge + a.segments + 1;
    a.window = a.segment + a.length;
    a.cover = a.window + 2 * cells_;
    next = a.cover + 2 * levels_ * a.segments;
  }
  return plan;
}

}  // namespace psp_fast
