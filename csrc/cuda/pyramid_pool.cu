// Forward: one kernel reduces every elementary rectangle (values, places), a second merges rectangles into windows.
// Backward gathers, so that every element is written once and results do not depend on timing: an average's gradient is
// the same all over a rectangle, a maximum's asks the cells over each pixel whether they picked it.
#include "cuda/pyramid_pool.h"
#include "cuda/scalar.cuh"
#include "maximum.h"

namespace psp_fast {
namespace {

constexpr int kLevelsALaunch = 8;
constexpr int kBlocksASm = 4;  // leaves 64 registers a thread: with fewer, divisions spill
constexpr int kRows = kThreads / kWarp;

// What kernels need to know: sizes, the plan in device memory, strides in elements.
struct Shape {
  int64_t n, c;
  int64_t stride_n, stride_c, stride_h, stride_w;
  PyramidPlan plan;
  bool channels_last;

  __host__ __device__ int64_t rectangles() const {
    return static_cast<int64_t>(plan.row.segments) * plan.column.segments;
  }
  // Where rectangle q of (image, channel) is in the scratch arrays: channels are neighbours where they are so in the
  // map.
  __device__ int64_t box(int64_t image, int64_t channel, int64_t q) const {
    return channels_last ? (image * rectangles() + q) * c + channel : (image * c + channel) * rectangles() + q;
  }
  __device__ int64_t cell(int64_t image, int64_t channel, int64_t cells, int64_t at) const {
    return channels_last ? (image * cells + at) * c + channel : (image * c + channel) * cells + at;
  }
};

// Some of the levels; first is the plan's number of the first of them.
template <class T>
struct Levels {
  int first, count;
  T* data[kLevelsALaunch];
  int32_t* index[kLevelsALaunch];
};

struct Rectangle {
  int32_t h, h_end, w, w_end;

  __device__ Rectangle(const PyramidPlan& plan, int32_t r, int32_t s)
      : h(plan.row.edge[r]), h_end(plan.row.edge[r + 1]), w(plan.column.edge[s]), w_end(plan.column.edge[s + 1]) {}
  __device__ int32_t pixels() const { return (h_end - h) * (w_end - w); }
  __device__ int32_t row(int32_t pixel) const { return h + pixel / (w_end - w); }
  __device__ int32_t column(int32_t pixel) const { return w + pixel % (w_end - w); }
  __device__ int32_t index(const Shape& shape, int32_t pixel) const {
    return row(pixel) * shape.plan.column.length + column(pixel);
  }
};

// How a channels-last map is shared out: one rectangle of one image, a tile of its channels.
struct ChannelTasks {
  int64_t tile, tiles, count;

  __host__ __device__ ChannelTasks(const Shape& shape, int64_t tile)
      : tile(tile), tiles((shape.c + tile - 1) / tile), count(shape.n * shape.rectangles() * tiles) {}
};

struct ChannelTask {
  int64_t image, channel, q;
  int32_t r, s;
  Rectangle box;

  __device__ ChannelTask(const Shape& shape, const ChannelTasks& tasks, int64_t task)
      : image(task / tasks.tiles / shape.rectangles()),
        channel(task % tasks.tiles * tasks.tile),
        q(task / tasks.tiles % shape.rectangles()),
        r(static_cast<int32_t>(q / shape.plan.column.segments)),
        s(static_cast<int32_t>(q % shape.plan.column.segments)),
        box(shape.plan, r, s) {}
  // Where the first channel of a pixel of the rectangle is in the map.
  __device__ int64_t offset(const Shape& shape, int32_t pixel) const {
    return image * shape.stride_n + box.row(pixel) * shape.stride_h + box.column(pixel) * shape.stride_w;
  }
};

// The cells of a level of b x b that cover the rectangle of segments (r, s).
struct Cover {
  int32_t b, i, i_end, j, j_end;

  __device__ Cover(const PyramidPlan& plan, int32_t level, int32_t r, int32_t s) : b(plan.bins[level]) {
    const int32_t* rows = plan.row.cover + 2 * (static_cast<int64_t>(level) * plan.row.segments + r);
    const int32_t* columns = plan.column.cover + 2 * (static_cast<int64_t>(level) * plan.column.segments + s);
    i = rows[0];
    i_end = rows[1];
    j = columns[0];
    j_end = columns[1];
  }
};

struct Sum {
  float value = 0;

