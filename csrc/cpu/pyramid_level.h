// The levels of a pyramid as CPU kernels receive them.
#pragma once

#include <cstdint>

namespace psp_fast {

struct PyramidLevel {
  int64_t c, height, width;
  void* cells;  // dense
};

struct PyramidLevels {
  int32_t count;
  const PyramidLevel* level;
};

// A map (N, C, H, W) with any strides, in elements.
struct StridedMap {
  void* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
};

}  // namespace psp_fast
