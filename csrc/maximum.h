// Which of two elements adaptive maximum pooling picks, shared by the CPU and CUDA kernels.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PSP_FAST_HOST_DEVICE __host__ __device__
#else
#define PSP_FAST_HOST_DEVICE
#endif

namespace psp_fast {
namespace {  // internal linkage, as in cpu/scalar.h

// True when the first element is picked: PyTorch's rule is the last NaN of a window in reading order, else its first
// maximum.
template <class T>
PSP_FAST_HOST_DEVICE inline bool picks(T value, int32_t index, T other, int32_t other_index) {
  const bool nan = value != value;
  const bool other_nan = other != other;
  if (nan || other_nan) return nan && (!other_nan || index > other_index);
  return value > other || (value == other && index < other_index);
}

}  // namespace
}  // namespace psp_fast
