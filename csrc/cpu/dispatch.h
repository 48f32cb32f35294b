// How an op reaches the copy of its CPU kernel that was compiled for the instruction set in use.
#pragma once

#include <algorithm>
#include <cstdint>

#include "capability.h"

// In an op's header, inside namespace psp_fast: declares name(const Args&) in the namespace of every instruction set.
#define PSP_FAST_DECLARE_CPU_KERNEL(name, Args) \
  namespace baseline {                          \
  void name(const Args& args);                  \
  }                                             \
  namespace avx2 {                              \
  void name(const Args& args);                  \
  }                                             \
  namespace avx512 {                            \
  void name(const Args& args);                  \
  }

#ifdef PSP_FAST_HAS_AVX2
#define PSP_FAST_CASE_AVX2(name, args) \
  case Capability::kAvx2:              \
    avx2::name(args);                  \
    break;
#else
#define PSP_FAST_CASE_AVX2(name, args)
#endif
#ifdef PSP_FAST_HAS_AVX512
#define PSP_FAST_CASE_AVX512(name, args) \
  case Capability::kAvx512:              \
    avx512::name(args);                  \
    break;
#else
#define PSP_FAST_CASE_AVX512(name, args)
#endif

// In an op's bindings: calls the kernel of the instruction set in use.
#define PSP_FAST_CALL_CPU_KERNEL(name, args) \
  switch (capability()) {                    \
    PSP_FAST_CASE_AVX512(name, args)         \
    PSP_FAST_CASE_AVX2(name, args)           \
    default:                                 \
      baseline::name(args);                  \
  }

namespace psp_fast {

// Waking threads costs more than little work takes: how many of `threads` to use for `elements` elements.
inline int useful_threads(int64_t elements, int threads) {
  constexpr int64_t kElementsAThread = 1 << 14;
  return static_cast<int>(std::clamp<int64_t>(elements / kElementsAThread, 1, threads));
}

}  // namespace psp_fast
