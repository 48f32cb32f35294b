#include "cpu/conv3x3.h"

#include "bindings/arguments.h"
#include "cpu/memory.h"

namespace psp_fast {
namespace conv3x3_binding {

constexpr int64_t kSpareTiles = 256;

using Kernel = void (*)(const Conv3x3Args&);

void forward(const Conv3x3Args& args) { PSP_FAST_CALL_CPU_KERNEL(conv3x3_forward, args) }
void backward_weight(const Conv3x3Args& args){PSP_FAST_CALL_CPU_KERNEL(conv3x3_backward_weight, args)}

// Every pixel of n images is in one tile; a dilated convolution works on dilation^2 interleaved images. The kernels
// read a few tiles past the end.
std::vector<Conv3x3Tile> tiles_of(int32_t n, int32_t height, int32_t width, int64_t dilation) {
  constexpr int64_t kOut = 4;
  std::vector<Conv3x3Tile> tiles;
  for (int32_t image = 0; image < n; ++image) {
    for (int64_t y = 0; y < dilation && y < height; ++y) {
      for (int64_t x = 0; x < dilation && x < width; ++x) {
        for (int64_t h = y; h < height; h += kOut * dilation) {
          for (int64_t w = x; w < width; w += kOut * dilation) {
            tiles.push_back({image, static_cast<int32_t>(h), static_cast<int32_t>(w)});
          }
        }
      }
    }
  }
  tiles.insert(tiles.end(), kSpareTiles, Conv3x3Tile{-1, 0, 0});
  return tiles;
}

Conv3x3Map map_of(uintptr_t data, int64_t channels, const Sizes& strides) {
  return {pointer<float>(data), channels, strides[0], strides[2], strides[3]};
}

template <Kernel kernel>
void run(int64_t dilation, const Sizes& sizes, uintptr_t x, const Sizes& x_strides, int64_t outputs, uintptr_t y,
         const Sizes& y_strides, uintptr_t weight, const Sizes& weight_strides, uintptr_t scale, uintptr_t shift,
         bool relu, int threads) {
  const auto height = static_cast<int32_t>(sizes[2]), width = static_cast<int32_t>(sizes[3]);
  const std::vector<Conv3x3Tile> tiles = tiles_of(static_cast<int32_t>(sizes[0]), height, width, dilation);
  const int64_t tile_count = static_cast<int64_t>(tiles.size()) - kSpareTiles;
  if (tile_count == 0) return;
  if (kernel == forward) will_write(pointer<void>(y), sizes[0] * sizes[2] * sizes[3] * outputs * 4);
  kernel({tiles.data(),
          tile_count,
          height,
          width,
          dilation,
          map_of(x, sizes[1], x_strides),
          map_of(y, outputs, y_strides),
          {pointer<float>(weight), weight_strides[0], weight_strides[1], weight_strides[2], weight_strides[3]},
          pointer<float>(scale),
          pointer<float>(shift),
          relu,
          threads});
}

template <Kernel kernel>
void define(py::module_& module, const char* name) {
  module.def(name, &run<kernel>, "dilation"_a, "sizes"_a, "x"_a, "x_strides"_a, "outputs"_a, "y"_a, "y_strides"_a,
             "weight"_a, "weight_strides"_a, "scale"_a, "shift"_a, "relu"_a, "threads"_a,
             py::call_guard<py::gil_scoped_release>());
}

}  // namespace conv3x3_binding

void define_conv3x3(py::module_& module) {
  using namespace conv3x3_binding;
  define<forward>(module, "conv3x3_forward_cpu");
  define<backward_weight>(module, "conv3x3_backward_weight_cpu");
}

}  // namespace psp_fast
