// Gradients of the pyramid's share of the convolution: the same contractions transposed, along y, along x, then the
// small products; compiled and linked as pyramid_pool.cpp is. Each sum has one owner and one order.
#include "cpu/parallel.h"
#include "cpu/pyramid_conv3x3_tiles.h"

namespace psp_fast {
namespace {

constexpr int64_t kChannels = 8;  // channels of a level whose gradient is summed at a time
constexpr int64_t kOutputs = 64;  // output channels summed in registers before they join a longer sum

// Reads `lanes` channels of a row of the map as (W, kTile), zeros behind them.
template <class T, class A>
void read_row(const PyramidConvArgs& args, const T* row, int64_t lanes, A* values) {
  if (lanes < kTile) clear(values, args.width * kTile);
  if (args.map.stride_c != 1) {
    for (int64_t k = 0; k < lanes; ++k) {
      const T* from = row + k * args.map.stride_c;
      for (int64_t w = 0; w < args.width; ++w) values[w * kTile + k] = load(from + w * args.map.stride_w);
    }
    return;
  }
  for (int64_t w = 0; w < args.width; ++w) {
    const T* from = row + w * args.map.stride_w;
    for (int64_t k = 0; k < lanes; ++k) values[w * kTile + k] = load(from + k);
  }
}

// The gradient of one image's products, for `lanes` channels from o on.
template <class T, class A>
void contract_image(const PyramidConvArgs& args, const Places<A>& places, const AxisBlends<A>& columns,
                    const RowTerms<A>& terms, int64_t n, int64_t o, int64_t lanes, A* products, A* rows, A* values) {
  clear(rows, places[args.levels.count].first_row * args.width * kTile);
  const T* map = static_cast<const T*>(args.map.data) + n * args.map.stride_n + o * args.map.stride_c;
  for (int64_t h = 0; h < args.height; ++h) {
    read_row(args, map + h * args.map.stride_h, lanes, values);
    for (const RowTerm<A>* term = terms.begin(h); term != terms.end(h); ++term) {
      A* row = rows + term->row * args.width * kTile;
      for (int64_t k = 0; k < args.width * kTile; ++k) row[k] += term->weight * values[k];
    }
  }
  for (int32_t l = 0; l < args.levels.count; ++l) {
    for_column_terms(args, places, columns, n, l, [&](int64_t product, int64_t row, A weight) {
      add_scaled_to<Tile<A>>(products + product, weight, rows + row);
    });
  }
}

// One tile's (taps, cells, kTile) as (taps, padded) of each output channel, zeros behind the cells.
template <class A>
void turn_products(const PyramidConvArgs& args, const Places<A>& places, const A* products, int64_t lanes, A* turned,
                   int64_t stride_o) {
  for (int32_t l = 0; l < args.levels.count; ++l) {
    const LevelPlace& place = places[l];
    const int64_t cells = args.n * place.cells;
    const A* from = products + place.first_cell * kTaps * kTile;
    for (int64_t k = 0; k < lanes; ++k) {
      for (int64_t t = 0; t < kTaps; ++t) {
        A* to = turned + k * stride_o + place.first_padded * kTaps + t * place.padded;
        for (int64_t cell = 0; cell < cells; ++cell) to[cell] = from[(t * cells + cell) * kTile + k];
        clear(to + cells, place.padded - cells);
      }
    }
  }
}

// A level's cells as (cells of all images, channels), zeros behind the channels.
template <class A>
void turn_level(const PyramidConvArgs& args, const LevelPlace& place, int32_t l, A* turned) {
  const PyramidLevel& level = args.levels.level[l];
  A* to = turned + place.turned;
  for (int64_t n = 0; n < args.n; ++n) {
    const A* from = static_cast<const A*>(level.cells) + n * level.c * place.cells;
    for (int64_t cell = 0; cell < place.cells; ++cell, to += place.channels) {
      for (int64_t c = 0; c < level.c; ++c) to[c] = from[c * place.cells + cell];
      clear(to + level.c, place.channels - level.c);
    }
  }
}

// For one output channel: kTaps sums over a level's cells of product times kStep channels.
template <class A>
void multiply_cells(const A* products, int64_t padded, const A* cells, int64_t channels, int64_t count, A* sums) {
  using V = typename Lanes<A, kLanes<A>>::type;
  V sum[kTaps][kRegisters] = {};
  for (int64_t cell = 0; cell < count; ++cell, cells += channels) {
    V value[kRegisters];
#pragma GCC unroll 2
    for (int v = 0; v < kRegisters; ++v) read(value[v], cells + v * kLanes<A>);
#pragma GCC unroll 9
    for (int64_t t = 0; t < kTaps; ++t) {
      const A product = products[t * padded + cell];
#pragma GCC unroll 2
      for (int v = 0; v < kRegisters; ++v) sum[t][v] += product * value[v];
    }
  }
  std::memcpy(sums, sum, sizeof sum);
}

// The weight's gradient for one output channel.
template <class A, class W>
void weight_gradient(const PyramidConvArgs& args, const Places<A>& places, const A* products, const A* cells,
                     int64_t o) {
  const PyramidWeight& gradient = args.weight_gradient;
  const Taps taps(gradient);
  A sums[kTaps * kStep<A>];
  for (int32_t l = 0; l < args.levels.count; ++l) {
    const LevelPlace& place = places[l];
    const int64_t channels = args.levels.level[l].c;
    for (int64_t c = 0; c < channels; c += kStep<A>) {
      multiply_cells(products + place.first_padded * kTaps, place.padded, cells + place.turned + c, place.channels,
                     args.n * place.cells, sums);
      W* to = static_cast<W*>(gradient.data) + o * gradient.stride_o + (place.first_channel + c) * gradient.stride_c;
      const int64_t count = channels - c < kStep<A> ? channels - c : kStep<A>;
      for (int64_t k = 0; k < count; ++k) {
        for (int64_t t = 0; t < kTaps; ++t) store(to + k * gradient.stride_c + taps.offset[t], sums[t * kStep<A> + k]);
      }
    }
  }
}

// kChannels sums over taps and output channels [o, o_end) of weight times kStep cells' products, added to totals.
template <class A, class W>
void multiply_outputs(const PyramidConvArgs& args, const Taps& taps, const W* const (&weights)[kChannels],
                      const A* products, int64_t stride_o, int64_t padded, int64_t o, int64_t o_end, A* totals) {
  using V = typename Lanes<A, kLanes<A>>::type;
  V sum[kChannels][kRegisters] = {};
  for (; o < o_end; ++o) {
    for (int64_t t = 0; t < kTaps; ++t) {
      const A* product = products + o * stride_o + t * padded;
      const int64_t at = o * args.weight.stride_o + taps.offset[t];
      V value[kRegisters];
#pragma GCC unroll 2
      for (int v = 0; v < kRegisters; ++v) read(value[v], product + v * kLanes<A>);
#pragma GCC unroll 8
      for (int64_t c = 0; c < kChannels; ++c) {
        const A weight = load(weights[c] + at);
#pragma GCC unroll 2
        for (int v = 0; v < kRegisters; ++v) sum[c][v] += weight * value[v];
      }
    }
  }
  for (int64_t c = 0; c < kChannels; ++c) {
    for (int v = 0; v < kRegisters; ++v) {
      A* total = totals + c * kStep<A> + v * kLanes<A>;
      add_scaled(sum[c][v], A(1), total);
      write(total, sum[c][v]);
    }
  }
}

// The gradient of kChannels channels of a level from c on; channels past the last repeat it and are not stored.
template <class A, class W>
void level_gradient(const PyramidConvArgs& args, const LevelPlace& place, int32_t l, int64_t c, const A* products,
                    int64_t stride_o) {
  const PyramidLevel& level = args.gradients[l];
  const Taps taps(args.weight);
  const W* weights[kChannels];
  for (int64_t k = 0; k < kChannels; ++k) {
    const int64_t channel = c + k < level.c ? c + k : level.c - 1;
    weights[k] = static_cast<const W*>(args.weight.data) + (place.first_channel + channel) * args.weight.stride_c;
  }
  const int64_t cells = args.n * place.cells, channels = level.c - c < kChannels ? level.c - c : kChannels;
  for (int64_t first = 0; first < cells; first += kStep<A>) {
    A totals[kChannels * kStep<A>] = {};
    for (int64_t o = 0; o < args.o; o += kOutputs) {
      multiply_outputs(args, taps, weights, products + place.first_padded * kTaps + first, stride_o, place.padded, o,
                       o + kOutputs < args.o ? o + kOutputs : args.o, totals);
    }
    for (int64_t cell = first; cell < cells && cell < first + kStep<A>; ++cell) {
      A* to = static_cast<A*>(level.cells) + (cell / place.cells * level.c + c) * place.cells + cell % place.cells;
      for (int64_t k = 0; k < channels; ++k) to[k * place.cells] = totals[k * kStep<A> + cell - first];
    }
  }
}

template <class T, class W>
void backward(const PyramidConvArgs& args) {
  using A = typename Accumulator<T>::type;
  const Places<A> places(args);
  const AxisBlends<A> columns(args.levels, &PyramidLevel::width, args.width, args.align_corners);
  const RowTerms<A> terms(args, places);
  const LevelPlace& all = places[args.levels.count];
  const int64_t products_n = all.first_cell * kTaps * kTile, stride_o = all.first_padded * kTaps;
  const Scratch<A> cells(1, all.turned), products(args.threads, products_n), turned(1, args.o * stride_o);
  const Scratch<A> rows(args.threads, all.first_row * args.width * kTile), values(args.threads, args.width * kTile);
#pragma omp parallel num_threads(args.threads)
  {
#pragma omp for
    for (int32_t l = 0; l < args.levels.count; ++l) turn_level(args, places[l], l, cells.of(0));
#pragma omp for schedule(dynamic)
    for (int64_t o = 0; o < args.o; o += kTile) {
      const int64_t lanes = args.o - o < kTile ? args.o - o : kTile;
      const int me = thread_index();
      clear(products.of(me), products_n);
      for (int64_t n = 0; n < args.n; ++n) {
        contract_image<T>(args, places, columns, terms, n, o, lanes, products.of(me), rows.of(me), values.of(me));
      }
      turn_products(args, places, products.of(me), lanes, turned.of(0) + o * stride_o, stride_o);
      for (int64_t k = o; k < o + lanes && args.weight_gradient.data != nullptr; ++k) {
        weight_gradient<A, W>(args, places, turned.of(0) + k * stride_o, cells.of(0), k);
      }
    }
    for (int32_t l = 0; l < args.levels.count && args.gradients != nullptr; ++l) {
#pragma omp for schedule(dynamic) nowait
      for (int64_t c = 0; c < args.levels.level[l].c; c += kChannels) {
        level_gradient<A, W>(args, places[l], l, c, turned.of(0), stride_o);
      }
    }
  }
}

}  // namespace

namespace PSP_FAST_CPU {

void pyramid_conv3x3_backward(const PyramidConvArgs& args) {
  switch (args.dtype) {
    case DType::kFloat64:
      return backward<double, double>(args);
    case DType::kBFloat16:
      return args.weight_dtype == DType::kFloat32 ? backward<BFloat16, float>(args)
                                                  : backward<BFloat16, BFloat16>(args);
    default:
      return backward<float, float>(args);
  }
}

}  // namespace PSP_FAST_CPU
}  // namespace psp_fast
