// Batch norm in two reads: a reduction, whose splits a second kernel merges in a fixed order, and an element-wise pass.
#include "cuda/sync_batch_norm_relu.cuh"
#include "cuda/sync_batch_norm_relu.h"

namespace psp_fast {
namespace {

constexpr int kMinPacks = 4;    // that a thread should have before a tile is split once more
constexpr int kBlocksASm = 8;   // that a launch aims at
constexpr int kReadersASm = 2;  // blocks resident at least: leaves 128 registers a thread
constexpr int kWarpsABlock = kThreads / kWarp;

template <class K>
BatchNormPartition partition(const BatchNormPlan& plan) {
  const int64_t packs = K::kLast ? (plan.c + K::V - 1) / K::V : plan.c;
  const int64_t places = map_of<K>(plan).places;
  int64_t wide = 1;
  while (K::kLast && wide < kWarp && wide < packs) wide *= 2;
  const int64_t tiles = (packs + wide - 1) / wide;
  const int64_t useful = places * wide / (kThreads * kMinPacks);
  const int64_t wanted = kBlocksASm * plan.multiprocessors / tiles;
  const int64_t splits = std::max<int64_t>(1, std::min(useful, wanted));
  return {static_cast<int32_t>(wide), static_cast<int32_t>(tiles), static_cast<int32_t>(splits)};
}

Launch grid(const char* what, const BatchNormPartition& part, void* stream) {
  return {what, static_cast<int64_t>(part.tiles) * part.splits, kThreads, 0, false, stream};
}

template <class K>
__global__ void __launch_bounds__(kThreads, kReadersASm)
    reduce_moments(Map map, BatchNormPartition part, const typename K::T* __restrict__ x, float* scratch) {
  const int32_t split = blockIdx.x / part.tiles;
  const Walk<K> walk(map, part, blockIdx.x % part.tiles, split);
  Moments<K::V> moments{};
#pragma unroll 4
  for (int32_t k = 0; k < walk.count; ++k) moments.add(to_floats(load<K>(x, walk.offset(k))));
  write_split<K, kThreads, Moments>(map, part, walk, split, moments, scratch);
}

template <class K>
__global__ void __launch_bounds__(kThreads, kReadersASm)
    reduce_gradient(Map map, BatchNormPartition part, BatchNormChannels channels, Gradient<typename K::T> maps,
                    float* scratch) {
  const int32_t split = blockIdx.x / part.tiles;
  const Walk<K> walk(map, part, blockIdx.x % part.tiles, split);
  Sums<K::V> sums{};
  if (walk.count > 0) {
    const Affine<K::kChannels> affine(channels, walk.channel);
#pragma unroll 2
    for (int32_t k = 0; k < walk.count; ++k) {
      const int64_t offset = walk.offset(k);
      const Floats<K::V> x = to_floats(load<K>(maps.x, offset));
      add_products<K>(sums, affine, to_floats(masked<K>(maps, affine, x, offset)), x);
    }
  }
  write_split<K, kThreads, Sums>(map, part, walk, split, sums, scratch);
}

// One warp a channel.
template <class R, class F>
__global__ void __launch_bounds__(kThreads)
    merge_channels(const float* __restrict__ scratch, int32_t splits, int64_t c, F finish) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWarpsABlock + threadIdx.x / kWarp;
  if (channel >= c) return;
  const R all = merge_splits<R>(scratch, splits, channel, c);
  if (threadIdx.x % kWarp == 0) finish(channel, all);
}

template <class K>
__global__ void __launch_bounds__(kThreads, kReadersASm)
    apply(Map map, BatchNormPartition part, BatchNormChannels channels, bool relu, const typename K::T* __restrict__ x,
          const typename K::T* __restrict__ residual, typename K::T* __restrict__ y) {
  const Walk<K> walk(map, part, blockIdx.x % part.tiles, blockIdx.x / part.tiles);
  if (walk.count == 0) return;
  const Affine<K::kChannels> affine(channels, walk.channel);
#pragma unroll 2
  for (int32_t k = 0; k < walk.count; ++k) {
    const int64_t offset = walk.offset(k);
    const Floats<K::V> values = to_floats(load<K>(x, offset)), extra = to_floats(load_if<K>(residual, offset));
    store<K>(y, offset, normalised<K>(affine, values, extra, relu));
  }
}

template <class K>
__global__ void __launch_bounds__(kThreads, kReadersASm)
    differentiate(Map map, BatchNormPartition part, BatchNormChannels channels, Gradient<typename K::T> maps,
                  const float* __restrict__ means, float share, typename K::T* __restrict__ dx,
                  typename K::T* __restrict__ g) {
  const Walk<K> walk(map, part, blockIdx.x % part.tiles, blockIdx.x / part.tiles);
  if (walk.count == 0) return;
  const Affine<K::kChannels> affine(channels, walk.channel);
  const InputGradient<K::kChannels> gradient(channels.invstd, means, share, walk.channel, map.c);
  for (int32_t k = 0; k < walk.count; ++k) {
    const int64_t offset = walk.offset(k);
    const Floats<K::V> x = to_floats(load<K>(maps.x, offset));
    const auto passed = masked<K>(maps, affine, x, offset);
    if (g) store<K>(g, offset, passed);
    store<K>(dx, offset, gradient.template of<K>(affine, to_floats(passed), x));
  }
}

template <class R, class F>
void merge(const BatchNormPlan& plan, const BatchNormPartition& part, const float* scratch, F finish, void* stream) {
  const int64_t blocks = (plan.c + kWarpsABlock - 1) / kWarpsABlock;
  launch({"batch norm's merge", blocks, kThreads, 0, false, stream}, merge_channels<R, F>, scratch, part.splits, plan.c,
         finish);
}

// The batch's moments, a channel at a time to finish.
template <class F>
void moments(const BatchNormPlan& plan, const void* x, float* scratch, F finish, void* stream) {
  if (plan.c == 0) return;
  with_kind(plan, packable(plan, x), [&](auto kind) {
    using K = decltype(kind);
    const BatchNormPartition part = partition<K>(plan);
    launch(grid("batch norm's statistics", part, stream), reduce_moments<K>, map_of<K>(plan), part,
           static_cast<const typename K::T*>(x), scratch);
    merge<Moments<1>>(plan, part, scratch, finish, stream);
  });
}

// The gradient of x; means are of `share` times the given sums.
void input_gradient(const BatchNormPlan& plan, const BatchNormChannels& channels, const BatchNormGradient& gradient,
                    const float* sums, float share, void* dx, void* g, void* stream) {
  if (plan.n * plan.c * plan.pixels == 0) return;
  with_kind(plan, packable(plan, gradient.dy, gradient.x, gradient.y, dx, g), [&](auto kind) {
    using K = decltype(kind);
    using T = typename K::T;
    const BatchNormPartition part = partition<K>(plan);
    launch(grid("batch norm's gradient", part, stream), differentiate<K>, map_of<K>(plan), part, channels,
           Gradient<T>(gradient), sums, share, static_cast<T*>(dx), static_cast<T*>(g));
  });
}

int64_t scratch_floats(const BatchNormPlan& plan) {
  int64_t splits = std::max(plan.forward.part.splits, plan.backward.part.splits);
  for (const bool packed : {false, true}) {
    with_kind(plan, packed,
              [&](auto kind) { splits = std::max<int64_t>(splits, partition<decltype(kind)>(plan).splits); });
  }
  return splits * Moments<1>::kFields * plan.c;
}

}  // namespace

