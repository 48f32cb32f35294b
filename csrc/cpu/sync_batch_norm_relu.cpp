// Statistics of a batch, and normalisation by them; compiled and linked as pyramid_pool.cpp is.
#include "cpu/sync_batch_norm_relu_tiles.h"

namespace psp_fast {
namespace {

// Mean and sum of squared deviations of `count` values.
struct Moments {
  double count, mean, deviations;
};

// Both sets together (Chan, Golub, LeVeque); an infinite mean stays infinite.
[[gnu::always_inline]] inline Moments merged(const Moments& a, const Moments& b) {
  const double count = a.count + b.count, difference = b.mean - a.mean;
  return {count, a.mean * (a.count / count) + b.mean * (b.count / count),
          a.deviations + b.deviations + difference * difference * (a.count * b.count / count)};
}

// From a mean that is only about right and the sums of deviations from it and of their squares.
[[gnu::always_inline]] inline Moments corrected(double count, double mean, double sum, double squares) {
  const double error = sum - sum == 0 ? sum / count : 0;  // an infinite mean is as good as it gets
  return {count, mean + error, squares - sum * error};
}

template <class T, class A>
void add_values(const Tile& tile, const T* x, A* __restrict sum) {
  int64_t i = 0;
  for (; i + 4 <= tile.rows; i += 4) {
    const T *a = x + i * tile.stride, *b = a + tile.stride, *c = b + tile.stride, *d = c + tile.stride;
    for (int64_t k = 0; k < tile.lanes; ++k) sum[k] += (load(a + k) + load(b + k)) + (load(c + k) + load(d + k));
  }
  for (; i < tile.rows; ++i) {
    for (int64_t k = 0; k < tile.lanes; ++k) sum[k] += load(x + i * tile.stride + k);
  }
}

// Sums of x - mean, which would be 0 were the mean exact, and of (x - mean)^2.
template <class T, class A, class Parameter>
void add_deviations(const Tile& tile, const T* x, Parameter mean, A* __restrict sum, A* __restrict squares) {
  int64_t i = 0;
  for (; i + 2 <= tile.rows; i += 2) {
    const T *first = x + i * tile.stride, *second = first + tile.stride;
    for (int64_t k = 0; k < tile.lanes; ++k) {
      const A a = load(first + k) - mean[k], b = load(second + k) - mean[k];
      sum[k] += a + b;
      squares[k] += a * a + b * b;
    }
  }
  for (; i < tile.rows; ++i) {
    for (int64_t k = 0; k < tile.lanes; ++k) {
      const A a = load(x + i * tile.stride + k) - mean[k];
      sum[k] += a;
      squares[k] += a * a;
    }
  }
}

template <class T>
Moments plane_statistics(const BatchNormArgs& args, int64_t channel) {
  using A = typename Accumulator<T>::type;
  A sum[kLanes] = {}, squares[kLanes] = {};
  Moments all{};
  for (int64_t n = 0; n < args.n; ++n) {
    const T* plane = static_cast<const T*>(args.x) + (n * args.c + channel) * args.pixels;
    for (int64_t first = 0; first < args.pixels; first += kStretch) {
      const int64_t length = args.pixels - first < kStretch ? args.pixels - first : kStretch;
      const double count = static_cast<double>(length);
      for_tiles(length, [&](const Tile& tile, int64_t at) { add_values(tile, plane + first + at, sum); });
      const Same<A> mean{static_cast<A>(collect(sum) / count)};
      for_tiles(length,
                [&](const Tile& tile, int64_t at) { add_deviations(tile, plane + first + at, mean, sum, squares); });
      const double rest = collect(sum);
      all = merged(all, corrected(count, mean.value, rest, collect(squares)));
    }
  }
  return all;
}

template <class A>
void put(const BatchNormArgs& args, int64_t channel, double mean, double deviations) {
  static_cast<A*>(args.stats)[channel] = static_cast<A>(mean);
  static_cast<A*>(args.stats)[args.c + channel] = static_cast<A>(deviations < 0 ? 0 : deviations);
}

template <class T>
void statistics_planes(const BatchNormArgs& args) {
#pragma omp parallel for num_threads(args.threads) schedule(dynamic)
  for (int64_t channel = 0; channel < args.c; ++channel) {
    const Moments all = plane_statistics<T>(args, channel);
    put<typename Accumulator<T>::type>(args, channel, all.mean, all.deviations);
  }
}

// The statistics of a section of rows, all channels, into part (2, C); sums (3, C) is scratch.
template <class T, class A>
void section_statistics(const BatchNormArgs& args, const RowBlocks& cut, int64_t section, double* __restrict part,
                        A* __restrict sums) {
  A *mean = sums, *sum = sums + args.c, *squares = sums + 2 * args.c;
  clear(part, 2 * args.c);
  double before = 0;
  for (int64_t b = cut.first_block(section); b < cut.first_block(section + 1); ++b) {
    const Tile tile{cut.first_row(b + 1) - cut.first_row(b), args.c, args.c};
    const T* x = static_cast<const T*>(args.x) + cut.first_row(b) * args.c;
    const double count = static_cast<double>(tile.rows);
    clear(sums, 3 * args.c);
    add_values(tile, x, mean);
    for (int64_t k = 0; k < args.c; ++k) mean[k] /= static_cast<A>(count);
    add_deviations(tile, x, static_cast<const A*>(mean), sum, squares);
    for (int64_t k = 0; k < args.c; ++k) {
      const Moments all = merged({before, part[k], part[args.c + k]}, corrected(count, mean[k], sum[k], squares[k]));
      part[k] = all.mean;
      part[args.c + k] = all.deviations;
    }
    before += count;
  }
}

// Merges the sections of channels [first, last), in order.
template <class A>
void merge_sections(const BatchNormArgs& args, const RowBlocks& cut, const Scratch<double>& parts, int64_t first,
                    int64_t last) {
  double mean[kLanes] = {}, deviations[kLanes] = {}, before = 0;
  for (int64_t section = 0; section < cut.sections; ++section) {
    const double* part = parts.of(section) + first;
    const double count = static_cast<double>(cut.rows_of(section));
    for (int64_t k = 0; k < last - first; ++k) {
      const Moments all = merged({before, mean[k], deviations[k]}, {count, part[k], part[args.c + k]});
      mean[k] = all.mean;
      deviations[k] = all.deviations;
    }
    before += count;
  }
  for (int64_t k = 0; k < last - first; ++k) put<A>(args, first + k, mean[k], deviations[k]);
}

template <class T>
void statistics_channels_last(const BatchNormArgs& args) {
  using A = typename Accumulator<T>::type;
  const RowBlocks cut(args);
  const Scratch<double> parts(cut.sections, 2 * args.c);
  const Scratch<A> sums(args.threads, 3 * args.c);
#pragma omp parallel num_threads(args.threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t section = 0; section < cut.sections; ++section) {
      section_statistics<T>(args, cut, section, parts.of(section), sums.of(thread_index()));
    }
#pragma omp for
    for (int64_t channel = 0; channel < args.c; channel += kLanes) {
      merge_sections<A>(args, cut, parts, channel, channel + kLanes < args.c ? channel + kLanes : args.c);
    }
  }
}

