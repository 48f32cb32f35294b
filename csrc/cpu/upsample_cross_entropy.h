// Cross entropy of bilinearly upsampled logits on the CPU; the upsampled logits never exist.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/upsample_map.h"

namespace psp_fast {

// What to compare with. "accumulator" is float64 for float64 logits, else float32.
struct UpsampleTarget {
  const void* labels;  // (n, height, width), dense
  bool wide;           // labels are int64, else uint8
  const void* weight;  // of each class: accumulators
  int64_t ignore_index;
  double label_smoothing;
};

struct UpsampleCrossEntropyArgs {
  UpsampleMap map;
  UpsampleTarget target;
  bool mean;
  void* loss;     // null, or one accumulator: the sum over the pixels divided by divisor
  void* losses;   // null, or (n, height, width) accumulators
  void* lse;      // (n, height, width) accumulators: log of the sum of the exponentials of a pixel's logits
  void* divisor;  // one accumulator: the summed weight of the pixels if mean and not 0, else 1
  void* argmax;   // as UpsampleArgmaxArgs::labels
  int64_t*
      wrong;  // the first label that is neither a class nor ignore_index, else -1; with one, nothing else is written
  int threads;
};

struct UpsampleCrossEntropyBackwardArgs {
  UpsampleMap map;
  UpsampleTarget target;
  const void* lse;      // as the forward wrote them
  const void* divisor;  // as the forward wrote it
  const void* grad;     // of the loss, accumulators: one for each pixel at distance grad_stride, which may be 0
  int64_t grad_stride;
  void* dlogits;  // strides as map's
  int threads;
};

PSP_FAST_DECLARE_CPU_KERNEL(upsample_cross_entropy_forward, UpsampleCrossEntropyArgs)
PSP_FAST_DECLARE_CPU_KERNEL(upsample_cross_entropy_backward, UpsampleCrossEntropyBackwardArgs)

}  // namespace psp_fast
