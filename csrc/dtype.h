// Element types that cross the Python boundary.
#pragma once

namespace psp_fast {

enum class DType { kFloat64, kFloat32, kBFloat16, kFloat16 };

}  // namespace psp_fast
