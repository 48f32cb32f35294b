// Compiled and linked as pyramid_pool.cpp is.
#include "cpu/upsample_cross_entropy.h"

#include "cpu/upsample_labels.h"
#include "cpu/upsample_pixels.h"

namespace psp_fast {
namespace {

// The first pixel whose label is neither a class nor ignore_index, else -1.
int64_t first_wrong(const UpsampleTarget& target, int64_t pixels, int64_t classes) {
  for (int64_t i = 0; i < pixels; ++i) {
    const int64_t label = label_at(target, i);
    if (!is_class(label, classes) && label != target.ignore_index) return i;
  }
  return -1;
}

// A pixel's largest logit, the sum of e^(logit - largest), and the sum of weight * (logit - largest).
template <class A>
struct Lane {
  A largest, sum, weighted;
};

template <class A>
class LossWriter {
 public:
  LossWriter(const UpsampleCrossEntropyArgs& args, double* partial)
      : args_(args), weights_(args.target, args.map.c), partial_(partial) {}

  template <int R>
  void visit(const Pixels<A>& pixels) const {
    Vector<A> largest[R], sum[R], weighted[R];
    LabelVector<A> label[R];
    find_largest<R>(pixels, largest, label);
    for (int r = 0; r < R; ++r) sum[r] = weighted[r] = Vector<A>{};
    add_exponentials<R>(pixels, largest, sum);
    if (weights_.spread != 0) add_weighted<R>(pixels, largest, weighted);
    for (int r = 0; r < R; ++r) {
      const int64_t row = pixels.n * args_.map.height + pixels.y + r;
      store_labels<A>(args_.argmax, pixels.channels, row * args_.map.width + pixels.x, label[r], pixels.lanes);
      for (int64_t k = 0; k < pixels.lanes; ++k) {
        finish(pixels, r, k, row, {largest[r][k], sum[r][k], weighted[r][k]});
      }
    }
  }

 private:
  template <int R>
  [[gnu::always_inline]] static void add_exponentials(const Pixels<A>& pixels, const Vector<A> (&largest)[R],
                                                      Vector<A> (&sum)[R]) {
    A weight0[R], weight1[R];
    Vector<A> top[R];
    for (int r = 0; r < R; ++r) {
      weight0[r] = pixels.weight0[r] * static_cast<A>(kLog2E);
      weight1[r] = pixels.weight1[r] * static_cast<A>(kLog2E);
      top[r] = largest[r] * static_cast<A>(kLog2E);
    }
    for (int64_t c = 0; c < pixels.channels; ++c) {
      const Vector<A> upper = pixels.upper_of(c), lower = pixels.lower_of(c);
      for (int r = 0; r < R; ++r) sum[r] += exp2_nonpositive(upper * weight0[r] + lower * weight1[r] - top[r]);
    }
  }

  template <int R>
  [[gnu::always_inline]] void add_weighted(const Pixels<A>& pixels, const Vector<A> (&largest)[R],
                                           Vector<A> (&weighted)[R]) const {
    for (int64_t c = 0; c < pixels.channels; ++c) {
      const Vector<A> upper = pixels.upper_of(c), lower = pixels.lower_of(c);
      for (int r = 0; r < R; ++r) {
        const Vector<A> value = upper * pixels.weight0[r] + lower * pixels.weight1[r];
        weighted[r] += weights_.of_class[c] * (value - largest[r]);
      }
    }
  }

  // Lane k of row r; `row` counts the rows of all images.
  void finish(const Pixels<A>& pixels, int r, int64_t k, int64_t row, const Lane<A>& lane) const {
    const int64_t at = row * args_.map.width + pixels.x + k, label = label_at(args_.target, at);
    const A log_sum = log_of(lane.sum);
    static_cast<A*>(args_.lse)[at] = lane.largest + log_sum;
    A loss = 0;
    if (label != args_.target.ignore_index) {
      const A value = pixels.weight0[r] * pixels.upper[label * pixels.stride + k] +
                      pixels.weight1[r] * pixels.lower[label * pixels.stride + k];
      const A weight = weights_.of_class[label];
      loss = weights_.kept * weight * (log_sum - (value - lane.largest));
      if (weights_.spread != 0) loss += weights_.spread * (weights_.total * log_sum - lane.weighted);
      double* partial = partial_ + 2 * (row * tiles(args_.map) + pixels.x / kTile);
      partial[0] += loss;
      partial[1] += weight;
    }
    if (args_.losses) static_cast<A*>(args_.losses)[at] = loss;
  }

  const UpsampleCrossEntropyArgs& args_;
  const ClassWeights<A> weights_;
  double* const partial_;  // of each row of a tile, the summed loss and weight
};

template <class T>
void forward(const UpsampleCrossEntropyArgs& args) {
  using A = typename Accumulator<T>::type;
  const UpsampleMap& map = args.map;
  *args.wrong = first_wrong(args.target, map.n * map.height * map.width, map.c);
  if (*args.wrong >= 0) return;
  const int64_t parts = map.n * map.height * tiles(map);
  const Scratch<double> partial(1, 2 * parts);
  for (int64_t i = 0; i < 2 * parts; ++i) partial.of(0)[i] = 0;
  visit_pixels<T>(map, args.threads, LossWriter<A>(args, partial.of(0)));
  double loss = 0, weight = 0;
  for (int64_t i = 0; i < parts; ++i) {
    loss += partial.of(0)[2 * i];
    weight += partial.of(0)[2 * i + 1];
  }
  const double divisor = args.mean && weight > 0 ? weight : 1;
  if (args.loss) *static_cast<A*>(args.loss) = static_cast<A>(loss / divisor);
  *static_cast<A*>(args.divisor) = static_cast<A>(divisor);
}

}  // namespace

namespace PSP_FAST_CPU {

void upsample_cross_entropy_forward(const UpsampleCrossEntropyArgs& args) {
  switch (args.map.dtype) {
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
