// The two ways to reduce a window, on vectors of lanes; internal linkage, as in scalar.h.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/parallel.h"
#include "cpu/scalar.h"
#include "maximum.h"

namespace psp_fast {
namespace {

// Sums, lane by lane.
template <class T>
struct Sum {
  using A = typename Accumulator<T>::type;
  struct State {
    A* value;
    State at(int64_t k) const { return {value + k}; }
  };
  struct Memory {
    Scratch<A> value;
    Memory(int64_t owners, int64_t count) : value(owners, count) {}
    State of(int64_t owner) const { return {value.of(owner)}; }
  };

  static void start(State s, int64_t lanes, int32_t, int32_t) {
    for (int64_t k = 0; k < lanes; ++k) s.value[k] = 0;
  }

  // Adds a rectangle of pixels of `lanes` channels.
  static void add(State s, int64_t lanes, const T* x, int64_t stride_h, int64_t stride_w, int32_t height, int32_t width,
                  int32_t, int32_t) {
    A* __restrict value = s.value;
    const auto pixel = [=](int32_t i) { return x + i / width * stride_h + i % width * stride_w; };
    const int32_t pixels = height * width;
    int32_t i = 0;
    for (; i + 4 <= pixels; i += 4) {
      const T* const from[4] = {pixel(i), pixel(i + 1), pixel(i + 2), pixel(i + 3)};
      const int64_t ahead = pixel(i + 4) - from[0];
      int64_t k = 0;
      for (; k + 16 <= lanes; k += 16) {
        typename Lanes<A, 16>::type sum;
        std::memcpy(&sum, value + k, sizeof sum);
        for (const T* p : from) add_lanes<16>(sum, p + k);
        for (const T* p : from) prefetch(p, k + ahead);
        std::memcpy(value + k, &sum, sizeof sum);
      }
      for (; k < lanes; ++k) {
        for (const T* p : from) value[k] += load(p + k);
      }
    }
    for (; i < pixels; ++i) {
      const T* a = pixel(i);
      for (int64_t k = 0; k < lanes; ++k) value[k] += load(a + k);
    }
  }

  // Sums `count` rows of `lanes`, `stride` apart, in registers, and fetches what lies `ahead` elements further on.
  static void rows(State s, int64_t lanes, const T* x, int64_t stride, int64_t count, int64_t ahead, int32_t) {
    if (lanes >= 16) return rows_by<16>(s.value, lanes, x, stride, count, ahead);
    if (lanes >= 4) return rows_by<4>(s.value, lanes, x, stride, count, ahead);
    rows_by<1>(s.value, lanes, x, stride, count, ahead);
  }

  // Four blocks of L lanes at a time, so that memory is read in order; the last ones overlap those before.
  template <int L>
  static void rows_by(A* value, int64_t lanes, const T* x, int64_t stride, int64_t count, int64_t ahead) {
    const int64_t last = lanes - L;
    for (int64_t k = 0; k < lanes; k += 4 * L) {
      const int64_t at[4] = {k < last ? k : last, k + L < last ? k + L : last, k + 2 * L < last ? k + 2 * L : last,
                             k + 3 * L < last ? k + 3 * L : last};
      typename Lanes<A, L>::type a{}, b{}, c{}, d{};
      for (int64_t i = 0; i < count; ++i) {
        const T* row = x + i * stride;
        add_lanes<L>(a, row + at[0]);
        add_lanes<L>(b, row + at[1]);
        add_lanes<L>(c, row + at[2]);
        add_lanes<L>(d, row + at[3]);
        for (int64_t from : at) prefetch(row, from + ahead);
      }
      std::memcpy(value + at[0], &a, sizeof a);
      std::memcpy(value + at[1], &b, sizeof b);
      std::memcpy(value + at[2], &c, sizeof c);
      std::memcpy(value + at[3], &d, sizeof d);
    }
  }

  static void merge(State s, State other, int64_t lanes) {
    for (int64_t k = 0; k < lanes; ++k) s.value[k] += other.value[k];
  }

  // One lane out of many.
  static void collapse(State s, State many, int64_t lanes) {
    typename Lanes<A, 8>::type part{};
    int64_t k = 0;
    for (; k + 8 <= lanes; k += 8) add_lanes<8>(part, many.value + k);
    A rest = 0;
    for (; k < lanes; ++k) rest += many.value[k];
    *s.value = (((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]))) + rest;
  }

  static void finish(T* y, int32_t*, State s, int64_t lanes, A area) {
    for (int64_t k = 0; k < lanes; ++k) store(y + k, s.value[k] / area);
  }
};

// Maxima and where they were first seen, lane by lane.
template <class T>
struct Maximum {
  using A = typename Accumulator<T>::type;
  struct State {
    A* value;
    int32_t* index;
    State at(int64_t k) const { return {value + k, index + k}; }
  };
  struct Memory {
    Scratch<A> value;
    Scratch<int32_t> index;
    Memory(int64_t owners, int64_t count) : value(owners, count), index(owners, count) {}
    State of(int64_t owner) const { return {value.of(owner), index.of(owner)}; }
  };

  static void start(State s, int64_t lanes, int32_t index, int32_t lane_step) {
    for (int64_t k = 0; k < lanes; ++k) {
      s.value[k] = -std::numeric_limits<A>::infinity();
      s.index[k] = index + static_cast<int32_t>(k) * lane_step;
    }
  }

  static void add(State s, int64_t lanes, const T* x, int64_t stride_h, int64_t stride_w, int32_t height, int32_t width,
                  int32_t index, int32_t index_step) {
    for (int32_t h = 0; h < height; ++h) {
      for (int32_t w = 0; w < width; ++w)
        take<0>(s, lanes, x + h * stride_h + w * stride_w, index + h * index_step + w);
    }
  }

  static void rows(State s, int64_t lanes, const T* x, int64_t stride, int64_t count, int64_t, int32_t index) {
    start(s, lanes, index, 1);
    for (int64_t i = 0; i < count; ++i) take<1>(s, lanes, x + i * stride, index + static_cast<int32_t>(i * lanes));
  }

  // Elements come in reading order, so that an equal one never replaces and a NaN always does.
  template <int32_t step>
  static void take(State s, int64_t lanes, const T* x, int32_t index) {
    A* __restrict best = s.value;
    int32_t* __restrict where = s.index;
    for (int64_t k = 0; k < lanes; ++k) {
      const A value = load(x + k);
      const bool taken = (value > best[k]) | (value != value);
      best[k] = taken ? value : best[k];
      where[k] = taken ? index + static_cast<int32_t>(k) * step : where[k];
    }
  }

  static void merge(State s, State other, int64_t lanes) {
    for (int64_t k = 0; k < lanes; ++k) {
      if (!picks(other.value[k], other.index[k], s.value[k], s.index[k])) continue;
      s.value[k] = other.value[k];
      s.index[k] = other.index[k];
    }
  }

  static void collapse(State s, State many, int64_t lanes) {
    *s.value = *many.value;
    *s.index = *many.index;
    for (int64_t k = 1; k < lanes; ++k) merge(s, many.at(k), 1);
  }

  static void finish(T* y, int32_t* where, State s, int64_t lanes, A) {
    for (int64_t k = 0; k < lanes; ++k) {
      store(y + k, s.value[k]);
      where[k] = s.index[k];
    }
  }
};

}  // namespace
}  // namespace psp_fast