  __device__ void start(int32_t) {}
  __device__ void add(float x, int32_t) { value += x; }
  __device__ void merge(const Sum& other) { value += other.value; }
  __device__ Sum shuffled(int offset) const {
    Sum other;
    other.value = __shfl_xor_sync(kAllLanes, value, offset);
    return other;
  }
  __device__ void write(float* values, int32_t*, int64_t at) const { values[at] = value; }
  __device__ static Sum read(const float* values, const int32_t*, int64_t at) {
    Sum sum;
    sum.value = values[at];
    return sum;
  }
  __device__ float result(float area) const { return value / area; }
  __device__ void note(int32_t*, int64_t) const {}
};

struct Maximum {
  float value = -INFINITY;
  int32_t index = INT32_MAX;

  __device__ void start(int32_t first) { index = first; }
  __device__ void add(float x, int32_t at) { merge(x, at); }
  __device__ void merge(const Maximum& other) { merge(other.value, other.index); }
  __device__ Maximum shuffled(int offset) const {
    Maximum other;
    other.value = __shfl_xor_sync(kAllLanes, value, offset);
    other.index = __shfl_xor_sync(kAllLanes, index, offset);
    return other;
  }
  __device__ void write(float* values, int32_t* places, int64_t at) const {
    values[at] = value;
    places[at] = index;
  }
  __device__ static Maximum read(const float* values, const int32_t* places, int64_t at) {
    Maximum maximum;
    maximum.value = values[at];
    maximum.index = places[at];
    return maximum;
  }
  __device__ float result(float) const { return value; }
  __device__ void note(int32_t* indices, int64_t at) const { indices[at] = index; }

