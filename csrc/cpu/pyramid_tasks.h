// Work shared by the directions of pyramid pooling; internal linkage, as in scalar.h.
#pragma once

#include "cpu/parallel.h"
#include "cpu/pyramid_pool.h"

namespace psp_fast {
namespace {

constexpr int64_t kLanes = 2048;  // channels a channels-last task handles at a time: their sums stay in the L1 cache

// The number of cells of all levels before `level`.
[[maybe_unused]] int64_t cells_before(const PyramidPlan& plan, int32_t level) {
  int64_t cells = 0;
  for (int32_t l = 0; l < level; ++l) cells += static_cast<int64_t>(plan.bins[l]) * plan.bins[l];
  return cells;
}

// How many pixels each window has, level after level.
template <class A>
class Areas {
 public:
  explicit Areas(const PyramidPlan& plan) : memory_(1, cells_before(plan, plan.levels)) {
    A* next = memory_.of(0);
    for (int32_t level = 0; level < plan.levels; ++level) {
      for (int32_t i = plan.first[level]; i < plan.first[level + 1]; ++i) {
        for (int32_t j = plan.first[level]; j < plan.first[level + 1]; ++j) {
          *next++ = static_cast<A>(length(plan.row, i)) * static_cast<A>(length(plan.column, j));
        }
      }
    }
  }
  const A* of(int64_t cell) const { return memory_.of(0) + cell; }

 private:
  static int32_t length(const AxisPlan& axis, int32_t cell) {
    return axis.edge[axis.window[2 * cell + 1]] - axis.edge[axis.window[2 * cell]];
  }

  Scratch<A> memory_;
};

[[maybe_unused]] int64_t rectangles(const PyramidPlan& plan) {
  return static_cast<int64_t>(plan.row.segments) * plan.column.segments;
}

// How a channels-last map is cut into tasks: one rectangle of one image, a block of its channels.
struct BlockTasks {
  int64_t block, blocks, rectangles, count;

  explicit BlockTasks(const PyramidPoolArgs& args) : rectangles(psp_fast::rectangles(args.plan)) {
    const int64_t wanted = args.c * args.n * rectangles / (4 * args.threads);  // about four tasks a thread, or more
    block = wanted < 64 ? 64 : wanted > kLanes ? kLanes : (wanted + 63) / 64 * 64;
    blocks = (args.c + block - 1) / block;
    count = args.n * rectangles * blocks;
  }
};

// One task: rows [h, h_end) and columns [w, w_end) of image n, `lanes` channels from c on; r and s are its segments.
struct BlockTask {
  int64_t n, c, lanes;
  int32_t r, s, h, h_end, w, w_end;

  BlockTask(const PyramidPoolArgs& args, const BlockTasks& tasks, int64_t task) {
    const AxisPlan& row = args.plan.row;
    const AxisPlan& column = args.plan.column;
    const int64_t box = task / tasks.blocks % tasks.rectangles;
    n = task / tasks.blocks / tasks.rectangles;
    c = task % tasks.blocks * tasks.block;
    lanes = args.c - c < tasks.block ? args.c - c : tasks.block;
    r = static_cast<int32_t>(box / column.segments);
    s = static_cast<int32_t>(box % column.segments);
    h = row.edge[r];
    h_end = row.edge[r + 1];
    w = column.edge[s];
    w_end = column.edge[s + 1];
  }

  int64_t offset(const PyramidPoolArgs& args, int64_t row, int64_t column) const {
    return n * args.stride_n + row * args.stride_h + column * args.stride_w + c;
  }
};

}  // namespace
}  // namespace psp_fast
