// Training's batch norm in one read: every block keeps its packs of the map in registers and shared memory while the
// grid agrees on the statistics. Launches are cooperative, so that all blocks are resident and may wait for each other.
// Where a map is too large, groups of tiles follow each other; a group's channels are complete.
#include <cooperative_groups.h>

#include "cuda/sync_batch_norm_relu.cuh"
#include "cuda/sync_batch_norm_relu.h"

namespace psp_fast {
namespace {

constexpr int kBlock = 512;  // threads; one block a multiprocessor leaves 128 registers a thread
// Packs of each map that a thread keeps in registers: as many as there are registers for.
constexpr int kHeldForward = 8;
constexpr int kHeldBackward = 2;
constexpr int kAhead = 4;      // packs of the residual that a thread asks for at once
constexpr int kNarrowest = 4;  // threads along the channels: 64 bytes, two sectors of memory

// A pack as it is kept: four registers, whereas elements of two bytes would take one each.
using Bits = uint4;
static_assert(sizeof(Bits) == kPackBytes);

template <class K>
__device__ Bits bits_of(const Pack<typename K::T, K::V>& pack) {
  Bits bits;
  memcpy(&bits, &pack, sizeof bits);
  return bits;
}

template <class K>
__device__ Floats<K::V> to_floats(Bits bits) {
  Pack<typename K::T, K::V> pack;
  memcpy(&pack, &bits, sizeof bits);
  return to_floats(pack);
}

// A thread's packs of a map: the first `Held` in registers, the others in its own places of shared memory.
template <int Held>
struct Slab {
  Bits held[Held];
  Bits* stored;