 private:
  __device__ void merge(float x, int32_t at) {
    if (!picks(x, at, value, index)) return;
    value = x;
    index = at;
  }
};

// One warp a rectangle of a plane; `wide` lanes, a power of two, lie along a row.
template <class T, class R>
__global__ void __launch_bounds__(kThreads, kBlocksASm)
    reduce_planes(Shape shape, const T* map, float* values, int32_t* places, int wide) {
  const int lane = threadIdx.x % kWarp, column = lane % wide, row = lane / wide, tall = kWarp / wide;
  const int64_t rectangles = shape.rectangles(), planes = shape.n * shape.c;
  for (int64_t plane = blockIdx.x; plane < planes; plane += gridDim.x) {
    const int64_t image = plane / shape.c, channel = plane % shape.c;
    const T* x = map + image * shape.stride_n + channel * shape.stride_c;
    for (int64_t q = threadIdx.x / kWarp; q < rectangles; q += kRows) {
      const Rectangle box(shape.plan, static_cast<int32_t>(q / shape.plan.column.segments),
                          static_cast<int32_t>(q % shape.plan.column.segments));
      R part;
      for (int32_t h = box.h + row; h < box.h_end; h += tall) {
        for (int32_t w = box.w + column; w < box.w_end; w += wide) {
          part.add(to_float(x[h * shape.stride_h + w * shape.stride_w]), h * shape.plan.column.length + w);
        }
      }
      for (int offset = kWarp / 2; offset > 0; offset /= 2) part.merge(part.shuffled(offset));
      if (lane == 0) part.write(values, places, shape.box(image, channel, q));
    }
  }
}

// One block a rectangle and kWarp * V channels; the block's warps share the pixels out.
template <class T, int V, class R>
__global__ void __launch_bounds__(kThreads, kBlocksASm)
    reduce_channels_last(Shape shape, const T* map, float* values, int32_t* places) {
  __shared__ R parts[kRows][kWarp * V];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const ChannelTasks tasks(shape, kWarp * V);
  for (int64_t task = blockIdx.x; task < tasks.count; task += gridDim.x) {
    const ChannelTask at(shape, tasks, task);
    const int64_t channel = at.channel + lane * V;
    R part[V];
    for (int32_t pixel = warp; pixel < at.box.pixels() && channel < shape.c; pixel += kRows) {
      const auto x = *reinterpret_cast<const Pack<T, V>*>(map + at.offset(shape, pixel) + channel);
#pragma unroll
      for (int v = 0; v < V; ++v) part[v].add(to_float(x.element[v]), at.box.index(shape, pixel));
    }
#pragma unroll
    for (int v = 0; v < V; ++v) parts[warp][lane * V + v] = part[v];
    __syncthreads();
    for (int k = threadIdx.x; k < kWarp * V && at.channel + k < shape.c; k += kThreads) {
      R all = parts[0][k];
      for (int other = 1; other < kRows; ++other) all.merge(parts[other][k]);
      all.write(values, places, shape.box(at.image, at.channel + k, at.q));
    }
    __syncthreads();
  }
}

__device__ int32_t window_length(const AxisPlan& axis, int32_t cell) {
  return axis.edge[axis.window[2 * cell + 1]] - axis.edge[axis.window[2 * cell]];
}

// One thread an output.
template <class T, class R>
__global__ void __launch_bounds__(kThreads, kBlocksASm)
    merge_windows(Shape shape, Levels<T> levels, const float* values, const int32_t* places, int64_t outputs) {
  const int64_t channels = shape.n * shape.c;
  for (int64_t k = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; k < outputs;
       k += gridDim.x * static_cast<int64_t>(kThreads)) {
    int64_t rest = k;
    int level = 0;
    int64_t cells = 0;
    for (; level < levels.count; ++level) {
      const int64_t b = shape.plan.bins[levels.first + level];
      cells = b * b;
      if (rest < channels * cells) break;
      rest -= channels * cells;
    }
    const int64_t b = shape.plan.bins[levels.first + level];
    const int64_t channel = shape.channels_last ? rest % shape.c : rest / cells % shape.c;
    const int64_t at = shape.channels_last ? rest / shape.c % cells : rest % cells;
    const int64_t image = rest / (shape.c * cells);
    const int32_t i = shape.plan.first[levels.first + level] + static_cast<int32_t>(at / b);
    const int32_t j = shape.plan.first[levels.first + level] + static_cast<int32_t>(at % b);
    const int32_t* rows = shape.plan.row.window + 2 * i;
    const int32_t* columns = shape.plan.column.window + 2 * j;
    R all;
    all.start(shape.plan.row.edge[rows[0]] * shape.plan.column.length + shape.plan.column.edge[columns[0]]);
    for (int32_t r = rows[0]; r < rows[1]; ++r) {
      for (int32_t s = columns[0]; s < columns[1]; ++s) {
        const int64_t q = static_cast<int64_t>(r) * shape.plan.column.segments + s;
        all.merge(R::read(values, places, shape.box(image, channel, q)));
      }
    }
    const float area = static_cast<float>(window_length(shape.plan.row, i)) * window_length(shape.plan.column, j);
    levels.data[level][rest] = from_float<T>(all.result(area));
    all.note(levels.index[level], rest);
  }
}

// One thread a rectangle and channel; adds to values, unless these are the first levels.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksASm)
    gather_average(Shape shape, Levels<const T> levels, float* values) {
  const int64_t rectangles = shape.rectangles(), total = shape.n * shape.c * rectangles;
  for (int64_t k = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; k < total;
       k += gridDim.x * static_cast<int64_t>(kThreads)) {
    const int64_t channel = shape.channels_last ? k % shape.c : k / rectangles % shape.c;
    const int64_t q = shape.channels_last ? k / shape.c % rectangles : k % rectangles;
    const int64_t image = k / (shape.c * rectangles);
    float sum = levels.first == 0 ? 0 : values[k];
    for (int l = 0; l < levels.count; ++l) {
      const int32_t level = levels.first + l;
      const Cover cover(shape.plan, level, static_cast<int32_t>(q / shape.plan.column.segments),
                        static_cast<int32_t>(q % shape.plan.column.segments));
      for (int32_t i = cover.i; i < cover.i_end; ++i) {
        for (int32_t j = cover.j; j < cover.j_end; ++j) {
          const float area = static_cast<float>(window_length(shape.plan.row, shape.plan.first[level] + i)) *
                             window_length(shape.plan.column, shape.plan.first[level] + j);
          const int64_t from = shape.cell(image, channel, cover.b * cover.b, i * cover.b + j);
          sum += to_float(levels.data[l][from]) / area;
        }
      }
    }
    values[k] = sum;
  }
}

// One block a rectangle and kWarp * V channels: the same gradient for all its pixels.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocksASm) spread_channels_last(Shape shape, const float* values, T* map) {
  const ChannelTasks tasks(shape, kWarp * V);
  for (int64_t task = blockIdx.x; task < tasks.count; task += gridDim.x) {
    const ChannelTask at(shape, tasks, task);
    const int64_t channel = at.channel + threadIdx.x % kWarp * V;
    if (channel >= shape.c) continue;
    Pack<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.element[v] = from_float<T>(values[shape.box(at.image, channel + v, at.q)]);
    for (int32_t pixel = threadIdx.x / kWarp; pixel < at.box.pixels(); pixel += kRows) {
      *reinterpret_cast<Pack<T, V>*>(map + at.offset(shape, pixel) + channel) = out;
    }
  }
}

// One block a plane, one warp a line.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksASm) spread_planes(Shape shape, const float* values, T* map) {
  for (int64_t plane = blockIdx.x; plane < shape.n * shape.c; plane += gridDim.x) {
    const int64_t image = plane / shape.c, channel = plane % shape.c;
    for (int32_t h = threadIdx.x / kWarp; h < shape.plan.row.length; h += kRows) {
      const int64_t q = static_cast<int64_t>(shape.plan.row.segment[h]) * shape.plan.column.segments;
      T* line = map + image * shape.stride_n + channel * shape.stride_c + h * shape.stride_h;
      for (int32_t w = threadIdx.x % kWarp; w < shape.plan.column.length; w += kWarp) {
        line[w] = from_float<T>(values[shape.box(image, channel, q + shape.plan.column.segment[w])]);
      }
    }
  }
}

