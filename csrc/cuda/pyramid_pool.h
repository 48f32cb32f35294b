// Pyramid pooling on CUDA devices; see cpu/pyramid_pool.h for the meaning of the directions and layouts.
#pragma once

#include <cstdint>
#include <vector>

#include "dtype.h"
#include "pyramid_plan.h"

namespace psp_fast {

// Addresses are device memory of the current device, bins excepted; work is queued on the stream.
struct PyramidPoolCudaArgs {
  DType dtype;  // float32, bfloat16 or float16
  bool max, channels_last;
  int64_t n, c;
  int64_t stride_n, stride_c, stride_h, stride_w;  // of map, in elements
  const std::vector<int32_t>& bins;
  PyramidPlan plan;
  void* map;
  const std::vector<void*>& levels;
  const std::vector<int32_t*>& indices;
  float* values;    // (n * c * rectangles) scratch
  int32_t* places;  // as values
  void* stream;     // a cudaStream_t
};

// Both throw std::runtime_error when CUDA refuses a launch.
void pyramid_pool_cuda_forward(const PyramidPoolCudaArgs& args);
void pyramid_pool_cuda_backward(const PyramidPoolCudaArgs& args);

}  // namespace psp_fast