  __device__ Bits& deep(int32_t k) { return stored[(k - Held) * kBlock + threadIdx.x]; }
};

// Calls f(offset, pack...) for each of the walk's packs, with those of all slabs that belong there.
template <class K, int Held, class F, class... S>
__device__ __forceinline__ void for_packs(const Walk<K>& walk, F f, S&... slabs) {
#pragma unroll
  for (int32_t k = 0; k < Held; ++k) {
    if (k < walk.count) f(walk.offset(k), slabs.held[k]...);
  }
#pragma unroll 4
  for (int32_t k = Held; k < walk.count; ++k) f(walk.offset(k), slabs.deep(k)...);
}

// Likewise for one slab, and with the packs that `map`, if it is not null, has there: kAhead are read at a time.
template <class K, int Held, class F>
__device__ __forceinline__ void for_packs_with(const typename K::T* map, const Walk<K>& walk, F f, Slab<Held>& slab) {
  Bits ahead[kAhead];
  const auto some = [&](int32_t first, auto&& pack) {
#pragma unroll
    for (int32_t i = 0; i < kAhead; ++i) {
      if (first + i < walk.count) ahead[i] = bits_of<K>(load_if<K>(map, walk.offset(first + i)));
    }
#pragma unroll
    for (int32_t i = 0; i < kAhead; ++i) {
      if (first + i < walk.count) f(walk.offset(first + i), pack(first + i), ahead[i]);
    }
  };
  static_assert(Held % kAhead == 0);
#pragma unroll
  for (int32_t k = 0; k < Held; k += kAhead) some(k, [&](int32_t i) { return slab.held[i]; });
  for (int32_t k = Held; k < walk.count; k += kAhead) some(k, [&](int32_t i) { return slab.deep(i); });
}

__device__ Bits* shared_memory() {
  extern __shared__ Bits memory[];
  return memory;
}

// Waits for all blocks that share a tile.
__device__ void wait_for_splits(const BatchNormPartition& part) {
  if (part.splits == 1) {
    __syncthreads();
  } else {
    cooperative_groups::this_grid().sync();
  }
}

// Merges the tile's channels, shared out among the warps of its blocks, and calls f(channel, result) once for each.
template <class K, class R, class F>
__device__ void merge_tile(const Map& map, const BatchNormPartition& part, int32_t tile, int32_t split,
                           const float* scratch, F f) {
  constexpr int kWarps = kBlock / kWarp;
  const int32_t channels = part.wide * K::kChannels;
  const int64_t first = static_cast<int64_t>(tile) * channels;
  for (int32_t i = split * kWarps + threadIdx.x / kWarp; i < channels; i += part.splits * kWarps) {
    if (first + i >= map.c) return;
    const R all = merge_splits<R>(scratch, part.splits, first + i, map.c);
    if (threadIdx.x % kWarp == 0) f(first + i, all);
  }
}

template <class K>
__global__ void __launch_bounds__(kBlock, 1)
    normalise_on_chip(Map map, BatchNormOnChip plan, BatchNormStatistics statistics, const float* weight,
                      const float* bias, bool relu, const typename K::T* __restrict__ x,
                      const typename K::T* __restrict__ residual, typename K::T* __restrict__ y, float* scratch) {
  const BatchNormPartition& part = plan.part;
  const int32_t split = blockIdx.x / plan.group;
  Slab<kHeldForward> slab;
  slab.stored = shared_memory();
  for (int32_t first = 0; first < part.tiles; first += plan.group) {
    const int32_t tile = first + blockIdx.x % plan.group;
    const Walk<K> walk(map, part, tile, split);
    for_packs<K, kHeldForward>(walk, [&](int64_t offset, Bits& pack) { pack = bits_of<K>(load<K>(x, offset)); }, slab);
    Moments<K::V> moments{};
    for_packs<K, kHeldForward>(walk, [&](int64_t, Bits pack) { moments.add(to_floats<K>(pack)); }, slab);
    write_split<K, kBlock, Moments>(map, part, walk, split, moments, scratch);
    wait_for_splits(part);
    merge_tile<K, Moments<1>>(map, part, tile, split, scratch, FinishStatistics{statistics});
    wait_for_splits(part);
    if (walk.count == 0) continue;
    const Affine<K::kChannels> affine({statistics.mean, statistics.invstd, weight, bias}, walk.channel);
    for_packs_with(
        residual, walk,
        [&](int64_t offset, Bits pack, Bits extra) {
          store<K>(y, offset, normalised<K>(affine, to_floats<K>(pack), to_floats<K>(extra), relu));
        },
        slab);
  }
}

template <class K>
__global__ void __launch_bounds__(kBlock, 1)
    differentiate_on_chip(Map map, BatchNormOnChip plan, BatchNormChannels channels, Gradient<typename K::T> maps,
                          float share, float* sums, typename K::T* __restrict__ dx, typename K::T* __restrict__ g,
                          float* scratch) {
  const BatchNormPartition& part = plan.part;
  const int32_t split = blockIdx.x / plan.group;
  Slab<kHeldBackward> passed, input;
  passed.stored = shared_memory();
  input.stored = passed.stored + plan.depth * kBlock;
  for (int32_t first = 0; first < part.tiles; first += plan.group) {
    const int32_t tile = first + blockIdx.x % plan.group;
    const Walk<K> walk(map, part, tile, split);
    Sums<K::V> products{};
    if (walk.count > 0) {
      const Affine<K::kChannels> affine(channels, walk.channel);
      for_packs<K, kHeldBackward>(
          walk,
          [&](int64_t offset, Bits& g_pack, Bits& x_pack) {
            x_pack = bits_of<K>(load<K>(maps.x, offset));
            const Floats<K::V> values = to_floats<K>(x_pack);
            const auto gradient = masked<K>(maps, affine, values, offset);
            add_products<K>(products, affine, to_floats(gradient), values);
            if (g) store<K>(g, offset, gradient);
            g_pack = bits_of<K>(gradient);
          },
          passed, input);
    }
    write_split<K, kBlock, Sums>(map, part, walk, split, products, scratch);
    wait_for_splits(part);
    merge_tile<K, Sums<1>>(map, part, tile, split, scratch, WriteSums{channels.invstd, sums, map.c});
    wait_for_splits(part);
    if (walk.count == 0) continue;
    const Affine<K::kChannels> affine(channels, walk.channel);
    const InputGradient<K::kChannels> gradient(channels.invstd, sums, share, walk.channel, map.c);
    for_packs<K, kHeldBackward>(
        walk,
        [&](int64_t offset, Bits g_pack, Bits x_pack) {
          store<K>(dx, offset, gradient.template of<K>(affine, to_floats<K>(g_pack), to_floats<K>(x_pack)));
        },
        passed, input);
  }
}

int32_t attribute(cudaDeviceAttr name) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "to name its device");
  check_cuda(cudaDeviceGetAttribute(&value, name, device), "to describe its device");
  return value;
}

