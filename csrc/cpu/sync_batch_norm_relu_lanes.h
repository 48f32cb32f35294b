// Batch norm's maps as vectors of 16 values; internal linkage, as in scalar.h.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "cpu/scalar.h"

namespace psp_fast {
namespace {

constexpr int kLanes = 16;
template <class A>
using Vector = typename Lanes<A, kLanes>::type;

// Where a vector begins in a run of elements; of a Part only the lanes [from, to) belong to the run.
struct Whole {
  int64_t at;
};
struct Part {
  int64_t at;
  int from, to;
};

// Cuts a run of `length` elements, the first of which is lane `offset` of its vector: calls f(span, which), `which`
// in turn from 0 to 3, so that four sums do not wait for each other.
template <class F>
[[gnu::always_inline]] inline void for_spans(int64_t offset, int64_t length, F f) {
  if (length == 0) return;
  int64_t at = -offset;
  if (offset > 0 || length < kLanes) {
    f(Part{at, static_cast<int>(offset), static_cast<int>(length - at < kLanes ? length - at : kLanes)}, 0);
    at += kLanes;
  }
  for (; at + 4 * kLanes <= length; at += 4 * kLanes) {
    f(Whole{at}, 0);
    f(Whole{at + kLanes}, 1);
    f(Whole{at + 2 * kLanes}, 2);
    f(Whole{at + 3 * kLanes}, 3);
  }
  for (; at + kLanes <= length; at += kLanes) f(Whole{at}, 0);
  if (at < length) f(Part{at, 0, static_cast<int>(length - at)}, 0);
}

template <class To, class From>
[[gnu::always_inline]] inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

[[gnu::always_inline]] inline Vector<float> load_lanes(const float* p) {
  Vector<float> value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
[[gnu::always_inline]] inline Vector<double> load_lanes(const double* p) {
  Vector<double> value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
[[gnu::always_inline]] inline Vector<float> load_lanes(const BFloat16* p) {
  Vector<uint16_t> half;
  std::memcpy(&half, p, sizeof half);
  return bits_as<Vector<float>>(__builtin_convertvector(half, Vector<uint32_t>) << 16);
}

[[gnu::always_inline]] inline Vector<float> lanes_of(const float*, const Vector<float>& value) { return value; }
[[gnu::always_inline]] inline Vector<double> lanes_of(const double*, const Vector<double>& value) { return value; }
// Rounded to nearest even; NaN stays NaN.
[[gnu::always_inline]] inline Vector<uint16_t> lanes_of(const BFloat16*, const Vector<float>& value) {
  const auto bits = bits_as<Vector<uint32_t>>(value);
  const Vector<uint32_t> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = Vector<uint32_t>{} + 0x7fc0;
  return __builtin_convertvector(value == value ? rounded : nan, Vector<uint16_t>);
}

// Writes past the caches, which saves reading each line before it is overwritten; `to` is aligned to the value's size,
// or to 64 bytes.
template <class V>
[[gnu::always_inline]] inline void stream(void* to, const V& value) {
#if defined(__AVX512F__)
  if constexpr (sizeof value % 64 == 0) {
    __m512i part[sizeof value / 64];
    std::memcpy(part, &value, sizeof value);
    for (size_t i = 0; i < sizeof value / 64; ++i) _mm512_stream_si512(static_cast<__m512i*>(to) + i, part[i]);
    return;
  }
#endif
#if defined(__AVX2__)
  __m256i part[sizeof value / 32];
  std::memcpy(part, &value, sizeof value);
  for (size_t i = 0; i < sizeof value / 32; ++i) _mm256_stream_si256(static_cast<__m256i*>(to) + i, part[i]);
#elif defined(__SSE2__)
  __m128i part[sizeof value / 16];
  std::memcpy(part, &value, sizeof value);
  for (size_t i = 0; i < sizeof value / 16; ++i) _mm_stream_si128(static_cast<__m128i*>(to) + i, part[i]);
#else
  std::memcpy(to, &value, sizeof value);
#endif
}

// Makes a thread's streamed writes visible to the others.
inline void end_streaming() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// A parameter that all elements of a run share, where a pointer is one for each.
template <class A>
struct Same {
  A value;
};
template <class A>
Same(A) -> Same<A>;

template <class T>
[[gnu::always_inline]] inline Vector<typename Accumulator<T>::type> read(const T* run, Whole span) {
  return load_lanes(run + span.at);
}
template <class T>
[[gnu::always_inline]] inline Vector<typename Accumulator<T>::type> read(const T* run, Part span) {
  T values[kLanes] = {};
  std::memcpy(values + span.from, run + span.at + span.from, static_cast<size_t>(span.to - span.from) * sizeof(T));
  return load_lanes(values);
}
template <class A, class Span>
[[gnu::always_inline]] inline Vector<A> read(Same<A> parameter, Span) {
  return Vector<A>{} + parameter.value;
}

template <class T, class V>
[[gnu::always_inline]] inline void write(T* run, Whole span, const V& value, bool streamed) {
  const auto lanes = lanes_of(run, value);
  if (streamed) return stream(run + span.at, lanes);
  std::memcpy(run + span.at, &lanes, sizeof lanes);
}
template <class T, class V>
[[gnu::always_inline]] inline void write(T* run, Part span, const V& value, bool) {
  const auto lanes = lanes_of(run, value);
  std::memcpy(run + span.at + span.from, reinterpret_cast<const T*>(&lanes) + span.from,
              static_cast<size_t>(span.to - span.from) * sizeof(T));
}

// The value, 0 in lanes outside the run.
template <class V>
[[gnu::always_inline]] inline const V& within(Whole, const V& value) {
  return value;
}
template <class V>
[[gnu::always_inline]] inline V within(Part span, const V& value) {
  V inside{};
  for (int k = span.from; k < span.to; ++k) inside[k] = value[k];
  return inside;
}

// Asks for what lies kAhead bytes after a vector: one stream alone does not keep the memory busy.
template <class T, class Span>
[[gnu::always_inline]] inline void ask_ahead(const T* run, Span span) {
  constexpr int64_t kAhead = 4096 / sizeof(T), kLine = 64 / sizeof(T);
  for (int64_t k = 0; k < kLanes; k += kLine) prefetch(run, span.at + k + kAhead);
}

// The sum of four vectors' lanes, always in the same order; clears them.
template <class A>
double collect(Vector<A>* sums) {
  Vector<A> four = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (int k = 0; k < 4; ++k) sums[k] = Vector<A>{};
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) four[k] += four[k + width];
  }
  return four[0];
}

template <class A>
struct LaneBits {
  using type = Vector<int32_t>;
};
template <>
struct LaneBits<double> {
  using type = Vector<int64_t>;
};

// A bit for each lane, lane 0 the lowest: whether ReLU lets the gradient pass. Of NaN it does, as in PyTorch.
template <class V>
[[gnu::always_inline]] inline uint16_t active_bits(const V& output) {
#if defined(__AVX512F__)
  if constexpr (sizeof output == 64) {
    return _mm512_cmp_ps_mask(bits_as<__m512>(output), _mm512_setzero_ps(), _CMP_NLE_UQ);
  }
#endif
  const auto active = __builtin_convertvector(~(output <= 0), Vector<int8_t>);
#ifdef __SSE2__
  return static_cast<uint16_t>(_mm_movemask_epi8(bits_as<__m128i>(active)));
#else
  uint16_t bits = 0;
  for (int k = 0; k < kLanes; ++k) bits |= static_cast<uint16_t>((active[k] & 1) << k);
  return bits;
#endif
}

// The value where its lane's bit is set, else 0.
template <class A>
[[gnu::always_inline]] inline Vector<A> where_active(uint16_t bits, const Vector<A>& value) {
  const typename LaneBits<A>::type lane = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                                           1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
  return (lane & bits) != 0 ? value : Vector<A>{};
}

}  // namespace
}  // namespace psp_fast
