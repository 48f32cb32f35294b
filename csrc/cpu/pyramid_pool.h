// Pyramid pooling on the CPU: adaptive average or maximum pooling to every level in one read of the map.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "dtype.h"
#include "pyramid_plan.h"

namespace psp_fast {

// Forward reads map and writes levels (and index); backward reads levels (and index) and writes all of map.
struct PyramidPoolArgs {
  DType dtype;         // float64, float32 or bfloat16
  bool max;            // maximum instead of average
  bool channels_last;  // stride_c is 1 and levels are (N, b, b, C); else stride_w is 1 and levels are (N, C, b, b)
  int64_t n, c;
  int64_t stride_n, stride_c, stride_h, stride_w;  // of map, in elements
  PyramidPlan plan;
  void* map;
  void* const* levels;      // dense, one a level
  int32_t* const* indices;  // max only: h * W + w of the maximum, laid out as levels
  int threads;
};

PSP_FAST_DECLARE_CPU_KERNEL(pyramid_pool_forward, PyramidPoolArgs)
PSP_FAST_DECLARE_CPU_KERNEL(pyramid_pool_backward, PyramidPoolArgs)

}  // namespace psp_fast
