// Element access for the CPU kernels. Everything here has internal linkage: each copy of a kernel is compiled for
// another instruction set, and the linker must not share inline functions between them.
#pragma once

#include <cstdint>
#include <cstring>

namespace psp_fast {
namespace {

struct BFloat16 {
  uint16_t bits;
};

// The type that sums of T are kept in.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

inline float load(const float* p) { return *p; }
inline double load(const double* p) { return *p; }
inline float load(const BFloat16* p) {
  const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Asks for the cache line of p[offset], which need not exist.
template <class T>
inline void prefetch(const T* p, int64_t offset) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + offset * sizeof(T)), 0, 2);
}

// L values as one vector, which the compiler cuts to the registers it has.
template <class A, int L>
struct Lanes {
  typedef A type __attribute__((vector_size(sizeof(A) * L)));
};

template <int L>
inline void add_lanes(typename Lanes<float, L>::type& sum, const float* p) {
  typename Lanes<float, L>::type value;
  std::memcpy(&value, p, sizeof value);
  sum += value;
}
template <int L>
inline void add_lanes(typename Lanes<double, L>::type& sum, const double* p) {
  typename Lanes<double, L>::type value;
  std::memcpy(&value, p, sizeof value);
  sum += value;
}
template <int L>
inline void add_lanes(typename Lanes<float, L>::type& sum, const BFloat16* p) {
  typename Lanes<uint16_t, L>::type half;
  typename Lanes<float, L>::type value;
  std::memcpy(&half, p, sizeof half);
  const auto bits = __builtin_convertvector(half, typename Lanes<uint32_t, L>::type) << 16;
  std::memcpy(&value, &bits, sizeof value);
  sum += value;
}

inline void store(float* p, float value) { *p = value; }
inline void store(double* p, double value) { *p = value; }
inline void store(BFloat16* p, float value) {  // rounds to nearest even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  p->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}

}  // namespace
}  // namespace psp_fast
