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

// The squares are summed around the mean of what came before, the first stretch around its own: where that is far from
// a stretch's mean, the whole has so large a variance that nothing is lost.
template <class T>
Moments plane_statistics(const BatchNormArgs& args, int64_t channel) {
  using A = typename Accumulator<T>::type;
  Vector<A> sum[4] = {}, squares[4] = {};
  Moments all{};
  Same<A> centre{};
  for (int64_t n = 0; n < args.n; ++n) {
    const T* plane = static_cast<const T*>(args.x) + (n * args.c + channel) * args.pixels;
    for_stretches(args.pixels, [&](int64_t first, int64_t length) {
      const T* x = plane + first;
      const double count = static_cast<double>(length);
      if (all.count == 0) {
        for_spans(0, length, [&](auto span, int k) __attribute__((always_inline)) { sum[k] += read(x, span); });
        centre.value = static_cast<A>(collect<A>(sum) / count);
      }
      for_spans(0, length, [&](auto span, int k) __attribute__((always_inline)) {
        ask_ahead(x, span);
        const Vector<A> value = within(span, read(x, span) - read(centre, span));
        sum[k] += value;
        squares[k] += value * value;
      });
      const double total = collect<A>(sum);
      all = merged(all, moments(count, centre.value, total, collect<A>(squares)));
      centre.value = static_cast<A>(all.mean);
    });
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
  [[maybe_unused]] const int64_t share = share_of(args, args.c);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic, share)
  for (int64_t channel = 0; channel < args.c; ++channel) {
    const Moments all = plane_statistics<T>(args, channel);
    put<typename Accumulator<T>::type>(args, channel, all.mean, all.deviations);
  }
}

// Adds the values of rows [first, last) of x.
template <class T, class A>
void add_values(const BatchNormArgs& args, int64_t first, int64_t last, A* sum) {
  for_rows(first, last, [&](int64_t row, auto rows) __attribute__((always_inline)) {
    const T* x = static_cast<const T*>(args.x) + row * args.c;
    for_spans(0, args.c, [&](auto span, int) __attribute__((always_inline)) {
      Vector<A> total = read(sum, span);
      for (int r = 0; r < rows.value; ++r) total += read(x + r * args.c, span);
      write(sum, span, total, false);
    });
  });
}

// Adds x - centre, and its square.
template <class T, class A>
void add_deviations(const BatchNormArgs& args, int64_t first, int64_t last, const A* centre, A* sum, A* squares) {
  for_rows(first, last, [&](int64_t row, auto rows) __attribute__((always_inline)) {
    const T* x = static_cast<const T*>(args.x) + row * args.c;
    for_spans(0, args.c, [&](auto span, int) __attribute__((always_inline)) {
      const Vector<A> middle = read(centre, span);
      Vector<A> total = read(sum, span), total_squares = read(squares, span);
      for (int r = 0; r < rows.value; ++r) {
        ask_ahead(x + r * args.c, span);
        const Vector<A> value = read(x + r * args.c, span) - middle;
        total += value;
        total_squares += value * value;
      }
      write(sum, span, total, false);
      write(squares, span, total_squares, false);
    });
  });
}

// The statistics of a section of rows, all channels, into part (2, C), as in plane_statistics; sums (3, C) is scratch.
template <class T, class A>
void section_statistics(const BatchNormArgs& args, const RowBlocks& cut, int64_t section, double* __restrict part,
                        A* __restrict sums) {
  A *sum = sums, *squares = sums + args.c, *centre = sums + 2 * args.c;
  clear(part, 2 * args.c);
  double before = 0;
  for (int64_t b = cut.first_block(section); b < cut.first_block(section + 1); ++b) {
    const int64_t first = cut.first_row(b), last = cut.first_row(b + 1);
    const double count = static_cast<double>(last - first);
    clear(sums, 2 * args.c);
    if (before == 0) {
      clear(centre, args.c);
      add_values<T>(args, first, last, centre);
      for (int64_t k = 0; k < args.c; ++k) centre[k] /= static_cast<A>(count);
    }
    add_deviations<T>(args, first, last, static_cast<const A*>(centre), sum, squares);
    for (int64_t k = 0; k < args.c; ++k) {
      const Moments all = merged({before, part[k], part[args.c + k]}, moments(count, centre[k], sum[k], squares[k]));
      part[k] = all.mean;
      part[args.c + k] = all.deviations;
      centre[k] = static_cast<A>(all.mean);
    }
    before += count;
  }
}

