// Batch norm, residual sum and ReLU on the CPU, in the steps between which processes exchange their statistics.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace psp_fast {

// Maps are dense, of type dtype; vectors have C values of the accumulator's type, float or (for double) double.
struct BatchNormArgs {
  DType dtype;         // float64, float32 or bfloat16
  bool channels_last;  // maps are (N, pixels, C), else (N, C, pixels)
  bool relu;
  int64_t n, c, pixels;
  const void *x, *dy;
  const void* residual;  // may be null, as weight and bias
  void* y;               // forward and apply write it, backward reads it; null: it finds where ReLU is active otherwise
  uint16_t* mask;        // where ReLU is active, a bit an element (mask_words); forward and apply write it, may be null
  void *dx, *g;          // g, the residual's gradient, may be null
  void *mean, *invstd;   // forward writes them
  const void *weight, *bias;
  void* stats;                       // (2, C): mean and sum of squared deviations
  void* sums;                        // (2, C): sum of g and of g * xhat
  const void* means;                 // (2, C): sums over the number of values; null for a frozen layer
  void *running_mean, *running_var;  // forward updates them; may be null
  double momentum, eps;
  int threads;
};

PSP_FAST_DECLARE_CPU_KERNEL(batch_norm_statistics, BatchNormArgs)      // x -> stats
PSP_FAST_DECLARE_CPU_KERNEL(batch_norm_apply, BatchNormArgs)           // x, residual -> y
PSP_FAST_DECLARE_CPU_KERNEL(batch_norm_forward, BatchNormArgs)         // both: x, residual -> mean, invstd, y
PSP_FAST_DECLARE_CPU_KERNEL(batch_norm_backward_sums, BatchNormArgs)   // dy, x, y -> sums
PSP_FAST_DECLARE_CPU_KERNEL(batch_norm_backward_input, BatchNormArgs)  // dy, x, y, means -> dx, g
PSP_FAST_DECLARE_CPU_KERNEL(batch_norm_backward, BatchNormArgs)        // both: dy, x, y -> sums, dx, g

}  // namespace psp_fast
