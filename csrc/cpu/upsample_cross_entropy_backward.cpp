// Gradient of the fused cross entropy; compiled and linked as pyramid_pool.cpp is. A task owns some input rows of some
// channels of an image: every element of the gradient is written once, its terms always added in the same order.
#include "cpu/upsample_labels.h"
#include "cpu/upsample_pixels.h"

namespace psp_fast {
namespace {

constexpr int64_t kChunk = 8;               // rows of pixels prepared at a time
constexpr int64_t kLineBytes = 640 * 1024;  // of a task's lines of all its channels: they stay in the L2 cache
constexpr int64_t kLeastRows = 8;           // input rows of a task, where there are as many; one more is recomputed

// How the gradient is cut into tasks.
struct GradientTasks {
  int64_t stride;  // of lines
  int64_t channels, channel_blocks, rows, row_blocks;
  int64_t count;

  GradientTasks(const UpsampleMap& map, int threads, int64_t lanes, int64_t element) : stride(map.width + lanes) {
    const int64_t fitting = kLineBytes / (4 * stride * element);
    const int64_t most = fitting < 8 ? 8 : fitting > 128 ? 128 : fitting;
    channel_blocks = (map.c + most - 1) / most;
    channels = (map.c + channel_blocks - 1) / channel_blocks;
    const int64_t wanted = map.n * channel_blocks * map.h / (4 * threads);
    rows = wanted < kLeastRows ? kLeastRows : wanted > map.h ? map.h : wanted;
    row_blocks = (map.h + rows - 1) / rows;
    count = map.n * channel_blocks * row_blocks;
  }
};

// Of kWidth pixels: the gradient of the logit of class c is softmax * 2^(kLog2E * logit - lse) - grad * (spread *
// weight[c] + (c is label ? kept * weight[c] : 0)).
template <class A>
struct Terms {
  A lse[kWidth<A>], softmax[kWidth<A>], grad[kWidth<A>];
  Label<A> label[kWidth<A>];
};

// What of Terms depends on the class only.
template <class A>
struct ClassTerm {
  Label<A> c;
  A own, other;  // (kept + spread) * weight[c], spread * weight[c]
};

// Adds `rows` rows of pixels to the sums of one channel of the two input rows that they lie between. The terms of row r
// and columns kWidth * i on are terms[i * kChunk + r].
template <class A>
[[gnu::noinline]] void add_chunk(const Terms<A>* terms, int64_t rows, int64_t width, const A* weight0, const A* weight1,
                                 const ClassTerm<A>& of_class, const A* upper, const A* lower, A* upper_sum,
                                 A* lower_sum) {
  A scaled0[kChunk], scaled1[kChunk];
  for (int64_t r = 0; r < rows; ++r) {
    scaled0[r] = weight0[r] * static_cast<A>(kLog2E);
    scaled1[r] = weight1[r] * static_cast<A>(kLog2E);
  }
  const Vector<A> own = Vector<A>{} + of_class.own, other = Vector<A>{} + of_class.other;
  for (int64_t x = 0; x < width; x += kWidth<A>, terms += kChunk) {
    const auto a = load_vector<Vector<A>>(upper + x), b = load_vector<Vector<A>>(lower + x);
    auto sum0 = load_vector<Vector<A>>(upper_sum + x), sum1 = load_vector<Vector<A>>(lower_sum + x);
    for (int64_t r = 0; r < rows; ++r) {
      const Vector<A> exponent = a * scaled0[r] + b * scaled1[r] - load_vector<Vector<A>>(terms[r].lse);
      const auto is_own = load_vector<LabelVector<A>>(terms[r].label) == of_class.c;
      const Vector<A> picked = load_vector<Vector<A>>(terms[r].grad) * (is_own ? own : other);
      const Vector<A> grad = load_vector<Vector<A>>(terms[r].softmax) * exp2_nonpositive(exponent) - picked;
      sum0 += weight0[r] * grad;
      sum1 += weight1[r] * grad;
    }
    store_vector(upper_sum + x, sum0);
    store_vector(lower_sum + x, sum1);
  }
}

template <class A>
struct GradientMemory {
  Scratch<A> pair, sums;
  Scratch<Terms<A>> terms;

  GradientMemory(const GradientTasks& tasks, int threads)
      : pair(threads, 2 * tasks.channels * tasks.stride),
        sums(threads, 2 * tasks.channels * tasks.stride),
        terms(threads, kChunk * (tasks.stride / kWidth<A>)) {}
};

template <class T>
class GradientTask {
  using A = typename Accumulator<T>::type;

 public:
  GradientTask(const UpsampleCrossEntropyBackwardArgs& args, const GradientTasks& tasks, const Axis<A>& rows,
               const Axis<A>& columns, const ClassWeights<A>& weights, const GradientMemory<A>& memory, int64_t task)
      : args_(args),
        rows_(rows),
        columns_(columns),
        weights_(weights),
        stride_(tasks.stride),
        n_(task / tasks.row_blocks / tasks.channel_blocks),
        first_class_(task / tasks.row_blocks % tasks.channel_blocks * tasks.channels),
        first_row_(task % tasks.row_blocks * tasks.rows),
        part_(args.map),
        upper_(memory.sums.of(thread_index())),
        lower_(upper_ + tasks.channels * tasks.stride),
        pair_memory_(memory.pair.of(thread_index())),
        terms_(memory.terms.of(thread_index())) {
    part_.logits = static_cast<const T*>(args.map.logits) + first_class_ * args.map.stride_c;
    part_.c = at_most(args.map.c - first_class_, tasks.channels);
    end_row_ = first_row_ + at_most(args.map.h - first_row_, tasks.rows);
  }

