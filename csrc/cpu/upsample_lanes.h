// Vectors of the width of this instruction set's registers; internal linkage, as in scalar.h.
#pragma once

#include "cpu/scalar.h"

namespace psp_fast {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(A));

template <class A>
struct LabelOf {
  using type = int32_t;
};
template <>
struct LabelOf<double> {
  using type = int64_t;
};
// An integer as wide as A: the class ids that go with vectors of A.
template <class A>
using Label = typename LabelOf<A>::type;

template <class A>
using Vector = typename Lanes<A, kWidth<A>>::type;
template <class A>
using LabelVector = typename Lanes<Label<A>, kWidth<A>>::type;

template <class V, class A>
[[gnu::always_inline]] inline V load_vector(const A* p) {
  V value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

template <class V, class A>
[[gnu::always_inline]] inline void store_vector(A* p, const V& value) {
  std::memcpy(p, &value, sizeof value);
}

// 2^x for x at most a rounding error above 0; relative error 1e-7, 0 below -126, NaN for NaN.
[[gnu::always_inline]] inline Vector<float> exp2_nonpositive(Vector<float> x) {
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
  const Vector<float> shifted = x + kRound;
  const Vector<float> r = x - (shifted - kRound);
  // Least largest relative error of degree 5 over |r| <= 1 / 2: 9e-8.
  const Vector<float> power =
      1.f + r * (0.693147004f + r * (0.240222409f + r * (0.0555073507f + r * (0.00967161916f + r * 0.00132645911f))));
  using Bits = typename Lanes<uint32_t, kWidth<float>>::type;
  const Bits exponent = (load_vector<Bits>(&shifted) << 23) + (127u << 23);
  const Vector<float> value = power * load_vector<Vector<float>>(&exponent);
  return x < -126.f ? Vector<float>{} : value;
}

[[gnu::always_inline]] inline Vector<double> exp2_nonpositive(Vector<double> x) {
  for (int k = 0; k < kWidth<double>; ++k) x[k] = __builtin_exp2(x[k]);
  return x;
}

constexpr double kLog2E = 1.4426950408889634;  // e^x = 2^(kLog2E * x)

inline float log_of(float x) { return __builtin_logf(x); }
inline double log_of(double x) { return __builtin_log(x); }

}  // namespace
}  // namespace psp_fast
