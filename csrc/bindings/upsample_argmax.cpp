#include "cpu/upsample_argmax.h"

#include "bindings/arguments.h"
#include "cpu/dispatch.h"

namespace psp_fast {
namespace upsample_argmax_binding {

void run_cpu(const std::string& dtype, uintptr_t logits, const Sizes& sizes, const Sizes& strides,
             const std::array<int64_t, 2>& size, bool align_corners, uintptr_t labels, int threads) {
  const UpsampleMap map{cpu_dtype_named(dtype),
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
  const int64_t work = map.n * map.c * map.height * map.width;
  const UpsampleArgmaxArgs args{map, pointer<void>(labels), useful_threads(work, threads)};
  PSP_FAST_CALL_CPU_KERNEL(upsample_argmax, args)
}

}  // namespace upsample_argmax_binding

void define_upsample_argmax(py::module_& module) {
  using namespace upsample_argmax_binding;
  module.def("upsample_argmax_cpu", &run_cpu, "dtype"_a, "logits"_a, "sizes"_a, "strides"_a, "size"_a,
             "align_corners"_a, "labels"_a, "threads"_a, py::call_guard<py::gil_scoped_release>());
}

}  // namespace psp_fast
