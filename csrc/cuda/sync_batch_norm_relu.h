// Batch norm with residual sum and ReLU on CUDA devices, forward and backward, in fp32 arithmetic.
// Maps are dense, (N, C, H, W) or channels last, all maps of a call alike. Everything per channel is fp32.
// Addresses are memory of the current device; work is queued on the stream. Functions throw std::runtime_error when
// CUDA refuses.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace psp_fast {

// How blocks share a map: `tiles` groups of channels times `splits` ranges of each channel's elements.
struct BatchNormPartition {
  int32_t wide;  // threads that lie side by side along the channels, a power of two
  int32_t tiles, splits;
};

// A map that stays on chip between its only read and the write: `group` tiles at a time, all blocks at once.
struct BatchNormOnChip {
  BatchNormPartition part;
  int32_t group;  // 0: one tile is too much for this device
  int32_t depth;  // packs of a map that each thread keeps in shared memory, beside those in registers
};

// What is worked out once for a kind of map and the current device.
struct BatchNormPlan {
  DType dtype;  // float32, bfloat16 or float16
  bool channels_last;
  int64_t n, c, pixels;
  int32_t multiprocessors;
  BatchNormOnChip forward, backward;
  int64_t scratch;  // floats of scratch that a call needs
};

// Throws std::invalid_argument where n * pixels is not below 2**31.
BatchNormPlan batch_norm_plan(DType dtype, bool channels_last, int64_t n, int64_t c, int64_t pixels);

// Of one value a channel each; weight and bias may be null.
struct BatchNormChannels {
  const float *mean, *invstd, *weight, *bias;
};

// What a gradient passes on its way back to x: g is dy where the ReLU let pass. y tells where if it is not null, else
// the normalised x does.
struct BatchNormGradient {
  bool relu;
  const void *dy, *x, *y;
};

// statistics (2, c): mean and sum of squared deviations from it.
void batch_norm_statistics(const BatchNormPlan& plan, const void* x, float* scratch, float* statistics, void* stream);

// y = relu(batch_norm(x) + residual); residual may be null.
void batch_norm_apply(const BatchNormPlan& plan, const BatchNormChannels& channels, bool relu, const void* x,
                      const void* residual, void* y, void* stream);

// sums (2, c): of g and of g * normalised x.
void batch_norm_backward_sums(const BatchNormPlan& plan, const BatchNormChannels& channels,
                              const BatchNormGradient& gradient, float* scratch, float* sums, void* stream);

// dx, and g unless it is null. means (2, c) are those sums over the number of elements; null where the statistics are
// constants.
void batch_norm_backward_input(const BatchNormPlan& plan, const BatchNormChannels& channels,
                               const BatchNormGradient& gradient, const float* means, void* dx, void* g, void* stream);

// The batch's statistics, and running ones to update where they are not null.
struct BatchNormStatistics {
  float *mean, *invstd;
  float *running_mean, *running_var;
  float momentum, eps;
};

// Training's forward on one process: in one read where plan.forward.group > 0 and all maps are aligned to 16 bytes.
void batch_norm_forward(const BatchNormPlan& plan, const BatchNormStatistics& statistics, const float* weight,
                        const float* bias, bool relu, const void* x, const void* residual, void* y, float* scratch,
                        void* stream);

// Training's backward on one process: likewise with plan.backward. sums are as of batch_norm_backward_sums.
void batch_norm_backward(const BatchNormPlan& plan, const BatchNormChannels& channels,
                         const BatchNormGradient& gradient, float* sums, void* dx, void* g, float* scratch,
                         void* stream);

// The parts of these functions, and of batch_norm_plan, for maps on chip; false where these maps cannot be.
void batch_norm_plan_on_chip(BatchNormPlan& plan);
bool batch_norm_forward_on_chip(const BatchNormPlan& plan, const BatchNormStatistics& statistics, const float* weight,
                                const float* bias, bool relu, const void* x, const void* residual, void* y,
                                float* scratch, void* stream);
bool batch_norm_backward_on_chip(const BatchNormPlan& plan, const BatchNormChannels& channels,
                                 const BatchNormGradient& gradient, float* sums, void* dx, void* g, float* scratch,
                                 void* stream);

}  // namespace psp_fast
