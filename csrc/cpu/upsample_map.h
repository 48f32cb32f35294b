// What the fused upsampling ops read.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace psp_fast {

// Logits (n, c, h, w) and the size they are upsampled to.
struct UpsampleMap {
  DType dtype;  // float64, float32 or bfloat16
  const void* logits;
  int64_t n, c, h, w;
  int64_t stride_n, stride_c, stride_h, stride_w;  // in elements
  int64_t height, width;
  bool align_corners;
};

}  // namespace psp_fast
