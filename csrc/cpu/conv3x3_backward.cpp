// The weight's gradient; compiled and linked as pyramid_pool.cpp is. The input's gradient is a forward convolution with
// the weight turned and transposed.
#include "cpu/conv3x3.h"
#include "cpu/winograd.h"
#include "scratch.h"

namespace psp_fast {
namespace {

// Transforms the gradient of `tile`'s 4x4 output pixels to products at m + q * product + panel * panel_stride.
void transform_gradient(const Conv3x3Args& args, const Conv3x3Tile& tile, float* m, int64_t product,
                        int64_t panel_stride) {
  for (int64_t k = 0; k < rounded_up(args.y.channels, kPanel); k += kVector) {
    const int64_t lanes = args.y.channels - k < kVector ? args.y.channels - k : kVector;
    Vector x[kOut * kOut], y[kProducts];
    for (int r = 0; r < kOut; ++r) {
      const int64_t h = tile.h + r * args.dilation;
      for (int s = 0; s < kOut; ++s) {
        const int64_t w = tile.w + s * args.dilation;
        const bool inside = tile.n >= 0 && h < args.height && w < args.width;
        x[r * kOut + s] =
            inside ? load_lanes(args.y.data + tile.n * args.y.stride_n + h * args.y.stride_h + w * args.y.stride_w + k,
                                lanes)
                   : Vector{};
      }
    }
    transform<OutputGradient>(x, y);
    float* to = m + k / kPanel * panel_stride + k % kPanel;
    for (int q = 0; q < kProducts; ++q) store_lanes(to + q * product, y[q], kVector);
  }
}

// Writes the 3x3 taps of input channel c and one panel of outputs from their products at u + q * product.
void transform_weight_gradient(const Conv3x3Args& args, int64_t c, int64_t panel, const float* u, int64_t product) {
  float taps[kTaps * kTaps][kPanel];
  for (int j = 0; j < kVectors; ++j) {
    Vector x[kProducts], y[kTaps * kTaps];
    for (int q = 0; q < kProducts; ++q) x[q] = load_lanes(u + q * product + j * kVector, kVector);
    transform<FilterGradient>(x, y);
    for (int t = 0; t < kTaps * kTaps; ++t) store_lanes(taps[t] + j * kVector, y[t], kVector);
  }
  const int64_t first = panel * kPanel, rest = args.y.channels - first, count = rest < kPanel ? rest : kPanel;
  const Conv3x3Weight& weight = args.weight;
  for (int64_t k = 0; k < count; ++k) {
    float* w = weight.data + (first + k) * weight.stride_out + c * weight.stride_in;
    for (int t = 0; t < kTaps * kTaps; ++t) w[t / kTaps * weight.stride_y + t % kTaps * weight.stride_x] = taps[t][k];
  }
}

}  // namespace

namespace PSP_FAST_CPU {

void conv3x3_backward_weight(const Conv3x3Args& args) {
  constexpr int64_t kMostChannels = 96;  // more would need more memory, and be no faster
  const WinogradShape shape(args, WinogradShape::kMostTiles, kMostChannels);
  const int64_t input_product = apart(shape.tiles * shape.stride), output_panel = shape.tiles * kPanel;
  const int64_t weight_panel = shape.stride * kPanel;
  const int64_t weight_product = apart(shape.panels * weight_panel),
                output_product = apart(shape.panels * output_panel);
  const int64_t inputs = kProducts * input_product, weights = kProducts * weight_product;
  const int64_t outputs = kProducts * output_product;
  KeptScratch scratch(KeptScratch::size_of<float>(inputs) + KeptScratch::size_of<float>(weights) +
                      KeptScratch::size_of<float>(outputs));
  float* const v = scratch.take<float>(inputs);
  float* const u = scratch.take<float>(weights);
  float* const m = scratch.take<float>(outputs);
#pragma omp parallel num_threads(args.threads)
  for (int64_t c = 0; c < args.x.channels; c += shape.channels) {
    const int64_t rest = args.x.channels - c, channels = rest < shape.channels ? rest : shape.channels;
    for (int64_t t = 0; t < args.tile_count; t += shape.tiles) {
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < shape.tiles; ++i) {
        transform_input(args, args.tiles[t + i], c, channels, v + i * shape.stride, input_product);
      }
      if (c == 0 || shape.tiles < args.tile_count) {  // else they are there from the last channels
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < shape.tiles; ++i) {
          transform_gradient(args, args.tiles[t + i], m + i * kPanel, output_product, output_panel);
        }
      }
#pragma omp barrier
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < kProducts * shape.panels; ++i) {
        const int64_t q = i / shape.panels, panel = i % shape.panels;
        multiply(v + q * input_product, 1, shape.stride, m + q * output_product + panel * output_panel,
                 u + q * weight_product + panel * weight_panel, rounded_up(channels, kRows), shape.tiles, t > 0);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < shape.panels * channels; ++i) {
      transform_weight_gradient(args, c + i % channels, i / channels,
                                u + i / channels * weight_panel + i % channels * kPanel, weight_product);
    }
  }
}

}  // namespace PSP_FAST_CPU
}  // namespace psp_fast
