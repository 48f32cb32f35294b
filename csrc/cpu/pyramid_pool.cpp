// Compiled once for each instruction set, into the namespace PSP_FAST_CPU. All else in this file has internal linkage,
// and nothing of the standard library that would be emitted as a shared inline function may be used: the linker keeps
// one copy of those, and it could be the one for another instruction set.
#include "cpu/pyramid_reduce.h"
#include "cpu/pyramid_tasks.h"

namespace psp_fast {
namespace {

// Merges the rectangles of one window; rectangle q's lanes are at rectangle.at(q * step).
template <class R>
[[gnu::always_inline]] inline void merge_window(const PyramidPlan& plan, int32_t level, int32_t i, int32_t j,
                                                typename R::State result, typename R::State rectangle, int64_t step,
                                                int64_t lanes) {
  const int32_t* rows = plan.row.window + 2 * (plan.first[level] + i);
  const int32_t* columns = plan.column.window + 2 * (plan.first[level] + j);
  R::start(result, lanes, plan.row.edge[rows[0]] * plan.column.length + plan.column.edge[columns[0]], 0);
  for (int32_t r = rows[0]; r < rows[1]; ++r) {
    for (int32_t s = columns[0]; s < columns[1]; ++s) {
      R::merge(result, rectangle.at((static_cast<int64_t>(r) * plan.column.segments + s) * step), lanes);
    }
  }
}

// The rectangles of one plane; rectangle q goes to box.at(q * step).
template <class T, class R>
void reduce_plane(const PyramidPoolArgs& args, int64_t plane, typename R::State column, typename R::State box,
                  int64_t step) {
  const AxisPlan& rows = args.plan.row;
  const AxisPlan& columns = args.plan.column;
  const T* x = static_cast<const T*>(args.map) + plane / args.c * args.stride_n + plane % args.c * args.stride_c;
  for (int32_t r = 0; r < rows.segments; ++r) {
    const int32_t h = rows.edge[r];
    R::rows(column, columns.length, x + h * args.stride_h, args.stride_h, rows.edge[r + 1] - h, args.stride_c,
            h * columns.length);
    for (int32_t s = 0; s < columns.segments; ++s) {
      const int32_t w = columns.edge[s];
      R::collapse(box.at((static_cast<int64_t>(r) * columns.segments + s) * step), column.at(w),
                  columns.edge[s + 1] - w);
    }
  }
}

// Levels of (N, C, b, b): a task is a group of up to kGroup (n, c) planes, whose windows are merged side by side.
template <class T, class R>
void forward_planes(const PyramidPoolArgs& args) {
  constexpr int64_t kGroup = 16;
  const PyramidPlan& plan = args.plan;
  const int64_t planes = args.n * args.c, wanted = planes / (2 * args.threads);
  const int64_t group = wanted < 1 ? 1 : wanted > kGroup ? kGroup : wanted;
  const typename R::Memory columns(args.threads, plan.column.length), boxes(args.threads, rectangles(plan) * kGroup);
  const typename R::Memory results(args.threads, kGroup);
  const Areas<typename R::A> areas(plan);
  for (int thread = 0; thread < args.threads; ++thread) R::start(boxes.of(thread), rectangles(plan) * kGroup, 0, 0);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic)
  for (int64_t first = 0; first < planes; first += group) {
    const int64_t count = planes - first < group ? planes - first : group;
    const typename R::State box = boxes.of(thread_index()), result = results.of(thread_index());
    for (int64_t p = 0; p < count; ++p) {
      reduce_plane<T, R>(args, first + p, columns.of(thread_index()), box.at(p), kGroup);
    }
    for (int32_t level = 0; level < plan.levels; ++level) {
      const int32_t b = plan.bins[level];
      const int64_t cells = static_cast<int64_t>(b) * b;
      for (int64_t cell = 0; cell < cells; ++cell) {
        merge_window<R>(plan, level, static_cast<int32_t>(cell / b), static_cast<int32_t>(cell % b), result, box,
                        kGroup, kGroup);
        T y[kGroup];
        int32_t index[kGroup] = {};
        R::finish(y, index, result, kGroup, *areas.of(cells_before(plan, level) + cell));
        T* to = static_cast<T*>(args.levels[level]) + first * cells + cell;
        for (int64_t p = 0; p < count; ++p) to[p * cells] = y[p];
        if (!args.max) continue;
        for (int64_t p = 0; p < count; ++p) args.indices[level][(first + p) * cells + cell] = index[p];
      }
    }
  }
}

// Levels of (N, b, b, C): rectangles first, then windows.
template <class T, class R>
void forward_channels_last(const PyramidPoolArgs& args) {
  const PyramidPlan& plan = args.plan;
  const BlockTasks tasks(args);
  const int64_t boxes_n = args.n * tasks.rectangles;
  const typename R::Memory boxes(1, boxes_n * args.c), results(args.threads, args.c);
  const typename R::State box = boxes.of(0);
  const Areas<typename R::A> areas(plan);
#pragma omp parallel num_threads(args.threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < tasks.count; ++index) {
      const BlockTask t(args, tasks, index);
      const T* x = static_cast<const T*>(args.map);
      const typename R::State sum = box.at((index / tasks.blocks) * args.c + t.c);
      const int32_t pixel = t.h * plan.column.length + t.w;
      R::start(sum, t.lanes, pixel, 0);
      R::add(sum, t.lanes, x + t.offset(args, t.h, t.w), args.stride_h, args.stride_w, t.h_end - t.h, t.w_end - t.w,
             pixel, plan.column.length);
    }
    for (int32_t level = 0; level < plan.levels; ++level) {
      const int64_t b = plan.bins[level];
#pragma omp for schedule(dynamic) nowait
      for (int64_t cell = 0; cell < args.n * b * b; ++cell) {
        const int32_t i = static_cast<int32_t>(cell % (b * b) / b), j = static_cast<int32_t>(cell % b);
        const typename R::State result = results.of(thread_index());
        merge_window<R>(plan, level, i, j, result, box.at(cell / (b * b) * tasks.rectangles * args.c), args.c, args.c);
        R::finish(static_cast<T*>(args.levels[level]) + cell * args.c,
                  args.max ? args.indices[level] + cell * args.c : nullptr, result, args.c,
                  *areas.of(cells_before(plan, level) + i * b + j));
      }
    }
  }
}

template <class T>
void forward(const PyramidPoolArgs& args) {
  if (args.channels_last) {
    args.max ? forward_channels_last<T, Maximum<T>>(args) : forward_channels_last<T, Sum<T>>(args);
  } else {
    args.max ? forward_planes<T, Maximum<T>>(args) : forward_planes<T, Sum<T>>(args);
  }
}

}  // namespace

namespace PSP_FAST_CPU {

void pyramid_pool_forward(const PyramidPoolArgs& args) {
  switch (args.dtype) {
    case DType::kFloat64:
      return forward<double>(args);
    case DType::kBFloat16:
      return forward<BFloat16>(args);
    default:
      return forward<float>(args);
  }
}

}  // namespace PSP_FAST_CPU
}  // namespace psp_fast
