// Class of the largest bilinearly upsampled logit on the CPU.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/upsample_map.h"

namespace psp_fast {

struct UpsampleArgmaxArgs {
  UpsampleMap map;
  void* labels;  // (n, height, width), dense: uint8 up to 256 classes, else int64
  int threads;
};

PSP_FAST_DECLARE_CPU_KERNEL(upsample_argmax, UpsampleArgmaxArgs)

}  // namespace psp_fast
