// The CUDA kernels of pyramid pooling and their bindings as a module that runs on the CPU.
#include "cuda_on_host.h"

#define PSP_FAST_CUDA
#include "bindings/pyramid_pool_cuda.cpp"
#include "cuda/pyramid_pool.cu"
#include "pyramid_plan.cpp"

unsigned char* dynamic_shared_memory() { return nullptr; }

PYBIND11_MODULE(pyramid_pool_on_host, module) {
  psp_fast::define_pyramid_pool_cuda(module);
  module.def("set_grid", [](unsigned blocks) { cuda_on_host::device.grid = blocks; });
}
