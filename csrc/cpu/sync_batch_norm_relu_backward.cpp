// Gradients of batch norm, residual sum and ReLU; compiled and linked as pyramid_pool.cpp is.
#include "cpu/sync_batch_norm_relu_tiles.h"

namespace psp_fast {
namespace {

// How ReLU's mask is known: no ReLU, from the saved output, or from x.
enum class Mask { kNone, kSaved, kRecomputed };

// The gradient g before ReLU, and x, along a run of elements whose channel parameters are at the same index.
template <Mask mask, class T, class Parameter>
struct Gradient {
  using A = typename Accumulator<T>::type;
  const T *dy, *x, *y;
  Parameter mean, scale, shift;

  Gradient(const BatchNormArgs& args, int64_t first, Parameter mean, Parameter scale, Parameter shift)
      : dy(static_cast<const T*>(args.dy) + first),
        x(static_cast<const T*>(args.x) + first),
        y(mask == Mask::kSaved ? static_cast<const T*>(args.y) + first : nullptr),
        mean(mean),
        scale(scale),
        shift(shift) {}

  A centred(int64_t at, int64_t lane) const { return load(x + at) - mean[lane]; }
  A g(int64_t at, int64_t lane) const {
    const A value = load(dy + at);
    if constexpr (mask == Mask::kNone) return value;
    const A output = mask == Mask::kSaved ? A(load(y + at)) : centred(at, lane) * scale[lane] + shift[lane];
    return output <= 0 ? A(0) : value;  // a NaN lets the gradient pass, as in PyTorch
  }
};

// Adds g, and g * (x - mean).
template <class Gradient, class A>
[[gnu::always_inline]] inline void add_gradients(const Tile& tile, Gradient gradient, A* __restrict sum,
                                                 A* __restrict products) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    for (int64_t k = 0; k < tile.lanes; ++k) {
      const A value = gradient.g(i * tile.stride + k, k);
      sum[k] += value;
      products[k] += value * gradient.centred(i * tile.stride + k, k);
    }
  }
}

// Writes a piece of dx and g. dx = (g - mean of g - xhat * mean of g * xhat) * scale, as one multiplication less.
template <bool frozen, class Gradient, class T, class Parameter>
void input_piece(Gradient gradient, T* __restrict dx, T* __restrict g, int64_t count, Parameter slope,
                 Parameter offset) {
  using A = typename Accumulator<T>::type;
  for (int64_t k = 0; k < count; ++k) {
    const A value = gradient.g(k, k);
    A result = value * gradient.scale[k];
    if constexpr (!frozen) result -= gradient.centred(k, k) * slope[k] + offset[k];
    store(dx + k, result);
    if (g != nullptr) store(g + k, value);
  }
}

// What the gradients of some elements take: the same for a plane's, an array for a pixel's channels.
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
  A sum[kLanes] = {}, products[kLanes] = {};
  double all = 0, all_products = 0;
  for (int64_t n = 0; n < args.n; ++n) {
    const int64_t plane = (n * args.c + c) * args.pixels;
    for (int64_t first = 0; first < args.pixels; first += kStretch) {
      for_tiles(args.pixels - first < kStretch ? args.pixels - first : kStretch, [&](const Tile& tile, int64_t at) {
        const Gradient<mask, T, Same<A>> gradient(args, plane + first + at, {p.mean[c]}, {p.scale[c]}, {p.shift[c]});
        add_gradients(tile, gradient, sum, products);
      });
      all += collect(sum);
      all_products += collect(products);
    }
  }
  put<A>(args, c, all, all_products);
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
        const Tile tile{cut.first_row(b + 1) - cut.first_row(b), args.c, args.c};
        const Gradient<mask, T, const A*> gradient(args, cut.first_row(b) * args.c, p.mean, p.scale, p.shift);
        clear(sums, 2 * args.c);
        add_gradients(tile, gradient, sums, sums + args.c);
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

// coefficients_at(k): those of the run's elements from k on.
template <Mask mask, bool frozen, class T, class F>
void input_of_run(const BatchNormArgs& args, bool streamed, int64_t first, int64_t length, F coefficients_at) {
  Output<T> dx(args.dx, first, streamed), g(args.g, first, streamed);
  for_pieces(length, [&](int64_t at, int64_t count) {
    const auto c = coefficients_at(at);
    const Gradient<mask, T, decltype(c.mean)> gradient(args, first + at, c.mean, c.scale, c.shift);
    input_piece<frozen>(gradient, dx.piece(at), g.piece(at), count, c.slope, c.offset);
    dx.finish(at, count);
    g.finish(at, count);
  });
}

template <Mask mask, class T>
struct Backward {
  using A = typename Accumulator<T>::type;

  static void sums(const BatchNormArgs& args) {
    const Parameters<A> p(args);
    if (args.channels_last) return sums_channels_last<mask, T>(args, p);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic)
    for (int64_t c = 0; c < args.c; ++c) plane_sums<mask, T>(args, p, c);
  }

  template <bool frozen>
  static void input_from(const BatchNormArgs& args, const Parameters<A>& p) {
    const bool streamed = streams(args);
    for_runs(args, [&](int64_t first, int64_t length, auto channel) {
      input_of_run<mask, frozen, T>(args, streamed, first, length, [&](int64_t at) {
        return Coefficients{channel(p.mean, at), channel(p.scale, at), channel(p.shift, at), channel(p.slope, at),
                            channel(p.offset, at)};
      });
    });
  }

  static void input(const BatchNormArgs& args) {
    const Parameters<A> p(args);
    args.means == nullptr ? input_from<true>(args, p) : input_from<false>(args, p);
  }

  // A channel's planes are still in the cache when its sums are known.
  static void both(const BatchNormArgs& args) {
    Parameters<A> p(args);
    if (args.channels_last) {
      sums_channels_last<mask, T>(args, p);
      for (int64_t c = 0; c < args.c; ++c) p.set(args, c);
      return input_from<false>(args, p);
    }
    const bool streamed = streams(args);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic)
    for (int64_t c = 0; c < args.c; ++c) {
      plane_sums<mask, T>(args, p, c);
      p.set(args, c);
      const Coefficients<Same<A>> coefficients = p.of(c);
      for (int64_t n = 0; n < args.n; ++n) {
        input_of_run<mask, false, T>(args, streamed, (n * args.c + c) * args.pixels, args.pixels,
                                     [coefficients](int64_t) { return coefficients; });
      }
      end_streaming();
    }
  }
};

// Calls F::run<Backward> for the type and mask of args.
template <class F, class T>
void run_typed(const BatchNormArgs& args) {
  if (!args.relu) return F::template run<Backward<Mask::kNone, T>>(args);
  if (args.y != nullptr) return F::template run<Backward<Mask::kSaved, T>>(args);
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
