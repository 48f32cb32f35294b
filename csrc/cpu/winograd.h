// Winograd's minimal filtering F(4, 3) in each direction (Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", arXiv 1509.09308): the transforms, and the matrix product between them. Internal linkage, as in scalar.h.
//
// The interpolation points are 0, +-3/4, +-3/2 and infinity: with the usual +-1, +-2 the error is twice as large.
#pragma once

#include "cpu/conv3x3.h"
#include "cpu/scalar.h"

namespace psp_fast {
namespace {

#if defined(__AVX512F__)
constexpr int kVector = 16, kVectors = 4;
#elif defined(__AVX2__)
constexpr int kVector = 8, kVectors = 2;
#else
constexpr int kVector = 4, kVectors = 2;
#endif
constexpr int kPanel = kVector * kVectors;  // columns of the matrix product that are kept in registers
constexpr int kRows = 6;                    // and its rows
constexpr int kIn = 6, kOut = 4, kTaps = 3;
constexpr int kProducts = kIn * kIn;

using Vector = Lanes<float, kVector>::type;

constexpr float kP = 0.75f, kQ = 1.5f;
constexpr float kP2 = kP * kP, kQ2 = kQ * kQ, kP3 = kP2 * kP, kQ3 = kQ2 * kQ;
constexpr float kG0 = 1 / (kP2 * kQ2), kGp = 1 / (2 * kP2 * (kP2 - kQ2)), kGq = 1 / (2 * kQ2 * (kQ2 - kP2));

// Each struct is one matrix of the algorithm, applied to vectors `from` apart, into vectors `to` apart.
struct Input {  // B^T
  static constexpr int kFrom = kIn, kTo = kIn;
  static void apply(const Vector* x, int from, Vector* y, int to) {
    const Vector x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from], x4 = x[4 * from], x5 = x[5 * from];
    const Vector even_p = x4 - kQ2 * x2, odd_p = kP * (x3 - kQ2 * x1);
    const Vector even_q = x4 - kP2 * x2, odd_q = kQ * (x3 - kP2 * x1);
    y[0] = kP2 * kQ2 * x0 - (kP2 + kQ2) * x2 + x4;
    y[to] = even_p + odd_p;
    y[2 * to] = even_p - odd_p;
    y[3 * to] = even_q + odd_q;
    y[4 * to] = even_q - odd_q;
    y[5 * to] = kP2 * kQ2 * x1 - (kP2 + kQ2) * x3 + x5;
  }
};

struct Filter {  // G
  static constexpr int kFrom = kTaps, kTo = kIn;
  static void apply(const Vector* x, int from, Vector* y, int to) {
    const Vector x0 = x[0], x1 = x[from], x2 = x[2 * from];
    const Vector even_p = kGp * x0 + (kGp * kP2) * x2, odd_p = (kGp * kP) * x1;
    const Vector even_q = kGq * x0 + (kGq * kQ2) * x2, odd_q = (kGq * kQ) * x1;
    y[0] = kG0 * x0;
    y[to] = even_p + odd_p;
    y[2 * to] = even_p - odd_p;
    y[3 * to] = even_q + odd_q;
    y[4 * to] = even_q - odd_q;
    y[5 * to] = x2;
  }
};

struct Output {  // A^T
  static constexpr int kFrom = kIn, kTo = kOut;
  static void apply(const Vector* x, int from, Vector* y, int to) {
    const Vector sum_p = x[from] + x[2 * from], difference_p = x[from] - x[2 * from];
    const Vector sum_q = x[3 * from] + x[4 * from], difference_q = x[3 * from] - x[4 * from];
    y[0] = x[0] + sum_p + sum_q;
    y[to] = kP * difference_p + kQ * difference_q;
    y[2 * to] = kP2 * sum_p + kQ2 * sum_q;
    y[3 * to] = kP3 * difference_p + kQ3 * difference_q + x[5 * from];
  }
};

struct OutputGradient {  // A
  static constexpr int kFrom = kOut, kTo = kIn;
  static void apply(const Vector* x, int from, Vector* y, int to) {
    const Vector x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from];
    const Vector even_p = x0 + kP2 * x2, odd_p = kP * x1 + kP3 * x3;
    const Vector even_q = x0 + kQ2 * x2, odd_q = kQ * x1 + kQ3 * x3;
    y[0] = x0;
    y[to] = even_p + odd_p;
    y[2 * to] = even_p - odd_p;
    y[3 * to] = even_q + odd_q;
    y[4 * to] = even_q - odd_q;
    y[5 * to] = x3;
  }
};

struct FilterGradient {  // G^T
  static constexpr int kFrom = kIn, kTo = kTaps;
  static void apply(const Vector* x, int from, Vector* y, int to) {
    const Vector sum_p = kGp * (x[from] + x[2 * from]), difference_p = kGp * (x[from] - x[2 * from]);
    const Vector sum_q = kGq * (x[3 * from] + x[4 * from]), difference_q = kGq * (x[3 * from] - x[4 * from]);
    y[0] = kG0 * x[0] + sum_p + sum_q;
    y[to] = kP * difference_p + kQ * difference_q;
    y[2 * to] = kP2 * sum_p + kQ2 * sum_q + x[5 * from];
  }
};

