// Scratch memory that a thread keeps from one call to the next.
#pragma once

#include <cstdint>

namespace psp_fast {

// `bytes` uninitialised bytes on a cache line of their own, for one call. The thread's next KeptScratch gets the same
// memory, so there may be one at a time. Allocated anew for every call, megabytes between a network's maps would leave
// gaps in the heap that maps of other sizes do not fit into.
class KeptScratch {
 public:
  explicit KeptScratch(int64_t bytes);
  ~KeptScratch();
  KeptScratch(const KeptScratch&) = delete;
  KeptScratch& operator=(const KeptScratch&) = delete;

  // The next `count` elements, on a cache line of their own.
  template <class T>
  T* take(int64_t count) {
    T* const start = reinterpret_cast<T*>(next_);
    next_ += size_of<T>(count);
    return start;
  }
  // The bytes of an array that is taken.
  template <class T>
  static constexpr int64_t size_of(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine * kLine;
  }

 private:
  static constexpr int64_t kLine = 64;
  char *data_, *next_;
  int64_t bytes_;
};

}  // namespace psp_fast
