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
  struct One {  // a state of one lane
    A value;
    State state() { return {&value}; }
  };
  struct Memory {
    Scratch<A> value;
    Memory(int64_t owners, int64_t count) : value(owners, count) {}
    State of(int64_t owner) const { return {value.of(owner)}; }
  };

  static void start(State s, int64_t lanes, int32_t, int32_t) {
    for (int64_t k = 0; k < lanes; ++k) s.value[k] = 0;
  }

  // Adds `count` vectors of `lanes`, `stride` apart, as they come.
  static void add(State s, int64_t lanes, const T* x, int64_t stride, int64_t count, int32_t) {
    A* __restrict value = s.value;
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
      const T* a = x + i * stride;
      const T* b = a + stride;
      const T* c = b + stride;
      const T* d = c + stride;
      for (int64_t k = 0; k < lanes; ++k) value[k] += (load(a + k) + load(b + k)) + (load(c + k) + load(d + k));
    }
    for (; i < count; ++i) {
      const T* a = x + i * stride;
      for (int64_t k = 0; k < lanes; ++k) value[k] += load(a + k);
    }
  }

  // Sums `count` rows of `lanes`, `stride` apart, in registers.
  static void rows(State s, int64_t lanes, const T* x, int64_t stride, int64_t count, int32_t) {
    if (lanes >= 16) return rows_by<16>(s.value, lanes, x, stride, count);
    if (lanes >= 4) return rows_by<4>(s.value, lanes, x, stride, count);
    rows_by<1>(s.value, lanes, x, stride, count);
  }

  template <int L>
  static void rows_by(A* value, int64_t lanes, const T* x, int64_t stride, int64_t count) {
    for (int64_t k = 0; k < lanes; k += L) {
      const int64_t from = k + L <= lanes ? k : lanes - L;  // the last block overlaps the one before
      typename Lanes<A, L>::type sum{};
      for (int64_t i = 0; i < count; ++i) add_lanes<L>(sum, x + i * stride + from);
      std::memcpy(value + from, &sum, sizeof sum);
    }
  }

  static void merge(State s, State other, int64_t lanes) {
    for (int64_t k = 0; k < lanes; ++k) s.value[k] += other.value[k];
  }

  // One lane out of many.
  static void collapse(State s, State many, int64_t lanes) {
    A part[8] = {};
    int64_t k = 0;
    for (; k + 8 <= lanes; k += 8) {
      for (int64_t p = 0; p < 8; ++p) part[p] += many.value[k + p];
    }
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
  struct One {
    A value;
    int32_t index;
    State state() { return {&value, &index}; }
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

  static void add(State s, int64_t lanes, const T* x, int64_t stride, int64_t count, int32_t index) {
    for (int64_t i = 0; i < count; ++i) take<0>(s, lanes, x + i * stride, index + static_cast<int32_t>(i));
  }

  static void rows(State s, int64_t lanes, const T* x, int64_t stride, int64_t count, int32_t index) {
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
