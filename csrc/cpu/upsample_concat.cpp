// Upsampling and concatenation in one pass; compiled and linked as pyramid_pool.cpp is.
#include "cpu/upsample_concat.h"

#include "cpu/parallel.h"
#include "cpu/pyramid_weights.h"
#include "cpu/scalar.h"

namespace psp_fast {
namespace {

template <class T>
struct At {
  const StridedMap& map;
  T* operator()(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return static_cast<T*>(map.data) + n * map.stride_n + c * map.stride_c + h * map.stride_h + w * map.stride_w;
  }
};

template <class T, class A>
void mix(T* __restrict y, const A* a, A share_a, const A* b, A share_b, int64_t count) {
  for (int64_t k = 0; k < count; ++k) store(y + k, share_a * a[k] + share_b * b[k]);
}

template <class T, class A>
void add_scaled(A* __restrict sum, const T* x, A share, int64_t count) {
  for (int64_t k = 0; k < count; ++k) sum[k] += share * load(x + k);
}

template <class A>
void clear(A* x, int64_t count) {
  for (int64_t k = 0; k < count; ++k) x[k] = 0;
}

template <class A>
struct Blends {
  AxisBlends<A> row, column;
  explicit Blends(const UpsampleConcatArgs& args)
      : row(args.levels, &PyramidLevel::height, args.height, args.align_corners),
        column(args.levels, &PyramidLevel::width, args.width, args.align_corners) {}
};

int64_t level_channels(const PyramidLevels& levels) {
  int64_t sum = 0;
  for (int32_t l = 0; l < levels.count; ++l) sum += levels.level[l].c;
  return sum;
}

int64_t largest(const PyramidLevels& levels, int64_t PyramidLevel::* extent) {
  int64_t most = 1;
  for (int32_t l = 0; l < levels.count; ++l) most = levels.level[l].*extent > most ? levels.level[l].*extent : most;
  return most;
}

// Which level, and which of its channels, is channel `c` of all levels together.
struct LevelChannel {
  int32_t level = 0;
  int64_t c;
  LevelChannel(const PyramidLevels& levels, int64_t channel) : c(channel) {
    while (c >= levels.level[level].c) c -= levels.level[level++].c;
  }
};

// A plane of a level: every line of cells is stretched along x once, then each row mixes two lines.
template <class T, class A>
void upsample_plane(const UpsampleConcatArgs& args, const Blends<A>& blends, LevelChannel at, int64_t n, A* lines,
                    T* y) {
  const PyramidLevel& level = args.levels.level[at.level];
  const T* cells = static_cast<const T*>(level.cells) + (n * level.c + at.c) * level.height * level.width;
  const Blend<A>* column = blends.column.of(at.level);
  for (int64_t i = 0; i < level.height; ++i, cells += level.width) {
    for (int64_t w = 0; w < args.width; ++w) {
      const Blend<A>& b = column[w];
      lines[i * args.width + w] = b.weight[0] * load(cells + b.cell[0]) + b.weight[1] * load(cells + b.cell[1]);
    }
  }
  for (int64_t h = 0; h < args.height; ++h) {
    const Blend<A>& b = blends.row.of(at.level)[h];
    mix(y + h * args.out.stride_h, lines + b.cell[0] * args.width, b.weight[0], lines + b.cell[1] * args.width,
        b.weight[1], args.width);
  }
}

template <class T>
void forward_planes(const UpsampleConcatArgs& args) {
  using A = typename Accumulator<T>::type;
  const At<const T> x{args.x};
  const At<T> out{args.out};
  const Blends<A> blends(args);
  const int64_t planes = args.c + level_channels(args.levels);
  const Scratch<A> lines(args.threads, largest(args.levels, &PyramidLevel::height) * args.width);
  // Long stretches: threads should not be the first to touch the same page.
  [[maybe_unused]] const int64_t share = args.n * planes / (8 * args.threads) + 1;
#pragma omp parallel for num_threads(args.threads) schedule(dynamic, share)
  for (int64_t plane = 0; plane < args.n * planes; ++plane) {
    const int64_t n = plane / planes, c = plane % planes;
    if (c >= args.c) {
      upsample_plane(args, blends, LevelChannel(args.levels, c - args.c), n, lines.of(thread_index()), out(n, c, 0, 0));
      continue;
    }
    for (int64_t h = 0; h < args.height; ++h) {
      std::memcpy(out(n, c, h, 0), x(n, c, h, 0), args.width * sizeof(T));
    }
  }
}

// A row of a level: its two rows of cells are mixed once, then each pixel mixes two of the results.
template <class T, class A>
void upsample_row(const UpsampleConcatArgs& args, const Blends<A>& blends, int32_t l, int64_t n, int64_t h, A* line,
                  T* y) {
  const PyramidLevel& level = args.levels.level[l];
  const int64_t length = level.width * level.c;
  const T* cells = static_cast<const T*>(level.cells) + n * level.height * length;
  const Blend<A>& row = blends.row.of(l)[h];
  clear(line, length);
  for (int k = 0; k < 2; ++k) add_scaled(line, cells + row.cell[k] * length, row.weight[k], length);
  for (int64_t w = 0; w < args.width; ++w) {
    const Blend<A>& b = blends.column.of(l)[w];
    mix(y + w * args.out.stride_w, line + b.cell[0] * level.c, b.weight[0], line + b.cell[1] * level.c, b.weight[1],
        level.c);
  }
}

template <class T>
void forward_channels_last(const UpsampleConcatArgs& args) {
  using A = typename Accumulator<T>::type;
  const At<const T> x{args.x};
  const At<T> out{args.out};
  const Blends<A> blends(args);
  const int64_t cells = largest(args.levels, &PyramidLevel::width) * largest(args.levels, &PyramidLevel::c);
  const Scratch<A> lines(args.threads, cells);
#pragma omp parallel for num_threads(args.threads)
  for (int64_t row = 0; row < args.n * args.height; ++row) {
    const int64_t n = row / args.height, h = row % args.height;
    for (int64_t w = 0; w < args.width; ++w) std::memcpy(out(n, 0, h, w), x(n, 0, h, w), args.c * sizeof(T));
    int64_t c = args.c;
    for (int32_t l = 0; l < args.levels.count; c += args.levels.level[l++].c) {
      upsample_row(args, blends, l, n, h, lines.of(thread_index()), out(n, c, h, 0));
    }
  }
}

// The gradient of a level's plane: rows of dy gather in the lines of cells, then the lines in the cells.
template <class T, class A>
void backward_plane(const UpsampleConcatArgs& args, const Blends<A>& blends, LevelChannel at, int64_t n, A* lines,
                    A* sums, const T* dy) {
  const PyramidLevel& level = args.levels.level[at.level];
  clear(lines, level.height * args.width);
  clear(sums, level.height * level.width);
  for (int64_t h = 0; h < args.height; ++h) {
    const Blend<A>& b = blends.row.of(at.level)[h];
    for (int k = 0; k < 2; ++k) {
      add_scaled(lines + b.cell[k] * args.width, dy + h * args.out.stride_h, b.weight[k], args.width);
    }
  }
  for (int64_t i = 0; i < level.height; ++i) {
    for (int64_t w = 0; w < args.width; ++w) {
      const Blend<A>& b = blends.column.of(at.level)[w];
      for (int k = 0; k < 2; ++k) sums[i * level.width + b.cell[k]] += b.weight[k] * lines[i * args.width + w];
    }
  }
  const int64_t cells = level.height * level.width;
  T* to = static_cast<T*>(level.cells) + (n * level.c + at.c) * cells;
  for (int64_t k = 0; k < cells; ++k) store(to + k, sums[k]);
}

template <class T>
void backward_planes(const UpsampleConcatArgs& args) {
  using A = typename Accumulator<T>::type;
  const At<const T> dy{args.out};
  const Blends<A> blends(args);
  const int64_t planes = level_channels(args.levels), height = largest(args.levels, &PyramidLevel::height);
  const Scratch<A> lines(args.threads, height * args.width);
  const Scratch<A> sums(args.threads, height * largest(args.levels, &PyramidLevel::width));
#pragma omp parallel for num_threads(args.threads) schedule(dynamic, 16)
  for (int64_t plane = 0; plane < args.n * planes; ++plane) {
    const int64_t n = plane / planes, c = plane % planes;
    backward_plane(args, blends, LevelChannel(args.levels, c), n, lines.of(thread_index()), sums.of(thread_index()),
                   dy(n, args.c + c, 0, 0));
  }
}

constexpr int64_t kLanes = 64;  // channels a channels-last task handles at a time

// The gradient of `lanes` channels from c on of a level of one image: pixels of dy gather in the columns of cells, then
// each row in its two rows of cells. sums has height * width * kLanes elements, line width * kLanes.
template <class T, class A>
void backward_block(const UpsampleConcatArgs& args, const Blends<A>& blends, int32_t l, int64_t n, int64_t c,
                    int64_t lanes, A* sums, A* line, const T* dy) {
  const PyramidLevel& level = args.levels.level[l];
  clear(sums, level.height * level.width * kLanes);
  for (int64_t h = 0; h < args.height; ++h) {
    clear(line, level.width * kLanes);
    for (int64_t w = 0; w < args.width; ++w) {
      const Blend<A>& b = blends.column.of(l)[w];
      const T* pixel = dy + h * args.out.stride_h + w * args.out.stride_w;
      for (int k = 0; k < 2; ++k) add_scaled(line + b.cell[k] * kLanes, pixel, b.weight[k], lanes);
    }
    const Blend<A>& b = blends.row.of(l)[h];
    for (int k = 0; k < 2; ++k) {
      add_scaled(sums + b.cell[k] * level.width * kLanes, line, b.weight[k], level.width * kLanes);
    }
  }
  for (int64_t cell = 0; cell < level.height * level.width; ++cell) {
    T* to = static_cast<T*>(level.cells) + (n * level.height * level.width + cell) * level.c + c;
    for (int64_t k = 0; k < lanes; ++k) store(to + k, sums[cell * kLanes + k]);
  }
}

template <class T>
void backward_channels_last(const UpsampleConcatArgs& args) {
  using A = typename Accumulator<T>::type;
  const At<const T> dy{args.out};
  const Blends<A> blends(args);
  const int64_t width = largest(args.levels, &PyramidLevel::width);
  const Scratch<A> sums(args.threads, largest(args.levels, &PyramidLevel::height) * width * kLanes);
  const Scratch<A> lines(args.threads, width * kLanes);
  int64_t first = args.c;
  for (int32_t l = 0; l < args.levels.count; first += args.levels.level[l++].c) {
    const int64_t channels = args.levels.level[l].c, blocks = (channels + kLanes - 1) / kLanes;
#pragma omp parallel for num_threads(args.threads) schedule(dynamic)
    for (int64_t task = 0; task < args.n * blocks; ++task) {
      const int64_t n = task / blocks, c = task % blocks * kLanes;
      const int64_t lanes = channels - c < kLanes ? channels - c : kLanes;
      backward_block(args, blends, l, n, c, lanes, sums.of(thread_index()), lines.of(thread_index()),
                     dy(n, first + c, 0, 0));
    }
  }
}

template <class T>
void forward(const UpsampleConcatArgs& args) {
  args.channels_last ? forward_channels_last<T>(args) : forward_planes<T>(args);
}

template <class T>
void backward(const UpsampleConcatArgs& args) {
  args.channels_last ? backward_channels_last<T>(args) : backward_planes<T>(args);
}

}  // namespace

namespace PSP_FAST_CPU {

void upsample_concat_forward(const UpsampleConcatArgs& args) {
  switch (args.dtype) {
    case DType::kFloat64:
      return forward<double>(args);
    case DType::kBFloat16:
      return forward<BFloat16>(args);
    default:
      return forward<float>(args);
  }
}

void upsample_concat_backward(const UpsampleConcatArgs& args) {
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
