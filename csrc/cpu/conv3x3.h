// 3x3 convolution on the CPU by Winograd's F(4x4, 3x3): stride 1, padding equal to the dilation, fp32, channels last.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"

namespace psp_fast {

// The 4x4 output pixels (h + i * dilation, w + j * dilation) of image n; n is -1 for a tile that only fills up.
struct Conv3x3Tile {
  int32_t n, h, w;
};

// A dense or sliced map: channels lie side by side; strides are in elements.
struct Conv3x3Map {
  float* data;
  int64_t channels, stride_n, stride_h, stride_w;
};

// A weight w(o, i, y, x) with any strides; a turned or transposed view of a weight is one, too.
struct Conv3x3Weight {
  float* data;
  int64_t stride_out, stride_in, stride_y, stride_x;
};

struct Conv3x3Args {
  const Conv3x3Tile* tiles;
  int64_t tile_count;
  int32_t height, width;
  int64_t dilation;
  Conv3x3Map x;  // the input, C channels
  Conv3x3Map y;  // the output, K channels; for the weight's gradient the output's gradient
  Conv3x3Weight weight;
  const float* scale;  // (K) or null: y = relu(scale * conv + shift)
  const float* shift;
  bool relu;
  int threads;
};

// Forward writes y; the weight's gradient writes all of weight.
PSP_FAST_DECLARE_CPU_KERNEL(conv3x3_forward, Conv3x3Args)
PSP_FAST_DECLARE_CPU_KERNEL(conv3x3_backward_weight, Conv3x3Args)

}  // namespace psp_fast
