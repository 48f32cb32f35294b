// A map and the bilinearly upsampled levels of its pyramid, side by side in one output.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/pyramid_level.h"
#include "dtype.h"

namespace psp_fast {

// Forward reads x and the levels and writes out; backward reads out, a gradient, from channel c on and writes the
// levels. With channels_last stride_c is 1 and levels are (N, h, w, C), else stride_w is 1 and levels are (N, C, h, w).
struct UpsampleConcatArgs {
  DType dtype;  // float64, float32 or bfloat16
  bool channels_last, align_corners;
  int64_t n, c, height, width;  // of x
  StridedMap x, out;
  PyramidLevels levels;
  int threads;
};

PSP_FAST_DECLARE_CPU_KERNEL(upsample_concat_forward, UpsampleConcatArgs)
PSP_FAST_DECLARE_CPU_KERNEL(upsample_concat_backward, UpsampleConcatArgs)

}  // namespace psp_fast
