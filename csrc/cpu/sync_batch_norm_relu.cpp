// Statistics of a batch, and normalisation by them; compiled and linked as pyramid_pool.cpp is.
#include <cmath>

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

// Of `count` values, from the sums of their deviations from `centre` and of the squares of those.
[[gnu::always_inline]] inline Moments moments(double count, double centre, double sum, double squares) {
  const double error = centre - centre == 0 ? sum / count : 0;  // an infinite mean stays infinite
  return {count, centre + error, squares - sum * error};
}

// Asks for what lies kAhead bytes after a row: one stream alone does not keep the memory busy.
template <class T>
[[gnu::always_inline]] inline void prefetch_row(const T* row, int64_t lanes) {
  constexpr int64_t kAhead = 4096 / sizeof(T), kLine = 64 / sizeof(T);
  for (int64_t k = 0; k < lanes; k += kLine) prefetch(row, k + kAhead);
}

template <class T, class A>
void add_values(const Tile& tile, const T* x, A* __restrict sum) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    prefetch_row(x + i * tile.stride, tile.lanes);
    for (int64_t k = 0; k < tile.lanes; ++k) sum[k] += load(x + i * tile.stride + k);
  }
}

// Adds x - centre, and its square.
template <class T, class A, class Parameter>
void add_deviations(const Tile& tile, const T* x, Parameter centre, A* __restrict sum, A* __restrict squares) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    prefetch_row(x + i * tile.stride, tile.lanes);
    for (int64_t k = 0; k < tile.lanes; ++k) {
      const A value = load(x + i * tile.stride + k) - centre[k];
      sum[k] += value;
      squares[k] += value * value;
    }
  }
}

