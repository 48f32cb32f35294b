#include "cpu/sync_batch_norm_relu.h"

#include "bindings/arguments.h"
#include "cpu/dispatch.h"
#include "cpu/memory.h"

namespace psp_fast {
namespace sync_batch_norm_relu_binding {

using CpuKernel = void (*)(const BatchNormArgs&);

int64_t bytes(const BatchNormArgs& args) { return args.n * args.c * args.pixels * size_of(args.dtype); }

void will_write_gradients(const BatchNormArgs& args) {
  will_write(args.dx, bytes(args));
  if (args.g != nullptr) will_write(args.g, bytes(args));
}

void statistics_cpu(const BatchNormArgs& args) { PSP_FAST_CALL_CPU_KERNEL(batch_norm_statistics, args) }
void apply_cpu(const BatchNormArgs& args) {
  will_write(args.y, bytes(args));
  PSP_FAST_CALL_CPU_KERNEL(batch_norm_apply, args)
}
void forward_cpu(const BatchNormArgs& args) {
  will_write(args.y, bytes(args));
  PSP_FAST_CALL_CPU_KERNEL(batch_norm_forward, args)
}
void sums_cpu(const BatchNormArgs& args) { PSP_FAST_CALL_CPU_KERNEL(batch_norm_backward_sums, args) }
void input_cpu(const BatchNormArgs& args) {
  will_write_gradients(args);
  PSP_FAST_CALL_CPU_KERNEL(batch_norm_backward_input, args)
}
void backward_cpu(const BatchNormArgs& args) {
  will_write_gradients(args);
  PSP_FAST_CALL_CPU_KERNEL(batch_norm_backward, args)
}

template <CpuKernel kernel>
void run_cpu(const std::string& dtype, bool channels_last, bool relu, const std::array<int64_t, 3>& sizes, int threads,
             uintptr_t x, uintptr_t dy, uintptr_t residual, uintptr_t y, uintptr_t mask, uintptr_t dx, uintptr_t g,
             uintptr_t mean, uintptr_t invstd, uintptr_t weight, uintptr_t bias, uintptr_t stats, uintptr_t sums,
             uintptr_t means, uintptr_t running_mean, uintptr_t running_var, double momentum, double eps) {
  kernel({cpu_dtype_named(dtype),
          channels_last,
          relu,
          sizes[0],
          sizes[1],
          sizes[2],
          pointer<void>(x),
          pointer<void>(dy),
          pointer<void>(residual),
          pointer<void>(y),
          pointer<uint16_t>(mask),
          pointer<void>(dx),
          pointer<void>(g),
          pointer<void>(mean),
          pointer<void>(invstd),
          pointer<void>(weight),
          pointer<void>(bias),
          pointer<void>(stats),
          pointer<void>(sums),
          pointer<void>(means),
          pointer<void>(running_mean),
          pointer<void>(running_var),
          momentum,
          eps,
          useful_threads(sizes[0] * sizes[1] * sizes[2], threads)});
}

// Every kernel takes every array by name; those it does not need are 0.
template <CpuKernel kernel>
void define_cpu(py::module_& module, const char* name) {
  module.def(name, &run_cpu<kernel>, "dtype"_a, "channels_last"_a, "relu"_a, "sizes"_a, "threads"_a, "x"_a, "dy"_a = 0,
             "residual"_a = 0, "y"_a = 0, "mask"_a = 0, "dx"_a = 0, "g"_a = 0, "mean"_a = 0, "invstd"_a = 0,
             "weight"_a = 0, "bias"_a = 0, "stats"_a = 0, "sums"_a = 0, "means"_a = 0, "running_mean"_a = 0,
             "running_var"_a = 0, "momentum"_a = 0, "eps"_a = 0, py::call_guard<py::gil_scoped_release>());
}

}  // namespace sync_batch_norm_relu_binding

void define_sync_batch_norm_relu(py::module_& module) {
  using namespace sync_batch_norm_relu_binding;
  define_cpu<statistics_cpu>(module, "batch_norm_statistics_cpu");
  define_cpu<apply_cpu>(module, "batch_norm_apply_cpu");
  define_cpu<forward_cpu>(module, "batch_norm_forward_cpu");
  define_cpu<sums_cpu>(module, "batch_norm_backward_sums_cpu");
  define_cpu<input_cpu>(module, "batch_norm_backward_input_cpu");
  define_cpu<backward_cpu>(module, "batch_norm_backward_cpu");
}

}  // namespace psp_fast
