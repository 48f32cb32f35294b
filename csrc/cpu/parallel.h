// Threads and scratch memory for the CPU kernels; internal linkage, as in scalar.h.
#pragma once

#include <cstdint>
#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace psp_fast {
namespace {

[[maybe_unused]] inline int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// `count` uninitialised elements for each of `owners`, each owner's on its own cache lines.
template <class T>
class Scratch {
 public:
  Scratch(int64_t owners, int64_t count)
      : stride_((count * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine * kLine /
                static_cast<int64_t>(sizeof(T))),
        data_(static_cast<T*>(::operator new(static_cast<std::size_t>(owners * stride_) * sizeof(T), kAlign))) {}
  ~Scratch() { ::operator delete(data_, kAlign); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* of(int64_t owner) const { return data_ + owner * stride_; }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr std::align_val_t kAlign{64};
  int64_t stride_;
  T* data_;
};

}  // namespace
}  // namespace psp_fast
