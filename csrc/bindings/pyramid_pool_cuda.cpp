#include "bindings/arguments.h"
#ifdef PSP_FAST_CUDA
#include "cuda/pyramid_pool.h"
#endif

namespace psp_fast {

#ifdef PSP_FAST_CUDA
namespace pyramid_pool_cuda_binding {

using CudaKernel = void (*)(const PyramidPoolCudaArgs&);

template <CudaKernel kernel>
void run_cuda(const std::string& dtype, bool max, bool channels_last, uintptr_t map, const Sizes& sizes,
              const Sizes& strides, const std::vector<int32_t>& bins, const Addresses& levels, const Addresses& indices,
              uintptr_t plan, uintptr_t values, uintptr_t places, uintptr_t stream) {
  const PyramidPlanStorage host(static_cast<int32_t>(sizes[2]), static_cast<int32_t>(sizes[3]), bins);
  const std::vector<void*> level_pointers = pointers<void>(levels);
  const std::vector<int32_t*> index_pointers = pointers<int32_t>(indices);
  kernel({dtype_named(dtype), max, channels_last, sizes[0], sizes[1], strides[0], strides[1], strides[2], strides[3],
          bins, host.at(pointer<int32_t>(plan)), pointer<void>(map), level_pointers, index_pointers,
          pointer<float>(values), pointer<int32_t>(places), pointer<void>(stream)});
}

template <CudaKernel kernel>
void define_cuda(py::module_& module, const char* name) {
  module.def(name, &run_cuda<kernel>, "dtype"_a, "max"_a, "channels_last"_a, "map"_a, "sizes"_a, "strides"_a, "bins"_a,
             "levels"_a, "indices"_a, "plan"_a, "values"_a, "places"_a, "stream"_a,
             py::call_guard<py::gil_scoped_release>());
}

py::tuple plan_numbers(int32_t height, int32_t width, const std::vector<int32_t>& bins) {
  const PyramidPlanStorage plan(height, width, bins);
  return py::make_tuple(plan.numbers(), plan.rectangles());
}

}  // namespace pyramid_pool_cuda_binding

void define_pyramid_pool_cuda(py::module_& module) {
  using namespace pyramid_pool_cuda_binding;
  define_cuda<pyramid_pool_cuda_forward>(module, "pyramid_pool_forward_cuda");
  define_cuda<pyramid_pool_cuda_backward>(module, "pyramid_pool_backward_cuda");
  module.def("pyramid_plan", &plan_numbers, "height"_a, "width"_a, "bins"_a,
             "How a map is cut, as numbers for the device, and how many rectangles it makes.");
}
#else
void define_pyramid_pool_cuda(py::module_&) {}
#endif

}  // namespace psp_fast