// The widest tiles of which the fewest groups must follow each other; `capacity` packs of a map fit a thread.
template <class K>
BatchNormOnChip fitted(const Map& map, int32_t blocks, int32_t capacity, int32_t held) {
  BatchNormOnChip best{};
  int64_t fewest = INT64_MAX;
  const int64_t packs = K::kLast ? map.c / K::V : map.c;
  for (int32_t wide = K::kLast ? kWarp : 1; wide >= (K::kLast ? kNarrowest : 1); wide /= 2) {
    const int64_t tall = kBlock / wide, tiles = (packs + wide - 1) / wide;
    const int64_t splits = (map.places + capacity * tall - 1) / (capacity * tall);
    if (splits > blocks) continue;
    const int64_t rounds = (tiles + blocks / splits - 1) / (blocks / splits);
    if (rounds >= fewest) continue;
    fewest = rounds;
    best.group = static_cast<int32_t>((tiles + rounds - 1) / rounds);
    best.part = {wide, static_cast<int32_t>(tiles), std::min(blocks / best.group, map.places)};
    const int64_t longest = (map.places + best.part.splits - 1) / best.part.splits;
    best.depth = static_cast<int32_t>(std::max<int64_t>(0, (longest + tall - 1) / tall - held));
  }
  return best;
}

// How `kernel`, which keeps `maps` maps, would run; asks the device what is left of it for their packs.
template <class K, class... P>
BatchNormOnChip planned(const BatchNormPlan& plan, void (*kernel)(P...), int maps, int held) {
  cudaFuncAttributes used = {};
  check_cuda(cudaFuncGetAttributes(&used, kernel), "to describe batch norm's kernel");
  const int32_t row = kBlock * kPackBytes * maps;
  const int32_t most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - static_cast<int32_t>(used.sharedSizeBytes);
  const int32_t depth = std::max(0, most / row);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, depth * row),
             "shared memory to batch norm");
  int resident = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kBlock, depth * row),
             "to say how many blocks fit");
  return fitted<K>(map_of<K>(plan), std::min(resident, 1) * plan.multiprocessors, held + depth, held);
}

Launch on_chip(const char* what, const BatchNormOnChip& plan, int maps, void* stream) {
  const size_t shared = static_cast<size_t>(plan.depth) * kBlock * kPackBytes * maps;
  return {what, static_cast<int64_t>(plan.group) * plan.part.splits, kBlock, shared, true, stream};
}

}  // namespace

void batch_norm_plan_on_chip(BatchNormPlan& plan) {
  const bool empty = plan.n * plan.c * plan.pixels == 0;
  if (empty || !packable(plan) || !attribute(cudaDevAttrCooperativeLaunch)) return;
  with_kind(plan, true, [&](auto kind) {
    using K = decltype(kind);
    if constexpr (K::V > 1) {
      plan.forward = planned<K>(plan, normalise_on_chip<K>, 1, kHeldForward);
      plan.backward = planned<K>(plan, differentiate_on_chip<K>, 2, kHeldBackward);
    }
  });
}

bool batch_norm_forward_on_chip(const BatchNormPlan& plan, const BatchNormStatistics& statistics, const float* weight,
                                const float* bias, bool relu, const void* x, const void* residual, void* y,
                                float* scratch, void* stream) {
  if (plan.forward.group == 0 || !packable(plan, x, residual, y)) return false;
  with_kind(plan, true, [&](auto kind) {
    using K = decltype(kind);
    using T = typename K::T;
    if constexpr (K::V > 1) {
      launch(on_chip("batch norm in one read", plan.forward, 1, stream), normalise_on_chip<K>, map_of<K>(plan),
             plan.forward, statistics, weight, bias, relu, static_cast<const T*>(x), static_cast<const T*>(residual),
             static_cast<T*>(y), scratch);
    }
  });
  return true;
}

bool batch_norm_backward_on_chip(const BatchNormPlan& plan, const BatchNormChannels& channels,
                                 const BatchNormGradient& gradient, float* sums, void* dx, void* g, float* scratch,
                                 void* stream) {
  if (plan.backward.group == 0 || !packable(plan, gradient.dy, gradient.x, gradient.y, dx, g)) return false;
  const float share = 1.0f / static_cast<float>(plan.n * plan.pixels);
  with_kind(plan, true, [&](auto kind) {
    using K = decltype(kind);
    using T = typename K::T;
    if constexpr (K::V > 1) {
      launch(on_chip("batch norm's gradient in one read", plan.backward, 2, stream), differentiate_on_chip<K>,
             map_of<K>(plan), plan.backward, channels, Gradient<T>(gradient), share, sums, static_cast<T*>(dx),
             static_cast<T*>(g), scratch);
    }
  });
  return true;
}

}  // namespace psp_fast
