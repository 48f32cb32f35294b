#include "cpu/pyramid_pool.h"

#include "bindings/arguments.h"
#include "cpu/dispatch.h"
#include "cpu/memory.h"

namespace psp_fast {
namespace pyramid_pool_binding {

using CpuKernel = void (*)(const PyramidPoolArgs&);

void forward_cpu(const PyramidPoolArgs& args) { PSP_FAST_CALL_CPU_KERNEL(pyramid_pool_forward, args) }
void backward_cpu(const PyramidPoolArgs& args) {
  const int64_t elements = args.n * args.c * args.plan.row.length * args.plan.column.length;
  will_write(args.map, elements * size_of(args.dtype));
  PSP_FAST_CALL_CPU_KERNEL(pyramid_pool_backward, args)
}

template <CpuKernel kernel>
void run_cpu(const std::string& dtype, bool max, bool channels_last, uintptr_t map, const Sizes& sizes,
             const Sizes& strides, const std::vector<int32_t>& bins, const Addresses& levels, const Addresses& indices,
             int threads) {
  const PyramidPlanStorage plan(static_cast<int32_t>(sizes[2]), static_cast<int32_t>(sizes[3]), bins);
  const std::vector<void*> level_pointers = pointers<void>(levels);
  const std::vector<int32_t*> index_pointers = pointers<int32_t>(indices);
  const int64_t elements = sizes[0] * sizes[1] * sizes[2] * sizes[3];
  kernel({cpu_dtype_named(dtype), max, channels_last, sizes[0], sizes[1], strides[0], strides[1], strides[2],
          strides[3], plan.here(), pointer<void>(map), level_pointers.data(), index_pointers.data(),
          useful_threads(elements, threads)});
}

template <CpuKernel kernel>
void define_cpu(py::module_& module, const char* name) {
  module.def(name, &run_cpu<kernel>, "dtype"_a, "max"_a, "channels_last"_a, "map"_a, "sizes"_a, "strides"_a, "bins"_a,
             "levels"_a, "indices"_a, "threads"_a, py::call_guard<py::gil_scoped_release>());
}

}  // namespace pyramid_pool_binding

void define_pyramid_pool(py::module_& module) {
  using namespace pyramid_pool_binding;
  define_cpu<forward_cpu>(module, "pyramid_pool_forward_cpu");
  define_cpu<backward_cpu>(module, "pyramid_pool_backward_cpu");
}

}  // namespace psp_fast