constexpr int64_t kTogether = 64;

// Merges the sections of channels [first, last), at most kTogether, in order.
template <class A>
void merge_sections(const BatchNormArgs& args, const RowBlocks& cut, const Scratch<double>& parts, int64_t first,
                    int64_t last) {
  double mean[kTogether] = {}, deviations[kTogether] = {}, before = 0;
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
    for (int64_t channel = 0; channel < args.c; channel += kTogether) {
      merge_sections<A>(args, cut, parts, channel, channel + kTogether < args.c ? channel + kTogether : args.c);
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

// What some elements are normalised by: the same for a plane's, an array for a row's channels.
template <class Parameter>
struct Normal {
  Parameter mean, scale, shift;
};
template <class Parameter>
Normal(Parameter, Parameter, Parameter) -> Normal<Parameter>;

// Where a run of elements is in the maps.
template <class T>
struct Run {
  const T *x, *residual;
  T* y;
  uint16_t* mask;

  Run(const BatchNormArgs& args, int64_t run, int64_t first)
      : x(static_cast<const T*>(args.x) + first),
        residual(args.residual == nullptr ? nullptr : static_cast<const T*>(args.residual) + first),
        y(static_cast<T*>(args.y) + first),
        mask(args.mask == nullptr ? nullptr : args.mask + run * mask_words(args)) {}

  template <class Span, class V>
  [[gnu::always_inline]] void put(Span span, int64_t offset, bool relu, bool streamed, V value) const {
    if (residual != nullptr) value += read(residual, span);
    if (relu) {
      if (mask != nullptr) mask[mask_word(span, offset)] = active_bits(value);
      value = value < 0 ? V{} : value;  // NaN stays
    }
    write(y, span, value, streamed);
  }
};

template <bool relu, class T, class A>
void apply_plane(const BatchNormArgs& args, bool streamed, int64_t plane, Normal<Same<A>> normal) {
  const int64_t first = plane * args.pixels, offset = first % kLanes;
  const Run<T> run(args, plane, first);
  for_spans(offset, args.pixels, [&](auto span, int) __attribute__((always_inline)) {
    run.put(span, offset, relu, streamed,
            (read(run.x, span) - read(normal.mean, span)) * read(normal.scale, span) + read(normal.shift, span));
  });
}

template <bool relu, class T, class A>
void apply_row(const BatchNormArgs& args, bool streamed, int64_t row, Normal<const A*> normal) {
  const Run<T> run(args, row, row * args.c);
  for_spans(0, args.c, [&](auto span, int) __attribute__((always_inline)) {
    run.put(span, 0, relu, streamed,
            (read(run.x, span) - read(normal.mean, span)) * read(normal.scale, span) + read(normal.shift, span));
  });
}

template <bool relu, class T>
void apply(const BatchNormArgs& args) {
  using A = typename Accumulator<T>::type;
  const Scales<A> scales(args);
  const bool streamed = streams(args, args.y);
  if (args.channels_last) {
    const Normal<const A*> normal{scales.mean, scales.scale, scales.shift};
    for_rows_backwards(args, [&](int64_t row) { apply_row<relu, T, A>(args, streamed, row, normal); });
  } else {
    for_planes(args, [&](int64_t plane, int64_t c) {
      apply_plane<relu, T>(args, streamed, plane,
                           Normal{Same{scales.mean[c]}, Same{scales.scale[c]}, Same{scales.shift[c]}});
    });
  }
}

// A channel's planes are still in the cache when its statistics are known.
template <bool relu, class T>
void forward_planes(const BatchNormArgs& args) {
  using A = typename Accumulator<T>::type;
  const bool streamed = streams(args, args.y);
  [[maybe_unused]] const int64_t share = share_of(args, args.c);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic, share)
  for (int64_t c = 0; c < args.c; ++c) {
    const Moments all = plane_statistics<T>(args, c);
    keep<A>(args, c, all.mean, all.deviations);
    // By value: the neighbours in the arrays are being written by other threads.
    const Normal normal{Same{static_cast<const A*>(args.mean)[c]}, Same{scale_of<A>(args, c)},
                        Same{shift_of<A>(args, c)}};
    for (int64_t n = 0; n < args.n; ++n) apply_plane<relu, T>(args, streamed, n * args.c + c, normal);
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
