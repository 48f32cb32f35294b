// What the batch norm kernels share: how threads walk over a map, per-channel results and how they merge.
#pragma once

#include "cuda/scalar.cuh"
#include "cuda/sync_batch_norm_relu.h"

namespace psp_fast {
namespace {

constexpr int kPackBytes = 16;

// A kernel's types: T in packs of V neighbours, which are V channels of a channels-last map, else V pixels of a plane.
template <class T_, int V_, bool kLast_>
struct Kind {
  using T = T_;
  static constexpr int V = V_;
  static constexpr bool kLast = kLast_;
  static constexpr int kChannels = kLast ? V : 1;  // channels of a pack
};

// Calls f(Kind) for the plan's type and layout; packs are of one element where not `packed`.
template <class T, class F>
void with_layout(const BatchNormPlan& plan, bool packed, F f) {
  constexpr int V = kPackBytes / sizeof(T);
  if (plan.channels_last) {
    packed ? f(Kind<T, V, true>()) : f(Kind<T, 1, true>());
  } else {
    packed ? f(Kind<T, V, false>()) : f(Kind<T, 1, false>());
  }
}

template <class F>
void with_kind(const BatchNormPlan& plan, bool packed, F f) {
  switch (plan.dtype) {
    case DType::kFloat16:
      return with_layout<__half>(plan, packed, f);
    case DType::kBFloat16:
      return with_layout<__nv_bfloat16>(plan, packed, f);
    default:
      return with_layout<float>(plan, packed, f);
  }
}

// Whether every pack of 16 bytes of these maps lies within a row or plane and is aligned.
template <class... P>
bool packable(const BatchNormPlan& plan, P... maps) {
  const int64_t length = plan.channels_last ? plan.c : plan.pixels;
  return length * size_of(plan.dtype) % kPackBytes == 0 &&
         ((reinterpret_cast<uintptr_t>(maps) % kPackBytes == 0) && ...);
}

// The map as kernels see it; a place is a row of a channels-last map, else a pack of a plane.
struct Map {
  int64_t c, pixels;
  int32_t places, places_an_image;
};

template <class K>
Map map_of(const BatchNormPlan& plan) {
  const int64_t places = K::kLast ? plan.pixels : plan.pixels / K::V;
  return {plan.c, plan.pixels, static_cast<int32_t>(plan.n * places), static_cast<int32_t>(places)};
}

// The packs of one thread in one split of a tile; its channels stay the same.
template <class K>
struct Walk {
  int64_t channel;  // the first of the thread's channels
  int32_t count;    // of its packs

  __device__ Walk(const Map& map, const BatchNormPartition& part, int32_t tile, int32_t split) : map_(map) {
    const int32_t lane = threadIdx.x % part.wide;
    tall_ = blockDim.x / part.wide;
    channel = (static_cast<int64_t>(tile) * part.wide + lane) * K::kChannels;
    first_ = edge(part, split) + threadIdx.x / part.wide;
    const int32_t end = edge(part, split + 1);
    count = channel < map.c && first_ < end ? (end - first_ - 1) / tall_ + 1 : 0;
  }
  // Where pack k is in the map.
  __device__ int64_t offset(int32_t k) const {
    const int32_t place = first_ + k * tall_;
    if constexpr (K::kLast) return place * map_.c + channel;
    const int32_t image = place / map_.places_an_image;
    return (image * map_.c + channel) * map_.pixels + (place - image * map_.places_an_image) * K::V;
  }

 private:
  __device__ int32_t edge(const BatchNormPartition& part, int32_t split) const {
    return static_cast<int32_t>(static_cast<int64_t>(map_.places) * split / part.splits);
  }

  const Map& map_;
  int32_t first_, tall_;
};

template <int V>
using Floats = Pack<float, V>;

template <class T, int V>
__device__ Floats<V> to_floats(const Pack<T, V>& pack) {
  Floats<V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result.element[v] = to_float(pack.element[v]);
  return result;
}

template <class T, int V>
__device__ Pack<T, V> from_floats(const Floats<V>& values) {
  Pack<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result.element[v] = from_float<T>(values.element[v]);
  return result;
}

template <class K>
__device__ Pack<typename K::T, K::V> load(const typename K::T* map, int64_t offset) {
  return *reinterpret_cast<const Pack<typename K::T, K::V>*>(map + offset);
}

template <class K>
__device__ void store(typename K::T* map, int64_t offset, const Pack<typename K::T, K::V>& pack) {
  *reinterpret_cast<Pack<typename K::T, K::V>*>(map + offset) = pack;
}

// Count, mean and sum of squared deviations of N streams of equal length (Welford); merged as Chan et al. do.
template <int N>
struct Moments {
  static constexpr int kFields = 3;

  float count, mean[N], m2[N];