// The squares are summed around the mean of what came before, the first stretch around its own: where that is far from
// a stretch's mean, the whole has so large a variance that nothing is lost.
template <class T>
Moments plane_statistics(const BatchNormArgs& args, int64_t channel) {
  using A = typename Accumulator<T>::type;
  A sum[kLanes] = {}, squares[kLanes] = {};
  Moments all{};
  Same<A> centre{};
  for (int64_t n = 0; n < args.n; ++n) {
    const T* plane = static_cast<const T*>(args.x) + (n * args.c + channel) * args.pixels;
    for (int64_t first = 0; first < args.pixels; first += kStretch) {
      const int64_t length = args.pixels - first < kStretch ? args.pixels - first : kStretch;
      const double count = static_cast<double>(length);
      if (all.count == 0) {
        for_tiles(length, [&](const Tile& tile, int64_t at) { add_values(tile, plane + at, sum); });
        centre.value = static_cast<A>(collect(sum) / count);
      }
      for_tiles(length,
                [&](const Tile& tile, int64_t at) { add_deviations(tile, plane + first + at, centre, sum, squares); });
      const double total = collect(sum);
      all = merged(all, moments(count, centre.value, total, collect(squares)));
      centre.value = static_cast<A>(all.mean);
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

// The statistics of a section of rows, all channels, into part (2, C), as in plane_statistics; sums (3, C) is scratch.
template <class T, class A>
void section_statistics(const BatchNormArgs& args, const RowBlocks& cut, int64_t section, double* __restrict part,
                        A* __restrict sums) {
  A *sum = sums, *squares = sums + args.c, *centre = sums + 2 * args.c;
  clear(part, 2 * args.c);
  double before = 0;
  for (int64_t b = cut.first_block(section); b < cut.first_block(section + 1); ++b) {
    const Tile tile{cut.first_row(b + 1) - cut.first_row(b), args.c, args.c};
    const T* x = static_cast<const T*>(args.x) + cut.first_row(b) * args.c;
    const double count = static_cast<double>(tile.rows);
    clear(sums, 2 * args.c);
    if (before == 0) {
      clear(centre, args.c);
      add_values(tile, x, centre);
      for (int64_t k = 0; k < args.c; ++k) centre[k] /= static_cast<A>(count);
    }
    add_deviations(tile, x, static_cast<const A*>(centre), sum, squares);
    for (int64_t k = 0; k < args.c; ++k) {
      const Moments all = merged({before, part[k], part[args.c + k]}, moments(count, centre[k], sum[k], squares[k]));
      part[k] = all.mean;
      part[args.c + k] = all.deviations;
      centre[k] = static_cast<A>(all.mean);
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

// Takes a batch's statistics of one channel into mean, invstd and the running statistics.
template <class A>
void keep(const BatchNormArgs& args, int64_t channel, double mean, double deviations) {
  const double count = static_cast<double>(args.n * args.pixels), least = deviations < 0 ? 0 : deviations;
  static_cast<A*>(args.mean)[channel] = static_cast<A>(mean);
  static_cast<A*>(args.invstd)[channel] = static_cast<A>(1 / std::sqrt(least / count + args.eps));
  if (args.running_mean == nullptr) return;
  A &running_mean = static_cast<A*>(args.running_mean)[channel],
    &running_var = static_cast<A*>(args.running_var)[channel];
  running_mean = static_cast<A>(running_mean + args.momentum * (mean - running_mean));
  const double unbiased = least / (count > 1 ? count - 1 : 1);
  running_var = static_cast<A>(running_var + args.momentum * (unbiased - running_var));
}

// What some elements are normalised by: the same for a plane's, an array for a pixel's channels.
template <class Parameter>
struct Normal {
  Parameter mean, scale, shift;
};
template <class Parameter>
Normal(Parameter, Parameter, Parameter) -> Normal<Parameter>;

// A piece of a plane, or of a pixel's channels.
template <bool relu, class T, class Parameter>
void apply_piece(const T* __restrict x, const T* __restrict residual, T* __restrict y, int64_t count,
                 Normal<Parameter> normal) {
  using A = typename Accumulator<T>::type;
  for (int64_t k = 0; k < count; ++k) {
    A value = (load(x + k) - normal.mean[k]) * normal.scale[k] + normal.shift[k];
    if (residual != nullptr) value += load(residual + k);
    store(y + k, relu && value < 0 ? A(0) : value);  // NaN stays
  }
}

// normal_at(k): what the run's elements from k on are normalised by.
template <bool relu, class T, class F>
void apply_run(const BatchNormArgs& args, bool streamed, int64_t first, int64_t length, F normal_at) {
  const T *x = static_cast<const T*>(args.x) + first, *residual = static_cast<const T*>(args.residual);
  if (residual != nullptr) residual += first;
  Output<T> y(args.y, first, streamed);
  for_pieces(length, [&](int64_t at, int64_t count) {
    apply_piece<relu>(x + at, residual == nullptr ? nullptr : residual + at, y.piece(at), count, normal_at(at));
    y.finish(at, count);
  });
}

template <bool relu, class T>
void apply(const BatchNormArgs& args) {
  const Scales<typename Accumulator<T>::type> scales(args);
  const bool streamed = streams(args);
  for_runs(args, [&](int64_t first, int64_t length, auto channel) {
    apply_run<relu, T>(args, streamed, first, length, [&](int64_t at) {
      return Normal{channel(scales.mean, at), channel(scales.scale, at), channel(scales.shift, at)};
    });
  });
}

// A channel's planes are still in the cache when its statistics are known.
template <bool relu, class T>
void forward_planes(const BatchNormArgs& args) {
  using A = typename Accumulator<T>::type;
  const bool streamed = streams(args);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic)
  for (int64_t c = 0; c < args.c; ++c) {
    const Moments all = plane_statistics<T>(args, c);
    keep<A>(args, c, all.mean, all.deviations);
    // By value: the neighbours in the arrays are being written by other threads.
    const Normal normal{Same{static_cast<const A*>(args.mean)[c]}, Same{scale_of<A>(args, c)},
                        Same{shift_of<A>(args, c)}};
    for (int64_t n = 0; n < args.n; ++n) {
      apply_run<relu, T>(args, streamed, (n * args.c + c) * args.pixels, args.pixels,
                         [normal](int64_t) { return normal; });
    }
    end_streaming();
  }
}

template <class T>
void statistics(const BatchNormArgs& args) {
  args.channels_last ? statistics_channels_last<T>(args) : statistics_planes<T>(args);
}

template <class T>
void apply(const BatchNormArgs& args) {
  args.relu ? apply<true, T>(args) : apply<false, T>(args);
}

template <class T>
void forward(const BatchNormArgs& args) {
  if (!args.channels_last) return args.relu ? forward_planes<true, T>(args) : forward_planes<false, T>(args);
  using A = typename Accumulator<T>::type;
  Scratch<A> stats(1, 2 * args.c);
  BatchNormArgs own = args;
  own.stats = stats.of(0);
  statistics_channels_last<T>(own);
  for (int64_t c = 0; c < args.c; ++c) keep<A>(args, c, stats.of(0)[c], stats.of(0)[args.c + c]);
  apply<T>(args);
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

void batch_norm_forward(const BatchNormArgs& args) {
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
