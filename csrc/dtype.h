// Element types that cross the Python boundary.
#pragma once

namespace psp_fast {

enum class DType { kFloat64, kFloat32, kBFloat16, kFloat16 };

// Bytes of one element.
constexpr int size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace psp_fast
