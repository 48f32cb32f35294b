// Gradients of batch norm, residual sum and ReLU; compiled and linked as pyramid_pool.cpp is.
#include "cpu/sync_batch_norm_relu_tiles.h"

namespace psp_fast {
namespace {

// How ReLU's mask is known: no ReLU, from forward's bits, from the saved output, or from x.
enum class Mask { kNone, kBits, kOutput, kRecomputed };

// A run of elements of the maps that gradients are computed from.
template <Mask mask, class T>
struct Run {
  using A = typename Accumulator<T>::type;
  const T *dy, *x, *y;
  const uint16_t* bits;

  Run(const BatchNormArgs& args, int64_t run, int64_t first)
      : dy(static_cast<const T*>(args.dy) + first),
        x(static_cast<const T*>(args.x) + first),
        y(mask == Mask::kOutput ? static_cast<const T*>(args.y) + first : nullptr),
        bits(mask == Mask::kBits ? args.mask + run * mask_words(args) : nullptr) {}

  // The gradient before ReLU. A NaN lets it pass, as in PyTorch.
  template <class Span, class Parameter>
  [[gnu::always_inline]] Vector<A> g(Span span, int64_t offset, const Vector<A>& centred, Parameter scale,
                                     Parameter shift) const {
    const Vector<A> value = read(dy, span);
    if constexpr (mask == Mask::kBits) return where_active<A>(bits[mask_word(span, offset)], value);
    if constexpr (mask == Mask::kOutput) return read(y, span) <= 0 ? Vector<A>{} : value;
    if constexpr (mask == Mask::kRecomputed) {
      return centred * read(scale, span) + read(shift, span) <= 0 ? Vector<A>{} : value;
    }
    return value;
  }

  template <class Span>
  [[gnu::always_inline]] void ask_ahead(Span span) const {
    psp_fast::ask_ahead(dy, span);
    psp_fast::ask_ahead(x, span);
    if constexpr (mask == Mask::kOutput) psp_fast::ask_ahead(y, span);
  }
};

// What the gradients of some elements take: the same for a plane's, an array for a row's channels.
template <class Parameter>
struct Coefficients {
  Parameter mean, scale, shift, slope, offset;
};
template <class Parameter>
Coefficients(Parameter, Parameter, Parameter, Parameter, Parameter) -> Coefficients<Parameter>;

// Scales, and what the batch's own statistics take from dx: (x - mean) * slope + offset.
template <class A>
struct Parameters : Scales<A> {
  Scratch<A> more;
  A *slope, *offset;

  explicit Parameters(const BatchNormArgs& args)
      : Scales<A>(args), more(1, 2 * args.c), slope(more.of(0)), offset(slope + args.c) {
    const A* means = static_cast<const A*>(args.means);
    clear(slope, 2 * args.c);  // a frozen layer has none
    for (int64_t c = 0; means != nullptr && c < args.c; ++c) set(args, c, means[c], means[args.c + c]);
  }

  void set(const BatchNormArgs& args, int64_t c, A mean_g, A mean_g_xhat) {
    slope[c] = mean_g_xhat * static_cast<const A*>(args.invstd)[c] * this->scale[c];
    offset[c] = mean_g * this->scale[c];
  }

  // From the sums of this process.
  void set(const BatchNormArgs& args, int64_t c) {
    const A* sums = static_cast<const A*>(args.sums);
    const A count = static_cast<A>(args.n * args.pixels);
    set(args, c, sums[c] / count, sums[args.c + c] / count);
  }

