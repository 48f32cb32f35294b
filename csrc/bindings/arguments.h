// What the bindings of every op need. Arrays cross from Python as addresses: the Python side has checked device, type,
// shape and strides.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "dtype.h"

namespace psp_fast {

namespace py = pybind11;
using namespace py::literals;

using Sizes = std::array<int64_t, 4>;
using Addresses = std::vector<uintptr_t>;

inline DType dtype_named(const std::string& name) {
  if (name == "float64") return DType::kFloat64;
  if (name == "float32") return DType::kFloat32;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "float16") return DType::kFloat16;
  throw std::invalid_argument("no kernel for " + name);
}

// Of maps on the CPU, where float16 has no kernels.
inline DType cpu_dtype_named(const std::string& name) {
  const DType dtype = dtype_named(name);
  if (dtype == DType::kFloat16) throw std::invalid_argument("no CPU kernel for " + name + ": convert it to float32");
  return dtype;
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
std::vector<T*> pointers(const Addresses& addresses) {
  std::vector<T*> result;
  for (uintptr_t address : addresses) result.push_back(pointer<T>(address));
  return result;
}

// One function an op: adds its kernels to the module.
void define_conv3x3(py::module_& module);
void define_pyramid_pool(py::module_& module);
void define_pyramid_pool_cuda(py::module_& module);
void define_sync_batch_norm_relu_cuda(py::module_& module);
void define_sync_batch_norm_relu(py::module_& module);
void define_upsample_concat(py::module_& module);
void define_pyramid_conv3x3(py::module_& module);
void define_upsample_argmax(py::module_& module);
void define_upsample_cross_entropy(py::module_& module);

}  // namespace psp_fast
