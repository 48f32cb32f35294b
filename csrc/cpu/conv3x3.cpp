// Compiled and linked as pyramid_pool.cpp is.
#include "cpu/conv3x3.h"

#include "cpu/winograd.h"
#include "scratch.h"

namespace psp_fast {
namespace {

// Input channels whose weights are transformed together: one read of a line serves them all.
constexpr int64_t kChannelGroup = 4;

// Transforms the weights of `count` input channels from c on for one panel of outputs: product q of channel c + i goes
// to u + q * product + i * kPanel.
void transform_weight(const Conv3x3Args& args, int64_t c, int64_t count, int64_t panel, float* u, int64_t product) {
  float taps[kChannelGroup][kTaps * kTaps][kPanel];
  const int64_t first = panel * kPanel, rest = args.y.channels - first, outputs = rest < kPanel ? rest : kPanel;
  const Conv3x3Weight& weight = args.weight;
  for (int64_t k = 0; k < kPanel; ++k) {
    const float* w = weight.data + (first + k) * weight.stride_out + c * weight.stride_in;
    for (int64_t i = 0; i < count; ++i) {
      for (int t = 0; t < kTaps * kTaps; ++t) {
        const int64_t at = i * weight.stride_in + t / kTaps * weight.stride_y + t % kTaps * weight.stride_x;
        taps[i][t][k] = k < outputs ? w[at] : 0;
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      Vector x[kTaps * kTaps], y[kProducts];
      for (int t = 0; t < kTaps * kTaps; ++t) x[t] = load_lanes(taps[i][t] + j * kVector, kVector);
      transform<Filter>(x, y);
      for (int q = 0; q < kProducts; ++q) store_lanes(u + q * product + i * kPanel + j * kVector, y[q], kVector);
    }
  }
}

// Writes `tile`'s 4x4 output pixels from its products, which are at m + q * product + panel * panel_stride.
void transform_output(const Conv3x3Args& args, const Conv3x3Tile& tile, const float* m, int64_t product,
                      int64_t panel_stride) {
  if (tile.n < 0) return;
  for (int64_t k = 0; k < args.y.channels; k += kVector) {
    const float* from = m + k / kPanel * panel_stride + k % kPanel;
    const int64_t lanes = args.y.channels - k < kVector ? args.y.channels - k : kVector;
    Vector x[kProducts], y[kOut * kOut];
    for (int q = 0; q < kProducts; ++q) x[q] = load_lanes(from + q * product, kVector);
    transform<Output>(x, y);
    if (args.scale != nullptr) {
      const Vector scale = load_lanes(args.scale + k, lanes), shift = load_lanes(args.shift + k, lanes);
      for (Vector& value : y) value = value * scale + shift;
    }
    if (args.relu) {
      for (Vector& value : y) value = value < 0 ? Vector{} : value;  // NaN stays
    }
    for (int r = 0; r < kOut; ++r) {
      const int64_t h = tile.h + r * args.dilation;
      for (int s = 0; s < kOut; ++s) {
        const int64_t w = tile.w + s * args.dilation;
        if (h >= args.height || w >= args.width) continue;
        store_lanes(args.y.data + tile.n * args.y.stride_n + h * args.y.stride_h + w * args.y.stride_w + k,
                    y[r * kOut + s], lanes);
      }
    }
  }
}

// Computes the outputs of args.y.
void convolve(const Conv3x3Args& args) {
  // Few channels: tiles that fit the threads' L2 caches. Many: their weights are transformed anew for each chunk of
  // tiles.
  constexpr int64_t kMostChannels = 256;
  const bool few_channels = args.x.channels <= kMostChannels;
  const bool fits = few_channels && 24 * args.threads < WinogradShape::kMostTiles;
  const WinogradShape shape(args, fits ? 24 * args.threads : WinogradShape::kMostTiles, kMostChannels);
  const int64_t input_product = apart(shape.tiles * shape.stride);  // floats of one of the 36 matrices of inputs
  const int64_t weight_panel = shape.channels * kPanel;             // of one panel of a matrix of weights
  const int64_t output_panel = shape.tiles * kPanel;                // of one panel of a matrix of products
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
  for (int64_t t = 0; t < args.tile_count; t += shape.tiles) {
    for (int64_t c = 0; c < args.x.channels; c += shape.channels) {
      const int64_t rest = args.x.channels - c, channels = rest < shape.channels ? rest : shape.channels;
      const int64_t groups = (channels + kChannelGroup - 1) / kChannelGroup;
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < shape.tiles; ++i) {
        transform_input(args, args.tiles[t + i], c, channels, v + i * shape.stride, input_product);
      }
      if (t == 0 || shape.channels < args.x.channels) {  // else they are there from the last tiles
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < shape.panels * groups; ++i) {
          const int64_t panel = i / groups, from = i % groups * kChannelGroup;
          transform_weight(args, c + from, channels - from < kChannelGroup ? channels - from : kChannelGroup, panel,
                           u + panel * weight_panel + from * kPanel, weight_product);
        }
      }
#pragma omp barrier
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < kProducts * shape.panels; ++i) {
        const int64_t q = i / shape.panels, panel = i % shape.panels;
        multiply(v + q * input_product, shape.stride, 1, u + q * weight_product + panel * weight_panel,
                 m + q * output_product + panel * output_panel, shape.tiles, channels, c > 0);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < shape.tiles; ++i) {
      transform_output(args, args.tiles[t + i], m + i * kPanel, output_product, output_panel);
    }
  }
}

}  // namespace

namespace PSP_FAST_CPU {

void conv3x3_forward(const Conv3x3Args& args) {
  constexpr int64_t kMostOutputs = 512;  // at a time: more would need too much memory for transformed weights
  const int64_t chunk = chunk_of(args.y.channels, kMostOutputs, kPanel);
  for (int64_t k = 0; k < args.y.channels; k += chunk) {
    Conv3x3Args part = args;
    part.y.data += k;
    part.y.channels = args.y.channels - k < chunk ? args.y.channels - k : chunk;
    part.weight.data += k * args.weight.stride_out;
    if (args.scale != nullptr) {
      part.scale += k;
      part.shift += k;
    }
    convolve(part);
  }
}

}  // namespace PSP_FAST_CPU
}  // namespace psp_fast
