// Compiled once for each instruction set, into the namespace PSP_FAST_CPU. All else in this file has internal linkage, and nothing of
// the standard library that would be emitted as a shared inline function may be used: the linker keeps one copy of those, and it could be
// the one for another instruction set.
#include "cpu/pyramid_reduce.h"
#include "cpu/pyramid_tasks.h"

namespace psp_fast {
namespace {

// Merges the rectangles of one window; rectangle q's lanes are at rectangle.at(q * step).
template <class R>
[[gnu::always_inline]] inline void merge_window(const PyramidPlan& plan, int32_t level, int32_t i, int32_t j, typename R::State result,
                  typename R::State rectangle, int64_t step, int64_t lanes) {
  const int32_t* rows = plan.row.window + 2 * (plan.first[level] + i);
  const int32_t* columns = plan.column.window + 2 * (plan.first[level] + j);
  R::start(result, lanes, plan.row.edge[rows[0]] * plan.column.length + plan.column.edge[columns[0]], 0);
  for (int32_t r = rows[0]; r < rows[1]; ++r) {
    for (int32_t s = columns[0]; s < columns[1]; ++s) {
      R::merge(result, rectangle.at((static_cast<int64_t>(r) * plan.column.segments + s) * step), lanes);
    }
  }
}

// Levels of (N, C, b, b): each (n, c) plane is one task.
template <class T, class R>
void forward_planes(const PyramidPoolArgs& args) {
  const PyramidPlan& plan = args.plan;
  const int32_t width = plan.column.length;
  const int64_t planes = args.n * args.c;
  const typename R::Memory columns(args.threads, width), boxes(args.threads, rectangles(plan));
  const Areas<typename R::A> areas(plan);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic, 8)
  for (int64_t plane = 0; plane < planes; ++plane) {
    const T* x = static_cast<const T*>(args.map) + plane / args.c * args.stride_n + plane % args.c * args.stride_c;
    const typename R::State column = columns.of(thread_index());
    const typename R::State box = boxes.of(thread_index());
    for (int32_t r = 0; r < plan.row.segments; ++r) {
      const int32_t h = plan.row.edge[r];
      R::rows(column, width, x + h * args.stride_h, args.stride_h, plan.row.edge[r + 1] - h, h * width);
      for (int32_t s = 0; s < plan.column.segments; ++s) {
        const int32_t w = plan.column.edge[s];
        R::collapse(box.at(static_cast<int64_t>(r) * plan.column.segments + s), column.at(w), plan.column.edge[s + 1] - w);
      }
    }
    typename R::One result;
    for (int32_t level = 0; level < plan.levels; ++level) {
      const int32_t b = plan.bins[level];
      const typename R::A* area = areas.of(cells_before(plan, level));
      int64_t at = plane * b * b;
      for (int32_t i = 0; i < b; ++i) {
        for (int32_t j = 0; j < b; ++j, ++at) {
          merge_window<R>(plan, level, i, j, result.state(), box, 1, 1);
          R::finish(static_cast<T*>(args.levels[level]) + at, args.max ? args.indices[level] + at : nullptr, result.state(),
                    1, *area++);
        }
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
      R::start(sum, t.lanes, t.h * plan.column.length + t.w, 0);
      for (int32_t h = t.h; h < t.h_end; ++h) {
        R::add(sum, t.lanes, x + t.offset(args, h, t.w), args.stride_w, t.w_end - t.w, h * plan.column.length + t.w);
      }
    }
    for (int32_t level = 0; level < plan.levels; ++level) {
      const int64_t b = plan.bins[level];
#pragma omp for schedule(dynamic) nowait
      for (int64_t cell = 0; cell < args.n * b * b; ++cell) {
        const int32_t i = static_cast<int32_t>(cell % (b * b) / b), j = static_cast<int32_t>(cell % b);
        const typename R::State result = results.of(thread_index());
        merge_window<R>(plan, level, i, j, result, box.at(cell / (b * b) * tasks.rectangles * args.c), args.c, args.c);
        R::finish(static_cast<T*>(args.levels[level]) + cell * args.c,
                  args.max ? args.indices[level] + cell * args.c : nullptr, result, args.c, *areas.of(cells_before(plan, level) + i * b + j));
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
