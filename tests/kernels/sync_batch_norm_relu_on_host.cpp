// The CUDA kernels of batch norm and their bindings as a module that runs on the CPU.
#include "cuda_on_host.h"

#define PSP_FAST_CUDA
#include "bindings/sync_batch_norm_relu_cuda.cpp"
#include "cuda/sync_batch_norm_relu.cu"
#include "cuda/sync_batch_norm_relu_onchip.cu"

namespace psp_fast {
namespace {
thread_local uint4 memory[cuda_on_host::kSharedMemory / sizeof(uint4)];  // behind the kernels' `extern __shared__`
}
}  // namespace psp_fast

unsigned char* dynamic_shared_memory() { return reinterpret_cast<unsigned char*>(psp_fast::memory); }

PYBIND11_MODULE(sync_batch_norm_relu_on_host, module) {
  psp_fast::define_sync_batch_norm_relu_cuda(module);
  module.def("set_device",
             [](int multiprocessors, int shared_memory) { cuda_on_host::device = {multiprocessors, shared_memory}; });
}
