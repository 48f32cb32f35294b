// The pyramid's share of the convolution, added to the output; compiled and linked as pyramid_pool.cpp is.
#include "cpu/pyramid_conv3x3.h"

#include "cpu/parallel.h"
#include "cpu/pyramid_conv3x3_tiles.h"

namespace psp_fast {
namespace {

// A level's cells as (c, padded): all images side by side, zeros behind them.
template <class A>
void pack_channel(const PyramidConvArgs& args, const LevelPlace& place, int32_t l, int64_t c, A* packed) {
  const PyramidLevel& level = args.levels.level[l];
  A* to = packed + place.packed + c * place.padded;
  for (int64_t n = 0; n < args.n; ++n, to += place.cells) {
    const A* from = static_cast<const A*>(level.cells) + (n * level.c + c) * place.cells;
    std::memcpy(to, from, place.cells * sizeof(A));
  }
  clear(to, place.padded - args.n * place.cells);
}

// For one output channel: kTaps sums over a level's channels of weight times kStep cells.
template <class A, class W>
void multiply(const W* weight, int64_t stride_c, const Taps& taps, const A* cells, int64_t stride_cells,
              int64_t channels, A* sums) {
  using V = typename Lanes<A, kLanes<A>>::type;
  V sum[kTaps][kRegisters] = {};
  for (int64_t c = 0; c < channels; ++c, weight += stride_c, cells += stride_cells) {
    V cell[kRegisters];
#pragma GCC unroll 2
    for (int v = 0; v < kRegisters; ++v) read(cell[v], cells + v * kLanes<A>);
#pragma GCC unroll 9
    for (int64_t t = 0; t < kTaps; ++t) {
      const A x = load(weight + taps.offset[t]);
#pragma GCC unroll 2
      for (int v = 0; v < kRegisters; ++v) sum[t][v] += x * cell[v];
    }
  }
  std::memcpy(sums, sum, sizeof sum);
}

// The products of one tile: `lanes` output channels from o on.
template <class A, class W>
void multiply_tile(const PyramidConvArgs& args, const Places<A>& places, const A* packed, int64_t o, int64_t lanes,
                   A* products) {
  const Taps taps(args.weight);
  A sums[kTaps * kStep<A>];
  for (int32_t l = 0; l < args.levels.count; ++l) {
    const LevelPlace& place = places[l];
    const int64_t cells = args.n * place.cells;
    A* to = products + place.first_cell * kTaps * kTile;
    for (int64_t first = 0; first < cells; first += kStep<A>) {
      const int64_t count = cells - first < kStep<A> ? cells - first : kStep<A>;
      for (int64_t k = 0; k < lanes; ++k) {
        const W* weight = static_cast<const W*>(args.weight.data) + (o + k) * args.weight.stride_o +
                          place.first_channel * args.weight.stride_c;
        multiply(weight, args.weight.stride_c, taps, packed + place.packed + first, place.padded,
                 args.levels.level[l].c, sums);
        for (int64_t t = 0; t < kTaps; ++t) {
          for (int64_t cell = 0; cell < count; ++cell) {
            to[(t * cells + first + cell) * kTile + k] = sums[t * kStep<A> + cell];
          }
        }
      }
    }
  }
}

// Adds (W, kTile) values to `lanes` channels of a row of the map; values become what the row then holds.
template <class T, class A>
void add_to_row(const PyramidConvArgs& args, T* row, int64_t lanes, A* values) {
  const auto add = [&](int64_t w, int64_t k) {
    T* y = row + w * args.map.stride_w + k * args.map.stride_c;
    A* value = values + w * kTile + k;
    store(y, load(y) + *value);
    *value = load(y);
  };
  if (args.map.stride_c != 1) {
    for (int64_t k = 0; k < lanes; ++k) {
      for (int64_t w = 0; w < args.width; ++w) add(w, k);
    }
    return;
  }
  for (int64_t w = 0; w < args.width; ++w) {
    for (int64_t k = 0; k < lanes; ++k) add(w, k);
  }
}

// Mean and sum of squared deviations of everything merged so far, for each lane.
template <class A>
struct Statistics {
  Tile<A> mean{}, deviations{};
  int64_t count = 0;