// The sum of the gradients of those cells that picked pixel `here`, which is in segments (r, s).
template <class T>
__device__ float picked(const Shape& shape, const Levels<const T>& levels, int64_t image, int64_t channel, int32_t r,
                        int32_t s, int32_t here) {
  float sum = 0;
  for (int l = 0; l < levels.count; ++l) {
    const Cover cover(shape.plan, levels.first + l, r, s);
    for (int32_t i = cover.i; i < cover.i_end; ++i) {
      for (int32_t j = cover.j; j < cover.j_end; ++j) {
        const int64_t from = shape.cell(image, channel, cover.b * cover.b, i * cover.b + j);
        if (levels.index[l][from] == here) sum += to_float(levels.data[l][from]);
      }
    }
  }
  return sum;
}

// As spread_channels_last. Levels after the first few are added in the map's own type.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksASm)
    gather_maximum_channels_last(Shape shape, Levels<const T> levels, T* map) {
  const ChannelTasks tasks(shape, kWarp);
  for (int64_t task = blockIdx.x; task < tasks.count; task += gridDim.x) {
    const ChannelTask at(shape, tasks, task);
    const int64_t channel = at.channel + threadIdx.x % kWarp;
    if (channel >= shape.c) continue;
    for (int32_t pixel = threadIdx.x / kWarp; pixel < at.box.pixels(); pixel += kRows) {
      T* dx = map + at.offset(shape, pixel) + channel;
      const float sum = picked(shape, levels, at.image, channel, at.r, at.s, at.box.index(shape, pixel));
      *dx = from_float<T>(levels.first == 0 ? sum : to_float(*dx) + sum);
    }
  }
}

// As spread_planes. Levels after the first few are added in the map's own type.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksASm)
    gather_maximum_planes(Shape shape, Levels<const T> levels, T* map) {
  const int32_t width = shape.plan.column.length;
  for (int64_t plane = blockIdx.x; plane < shape.n * shape.c; plane += gridDim.x) {
    const int64_t image = plane / shape.c, channel = plane % shape.c;
    for (int32_t h = threadIdx.x / kWarp; h < shape.plan.row.length; h += kRows) {
      T* line = map + image * shape.stride_n + channel * shape.stride_c + h * shape.stride_h;
      for (int32_t w = threadIdx.x % kWarp; w < width; w += kWarp) {
        const int32_t r = shape.plan.row.segment[h], s = shape.plan.column.segment[w];
        const float sum = picked(shape, levels, image, channel, r, s, h * width + w);
        line[w] = from_float<T>(levels.first == 0 ? sum : to_float(line[w]) + sum);
      }
    }
  }
}

// Calls f(levels) for a few levels after another.
template <class T, class F>
void for_levels(const PyramidPoolCudaArgs& args, F f) {
  const int count = static_cast<int>(args.levels.size());
  for (int first = 0; first < count; first += kLevelsALaunch) {
    Levels<T> levels{};
    levels.first = first;
    levels.count = std::min(count - first, kLevelsALaunch);
    for (int l = 0; l < levels.count; ++l) {
      levels.data[l] = static_cast<T*>(args.levels[first + l]);
      levels.index[l] = args.max ? args.indices[first + l] : nullptr;
    }
    f(levels);
  }
}

Shape shape_of(const PyramidPoolCudaArgs& args) {
  return {args.n, args.c, args.stride_n, args.stride_c, args.stride_h, args.stride_w, args.plan, args.channels_last};
}

Launch over(const char* what, int64_t blocks, void* stream) {
  return {what, grid_for(blocks), kThreads, 0, false, stream};
}