// A run of pixels of one channel, or a pixel of all channels.
template <bool relu, class T, class Parameter>
void apply_run(const T* __restrict x, const T* __restrict residual, T* __restrict y, int64_t count, Parameter mean,
               Parameter scale, Parameter shift) {
  using A = typename Accumulator<T>::type;
  for (int64_t k = 0; k < count; ++k) {
    A value = (load(x + k) - mean[k]) * scale[k] + shift[k];
    if (residual != nullptr) value += load(residual + k);
    store(y + k, relu && value < 0 ? A(0) : value);  // NaN stays
  }
}

template <bool relu, class T>
void apply(const BatchNormArgs& args) {
  using A = typename Accumulator<T>::type;
  const Scales<A> scales(args);
  for_runs(args, [&](int64_t first, int64_t count, auto channel) {
    const T* residual = static_cast<const T*>(args.residual);
    apply_run<relu>(static_cast<const T*>(args.x) + first, residual == nullptr ? nullptr : residual + first,
                    static_cast<T*>(args.y) + first, count, channel(scales.mean), channel(scales.scale),
                    channel(scales.shift));
  });
}

template <class T>
void statistics(const BatchNormArgs& args) {
  args.channels_last ? statistics_channels_last<T>(args) : statistics_planes<T>(args);
}

template <class T>
void apply(const BatchNormArgs& args) {
  args.relu ? apply<true, T>(args) : apply<false, T>(args);
}

}  // namespace

namespace PSP_FAST_CPU {

void batch_norm_statistics(const BatchNormArgs& args) {
  switch (args.dtype) {
    case DType::kFloat64:
      return statistics<double>(args);
    case DType::kBFloat16:
      return statistics<BFloat16>(args);
    default:
      return statistics<float>(args);
  }
}

void batch_norm_apply(const BatchNormArgs& args) {
  switch (args.dtype) {
    case DType::kFloat64:
      return apply<double>(args);
    case DType::kBFloat16:
      return apply<BFloat16>(args);
    default:
      return apply<float>(args);
  }
}

}  // namespace PSP_FAST_CPU
}  // namespace psp_fast
