// Names and argument lists of psp_fast._native. Arrays cross as addresses: the Python side has checked device, type,
// shape and strides.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>

#include "build_info.h"
#include "cpu/capability.h"
#include "cpu/pyramid_pool.h"
#ifdef PSP_FAST_CUDA
#include "cuda/pyramid_pool.h"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace psp_fast {
namespace {

using Sizes = std::array<int64_t, 4>;
using Addresses = std::vector<uintptr_t>;

DType dtype_named(const std::string& name) {
  if (name == "float64") return DType::kFloat64;
  if (name == "float32") return DType::kFloat32;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "float16") return DType::kFloat16;
  throw std::invalid_argument("no kernel for " + name);
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
std::vector<T*> pointers(const Addresses& addresses) {
  std::vector<T*> result;
  for (uintptr_t address : addresses) result.push_back(pointer<T>(address));
  return result;
}

using PyramidPoolKernel = void (*)(const PyramidPoolArgs&);

template <PyramidPoolKernel kernel>
void pyramid_pool_cpu(const std::string& dtype, bool max, bool channels_last, uintptr_t map, const Sizes& sizes,
                      const Sizes& strides, const std::vector<int32_t>& bins, const Addresses& levels,
                      const Addresses& indices, int threads) {
  const PyramidPlanStorage plan(static_cast<int32_t>(sizes[2]), static_cast<int32_t>(sizes[3]), bins);
  const std::vector<void*> level_pointers = pointers<void>(levels);
  const std::vector<int32_t*> index_pointers = pointers<int32_t>(indices);
  kernel({dtype_named(dtype), max, channels_last, sizes[0], sizes[1], strides[0], strides[1], strides[2], strides[3],
          plan.here(), pointer<void>(map), level_pointers.data(), index_pointers.data(), threads});
}

template <PyramidPoolKernel kernel>
void define_pyramid_pool_cpu(py::module_& module, const char* name) {
  module.def(name, &pyramid_pool_cpu<kernel>, "dtype"_a, "max"_a, "channels_last"_a, "map"_a, "sizes"_a, "strides"_a,
             "bins"_a, "levels"_a, "indices"_a, "threads"_a, py::call_guard<py::gil_scoped_release>());
}

#ifdef PSP_FAST_CUDA
using PyramidPoolCudaKernel = void (*)(const PyramidPoolCudaArgs&);

template <PyramidPoolCudaKernel kernel>
void pyramid_pool_cuda(const std::string& dtype, bool max, bool channels_last, uintptr_t map, const Sizes& sizes,
                       const Sizes& strides, const std::vector<int32_t>& bins, const Addresses& levels,
                       const Addresses& indices, uintptr_t plan, uintptr_t values, uintptr_t places, uintptr_t stream) {
  const PyramidPlanStorage host(static_cast<int32_t>(sizes[2]), static_cast<int32_t>(sizes[3]), bins);
  const std::vector<void*> level_pointers = pointers<void>(levels);
  const std::vector<int32_t*> index_pointers = pointers<int32_t>(indices);
  kernel({dtype_named(dtype), max, channels_last, sizes[0], sizes[1], strides[0], strides[1], strides[2], strides[3],
          bins, host.at(pointer<int32_t>(plan)), pointer<void>(map), level_pointers, index_pointers,
          pointer<float>(values), pointer<int32_t>(places), pointer<void>(stream)});
}

template <PyramidPoolCudaKernel kernel>
void define_pyramid_pool_cuda(py::module_& module, const char* name) {
  module.def(name, &pyramid_pool_cuda<kernel>, "dtype"_a, "max"_a, "channels_last"_a, "map"_a, "sizes"_a, "strides"_a,
             "bins"_a, "levels"_a, "indices"_a, "plan"_a, "values"_a, "places"_a, "stream"_a,
             py::call_guard<py::gil_scoped_release>());
}
#endif

py::dict build_info() {
#ifdef PSP_FAST_CUDA
  constexpr bool cuda = true;
#else
  constexpr bool cuda = false;
#endif
  return py::dict("summary"_a = build::kSummary, "compiler"_a = build::kCompiler, "cpu"_a = build::kCpu,
                  "openmp"_a = build::kOpenMp, "cuda"_a = cuda, "nvcc"_a = build::kNvcc,
                  "cuda_architectures"_a = build::kCudaArchitectures, "cuda_reason"_a = build::kCudaReason);
}

}  // namespace
}  // namespace psp_fast

PYBIND11_MODULE(_native, module) {
  using namespace psp_fast;
  module.def("build_info", &build_info, "What this module was built with.");
  module.def("cpu_capability", &capability_name, "The instruction set that CPU kernels use.");
  module.def("cpu_capabilities", &available_capabilities, "Those that this CPU and this build have, slowest first.");
  module.def("set_cpu_capability", &set_capability, "name"_a, "Use one of cpu_capabilities() from now on.");
  define_pyramid_pool_cpu<pyramid_pool_forward>(module, "pyramid_pool_forward_cpu");
  define_pyramid_pool_cpu<pyramid_pool_backward>(module, "pyramid_pool_backward_cpu");
  module.def(
      "pyramid_plan",
      [](int32_t height, int32_t width, const std::vector<int32_t>& bins) {
        const PyramidPlanStorage plan(height, width, bins);
        return py::make_tuple(plan.numbers(), plan.rectangles());
      },
      "height"_a, "width"_a, "bins"_a,
      "How a map is cut, as numbers for the device, and how many rectangles it makes.");
#ifdef PSP_FAST_CUDA
  define_pyramid_pool_cuda<pyramid_pool_cuda_forward>(module, "pyramid_pool_forward_cuda");
  define_pyramid_pool_cuda<pyramid_pool_cuda_backward>(module, "pyramid_pool_backward_cuda");
#endif
}
