// Sends each op to the copy of its kernels that was compiled for the instruction set in use.
#include <algorithm>

#include "cpu/capability.h"
#include "cpu/memory.h"
#include "cpu/pyramid_pool.h"

#define PSP_FAST_DECLARE_KERNELS(cpu)                      \
  namespace psp_fast::cpu {                                \
  void pyramid_pool_forward(const PyramidPoolArgs& args);  \
  void pyramid_pool_backward(const PyramidPoolArgs& args); \
  }

PSP_FAST_DECLARE_KERNELS(baseline)
#ifdef PSP_FAST_HAS_AVX2
PSP_FAST_DECLARE_KERNELS(avx2)
#define PSP_FAST_CASE_AVX2(call) \
  case Capability::kAvx2:        \
    return avx2::call;
#else
#define PSP_FAST_CASE_AVX2(call)
#endif
#ifdef PSP_FAST_HAS_AVX512
PSP_FAST_DECLARE_KERNELS(avx512)
#define PSP_FAST_CASE_AVX512(call) \
  case Capability::kAvx512:        \
    return avx512::call;
#else
#define PSP_FAST_CASE_AVX512(call)
#endif

#define PSP_FAST_DISPATCH(call) \
  switch (capability()) {       \
    PSP_FAST_CASE_AVX512(call)  \
    PSP_FAST_CASE_AVX2(call)    \
    default:                    \
      return baseline::call;    \
  }

namespace psp_fast {
namespace {

int64_t elements_of(const PyramidPoolArgs& args) {
  return args.n * args.c * args.plan.row.length * args.plan.column.length;
}

// Waking threads costs more than a small map takes.
PyramidPoolArgs with_useful_threads(PyramidPoolArgs args) {
  constexpr int64_t kElementsAThread = 1 << 14;
  args.threads = static_cast<int>(std::clamp<int64_t>(elements_of(args) / kElementsAThread, 1, args.threads));
  return args;
}

}  // namespace

void pyramid_pool_forward(const PyramidPoolArgs& args) {
  PSP_FAST_DISPATCH(pyramid_pool_forward(with_useful_threads(args)))
}

void pyramid_pool_backward(const PyramidPoolArgs& args) {
  will_write(args.map, elements_of(args) * size_of(args.dtype));
  PSP_FAST_DISPATCH(pyramid_pool_backward(with_useful_threads(args)))
}

}  // namespace psp_fast