  __device__ void add(const Floats<N>& x) {
    count += 1;
    const float share = __fdividef(1.0f, count);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float delta = x.element[i] - mean[i];
      mean[i] += delta * share;
      m2[i] += delta * (x.element[i] - mean[i]);
    }
  }
  __device__ void merge(const Moments& other) {
    if (other.count == 0) return;
    const float total = count + other.count;
    const float share = __fdividef(other.count, total);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float delta = other.mean[i] - mean[i];
      mean[i] += delta * share;
      m2[i] += other.m2[i] + delta * delta * count * share;
    }
    count = total;
  }
  __device__ Moments<1> only(int i) const { return {count, {mean[i]}, {m2[i]}}; }
  __device__ float field(int f) const { return f == 0 ? mean[0] : f == 1 ? m2[0] : count; }
  __device__ static Moments<1> of_fields(const float (&value)[kFields]) { return {value[2], {value[0]}, {value[1]}}; }
};

// Two sums of N streams.
template <int N>
struct Sums {
  static constexpr int kFields = 2;

  float first[N], second[N];
  float odd;  // an odd number of words: neighbouring threads' parts start in different banks of shared memory

  __device__ void add(const Floats<N>& x, const Floats<N>& y) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      first[i] += x.element[i];
      second[i] += y.element[i];
    }
  }
  __device__ void merge(const Sums& other) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      first[i] += other.first[i];
      second[i] += other.second[i];
    }
  }
  __device__ Sums<1> only(int i) const { return {{first[i]}, {second[i]}, 0}; }
  __device__ float field(int f) const { return f == 0 ? first[0] : second[0]; }
  __device__ static Sums<1> of_fields(const float (&value)[kFields]) { return {{value[0]}, {value[1]}, 0}; }
};

// One part for each of a pack's channels out of one for each of its elements.
template <class K, template <int> class R>
__device__ R<K::kChannels> by_channel(const R<K::V>& part) {
  if constexpr (K::kLast) {
    return part;
  } else {
    R<1> all = part.only(0);
#pragma unroll
    for (int v = 1; v < K::V; ++v) all.merge(part.only(v));
    return all;
  }
}

// Merges the parts of a block's threads that have the same channels; the first `wide` threads have the results.
template <int kBlock, class R>
__device__ void merge_block(R& part, int wide) {
  __shared__ R parts[kBlock / 2];
  const int thread = threadIdx.x;
  for (int live = kBlock / 2; live >= wide; live /= 2) {
    if (thread >= live && thread < 2 * live) parts[thread - live] = part;
    __syncthreads();
    if (thread < live) part.merge(parts[thread]);
    __syncthreads();
  }
}

// A block's part of a split, where merge_splits looks for it: scratch is (splits, fields, c).
template <class K, int kBlock, template <int> class R>
__device__ void write_split(const Map& map, const BatchNormPartition& part, const Walk<K>& walk, int32_t split,
                            const R<K::V>& value, float* scratch) {
  R<K::kChannels> all = by_channel<K, R>(value);
  merge_block<kBlock>(all, part.wide);
  if (static_cast<int32_t>(threadIdx.x) >= part.wide || walk.channel >= map.c) return;
#pragma unroll
  for (int i = 0; i < K::kChannels; ++i) {
    const R<1> one = all.only(i);
#pragma unroll
    for (int f = 0; f < R<1>::kFields; ++f) {
      scratch[(static_cast<int64_t>(split) * R<1>::kFields + f) * map.c + walk.channel + i] = one.field(f);
    }
  }
}

// A channel's splits merged by one warp; lane 0 has the result.
template <class R>
__device__ R merge_splits(const float* scratch, int32_t splits, int64_t channel, int64_t c) {
  const int lane = threadIdx.x % kWarp;
  float value[R::kFields];
  R all{};
  for (int32_t split = lane; split < splits; split += kWarp) {
#pragma unroll
    for (int f = 0; f < R::kFields; ++f) {
      value[f] = scratch[(static_cast<int64_t>(split) * R::kFields + f) * c + channel];
    }
    all.merge(R::of_fields(value));
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int f = 0; f < R::kFields; ++f) value[f] = __shfl_down_sync(kAllLanes, all.field(f), offset);
    all.merge(R::of_fields(value));
  }
  return all;
}

// What becomes of a channel's merged result: statistics (2, c),
struct WriteMoments {
  float* statistics;
  int64_t c;

  __device__ void operator()(int64_t channel, const Moments<1>& batch) const {
    statistics[channel] = batch.mean[0];
    statistics[c + channel] = batch.m2[0];
  }
};

// what training needs of them and keeps of them (running_var is unbiased),
struct FinishStatistics {
  BatchNormStatistics out;

  __device__ void operator()(int64_t channel, const Moments<1>& batch) const {
    const float mean = batch.mean[0], m2 = batch.m2[0];
    out.mean[channel] = mean;
    out.invstd[channel] = rsqrtf(m2 / batch.count + out.eps);
    if (!out.running_mean) return;
    const float unbiased = m2 / fmaxf(batch.count - 1, 1);
    // Not old + momentum * (new - old): with a momentum near 1 that would lose the new one's digits.
    out.running_mean[channel] = (1 - out.momentum) * out.running_mean[channel] + out.momentum * mean;
    out.running_var[channel] = (1 - out.momentum) * out.running_var[channel] + out.momentum * unbiased;
  }
};

