#include "bindings/arguments.h"
#ifdef PSP_FAST_CUDA
#include "cuda/sync_batch_norm_relu.h"
#endif

namespace psp_fast {

#ifdef PSP_FAST_CUDA
namespace {

using Four = std::array<uintptr_t, 4>;

BatchNormPlan plan_of(const std::string& dtype, bool channels_last, const Sizes& sizes) {
  return batch_norm_plan(dtype_named(dtype), channels_last, sizes[0], sizes[1], sizes[2] * sizes[3]);
}

int32_t rounds(const BatchNormOnChip& plan) {
  return plan.group == 0 ? 0 : (plan.part.tiles + plan.group - 1) / plan.group;
}

// Mean, invstd, weight, bias.
BatchNormChannels channels_at(const Four& address) {
  return {pointer<float>(address[0]), pointer<float>(address[1]), pointer<float>(address[2]),
          pointer<float>(address[3])};
}

void statistics(const BatchNormPlan& plan, uintptr_t x, uintptr_t scratch, uintptr_t statistics, uintptr_t stream) {
  batch_norm_statistics(plan, pointer<void>(x), pointer<float>(scratch), pointer<float>(statistics),
                        pointer<void>(stream));
}

void apply(const BatchNormPlan& plan, const Four& channels, bool relu, uintptr_t x, uintptr_t residual, uintptr_t y,
           uintptr_t stream) {
  batch_norm_apply(plan, channels_at(channels), relu, pointer<void>(x), pointer<void>(residual), pointer<void>(y),
                   pointer<void>(stream));
}

void backward_sums(const BatchNormPlan& plan, const Four& channels, bool relu, uintptr_t dy, uintptr_t x, uintptr_t y,
                   uintptr_t scratch, uintptr_t sums, uintptr_t stream) {
  batch_norm_backward_sums(plan, channels_at(channels), {relu, pointer<void>(dy), pointer<void>(x), pointer<void>(y)},
                           pointer<float>(scratch), pointer<float>(sums), pointer<void>(stream));
}

void backward_input(const BatchNormPlan& plan, const Four& channels, bool relu, uintptr_t dy, uintptr_t x, uintptr_t y,
                    uintptr_t means, uintptr_t dx, uintptr_t g, uintptr_t stream) {
  batch_norm_backward_input(plan, channels_at(channels), {relu, pointer<void>(dy), pointer<void>(x), pointer<void>(y)},
                            pointer<float>(means), pointer<void>(dx), pointer<void>(g), pointer<void>(stream));
}

void forward(const BatchNormPlan& plan, const Four& statistics, float momentum, float eps, uintptr_t weight,
             uintptr_t bias, bool relu, uintptr_t x, uintptr_t residual, uintptr_t y, uintptr_t scratch,
             uintptr_t stream) {
  const BatchNormStatistics batch{pointer<float>(statistics[0]),
                                  pointer<float>(statistics[1]),
                                  pointer<float>(statistics[2]),
                                  pointer<float>(statistics[3]),
                                  momentum,
                                  eps};
  batch_norm_forward(plan, batch, pointer<float>(weight), pointer<float>(bias), relu, pointer<void>(x),
                     pointer<void>(residual), pointer<void>(y), pointer<float>(scratch), pointer<void>(stream));
}

void backward(const BatchNormPlan& plan, const Four& channels, bool relu, uintptr_t dy, uintptr_t x, uintptr_t y,
              uintptr_t sums, uintptr_t dx, uintptr_t g, uintptr_t scratch, uintptr_t stream) {
  batch_norm_backward(plan, channels_at(channels), {relu, pointer<void>(dy), pointer<void>(x), pointer<void>(y)},
                      pointer<float>(sums), pointer<void>(dx), pointer<void>(g), pointer<float>(scratch),
                      pointer<void>(stream));
}

}  // namespace

void define_sync_batch_norm_relu_cuda(py::module_& module) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  py::class_<BatchNormPlan>(module, "BatchNormPlanCuda", "How batch norm runs on maps of one kind on one device.")
      .def(py::init(&plan_of), "dtype"_a, "channels_last"_a, "sizes"_a)
      .def_readonly("scratch", &BatchNormPlan::scratch, "Floats of scratch that a call needs.")
      .def_property_readonly(
          "one_read",
          [](const BatchNormPlan& plan) { return py::make_tuple(rounds(plan.forward), rounds(plan.backward)); },
          "Groups of channels that training's forward and backward keep on chip one after another; 0 means two reads.");
  module.def("batch_norm_statistics_cuda", &statistics, "plan"_a, "x"_a, "scratch"_a, "statistics"_a, "stream"_a,
             no_gil);
  module.def("batch_norm_apply_cuda", &apply, "plan"_a, "channels"_a, "relu"_a, "x"_a, "residual"_a, "y"_a, "stream"_a,
             no_gil);
  module.def("batch_norm_backward_sums_cuda", &backward_sums, "plan"_a, "channels"_a, "relu"_a, "dy"_a, "x"_a, "y"_a,
             "scratch"_a, "sums"_a, "stream"_a, no_gil);
  module.def("batch_norm_backward_input_cuda", &backward_input, "plan"_a, "channels"_a, "relu"_a, "dy"_a, "x"_a, "y"_a,
             "means"_a, "dx"_a, "g"_a, "stream"_a, no_gil);
  module.def("batch_norm_forward_cuda", &forward, "plan"_a, "statistics"_a, "momentum"_a, "eps"_a, "weight"_a, "bias"_a,
             "relu"_a, "x"_a, "residual"_a, "y"_a, "scratch"_a, "stream"_a, no_gil);
  module.def("batch_norm_backward_cuda", &backward, "plan"_a, "channels"_a, "relu"_a, "dy"_a, "x"_a, "y"_a, "sums"_a,
             "dx"_a, "g"_a, "scratch"_a, "stream"_a, no_gil);
}
#else
void define_sync_batch_norm_relu_cuda(py::module_&) {}
#endif

}  // namespace psp_fast
