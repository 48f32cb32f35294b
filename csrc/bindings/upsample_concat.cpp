#include "cpu/upsample_concat.h"

#include "bindings/arguments.h"
#include "bindings/pyramid.h"
#include "cpu/memory.h"

namespace psp_fast {
namespace upsample_concat_binding {

using Kernel = void (*)(const UpsampleConcatArgs&);

void forward_cpu(const UpsampleConcatArgs& args) {
  will_write(args.out.data, args.n * args.out.stride_n * size_of(args.dtype));
  PSP_FAST_CALL_CPU_KERNEL(upsample_concat_forward, args)
}
void backward_cpu(const UpsampleConcatArgs& args) { PSP_FAST_CALL_CPU_KERNEL(upsample_concat_backward, args) }

template <Kernel kernel>
void run(const std::string& dtype, bool channels_last, bool align_corners, const Sizes& sizes, uintptr_t x,
         const Sizes& x_strides, uintptr_t out, const Sizes& out_strides, const std::vector<Level>& levels,
         int threads) {
  const std::vector<PyramidLevel> pyramid = pyramid_levels(levels);
  const int64_t elements = sizes[0] * sizes[1] * sizes[2] * sizes[3];
  kernel({cpu_dtype_named(dtype),
          channels_last,
          align_corners,
          sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          strided_map(x, x_strides),
          strided_map(out, out_strides),
          {static_cast<int32_t>(pyramid.size()), pyramid.data()},
          useful_threads(elements, threads)});
}

template <Kernel kernel>
void define(py::module_& module, const char* name) {
  module.def(name, &run<kernel>, "dtype"_a, "channels_last"_a, "align_corners"_a, "sizes"_a, "x"_a, "x_strides"_a,
             "out"_a, "out_strides"_a, "levels"_a, "threads"_a, py::call_guard<py::gil_scoped_release>());
}

}  // namespace upsample_concat_binding

void define_upsample_concat(py::module_& module) {
  using namespace upsample_concat_binding;
  define<forward_cpu>(module, "upsample_concat_forward_cpu");
  define<backward_cpu>(module, "upsample_concat_backward_cpu");
}

}  // namespace psp_fast