int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

// Whether all groups of v channels, 16 bytes, of the channels-last map are aligned as one.
bool aligned(const PyramidPoolCudaArgs& args, int64_t v) {
  return args.c % v == 0 && args.stride_n % v == 0 && args.stride_h % v == 0 && args.stride_w % v == 0 &&
         reinterpret_cast<uintptr_t>(args.map) % 16 == 0;
}

template <class T, class R>
void forward(const PyramidPoolCudaArgs& args) {
  constexpr int V = 16 / sizeof(T);
  const Shape shape = shape_of(args);
  const T* map = static_cast<const T*>(args.map);
  const char* what = "pyramid_pool's reduction";
  if (!args.channels_last) {
    int wide = 1;
    while (wide < kWarp && wide * args.plan.column.segments < args.plan.column.length) wide *= 2;
    launch(over(what, args.n * args.c, args.stream), reduce_planes<T, R>, shape, map, args.values, args.places, wide);
  } else if (aligned(args, V)) {
    launch(over(what, ChannelTasks(shape, kWarp * V).count, args.stream), reduce_channels_last<T, V, R>, shape, map,
           args.values, args.places);
  } else {
    launch(over(what, ChannelTasks(shape, kWarp).count, args.stream), reduce_channels_last<T, 1, R>, shape, map,
           args.values, args.places);
  }
  for_levels<T>(args, [&](const Levels<T>& levels) {
    int64_t outputs = 0;
    for (int l = 0; l < levels.count; ++l) {
      const int64_t b = args.bins[levels.first + l];
      outputs += args.n * args.c * b * b;
    }
    launch(over("pyramid_pool's merge", blocks_for(outputs), args.stream), merge_windows<T, R>, shape, levels,
           args.values, args.places, outputs);
  });
}

template <class T>
void backward_average(const PyramidPoolCudaArgs& args) {
  constexpr int V = 16 / sizeof(T);
  const Shape shape = shape_of(args);
  T* map = static_cast<T*>(args.map);
  const char* what = "pyramid_pool's gradient";
  for_levels<const T>(args, [&](const Levels<const T>& levels) {
    const int64_t blocks = blocks_for(args.n * args.c * shape.rectangles());
    launch(over(what, blocks, args.stream), gather_average<T>, shape, levels, args.values);
  });
  if (!args.channels_last) {
    launch(over(what, args.n * args.c, args.stream), spread_planes<T>, shape, args.values, map);
  } else if (aligned(args, V)) {
    launch(over(what, ChannelTasks(shape, kWarp * V).count, args.stream), spread_channels_last<T, V>, shape,
           args.values, map);
  } else {
    launch(over(what, ChannelTasks(shape, kWarp).count, args.stream), spread_channels_last<T, 1>, shape, args.values,
           map);
  }
}

template <class T>
void backward_maximum(const PyramidPoolCudaArgs& args) {
  const Shape shape = shape_of(args);
  T* map = static_cast<T*>(args.map);
  const char* what = "pyramid_pool's gradient";
  for_levels<const T>(args, [&](const Levels<const T>& levels) {
    if (args.channels_last) {
      launch(over(what, ChannelTasks(shape, kWarp).count, args.stream), gather_maximum_channels_last<T>, shape, levels,
             map);
    } else {
      launch(over(what, args.n * args.c, args.stream), gather_maximum_planes<T>, shape, levels, map);
    }
  });
}

template <class T>
void forward(const PyramidPoolCudaArgs& args) {
  args.max ? forward<T, Maximum>(args) : forward<T, Sum>(args);
}

template <class T>
void backward(const PyramidPoolCudaArgs& args) {
  args.max ? backward_maximum<T>(args) : backward_average<T>(args);
}

}  // namespace

void pyramid_pool_cuda_forward(const PyramidPoolCudaArgs& args) {
  if (args.n * args.c == 0) return;
  switch (args.dtype) {
    case DType::kFloat16:
      return forward<__half>(args);
    case DType::kBFloat16:
      return forward<__nv_bfloat16>(args);
    default:
      return forward<float>(args);
  }
}

void pyramid_pool_cuda_backward(const PyramidPoolCudaArgs& args) {
  if (args.n * args.c == 0) return;
  switch (args.dtype) {
    case DType::kFloat16:
      return backward<__half>(args);
    case DType::kBFloat16:
      return backward<__nv_bfloat16>(args);
    default:
      return backward<float>(args);
  }
}

}  // namespace psp_fast