BatchNormPlan batch_norm_plan(DType dtype, bool channels_last, int64_t n, int64_t c, int64_t pixels) {
  if (n * pixels > INT32_MAX) {
    throw std::invalid_argument("psp_fast: batch norm needs fewer than 2**31 values a channel, not " +
                                std::to_string(n * pixels));
  }
  BatchNormPlan plan{dtype, channels_last, n, c, pixels, 0, {}, {}, 0};
  int device = 0;
  check_cuda(cudaGetDevice(&device), "to name its device");
  check_cuda(cudaDeviceGetAttribute(&plan.multiprocessors, cudaDevAttrMultiProcessorCount, device),
             "to count multiprocessors");
  batch_norm_plan_on_chip(plan);
  plan.scratch = scratch_floats(plan);
  return plan;
}

void batch_norm_statistics(const BatchNormPlan& plan, const void* x, float* scratch, float* statistics, void* stream) {
  moments(plan, x, scratch, WriteMoments{statistics, plan.c}, stream);
}

void batch_norm_apply(const BatchNormPlan& plan, const BatchNormChannels& channels, bool relu, const void* x,
                      const void* residual, void* y, void* stream) {
  if (plan.n * plan.c * plan.pixels == 0) return;
  with_kind(plan, packable(plan, x, residual, y), [&](auto kind) {
    using K = decltype(kind);
    using T = typename K::T;
    const BatchNormPartition part = partition<K>(plan);
    launch(grid("batch norm", part, stream), apply<K>, map_of<K>(plan), part, channels, relu, static_cast<const T*>(x),
           static_cast<const T*>(residual), static_cast<T*>(y));
  });
}

void batch_norm_backward_sums(const BatchNormPlan& plan, const BatchNormChannels& channels,
                              const BatchNormGradient& gradient, float* scratch, float* sums, void* stream) {
  if (plan.c == 0) return;
  with_kind(plan, packable(plan, gradient.dy, gradient.x, gradient.y), [&](auto kind) {
    using K = decltype(kind);
    const BatchNormPartition part = partition<K>(plan);
    launch(grid("batch norm's gradient sums", part, stream), reduce_gradient<K>, map_of<K>(plan), part, channels,
           Gradient<typename K::T>(gradient), scratch);
    merge<Sums<1>>(plan, part, scratch, WriteSums{channels.invstd, sums, plan.c}, stream);
  });
}

void batch_norm_backward_input(const BatchNormPlan& plan, const BatchNormChannels& channels,
                               const BatchNormGradient& gradient, const float* means, void* dx, void* g, void* stream) {
  input_gradient(plan, channels, gradient, means, 1.0f, dx, g, stream);
}

void batch_norm_forward(const BatchNormPlan& plan, const BatchNormStatistics& statistics, const float* weight,
                        const float* bias, bool relu, const void* x, const void* residual, void* y, float* scratch,
                        void* stream) {
  if (batch_norm_forward_on_chip(plan, statistics, weight, bias, relu, x, residual, y, scratch, stream)) return;
  moments(plan, x, scratch, FinishStatistics{statistics}, stream);
  batch_norm_apply(plan, {statistics.mean, statistics.invstd, weight, bias}, relu, x, residual, y, stream);
}

void batch_norm_backward(const BatchNormPlan& plan, const BatchNormChannels& channels,
                         const BatchNormGradient& gradient, float* sums, void* dx, void* g, float* scratch,
                         void* stream) {
  if (batch_norm_backward_on_chip(plan, channels, gradient, sums, dx, g, scratch, stream)) return;
  batch_norm_backward_sums(plan, channels, gradient, scratch, sums, stream);
  const float share = 1.0f / static_cast<float>(plan.n * plan.pixels);
  input_gradient(plan, channels, gradient, sums, share, dx, g, stream);
}

}  // namespace psp_fast