  // By value: the neighbours in the arrays may be being written by other threads.
  Coefficients<Same<A>> of(int64_t c) const {
    return {{this->mean[c]}, {this->scale[c]}, {this->shift[c]}, {slope[c]}, {offset[c]}};
  }
};

template <class A>
void put(const BatchNormArgs& args, int64_t c, double sum, double products) {
  static_cast<A*>(args.sums)[c] = static_cast<A>(sum);
  static_cast<A*>(args.sums)[args.c + c] = static_cast<A>(products * static_cast<const A*>(args.invstd)[c]);
}

template <Mask mask, class T, class A>
void plane_sums(const BatchNormArgs& args, const Parameters<A>& p, int64_t c) {
  const Coefficients<Same<A>> own = p.of(c);
  Vector<A> sum[4] = {}, products[4] = {};
  double all = 0, all_products = 0;
  for (int64_t n = 0; n < args.n; ++n) {
    const int64_t plane = n * args.c + c, offset = plane * args.pixels % kLanes;
    for_stretches(args.pixels, [&](int64_t first, int64_t length) {
      Run<mask, T> run(args, plane, plane * args.pixels + first);
      if constexpr (mask == Mask::kBits) run.bits += first / kLanes;
      for_spans(offset, length, [&](auto span, int k) __attribute__((always_inline)) {
        run.ask_ahead(span);
        const Vector<A> centred = read(run.x, span) - read(own.mean, span);
        const Vector<A> g = within(span, run.g(span, offset, centred, own.scale, own.shift));
        sum[k] += g;
        products[k] += g * within(span, centred);
      });
      all += collect<A>(sum);
      all_products += collect<A>(products);
    });
  }
  put<A>(args, c, all, all_products);
}

// Adds g, and g * (x - mean), of rows [first, last).
template <Mask mask, class T, class A>
void add_gradients(const BatchNormArgs& args, int64_t first, int64_t last, const Scales<A>& p, A* sum, A* products) {
  for_rows(first, last, [&](int64_t row, auto rows) __attribute__((always_inline)) {
    for_spans(0, args.c, [&](auto span, int) __attribute__((always_inline)) {
      const Vector<A> mean = read(p.mean, span);
      Vector<A> total = read(sum, span), total_products = read(products, span);
      for (int r = 0; r < rows.value; ++r) {
        const Run<mask, T> run(args, row + r, (row + r) * args.c);
        run.ask_ahead(span);
        const Vector<A> centred = read(run.x, span) - mean;
        const Vector<A> g = run.g(span, 0, centred, static_cast<const A*>(p.scale), static_cast<const A*>(p.shift));
        total += g;
        total_products += g * centred;
      }
      write(sum, span, total, false);
      write(products, span, total_products, false);
    });
  });
}

template <Mask mask, class T, class A>
void sums_channels_last(const BatchNormArgs& args, const Parameters<A>& p) {
  const RowBlocks cut(args);
  const Scratch<double> parts(cut.sections, 2 * args.c);
  const Scratch<A> scratch(args.threads, 2 * args.c);
#pragma omp parallel num_threads(args.threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t section = 0; section < cut.sections; ++section) {
      double* part = parts.of(section);
      A* sums = scratch.of(thread_index());
      clear(part, 2 * args.c);
      for (int64_t b = cut.first_block(section); b < cut.first_block(section + 1); ++b) {
        clear(sums, 2 * args.c);
        add_gradients<mask, T, A>(args, cut.first_row(b), cut.first_row(b + 1), p, sums, sums + args.c);
        for (int64_t k = 0; k < 2 * args.c; ++k) part[k] += sums[k];
      }
    }
#pragma omp for
    for (int64_t c = 0; c < args.c; ++c) {
      double sum = 0, products = 0;
      for (int64_t section = 0; section < cut.sections; ++section) {
        sum += parts.of(section)[c];
        products += parts.of(section)[args.c + c];
      }
      put<A>(args, c, sum, products);
    }
  }
}

// dx = (g - mean of g - xhat * mean of g * xhat) * scale, as one multiplication less; and g where it is asked for.
template <bool frozen, class T, class Span, class V>
[[gnu::always_inline]] inline void put_gradients(const BatchNormArgs& args, int64_t first, Span span, bool streamed,
                                                 const V& g, const V& centred, const V& scale, const V& slope,
                                                 const V& offset) {
  V dx = g * scale;
  if constexpr (!frozen) dx -= centred * slope + offset;
  write(static_cast<T*>(args.dx) + first, span, dx, streamed);
  if (args.g != nullptr) write(static_cast<T*>(args.g) + first, span, g, streamed);
}

template <Mask mask, bool frozen, class T, class A>
void input_of_plane(const BatchNormArgs& args, bool streamed, int64_t plane, Coefficients<Same<A>> own) {
  const int64_t first = plane * args.pixels, offset = first % kLanes;
  const Run<mask, T> run(args, plane, first);
  for_spans(offset, args.pixels, [&](auto span, int) __attribute__((always_inline)) {
    const Vector<A> centred = read(run.x, span) - read(own.mean, span);
    put_gradients<frozen, T>(args, first, span, streamed, run.g(span, offset, centred, own.scale, own.shift), centred,
                             read(own.scale, span), read(own.slope, span), read(own.offset, span));
  });
}

