// Levels and strided maps as they cross from Python.
#pragma once

#include <tuple>

#include "bindings/arguments.h"
#include "cpu/pyramid_level.h"

namespace psp_fast {

using Level = std::tuple<int64_t, int64_t, int64_t, uintptr_t>;  // channels, height, width, address of its dense cells

inline std::vector<PyramidLevel> pyramid_levels(const std::vector<Level>& levels) {
  std::vector<PyramidLevel> result;
  for (const auto& [c, height, width, cells] : levels) result.push_back({c, height, width, pointer<void>(cells)});
  return result;
}

inline StridedMap strided_map(uintptr_t address, const Sizes& strides) {
  return {pointer<void>(address), strides[0], strides[1], strides[2], strides[3]};
}

}  // namespace psp_fast
