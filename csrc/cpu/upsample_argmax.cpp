// Compiled and linked as pyramid_pool.cpp is.
#include "cpu/upsample_argmax.h"

#include "cpu/upsample_pixels.h"

namespace psp_fast {
namespace {

template <class A>
struct LabelWriter {
  const UpsampleArgmaxArgs& args;

  template <int R, bool kFinite>
  void visit(const Pixels<A>& pixels) const {
    Vector<A> best[R];
    LabelVector<A> label[R];
    find_largest<R, kFinite>(pixels, best, label);
    for (int r = 0; r < R; ++r) {
      const int64_t at = (pixels.n * args.map.height + pixels.y + r) * args.map.width + pixels.x;
      store_labels<A>(args.labels, args.map.c, at, label[r], pixels.lanes);
    }
  }
};

template <class T>
void run(const UpsampleArgmaxArgs& args) {
  visit_pixels<T>(args.map, args.threads, LabelWriter<typename Accumulator<T>::type>{args});
}

}  // namespace

namespace PSP_FAST_CPU {

void upsample_argmax(const UpsampleArgmaxArgs& args) {
  switch (args.map.dtype) {
    case DType::kFloat64:
      return run<double>(args);
    case DType::kBFloat16:
      return run<BFloat16>(args);
    default:
      return run<float>(args);
  }
}

}  // namespace PSP_FAST_CPU
}  // namespace psp_fast
