// Gradients of pyramid pooling; compiled and linked as pyramid_pool.cpp is. Every element of the gradient is written
// once, by one thread.
#include "cpu/parallel.h"
#include "cpu/pyramid_tasks.h"
#include "cpu/scalar.h"

namespace psp_fast {
namespace {

int64_t cells_of(const PyramidPlan& plan, int32_t level) {
  return static_cast<int64_t>(plan.bins[level]) * plan.bins[level];
}

// Calls f(level, cell, first) for every cell that covers the rectangle of segments (r, s); cell counts within its
// level, `first` is the number of cells of earlier levels.
template <class F>
void for_covering_cells(const PyramidPlan& plan, int32_t r, int32_t s, F f) {
  int64_t first = 0;
  for (int32_t level = 0; level < plan.levels; first += cells_of(plan, level), ++level) {
    const int32_t* rows = plan.row.cover + 2 * (static_cast<int64_t>(level) * plan.row.segments + r);
    const int32_t* columns = plan.column.cover + 2 * (static_cast<int64_t>(level) * plan.column.segments + s);
    for (int64_t i = rows[0]; i < rows[1]; ++i) {
      for (int64_t j = columns[0]; j < columns[1]; ++j) f(level, i * plan.bins[level] + j, first);
    }
  }
}

// One plane of an average's gradient. It is the same all over a rectangle: add up its cells once, then copy lines.
template <class T, class A>
void backward_average_plane(const PyramidPoolArgs& args, const Areas<A>& areas, int64_t plane, T* dx, A* share,
                            T* line) {
  const PyramidPlan& plan = args.plan;
  for (int32_t level = 0; level < plan.levels; ++level) {
    const int64_t first = cells_before(plan, level), cells = cells_of(plan, level);
    const T* dy = static_cast<const T*>(args.levels[level]) + plane * cells;
    for (int64_t cell = 0; cell < cells; ++cell) share[first + cell] = load(dy + cell) / *areas.of(first + cell);
  }
  for (int32_t r = 0; r < plan.row.segments; ++r) {
    for (int32_t s = 0; s < plan.column.segments; ++s) {
      A sum = 0;
      for_covering_cells(plan, r, s, [&](int32_t, int64_t cell, int64_t first) { sum += share[first + cell]; });
      for (int32_t w = plan.column.edge[s]; w < plan.column.edge[s + 1]; ++w) store(line + w, sum);
    }
    for (int32_t h = plan.row.edge[r]; h < plan.row.edge[r + 1]; ++h) {
      std::memcpy(dx + h * args.stride_h, line, plan.column.length * sizeof(T));
    }
  }
}

// One plane of a maximum's gradient, added up in memory of the accumulator's type.
template <class T, class A>
void backward_max_plane(const PyramidPoolArgs& args, int64_t plane, T* dx, A* sum) {
  const int64_t height = args.plan.row.length, width = args.plan.column.length;
  for (int64_t k = 0; k < height * width; ++k) sum[k] = 0;
  for (int32_t level = 0; level < args.plan.levels; ++level) {
    const int64_t cells = cells_of(args.plan, level);
    const T* dy = static_cast<const T*>(args.levels[level]) + plane * cells;
    const int32_t* index = args.indices[level] + plane * cells;
    for (int64_t cell = 0; cell < cells; ++cell) sum[index[cell]] += load(dy + cell);
  }
  for (int64_t h = 0; h < height; ++h) {
    for (int64_t w = 0; w < width; ++w) store(dx + h * args.stride_h + w, sum[h * width + w]);
  }
}

template <class T>
void backward_planes(const PyramidPoolArgs& args) {
  using A = typename Accumulator<T>::type;
  const int64_t planes = args.n * args.c, width = args.plan.column.length, pixels = args.plan.row.length * width;
  const Scratch<A> sums(args.threads, args.max ? pixels : cells_before(args.plan, args.plan.levels));
  const Scratch<T> lines(args.threads, width);
  const Areas<A> areas(args.plan);
  // Long stretches: threads should not be the first to touch the same page.
  [[maybe_unused]] const int64_t share = planes / (8 * args.threads) + 1;
#pragma omp parallel for num_threads(args.threads) schedule(dynamic, share)
  for (int64_t plane = 0; plane < planes; ++plane) {
    T* dx = static_cast<T*>(args.map) + plane / args.c * args.stride_n + plane % args.c * args.stride_c;
    A* sum = sums.of(thread_index());
    if (args.max) {
      backward_max_plane(args, plane, dx, sum);
    } else {
      backward_average_plane(args, areas, plane, dx, sum, lines.of(thread_index()));
    }
  }
}

// A block of channels of one rectangle of an average's gradient: one vector, copied to every pixel.
template <class T, class A>
void backward_average_block(const PyramidPoolArgs& args, const Areas<A>& areas, const BlockTask& t, A* sum, T* pixel) {
  for (int64_t k = 0; k < t.lanes; ++k) sum[k] = 0;
  for_covering_cells(args.plan, t.r, t.s, [&](int32_t level, int64_t cell, int64_t first) {
    const T* dy = static_cast<const T*>(args.levels[level]) + (t.n * cells_of(args.plan, level) + cell) * args.c + t.c;
    const A area = *areas.of(first + cell);
    for (int64_t k = 0; k < t.lanes; ++k) sum[k] += load(dy + k) / area;
  });
  for (int64_t k = 0; k < t.lanes; ++k) store(pixel + k, sum[k]);
  for (int64_t h = t.h; h < t.h_end; ++h) {
    for (int64_t w = t.w; w < t.w_end; ++w) {
      std::memcpy(static_cast<T*>(args.map) + t.offset(args, h, w), pixel, t.lanes * sizeof(T));
    }
  }
}

// A block of channels of one rectangle of a maximum's gradient: every pixel asks its cells whether they picked it.
template <class T, class A>
void backward_max_block(const PyramidPoolArgs& args, const BlockTask& t, A* sum) {
  for (int64_t h = t.h; h < t.h_end; ++h) {
    for (int64_t w = t.w; w < t.w_end; ++w) {
      const int32_t here = static_cast<int32_t>(h * args.plan.column.length + w);
      for (int64_t k = 0; k < t.lanes; ++k) sum[k] = 0;
      for_covering_cells(args.plan, t.r, t.s, [&](int32_t level, int64_t cell, int64_t) {
        const int64_t at = (t.n * cells_of(args.plan, level) + cell) * args.c + t.c;
        const T* dy = static_cast<const T*>(args.levels[level]) + at;
        const int32_t* index = args.indices[level] + at;
        for (int64_t k = 0; k < t.lanes; ++k) sum[k] += index[k] == here ? load(dy + k) : A(0);
      });
      T* dx = static_cast<T*>(args.map) + t.offset(args, h, w);
      for (int64_t k = 0; k < t.lanes; ++k) store(dx + k, sum[k]);
    }
  }
}

template <class T>
void backward_channels_last(const PyramidPoolArgs& args) {
  using A = typename Accumulator<T>::type;
  const BlockTasks tasks(args);
  const Scratch<A> sums(args.threads, tasks.block);
  const Scratch<T> pixels(args.threads, tasks.block);
  const Areas<A> areas(args.plan);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic)
  for (int64_t index = 0; index < tasks.count; ++index) {
    const BlockTask task(args, tasks, index);
    A* sum = sums.of(thread_index());
    if (args.max) {
      backward_max_block<T>(args, task, sum);
    } else {
      backward_average_block(args, areas, task, sum, pixels.of(thread_index()));
    }
  }
}

template <class T>
void backward(const PyramidPoolArgs& args) {
  args.channels_last ? backward_channels_last<T>(args) : backward_planes<T>(args);
}

}  // namespace

namespace PSP_FAST_CPU {

void pyramid_pool_backward(const PyramidPoolArgs& args) {
  switch (args.dtype) {
    case DType::kFloat64:
      return backward<double>(args);
    case DType::kBFloat16:
      return backward<BFloat16>(args);
    default:
      return backward<float>(args);
  }
}

}  // namespace PSP_FAST_CPU
}  // namespace psp_fast
