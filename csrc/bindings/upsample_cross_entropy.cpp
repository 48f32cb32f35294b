#include "cpu/upsample_cross_entropy.h"

#include "bindings/arguments.h"
#include "cpu/dispatch.h"

namespace psp_fast {
namespace upsample_cross_entropy_binding {

UpsampleMap map_of(const std::string& dtype, uintptr_t logits, const Sizes& sizes, const Sizes& strides,
                   const std::array<int64_t, 2>& size, bool align_corners) {
  return {cpu_dtype_named(dtype),
          pointer<void>(logits),
          sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          strides[0],
          strides[1],
          strides[2],
          strides[3],
          size[0],
          size[1],
          align_corners};
}

int threads_for(const UpsampleMap& map, int threads) {
  return useful_threads(map.n * map.c * map.height * map.width, threads);
}

// Returns the first pixel with a wrong label, else -1.
int64_t forward_cpu(const std::string& dtype, uintptr_t logits, const Sizes& sizes, const Sizes& strides,
                    const std::array<int64_t, 2>& size, bool align_corners, uintptr_t labels, bool wide,
                    uintptr_t weight, int64_t ignore_index, double label_smoothing, bool mean, uintptr_t loss,
                    uintptr_t losses, uintptr_t lse, uintptr_t divisor, uintptr_t argmax, int threads) {
  const UpsampleMap map = map_of(dtype, logits, sizes, strides, size, align_corners);
  int64_t wrong = -1;
  const UpsampleCrossEntropyArgs args{
      map,
      {pointer<void>(labels), wide, pointer<void>(weight), ignore_index, label_smoothing},
      mean,
      pointer<void>(loss),
      pointer<void>(losses),
      pointer<void>(lse),
      pointer<void>(divisor),
      pointer<void>(argmax),
      &wrong,
      threads_for(map, threads)};
  PSP_FAST_CALL_CPU_KERNEL(upsample_cross_entropy_forward, args)
  return wrong;
}

void backward_cpu(const std::string& dtype, uintptr_t logits, const Sizes& sizes, const Sizes& strides,
                  const std::array<int64_t, 2>& size, bool align_corners, uintptr_t labels, bool wide, uintptr_t weight,
                  int64_t ignore_index, double label_smoothing, uintptr_t lse, uintptr_t divisor, uintptr_t grad,
                  int64_t grad_stride, uintptr_t dlogits, int threads) {
  const UpsampleMap map = map_of(dtype, logits, sizes, strides, size, align_corners);
  const UpsampleCrossEntropyBackwardArgs args{
      map,
      {pointer<void>(labels), wide, pointer<void>(weight), ignore_index, label_smoothing},
      pointer<void>(lse),
      pointer<void>(divisor),
      pointer<void>(grad),
      grad_stride,
      pointer<void>(dlogits),
      threads_for(map, threads)};
  PSP_FAST_CALL_CPU_KERNEL(upsample_cross_entropy_backward, args)
}

}  // namespace upsample_cross_entropy_binding

void define_upsample_cross_entropy(py::module_& module) {
  using namespace upsample_cross_entropy_binding;
  module.def("upsample_cross_entropy_forward_cpu", &forward_cpu, "dtype"_a, "logits"_a, "sizes"_a, "strides"_a,
             "size"_a, "align_corners"_a, "labels"_a, "wide"_a, "weight"_a, "ignore_index"_a, "label_smoothing"_a,
             "mean"_a, "loss"_a, "losses"_a, "lse"_a, "divisor"_a, "argmax"_a, "threads"_a,
             py::call_guard<py::gil_scoped_release>());
  module.def("upsample_cross_entropy_backward_cpu", &backward_cpu, "dtype"_a, "logits"_a, "sizes"_a, "strides"_a,
             "size"_a, "align_corners"_a, "labels"_a, "wide"_a, "weight"_a, "ignore_index"_a, "label_smoothing"_a,
             "lse"_a, "divisor"_a, "grad"_a, "grad_stride"_a, "dlogits"_a, "threads"_a,
             py::call_guard<py::gil_scoped_release>());
}

}  // namespace psp_fast