// Both directions: y (kTo x kTo) = M x (kFrom x kFrom) M^T, row after row.
template <class M>
[[gnu::always_inline]] inline void transform(const Vector* x, Vector* y) {
  Vector rows[M::kFrom * M::kTo];
  for (int r = 0; r < M::kFrom; ++r) M::apply(x + r * M::kFrom, 1, rows + r * M::kTo, 1);
  for (int s = 0; s < M::kTo; ++s) M::apply(rows + s, M::kTo, y + s, M::kTo);
}

// The first `lanes` elements of a vector, the others 0.
[[gnu::always_inline]] inline Vector load_lanes(const float* p, int64_t lanes) {
  Vector v{};
  if (lanes >= kVector) {
    std::memcpy(&v, p, sizeof v);
  } else {
    for (int64_t i = 0; i < lanes; ++i) v[i] = p[i];
  }
  return v;
}

[[gnu::always_inline]] inline void store_lanes(float* p, Vector v, int64_t lanes) {
  if (lanes >= kVector) {
    std::memcpy(p, &v, sizeof v);
  } else {
    for (int64_t i = 0; i < lanes; ++i) p[i] = v[i];
  }
}

// m (kRows x kPanel) = or += a (kRows x depth, strides row and step) b (depth x kPanel, dense).
template <bool kAdd>
[[gnu::always_inline]] inline void multiply_tile(const float* a, int64_t row, int64_t step, const float* b, float* m,
                                                 int64_t depth) {
  Vector sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = kAdd ? load_lanes(m + i * kPanel + j * kVector, kVector) : Vector{};
    }
  }
  for (int64_t k = 0; k < depth; ++k, a += step, b += kPanel) {
    Vector right[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) right[j] = load_lanes(b + j * kVector, kVector);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vector left = a[i * row] - Vector{};
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) store_lanes(m + i * kPanel + j * kVector, sum[i][j], kVector);
  }
}

// m (rows x kPanel, dense) = or += a b; rows is a multiple of kRows.
inline void multiply(const float* a, int64_t row, int64_t step, const float* b, float* m, int64_t rows, int64_t depth,
                     bool add) {
  for (int64_t i = 0; i < rows; i += kRows) {
    if (add) {
      multiply_tile<true>(a + i * row, row, step, b, m + i * kPanel, depth);
    } else {
      multiply_tile<false>(a + i * row, row, step, b, m + i * kPanel, depth);
    }
  }
}

constexpr int64_t rounded_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// `total` cut into equal chunks of at most `most`, each a multiple of `unit`.
constexpr int64_t chunk_of(int64_t total, int64_t most, int64_t unit) {
  return rounded_up((total + (total + most - 1) / most - 1) / ((total + most - 1) / most), unit);
}

// Floats between the matrices of two products, at least `size`: neighbours must not fall on the same lines of the L1
// cache, or writing one element of each of the 36 would evict one another.
constexpr int64_t apart(int64_t size) { return rounded_up(size, 1024) + 16; }

// The sizes of one call, and of its chunks.
struct WinogradShape {
  int64_t tiles, channels, panels, stride;  // tiles and channels of a chunk; floats between tiles of transformed input

  WinogradShape(const Conv3x3Args& args, int64_t most_tiles, int64_t most_channels)
      : tiles(chunk_of(args.tile_count, most_tiles, kRows)),
        channels(chunk_of(args.x.channels, most_channels, kVector)),
        panels((args.y.channels + kPanel - 1) / kPanel),
        stride(rounded_up(channels, kRows * kVector)) {}

  static constexpr int64_t kMostTiles = 240;
};

// Transforms `tile`'s 6x6 input pixels of channels [c, c + count) to v: product q of channel c + i goes to
// v[q * product + i].
inline void transform_input(const Conv3x3Args& args, const Conv3x3Tile& tile, int64_t c, int64_t count, float* v,
                            int64_t product) {
  const int64_t d = args.dilation;
  for (int64_t i = 0; i < count; i += kVector) {
    const int64_t lanes = count - i < kVector ? count - i : kVector;
    Vector x[kProducts], y[kProducts];
    for (int r = 0; r < kIn; ++r) {
      const int64_t h = tile.h + (r - 1) * d;
      for (int s = 0; s < kIn; ++s) {
        const int64_t w = tile.w + (s - 1) * d;
        const bool inside = tile.n >= 0 && h >= 0 && h < args.height && w >= 0 && w < args.width;
        x[r * kIn + s] =
            inside
                ? load_lanes(args.x.data + tile.n * args.x.stride_n + h * args.x.stride_h + w * args.x.stride_w + c + i,
                             lanes)
                : Vector{};
      }
    }
    transform<Input>(x, y);
    for (int q = 0; q < kProducts; ++q) store_lanes(v + q * product + i, y[q], kVector);
  }
}

}  // namespace
}  // namespace psp_fast