  // The row before the first contributes to it too.
  void run() {
    RowPair<T, A> pair(part_, columns_, n_, 0, part_.width, pair_memory_, stride_);
    clear(upper_);
    for (int64_t i = first_row_ > 0 ? first_row_ - 1 : 0; i < end_row_; ++i) {
      clear(lower_);
      add_band(i, pair);
      if (rows_.next(i) == i) fold_last();
      if (i >= first_row_) write_row(i);
      A* const written = upper_;
      upper_ = lower_;
      lower_ = written;
    }
  }

 private:
  static int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }

  void clear(A* sums) const {
    for (int64_t i = 0; i < part_.c * stride_; ++i) sums[i] = 0;
  }

  // Adds the pixels between input rows i and next(i) to the sums of both.
  void add_band(int64_t i, RowPair<T, A>& pair) {
    const int64_t end = rows_.begin(i + 1);
    if (rows_.begin(i) == end) return;
    pair.move_to(i, rows_.next(i));
    const A* lower = rows_.next(i) == i ? pair.upper() : pair.lower();
    for (int64_t y = rows_.begin(i); y < end; y += kChunk) {
      const int64_t count = at_most(end - y, kChunk);
      for (int64_t r = 0; r < count; ++r) prepare(terms_ + r, (n_ * part_.height + y + r) * part_.width);
      for (int64_t c = 0; c < part_.c; ++c) {
        add_chunk(terms_, count, part_.width, rows_.weight0(y), rows_.weight1(y), class_term(first_class_ + c),
                  pair.upper() + c * stride_, lower + c * stride_, upper_ + c * stride_, lower_ + c * stride_);
      }
    }
  }

  ClassTerm<A> class_term(int64_t c) const {
    const A weight = weights_.of_class[c];
    return {static_cast<Label<A>>(c), (weights_.kept + weights_.spread) * weight, weights_.spread * weight};
  }

  // Fills the terms of a row of pixels from `first` on.
  void prepare(Terms<A>* terms, int64_t first) const {
    const A factor = 1 / *static_cast<const A*>(args_.divisor);
    for (int64_t x = 0; x < part_.width; ++x) {
      const int64_t label = label_at(args_.target, first + x);
      const bool counts = label != args_.target.ignore_index && is_class(label, args_.map.c);
      const int64_t known = counts ? label : 0, lane = x % kWidth<A>;
      const A grad = counts ? static_cast<const A*>(args_.grad)[(first + x) * args_.grad_stride] * factor : A(0);
      Terms<A>& to = terms[x / kWidth<A> * kChunk];
      to.lse[lane] = static_cast<const A*>(args_.lse)[first + x] * static_cast<A>(kLog2E);
      to.softmax[lane] = grad * (weights_.kept * weights_.of_class[known] + weights_.spread * weights_.total);
      to.grad[lane] = grad;
      to.label[lane] = static_cast<Label<A>>(known);
    }
  }

  // Where there is no next row, its share is this row's.
  void fold_last() {
    for (int64_t i = 0; i < part_.c * stride_; ++i) upper_[i] += lower_[i];
    clear(lower_);
  }

  void write_row(int64_t i) const {
    T* row = static_cast<T*>(args_.dlogits) + n_ * part_.stride_n + first_class_ * part_.stride_c + i * part_.stride_h;
    for (int64_t c = 0; c < part_.c; ++c) {
      gather_line(columns_, upper_ + c * stride_, row + c * part_.stride_c, part_.stride_w);
    }
  }

  const UpsampleCrossEntropyBackwardArgs& args_;
  const Axis<A>&rows_, &columns_;
  const ClassWeights<A>& weights_;
  const int64_t stride_, n_, first_class_, first_row_;
  int64_t end_row_;
  UpsampleMap part_;   // the channels of this task
  A *upper_, *lower_;  // sums of an input row and of the next, for every column of pixels
  A* const pair_memory_;
  Terms<A>* const terms_;
};

template <class T>
void backward(const UpsampleCrossEntropyBackwardArgs& args) {
  using A = typename Accumulator<T>::type;
  const UpsampleMap& map = args.map;
  const Axis<A> rows(map.h, map.height, map.align_corners), columns(map.w, map.width, map.align_corners);
  const ClassWeights<A> weights(args.target, map.c);
  const GradientTasks tasks(map, args.threads, kWidth<A>, sizeof(A));
  const GradientMemory<A> memory(tasks, args.threads);
#pragma omp parallel for num_threads(args.threads) schedule(dynamic)
  for (int64_t task = 0; task < tasks.count; ++task) {
    GradientTask<T>(args, tasks, rows, columns, weights, memory, task).run();
  }
}

}  // namespace

namespace PSP_FAST_CPU {

void upsample_cross_entropy_backward(const UpsampleCrossEntropyBackwardArgs& args) {
  switch (args.map.dtype) {
    case DType::kFloat64:
      return backward<double>(args);
    case DType::kBFloat16:
      return backward<BFloat16>(args);
    default:
      return backward<float>(args);
  }
}

}  // namespace PSP_FAST_CPU
}  // namespace psp_fast
