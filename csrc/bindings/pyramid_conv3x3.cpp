#include "cpu/pyramid_conv3x3.h"

#include "bindings/arguments.h"
#include "bindings/pyramid.h"

namespace psp_fast {
namespace pyramid_conv3x3_binding {

PyramidWeight pyramid_weight(uintptr_t address, const Sizes& strides) {
  return {pointer<void>(address), strides[0], strides[1], strides[2], strides[3]};
}

int64_t elements_of(const Sizes& sizes) { return sizes[0] * sizes[1] * sizes[2] * sizes[3]; }

void forward_cpu(const std::string& dtype, const std::string& weight_dtype, bool align_corners, const Sizes& sizes,
                 uintptr_t map, const Sizes& map_strides, const std::vector<Level>& levels, uintptr_t weight,
                 const Sizes& weight_strides, uintptr_t statistics, int threads) {
  const std::vector<PyramidLevel> pyramid = pyramid_levels(levels);
  const PyramidConvArgs args{cpu_dtype_named(dtype),
                             cpu_dtype_named(weight_dtype),
                             align_corners,
                             sizes[0],
                             sizes[1],
                             sizes[2],
                             sizes[3],
                             strided_map(map, map_strides),
                             {static_cast<int32_t>(pyramid.size()), pyramid.data()},
                             pyramid_weight(weight, weight_strides),
                             pointer<float>(statistics),
                             nullptr,
                             {},
                             useful_threads(elements_of(sizes), threads)};
  PSP_FAST_CALL_CPU_KERNEL(pyramid_conv3x3_forward, args)
}

void backward_cpu(const std::string& dtype, const std::string& weight_dtype, bool align_corners, const Sizes& sizes,
                  uintptr_t dy, const Sizes& dy_strides, const std::vector<Level>& levels, uintptr_t weight,
                  const Sizes& weight_strides, const std::vector<Level>& gradients, uintptr_t weight_gradient,
                  const Sizes& weight_gradient_strides, int threads) {
  const std::vector<PyramidLevel> pyramid = pyramid_levels(levels), outputs = pyramid_levels(gradients);
  const PyramidConvArgs args{cpu_dtype_named(dtype),
                             cpu_dtype_named(weight_dtype),
                             align_corners,
                             sizes[0],
                             sizes[1],
                             sizes[2],
                             sizes[3],
                             strided_map(dy, dy_strides),
                             {static_cast<int32_t>(pyramid.size()), pyramid.data()},
                             pyramid_weight(weight, weight_strides),
                             nullptr,
                             outputs.empty() ? nullptr : outputs.data(),
                             pyramid_weight(weight_gradient, weight_gradient_strides),
                             useful_threads(elements_of(sizes), threads)};
  PSP_FAST_CALL_CPU_KERNEL(pyramid_conv3x3_backward, args)
}

}  // namespace pyramid_conv3x3_binding

void define_pyramid_conv3x3(py::module_& module) {
  using namespace pyramid_conv3x3_binding;
  module.def("pyramid_conv3x3_forward_cpu", &forward_cpu, "dtype"_a, "weight_dtype"_a, "align_corners"_a, "sizes"_a,
             "map"_a, "map_strides"_a, "levels"_a, "weight"_a, "weight_strides"_a, "statistics"_a, "threads"_a,
             py::call_guard<py::gil_scoped_release>());
  module.def("pyramid_conv3x3_backward_cpu", &backward_cpu, "dtype"_a, "weight_dtype"_a, "align_corners"_a, "sizes"_a,
             "dy"_a, "dy_strides"_a, "levels"_a, "weight"_a, "weight_strides"_a, "gradients"_a, "weight_gradient"_a,
             "weight_gradient_strides"_a, "threads"_a, py::call_guard<py::gil_scoped_release>());
}

}  // namespace psp_fast
