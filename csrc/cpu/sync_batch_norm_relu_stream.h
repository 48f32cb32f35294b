// Writing large maps past the caches, which saves reading each line before it is overwritten; internal linkage, as in
// scalar.h.
#pragma once

#include <cstdint>
#include <cstring>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace psp_fast {
namespace {

// Whether a map of so many bytes is too large to be found in the caches by who reads it next.
inline bool streams(int64_t bytes) { return bytes >= (8 << 20); }

inline void stream(void* to, const void* from, int64_t bytes) {
#ifdef __SSE2__
  constexpr int64_t kVector = sizeof(__m128i);
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  const int64_t unaligned = (kVector - static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kVector)) % kVector;
  const int64_t head = unaligned < bytes ? unaligned : bytes;
  std::memcpy(out, in, static_cast<size_t>(head));
  int64_t i = head;
  for (; i + kVector <= bytes; i += kVector) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
  }
  std::memcpy(out + i, in + i, static_cast<size_t>(bytes - i));
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

// Makes a thread's streamed writes visible to the others.
inline void end_streaming() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace psp_fast
