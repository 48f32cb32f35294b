// Bilinear interpolation along one axis, and its transpose; internal linkage, as in scalar.h.
#pragma once

#include "cpu/parallel.h"
#include "cpu/upsample_lanes.h"

namespace psp_fast {
namespace {

// Output x is weight0(x) * input source(x) + weight1(x) * input next(source(x)). Positions are exact fractions.
// Outputs of one source lie side by side. Arrays of weights may be read kWidth elements past the end.
template <class A>
class Axis {
 public:
  Axis(int64_t in, int64_t out, bool align_corners)
      : in_(in),
        same_(in == out),
        weight0_(1, out + kWidth<A>),
        weight1_(1, out + kWidth<A>),
        source_(1, out),
        begin_(1, in + 1) {
    int64_t reached = 0;
    for (int64_t x = 0; x < out; ++x) {
      const int64_t denominator = align_corners ? (out > 1 ? out - 1 : 1) : 2 * out;
      const int64_t raw = align_corners ? (out > 1 ? x * (in - 1) : 0) : (2 * x + 1) * in - out;
      const int64_t numerator = raw < 0 ? 0 : raw;
      const int64_t source = numerator / denominator;
      const double fraction = static_cast<double>(numerator % denominator) / static_cast<double>(denominator);
      source_.of(0)[x] = source;
      weight0_.of(0)[x] = static_cast<A>(1 - fraction);
      weight1_.of(0)[x] = static_cast<A>(fraction);
      for (; reached <= source; ++reached) begin_.of(0)[reached] = x;
    }
    for (; reached <= in; ++reached) begin_.of(0)[reached] = out;
    for (int64_t x = out; x < out + kWidth<A>; ++x) weight0_.of(0)[x] = weight1_.of(0)[x] = 0;
  }

  int64_t inputs() const { return in_; }
  int64_t source(int64_t x) const { return source_.of(0)[x]; }
  int64_t next(int64_t i) const { return same_ || i + 1 == in_ ? i : i + 1; }
  // Outputs [begin(i), begin(i + 1)) have source i.
  int64_t begin(int64_t i) const { return begin_.of(0)[i]; }
  const A* weight0(int64_t x) const { return weight0_.of(0) + x; }
  const A* weight1(int64_t x) const { return weight1_.of(0) + x; }

 private:
  int64_t in_;
  bool same_;  // as in PyTorch, a second input is not even looked at
  Scratch<A> weight0_, weight1_;
  Scratch<int64_t> source_, begin_;
};

// As many elements as most sources have outputs.
template <class A>
constexpr int kRun = (kVectorBytes < 32 ? kVectorBytes : 32) / static_cast<int>(sizeof(A));
template <class A>
using Run = typename Lanes<A, kRun<A>>::type;

template <class A>
[[gnu::always_inline]] inline A sum_of(const Run<A>& run) {
  A parts[kRun<A>];
  store_vector(parts, run);
  for (int width = kRun<A> / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) parts[k] += parts[k + width];
  }
  return parts[0];
}

// Elements of `channels` channels of one row.
template <class T>
struct Row {
  T* elements;
  int64_t channels, stride_c, stride_w;
};

// Outputs [first, last) of every channel of row, to lines `stride` apart, which are written up to kRun elements past
// the end. Returns whether all outputs are finite, with room for differences.
template <class T, class A>
bool upsample_lines(const Axis<A>& axis, const Row<const T>& row, int64_t first, int64_t last, A* lines,
                    int64_t stride) {
  Run<A> poison{};
  for (int64_t x = first, end; x < last; x = end) {
    const int64_t i = axis.source(x);
    const T *at = row.elements + i * row.stride_w, *next = row.elements + axis.next(i) * row.stride_w;
    end = axis.begin(i + 1) < last ? axis.begin(i + 1) : last;
    for (; x < end; x += kRun<A>) {  // the next source's outputs overwrite the lanes beyond
      const auto weight0 = load_vector<Run<A>>(axis.weight0(x)), weight1 = load_vector<Run<A>>(axis.weight1(x));
      A* line = lines + x - first;
      for (int64_t c = 0; c < row.channels; ++c, line += stride) {
        const Run<A> value = weight0 * load(at + c * row.stride_c) + weight1 * load(next + c * row.stride_c);
        poison += (value + value) * 0;
        store_vector(line, value);
      }
    }
  }
  return sum_of<A>(poison) == 0;
}

// The transpose of one channel: gathers the gradient of every input, `stride` apart, from the gradients of all outputs.
template <class T, class A>
void gather_line(const Axis<A>& axis, const A* line, T* row, int64_t stride) {
  A before = 0;  // from the outputs of the source before
  for (int64_t i = 0; i < axis.inputs(); ++i) {
    const int64_t end = axis.begin(i + 1);
    int64_t x = axis.begin(i);
    Run<A> run0{}, run1{};
    for (; x + kRun<A> <= end; x += kRun<A>) {
      const auto grad = load_vector<Run<A>>(line + x);
      run0 += load_vector<Run<A>>(axis.weight0(x)) * grad;
      run1 += load_vector<Run<A>>(axis.weight1(x)) * grad;
    }
    A sum0 = sum_of<A>(run0), sum1 = sum_of<A>(run1);
    for (; x < end; ++x) {
      sum0 += *axis.weight0(x) * line[x];
      sum1 += *axis.weight1(x) * line[x];
    }
    const bool last = axis.next(i) == i;
    store(row + i * stride, before + sum0 + (last ? sum1 : A(0)));
    before = last ? A(0) : sum1;
  }
}

}  // namespace
}  // namespace psp_fast
