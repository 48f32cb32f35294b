#include "bindings/arguments.h"
#ifdef PSP_FAST_CUDA
#include "cuda/sync_batch_norm_relu.h"
#endif

namespace psp_fast {

#ifdef PSP_FAST_CUDA
namespace sync_batch_norm_relu_cuda_binding {

// Every array of every kernel, by name; those that a kernel does not need are null.
struct Arrays {
  const BatchNormPlan& plan;
  bool relu;
  float momentum, eps;
  void *x, *dy, *residual, *y, *dx, *g;
  float *mean, *invstd, *weight, *bias, *stats, *sums, *means, *running_mean, *running_var;
  float* scratch;
  void* stream;

  BatchNormChannels channels() const { return {mean, invstd, weight, bias}; }
  BatchNormGradient gradient() const { return {relu, dy, x, y}; }
  BatchNormStatistics statistics() const { return {mean, invstd, running_mean, running_var, momentum, eps}; }
};

void statistics_cuda(const Arrays& at) { batch_norm_statistics(at.plan, at.x, at.scratch, at.stats, at.stream); }
void apply_cuda(const Arrays& at) {
  batch_norm_apply(at.plan, at.channels(), at.relu, at.x, at.residual, at.y, at.stream);
}
void sums_cuda(const Arrays& at) {
  batch_norm_backward_sums(at.plan, at.channels(), at.gradient(), at.scratch, at.sums, at.stream);
}
void input_cuda(const Arrays& at) {
  batch_norm_backward_input(at.plan, at.channels(), at.gradient(), at.means, at.dx, at.g, at.stream);
}
void forward_cuda(const Arrays& at) {
  batch_norm_forward(at.plan, at.statistics(), at.weight, at.bias, at.relu, at.x, at.residual, at.y, at.scratch,
                     at.stream);
}
void backward_cuda(const Arrays& at) {
  batch_norm_backward(at.plan, at.channels(), at.gradient(), at.sums, at.dx, at.g, at.scratch, at.stream);
}

using CudaKernel = void (*)(const Arrays&);

template <CudaKernel kernel>
void run_cuda(const BatchNormPlan& plan, bool relu, uintptr_t scratch, uintptr_t stream, uintptr_t x, uintptr_t dy,
              uintptr_t residual, uintptr_t y, uintptr_t dx, uintptr_t g, uintptr_t mean, uintptr_t invstd,
              uintptr_t weight, uintptr_t bias, uintptr_t stats, uintptr_t sums, uintptr_t means,
              uintptr_t running_mean, uintptr_t running_var, float momentum, float eps) {
  kernel({plan,
          relu,
          momentum,
          eps,
          pointer<void>(x),
          pointer<void>(dy),
          pointer<void>(residual),
          pointer<void>(y),
          pointer<void>(dx),
          pointer<void>(g),
          pointer<float>(mean),
          pointer<float>(invstd),
          pointer<float>(weight),
          pointer<float>(bias),
          pointer<float>(stats),
          pointer<float>(sums),
          pointer<float>(means),
          pointer<float>(running_mean),
          pointer<float>(running_var),
          pointer<float>(scratch),
          pointer<void>(stream)});
}

template <CudaKernel kernel>
void define_cuda(py::module_& module, const char* name) {
  module.def(name, &run_cuda<kernel>, "plan"_a, "relu"_a, "scratch"_a, "stream"_a, "x"_a, "dy"_a = 0, "residual"_a = 0,
             "y"_a = 0, "dx"_a = 0, "g"_a = 0, "mean"_a = 0, "invstd"_a = 0, "weight"_a = 0, "bias"_a = 0,
             "stats"_a = 0, "sums"_a = 0, "means"_a = 0, "running_mean"_a = 0, "running_var"_a = 0, "momentum"_a = 0,
             "eps"_a = 0, py::call_guard<py::gil_scoped_release>());
}

BatchNormPlan plan_of(const std::string& dtype, bool channels_last, const std::array<int64_t, 3>& sizes) {
  return batch_norm_plan(dtype_named(dtype), channels_last, sizes[0], sizes[1], sizes[2]);
}

int32_t groups(const BatchNormOnChip& plan) {
  return plan.group == 0 ? 0 : (plan.part.tiles + plan.group - 1) / plan.group;
}

py::tuple one_read(const BatchNormPlan& plan) { return py::make_tuple(groups(plan.forward), groups(plan.backward)); }

}  // namespace sync_batch_norm_relu_cuda_binding

void define_sync_batch_norm_relu_cuda(py::module_& module) {
  using namespace sync_batch_norm_relu_cuda_binding;
  py::class_<BatchNormPlan>(module, "BatchNormPlan", "How batch norm runs on maps of one kind on the current device.")
      .def(py::init(&plan_of), "dtype"_a, "channels_last"_a, "sizes"_a)
      .def_readonly("scratch", &BatchNormPlan::scratch, "Floats of scratch that a call needs.")
      .def_property_readonly("one_read", &one_read,
                             "How many groups of channels training keeps on chip one after another, forward and "
                             "backward; 0 where it reads a map twice.");
  define_cuda<statistics_cuda>(module, "batch_norm_statistics_cuda");
  define_cuda<apply_cuda>(module, "batch_norm_apply_cuda");
  define_cuda<sums_cuda>(module, "batch_norm_backward_sums_cuda");
  define_cuda<input_cuda>(module, "batch_norm_backward_input_cuda");
  define_cuda<forward_cuda>(module, "batch_norm_forward_cuda");
  define_cuda<backward_cuda>(module, "batch_norm_backward_cuda");
}
#else
void define_sync_batch_norm_relu_cuda(py::module_&) {}
#endif

}  // namespace psp_fast
