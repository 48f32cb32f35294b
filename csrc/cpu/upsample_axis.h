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

// Outputs [first, last) of the inputs `stride` apart, to line, which is written up to kWidth elements past the end.
// Returns whether all inputs are finite.
template <class T, class A>
bool upsample_line(const Axis<A>& axis, const T* row, int64_t stride, int64_t first, int64_t last, A* line) {
  const int64_t final = axis.source(last - 1);
  A poison = 0;
  for (int64_t i = axis.source(first); i <= final; ++i) {
    const A a = load(row + i * stride), b = load(row + axis.next(i) * stride);
    poison += (a - a) + (b - b);
    const int64_t begin = axis.begin(i) < first ? first : axis.begin(i);
    const int64_t end = axis.begin(i + 1) < last ? axis.begin(i + 1) : last;
    for (int64_t x = begin; x < end; x += kWidth<A>) {  // the next source's outputs overwrite the lanes beyond
      const auto weight0 = load_vector<Vector<A>>(axis.weight0(x)), weight1 = load_vector<Vector<A>>(axis.weight1(x));
      store_vector(line + x - first, weight0 * a + weight1 * b);
    }
  }
  return poison == 0;
}

// The transpose: gathers the gradient of every input, `stride` apart, from the gradients of all outputs.
template <class T, class A>
void gather_line(const Axis<A>& axis, const A* line, T* row, int64_t stride) {
  A before = 0;  // from the outputs of the source before
  for (int64_t i = 0; i < axis.inputs(); ++i) {
    A sum0 = 0, sum1 = 0;
    for (int64_t x = axis.begin(i); x < axis.begin(i + 1); ++x) {
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
