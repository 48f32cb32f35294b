// The module psp_fast._native: what it was built with, the instruction set in use, and every op's kernels.
#include "bindings/arguments.h"
#include "build_info.h"
#include "capability.h"

namespace psp_fast {
namespace {

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
  define_conv3x3(module);
  define_pyramid_pool(module);
  define_pyramid_pool_cuda(module);
  define_sync_batch_norm_relu_cuda(module);
  define_sync_batch_norm_relu(module);
  define_upsample_concat(module);
  define_pyramid_conv3x3(module);
  define_upsample_argmax(module);
  define_upsample_cross_entropy(module);
}