template <Mask mask, bool frozen, class T, class A>
void input_of_row(const BatchNormArgs& args, bool streamed, int64_t row, Coefficients<const A*> own) {
  const Run<mask, T> run(args, row, row * args.c);
  for_spans(0, args.c, [&](auto span, int) __attribute__((always_inline)) {
    const Vector<A> centred = read(run.x, span) - read(own.mean, span);
    put_gradients<frozen, T>(args, row * args.c, span, streamed, run.g(span, 0, centred, own.scale, own.shift), centred,
                             read(own.scale, span), read(own.slope, span), read(own.offset, span));
  });
}

template <Mask mask, class T>
struct Backward {
  using A = typename Accumulator<T>::type;

  static void sums(const BatchNormArgs& args) {
    const Parameters<A> p(args);
    if (args.channels_last) return sums_channels_last<mask, T>(args, p);
    [[maybe_unused]] const int64_t share = share_of(args, args.c);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic, share)
    for (int64_t c = 0; c < args.c; ++c) plane_sums<mask, T>(args, p, c);
  }

  template <bool frozen>
  static void input_from(const BatchNormArgs& args, const Parameters<A>& p) {
    const bool streamed = streams_gradients(args);
    if (args.channels_last) {
      const Coefficients<const A*> all{p.mean, p.scale, p.shift, p.slope, p.offset};
      for_rows_backwards(args, [&](int64_t row) { input_of_row<mask, frozen, T>(args, streamed, row, all); });
    } else {
      for_planes(args,
                 [&](int64_t plane, int64_t c) { input_of_plane<mask, frozen, T>(args, streamed, plane, p.of(c)); });
    }
  }

  static void input(const BatchNormArgs& args) {
    const Parameters<A> p(args);
    args.means == nullptr ? input_from<true>(args, p) : input_from<false>(args, p);
  }

  // A channel's planes are still in the cache when its sums are known; the last channels' x may be since forward.
  static void both(const BatchNormArgs& args) {
    Parameters<A> p(args);
    if (args.channels_last) {
      sums_channels_last<mask, T>(args, p);
      for (int64_t c = 0; c < args.c; ++c) p.set(args, c);
      return input_from<false>(args, p);
    }
    const bool streamed = streams_gradients(args);
    [[maybe_unused]] const int64_t share = share_of(args, args.c);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic, share)
    for (int64_t c = args.c - 1; c >= 0; --c) {
      plane_sums<mask, T>(args, p, c);
      p.set(args, c);
      for (int64_t n = 0; n < args.n; ++n) input_of_plane<mask, false, T>(args, streamed, n * args.c + c, p.of(c));
      end_streaming();
    }
  }

  static bool streams_gradients(const BatchNormArgs& args) { return streams(args, args.dx) && streams(args, args.g); }
};

// Calls F::run<Backward> for the type and mask of args.
template <class F, class T>
void run_typed(const BatchNormArgs& args) {
  if (!args.relu) return F::template run<Backward<Mask::kNone, T>>(args);
  if (args.mask != nullptr) return F::template run<Backward<Mask::kBits, T>>(args);
  if (args.y != nullptr) return F::template run<Backward<Mask::kOutput, T>>(args);
  F::template run<Backward<Mask::kRecomputed, T>>(args);
}

template <class F>
void run(const BatchNormArgs& args) {
  switch (args.dtype) {
    case DType::kFloat64:
      return run_typed<F, double>(args);
    case DType::kBFloat16:
      return run_typed<F, BFloat16>(args);
    default:
      return run_typed<F, float>(args);
  }
}

struct Sums {
  template <class B>
  static void run(const BatchNormArgs& args) {
    B::sums(args);
  }
};
struct Input {
  template <class B>
  static void run(const BatchNormArgs& args) {
    B::input(args);
  }
};
struct Both {
  template <class B>
  static void run(const BatchNormArgs& args) {
    B::both(args);
  }
};

}  // namespace

namespace PSP_FAST_CPU {

void batch_norm_backward_sums(const BatchNormArgs& args) { run<Sums>(args); }
void batch_norm_backward_input(const BatchNormArgs& args) { run<Input>(args); }
void batch_norm_backward(const BatchNormArgs& args) { run<Both>(args); }

}  // namespace PSP_FAST_CPU
}  // namespace psp_fast
