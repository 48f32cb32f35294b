// Visits upsampled pixels a few at a time, all their logits within reach; internal linkage, as in scalar.h.
#pragma once

#include "cpu/upsample_axis.h"
#include "cpu/upsample_map.h"

namespace psp_fast {
namespace {

constexpr int64_t kTile = 256;  // columns of a tile: two rows of it, all channels, stay in the L2 cache
constexpr int kRows = 4;        // rows handled at a time

// `lanes` columns from x on, in rows y to y + R - 1 of image n. Class c's logits in row r and these columns are
// weight0[r] * upper(c) + weight1[r] * lower(c). All kWidth lanes may be computed.
template <class A>
struct Pixels {
  int64_t n, y, x, lanes;
  const A *weight0, *weight1;
  const A *upper, *lower;
  int64_t channels, stride;
  bool finite;  // all logits between these rows are finite, with room for their differences

  [[gnu::always_inline]] Vector<A> upper_of(int64_t c) const { return load_vector<Vector<A>>(upper + c * stride); }
  [[gnu::always_inline]] Vector<A> lower_of(int64_t c) const { return load_vector<Vector<A>>(lower + c * stride); }
};

// Some columns of one input row and of the next, upsampled along x, for all channels.
template <class T, class A>
class RowPair {
 public:
  RowPair(const UpsampleMap& map, const Axis<A>& axis, int64_t n, int64_t first, int64_t last, A* memory,
          int64_t stride)
      : axis_(axis),
        logits_(static_cast<const T*>(map.logits) + n * map.stride_n),
        map_(map),
        first_(first),
        last_(last),
        stride_(stride),
        upper_(memory),
        lower_(memory + map.c * stride) {}

  // Holds rows `upper` and `lower` from now on; moving down by one row, only one of them is new.
  void move_to(int64_t upper, int64_t lower) {
    if (upper == lower_row_) {
      A* const freed = upper_;
      upper_ = lower_;
      lower_ = freed;
      upper_finite_ = lower_finite_;
    } else {
      upper_finite_ = fill(upper_, upper);
    }
    if (lower != upper) lower_finite_ = fill(lower_, lower);
    lower_row_ = lower;
  }

  const A* upper() const { return upper_; }
  const A* lower() const { return lower_; }
  bool finite() const { return upper_finite_ && lower_finite_; }

 private:
  bool fill(A* lines, int64_t row) const {
    const Row<const T> from{logits_ + row * map_.stride_h, map_.c, map_.stride_c, map_.stride_w};
    return upsample_lines<T>(axis_, from, first_, last_, lines, stride_);
  }

  const Axis<A>& axis_;
  const T* logits_;
  const UpsampleMap& map_;
  const int64_t first_, last_, stride_;
  A *upper_, *lower_;
  int64_t lower_row_ = -1;
  bool upper_finite_ = true, lower_finite_ = true;
};

// Calls visitor.visit<R>(pixels) for the pixels of columns [first, last) between two input rows, R being kRows or 1.
template <class A, class Visitor>
void visit_band(const Axis<A>& rows, int64_t source, int64_t first, int64_t last, Pixels<A> pixels,
                const Visitor& visitor) {
  for (int64_t x = first; x < last; x += kWidth<A>) {
    Pixels<A> here = pixels;
    here.x = x;
    here.lanes = last - x < kWidth<A> ? last - x : kWidth<A>;
    here.upper += x - first;
    here.lower += x - first;
    for (int64_t y = rows.begin(source), end = rows.begin(source + 1); y < end;) {
      here.y = y;
      here.weight0 = rows.weight0(y);
      here.weight1 = rows.weight1(y);
      if (end - y >= kRows) {
        visitor.template visit<kRows>(here);
        y += kRows;
      } else {
        visitor.template visit<1>(here);
        ++y;
      }
    }
  }
}

[[maybe_unused]] int64_t tiles(const UpsampleMap& map) { return (map.width + kTile - 1) / kTile; }

// Calls visitor.visit<R>(pixels) for all pixels.
template <class T, class Visitor>
void visit_pixels(const UpsampleMap& map, int threads, const Visitor& visitor) {
  using A = typename Accumulator<T>::type;
  const Axis<A> rows(map.h, map.height, map.align_corners), columns(map.w, map.width, map.align_corners);
  const int64_t across = tiles(map), wanted = map.n * across * map.h / (4 * threads);
  const int64_t group = wanted < 1 ? 1 : wanted > 16 ? 16 : wanted;  // input rows of a task
  const int64_t groups = (map.h + group - 1) / group;
  const int64_t stride = (map.width < kTile ? map.width : kTile) + kWidth<A>;
  const Scratch<A> memory(threads, 2 * map.c * stride);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < map.n * groups * across; ++task) {
    const int64_t n = task / across / groups, begin = task / across % groups * group, tile = task % across * kTile;
    const int64_t end = begin + group < map.h ? begin + group : map.h;
    const int64_t last = tile + kTile < map.width ? tile + kTile : map.width;
    RowPair<T, A> pair(map, columns, n, tile, last, memory.of(thread_index()), stride);
    for (int64_t i = begin; i < end; ++i) {
      if (rows.begin(i) == rows.begin(i + 1)) continue;
      pair.move_to(i, rows.next(i));
      const A* lower = rows.next(i) == i ? pair.upper() : pair.lower();
      visit_band(rows, i, tile, last, {n, 0, 0, 0, nullptr, nullptr, pair.upper(), lower, map.c, stride, pair.finite()},
                 visitor);
    }
  }
}

// The largest logit of each pixel and its class: the first NaN, else the first of the largest.
template <int R, bool kFinite, class A>
[[gnu::always_inline]] inline void find_largest_if(const Pixels<A>& pixels, Vector<A> (&best)[R],
                                                   LabelVector<A> (&label)[R]) {
  LabelVector<A> c_label{};
  for (int r = 0; r < R; ++r) {
    best[r] = Vector<A>{} - __builtin_inf();
    label[r] = c_label;
  }
  for (int64_t c = 0; c < pixels.channels; ++c) {
    const Vector<A> upper = pixels.upper_of(c), lower = pixels.lower_of(c);
    for (int r = 0; r < R; ++r) {
      const Vector<A> value =
          kFinite ? upper + (lower - upper) * pixels.weight1[r] : upper * pixels.weight0[r] + lower * pixels.weight1[r];
      auto larger = value > best[r];
      if (!kFinite) larger |= (value != value) & (best[r] == best[r]);
      best[r] = larger ? value : best[r];
      label[r] = larger ? c_label : label[r];
    }
    c_label += 1;
  }
}

template <int R, class A>
[[gnu::always_inline]] inline void find_largest(const Pixels<A>& pixels, Vector<A> (&best)[R],
                                                LabelVector<A> (&label)[R]) {
  if (pixels.finite) {
    find_largest_if<R, true>(pixels, best, label);
  } else {
    find_largest_if<R, false>(pixels, best, label);
  }
}

// Writes the first `lanes` labels to element `at` of uint8 (up to 256 classes) or int64 memory.
template <class A>
void store_labels(void* labels, int64_t classes, int64_t at, const LabelVector<A>& label, int64_t lanes) {
  Label<A> values[kWidth<A>];
  store_vector(values, label);
  if (classes <= 256) {
    for (int64_t k = 0; k < lanes; ++k) static_cast<uint8_t*>(labels)[at + k] = static_cast<uint8_t>(values[k]);
  } else {
    for (int64_t k = 0; k < lanes; ++k) static_cast<int64_t*>(labels)[at + k] = values[k];
  }
}

}  // namespace
}  // namespace psp_fast
