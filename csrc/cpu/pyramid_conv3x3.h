// The pyramid's share of a 3x3 convolution, padding 1, of upsample_concat(x, pyramid), without upsampling:
//   out[n, o, h, w] += sum_b sum_{dy, i} Uy_b[h + dy, i] sum_{dx, j} Ux_b[w + dx, j] Q_b[n, i, j, dy, dx, o]
//   Q_b[n, i, j, dy, dx, o] = sum_c weight_b[o, c, dy, dx] p_b[n, c, i, j]
// where U are the weights of bilinear interpolation, zero outside the map.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/pyramid_level.h"
#include "dtype.h"

namespace psp_fast {

// The weight's channels of the levels, all levels one after the other, any strides in elements.
struct PyramidWeight {
  void* data;
  int64_t stride_o, stride_c, stride_y, stride_x;
};

// Levels and their gradients are dense (N, C, h, w) of the accumulator's type: double for a float64 map, else float.
struct PyramidConvArgs {
  DType dtype;         // of map: float64, float32 or bfloat16
  DType weight_dtype;  // map's, or float32 for a bfloat16 map
  bool align_corners;
  int64_t n, o, height, width;
  StridedMap map;  // forward adds to it; backward reads a gradient from it
  PyramidLevels levels;
  PyramidWeight weight;
  float* statistics;              // forward: (2, o) mean and sum of squared deviations of the result, or null
  const PyramidLevel* gradients;  // backward: as levels.level, or null
  PyramidWeight weight_gradient;  // backward: of the weight's type; data is null where it is not wanted
  int threads;
};

PSP_FAST_DECLARE_CPU_KERNEL(pyramid_conv3x3_forward, PyramidConvArgs)
PSP_FAST_DECLARE_CPU_KERNEL(pyramid_conv3x3_backward, PyramidConvArgs)

}  // namespace psp_fast
