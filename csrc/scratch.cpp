#include "scratch.h"

#include <new>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace psp_fast {
namespace {

constexpr int64_t kMostKept = int64_t{64} << 20;  // more than any layer of a PSPNet needs

// Pages of their own, outside the heap.
char* allocate(int64_t bytes) {
#ifdef __linux__
  void* const pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  madvise(pages, bytes, MADV_HUGEPAGE);
  return static_cast<char*>(pages);
#else
  return static_cast<char*>(::operator new(bytes, std::align_val_t{64}));
#endif
}

void release(char* data, [[maybe_unused]] int64_t bytes) {
  if (data == nullptr) return;
#ifdef __linux__
  munmap(data, bytes);
#else
  ::operator delete(data, std::align_val_t{64});
#endif
}

struct Kept {
  char* data = nullptr;
  int64_t bytes = 0;
  ~Kept() { release(data, bytes); }
};

thread_local Kept kept;

}  // namespace

KeptScratch::KeptScratch(int64_t bytes) : bytes_(bytes) {
  if (bytes > kMostKept) {
    data_ = allocate(bytes);
  } else {
    if (kept.bytes < bytes) {
      release(kept.data, kept.bytes);
      kept.data = nullptr;
      kept.bytes = 0;
      kept.data = allocate(bytes);
      kept.bytes = bytes;
    }
    data_ = kept.data;
  }
  next_ = data_;
}

KeptScratch::~KeptScratch() {
  if (bytes_ > kMostKept) release(data_, bytes_);
}

}  // namespace psp_fast