  // Merges (count_b, kTile) values.
  void add(const A* values, int64_t count_b) {
    Tile<A> mean_b{}, deviations_b{};
    for (int64_t w = 0; w < count_b; ++w) add_scaled(mean_b, A(1), values + w * kTile);
    mean_b /= static_cast<A>(count_b);
    for (int64_t w = 0; w < count_b; ++w) {
      Tile<A> deviation;
      read(deviation, values + w * kTile);
      deviation -= mean_b;
      deviations_b += deviation * deviation;
    }
    const Tile<A> apart = mean_b - mean;
    count += count_b;
    const A share = static_cast<A>(count_b) / static_cast<A>(count);
    mean += apart * share;
    deviations += deviations_b + apart * apart * (share * static_cast<A>(count - count_b));
  }

  void write_to(float* statistics, int64_t channels, int64_t o, int64_t lanes) const {
    for (int64_t k = 0; k < lanes; ++k) {
      statistics[o + k] = static_cast<float>(mean[k]);
      statistics[channels + o + k] = static_cast<float>(deviations[k]);
    }
  }
};

// Contracts one image's products along x, then along y, and adds the result to `lanes` channels from o on.
template <class T, class A>
void add_image(const PyramidConvArgs& args, const Places<A>& places, const AxisBlends<A>& columns,
               const RowTerms<A>& terms, int64_t n, int64_t o, int64_t lanes, const A* products, A* rows, A* values,
               Statistics<A>& statistics) {
  clear(rows, places[args.levels.count].first_row * args.width * kTile);
  for (int32_t l = 0; l < args.levels.count; ++l) {
    for_column_terms(args, places, columns, n, l, [&](int64_t product, int64_t row, A weight) {
      add_scaled_to<Tile<A>>(rows + row, weight, products + product);
    });
  }
  T* map = static_cast<T*>(args.map.data) + n * args.map.stride_n + o * args.map.stride_c;
  for (int64_t h = 0; h < args.height; ++h) {
    for (int64_t w = 0; w < args.width; ++w) {
      Tile<A> sum{};
      for (const RowTerm<A>* term = terms.begin(h); term != terms.end(h); ++term) {
        add_scaled(sum, term->weight, rows + (term->row * args.width + w) * kTile);
      }
      write(values + w * kTile, sum);
    }
    add_to_row(args, map + h * args.map.stride_h, lanes, values);
    if (args.statistics != nullptr) statistics.add(values, args.width);
  }
}

template <class T, class W>
void forward(const PyramidConvArgs& args) {
  using A = typename Accumulator<T>::type;
  const Places<A> places(args);
  const AxisBlends<A> columns(args.levels, &PyramidLevel::width, args.width, args.align_corners);
  const RowTerms<A> terms(args, places);
  const LevelPlace& all = places[args.levels.count];
  const Scratch<A> packed(1, all.packed), products(args.threads, all.first_cell * kTaps * kTile);
  const Scratch<A> rows(args.threads, all.first_row * args.width * kTile), values(args.threads, args.width * kTile);
#pragma omp parallel num_threads(args.threads)
  {
    for (int32_t l = 0; l < args.levels.count; ++l) {
#pragma omp for
      for (int64_t c = 0; c < args.levels.level[l].c; ++c) pack_channel(args, places[l], l, c, packed.of(0));
    }
#pragma omp for schedule(dynamic)
    for (int64_t o = 0; o < args.o; o += kTile) {
      const int64_t lanes = args.o - o < kTile ? args.o - o : kTile;
      const int me = thread_index();
      multiply_tile<A, W>(args, places, packed.of(0), o, lanes, products.of(me));
      Statistics<A> statistics;
      for (int64_t n = 0; n < args.n; ++n) {
        add_image<T>(args, places, columns, terms, n, o, lanes, products.of(me), rows.of(me), values.of(me),
                     statistics);
      }
      if (args.statistics != nullptr) statistics.write_to(args.statistics, args.o, o, lanes);
    }
  }
}

}  // namespace

namespace PSP_FAST_CPU {

void pyramid_conv3x3_forward(const PyramidConvArgs& args) {
  switch (args.dtype) {
    case DType::kFloat64:
      return forward<double, double>(args);
    case DType::kBFloat16:
      return args.weight_dtype == DType::kFloat32 ? forward<BFloat16, float>(args) : forward<BFloat16, BFloat16>(args);
    default:
      return forward<float, float>(args);
  }
}

}  // namespace PSP_FAST_CPU
}  // namespace psp_fast
