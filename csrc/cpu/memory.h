// Hints about memory.
#pragma once

#include <cstdint>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace psp_fast {

// Tells the system that `bytes` from `start`, just allocated, will all be written: large pages then save most of the
// page faults, which else take longer than the writing. Where the system does not listen, nothing changes.
inline void will_write([[maybe_unused]] void* start, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kPage = 4096;
  constexpr int64_t kWorthIt = 4 << 20;
  if (bytes < kWorthIt) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(start) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(start) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace psp_fast