// sums (2, c) of g and g * normalised x, out of those of add_products.
struct WriteSums {
  const float* invstd;
  float* sums;
  int64_t c;

  __device__ void operator()(int64_t channel, const Sums<1>& all) const {
    sums[channel] = all.first[0];
    sums[c + channel] = all.second[0] * invstd[channel];
  }
};

// Normalisation of N channels: (x - mean) * scale + bias.
template <int N>
struct Affine {
  float mean[N], scale[N], bias[N];

  __device__ Affine(const BatchNormChannels& channels, int64_t channel) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      mean[i] = channels.mean[channel + i];
      scale[i] = channels.invstd[channel + i] * (channels.weight ? channels.weight[channel + i] : 1.0f);
      bias[i] = channels.bias ? channels.bias[channel + i] : 0.0f;
    }
  }
  __device__ float operator()(float x, int v) const {
    const int i = N == 1 ? 0 : v;
    return (x - mean[i]) * scale[i] + bias[i];
  }
};

// Those packs of a map that may be null, then zeros.
template <class K>
__device__ Pack<typename K::T, K::V> load_if(const typename K::T* map, int64_t offset) {
  return map ? load<K>(map, offset) : Pack<typename K::T, K::V>{};
}

// affine(x) + residual, through ReLU where asked for. NaN stays NaN.
template <class K>
__device__ Pack<typename K::T, K::V> normalised(const Affine<K::kChannels>& affine, const Floats<K::V>& x,
                                                const Floats<K::V>& residual, bool relu) {
  Floats<K::V> y;
#pragma unroll
  for (int v = 0; v < K::V; ++v) {
    const float sum = affine(x.element[v], v) + residual.element[v];
    y.element[v] = relu && sum < 0 ? 0.0f : sum;
  }
  return from_floats<typename K::T>(y);
}

// The gradient maps in the kernel's type.
template <class T>
struct Gradient {
  bool relu;
  const T *dy, *x, *y;

  explicit Gradient(const BatchNormGradient& maps)
      : relu(maps.relu),
        dy(static_cast<const T*>(maps.dy)),
        x(static_cast<const T*>(maps.x)),
        y(static_cast<const T*>(maps.y)) {}
};

// dy where the ReLU let pass; where its output is NaN it passes, as in PyTorch.
template <class K>
__device__ Pack<typename K::T, K::V> masked(const Gradient<typename K::T>& maps, const Affine<K::kChannels>& affine,
                                            const Floats<K::V>& x, int64_t offset) {
  Pack<typename K::T, K::V> g = load<K>(maps.dy, offset);
  if (!maps.relu) return g;
  Floats<K::V> y;
  if (maps.y) {
    y = to_floats(load<K>(maps.y, offset));
  } else {
#pragma unroll
    for (int v = 0; v < K::V; ++v) y.element[v] = affine(x.element[v], v);
  }
#pragma unroll
  for (int v = 0; v < K::V; ++v) {
    if (y.element[v] <= 0) g.element[v] = from_float<typename K::T>(0.0f);
  }
  return g;
}

// Adds g and g * (x - mean).
template <class K>
__device__ void add_products(Sums<K::V>& sums, const Affine<K::kChannels>& affine, const Floats<K::V>& g,
                             const Floats<K::V>& x) {
  Floats<K::V> product;
#pragma unroll
  for (int v = 0; v < K::V; ++v) {
    product.element[v] = g.element[v] * (x.element[v] - affine.mean[v % K::kChannels]);
  }
  sums.add(g, product);
}

// dx = scale * (g - mean of g - normalised x * mean of g * normalised x); scale * g where there are no means.
template <int N>
struct InputGradient {
  bool batch;                 // x had a part in the statistics
  float mean_g[N], slope[N];  // slope is what the mean of g * normalised x weighs for x - mean

  __device__ InputGradient(const float* invstd, const float* means, float share, int64_t channel, int64_t c)
      : batch(means != nullptr) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      mean_g[i] = means ? means[channel + i] * share : 0.0f;
      slope[i] = means ? means[c + channel + i] * share * invstd[channel + i] : 0.0f;
    }
  }
  template <class K>
  __device__ Pack<typename K::T, K::V> of(const Affine<N>& affine, const Floats<K::V>& g, const Floats<K::V>& x) const {
    Floats<K::V> dx;
#pragma unroll
    for (int v = 0; v < K::V; ++v) {
      const int i = v % N;
      const float projected = batch ? mean_g[i] + (x.element[v] - affine.mean[i]) * slope[i] : 0.0f;
      dx.element[v] = affine.scale[i] * (g.element[v] - projected);
    }
    return from_floats<typename K::T>(dx);
  }
};

}  // namespace
}  // namespace psp_fast
