// Element access and launches for the CUDA kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace psp_fast {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// V neighbouring elements, moved at once.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T element[V];
};

// Blocks for `tasks` tasks, each block taking one after another where there are more than a grid holds.
inline unsigned grid_for(int64_t tasks) { return static_cast<unsigned>(std::min<int64_t>(tasks, 1 << 30)); }

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // so that it is not reported a second time, as another call's
    throw std::runtime_error(std::string("psp_fast: CUDA refused ") + what + ": " + cudaGetErrorString(error));
  }
}

struct Launch {
  const char* what;
  int64_t blocks;
  int threads;
  size_t shared;  // bytes of dynamic shared memory
  bool cooperative;
  void* stream;
};

template <class... P, class... A>
void launch(const Launch& how, void (*kernel)(P...), A... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(how.blocks));
  config.blockDim = dim3(how.threads);
  config.dynamicSmemBytes = how.shared;
  config.stream = static_cast<cudaStream_t>(how.stream);
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  config.attrs = &cooperative;
  config.numAttrs = how.cooperative ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), how.what);
}

}  // namespace psp_fast
