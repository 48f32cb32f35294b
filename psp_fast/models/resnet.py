"""Dilated residual networks with semseg's module names: 18, 34 (basic blocks), 50, 101, 152, 269 (bottlenecks)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from psp_fast.nn.exact import is_exactly, may_fuse, remember
from psp_fast.nn.fused import Layer, bottleneck, conv_bn_relu, stem, trains_bottleneck, trains_stem

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    269: (3, 30, 48, 8),
}


@dataclass(frozen=True)
class Geometry:
    """Where a block strides and how it dilates."""

    stride: int
    dilation: int
    """Of the block's first 3x3 convolution."""
    second_dilation: int
    """Of a basic block's second 3x3 convolution."""
    stride_in_1x1: bool
    """A bottleneck's stride is in its first 1x1 convolution, as in Caffe, not in its 3x3 one."""
    avg_down: bool
    """The shortcut of a block with stride averages 2x2 pixels before its 1x1 convolution, which then has no stride."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut."""

    expansion = 1
    recompute = False

    def __init__(self, in_channels: int, channels: int, geometry: Geometry) -> None:
        super().__init__()
        first, second = geometry.dilation, geometry.second_dilation
        self.conv1 = nn.Conv2d(in_channels, channels, 3, geometry.stride, padding=first, dilation=first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=second, dilation=second, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool, self.downsample = _shortcut_layers(in_channels, channels, geometry)

    def forward(self, x: Tensor) -> Tensor:
        out = conv_bn_relu(x, (self.conv1, self.bn1, self.relu))
        return conv_bn_relu(out, (self.conv2, self.bn2, self.relu), lambda: _shortcut(x, self.pool, self.downsample))


class Bottleneck(nn.Module):
    """1x1, 3x3 (stride and dilation here), 1x1 convolutions and the shortcut; the output has 4 times `channels`."""

    expansion = 4
    recompute = False
    """Compute the block again in backward, to keep less of it in memory; no effect where the block is not one op."""

    def __init__(self, in_channels: int, channels: int, geometry: Geometry) -> None:
        super().__init__()
        first, second = (geometry.stride, 1) if geometry.stride_in_1x1 else (1, geometry.stride)
        dilation, out_channels = geometry.dilation, channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, second, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool, self.downsample = _shortcut_layers(in_channels, out_channels, geometry)

    def forward(self, x: Tensor) -> Tensor:
        layers: list[Layer] = [
            (self.conv1, self.bn1, self.relu),
            (self.conv2, self.bn2, self.relu),
            (self.conv3, self.bn3, self.relu),
        ]
        projection = _projection(self.downsample)
        as_one = self.pool is None and (projection is not None or self.downsample is None)
        block = layers if projection is None else [*layers, projection]
        if as_one and trains_bottleneck(x, block):
            return bottleneck(x, block, self.recompute)
        out = conv_bn_relu(conv_bn_relu(x, layers[0]), layers[1])
        return conv_bn_relu(out, layers[2], lambda: _shortcut(x, self.pool, self.downsample))


def _shortcut_layers(
    in_channels: int, out_channels: int, geometry: Geometry
) -> tuple[nn.AvgPool2d | None, nn.Sequential | None]:
    """The pooling and the 1x1 convolution with batch norm of a shortcut, each where the block needs it."""
    stride = geometry.stride
    if in_channels == out_channels and stride == 1:
        return None, None
    pooled = geometry.avg_down and stride != 1
    conv = nn.Conv2d(in_channels, out_channels, 1, 1 if pooled else stride, bias=False)
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if pooled else None
    return pool, nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _projection(downsample: nn.Module | None) -> Layer | None:
    """The layer of a shortcut that is one convolution and one batch norm, called by nobody but the block."""
    if downsample is None or not is_exactly(downsample, nn.Sequential) or len(downsample) != 2:
        return None
    return downsample[0], downsample[1], None


def _shortcut(x: Tensor, pool: nn.Module | None, downsample: nn.Module | None) -> Tensor:
    if downsample is None:
        return x
    x = x if pool is None else pool(x)
    projection = _projection(downsample) if may_fuse(x) else None
    return downsample(x) if projection is None else conv_bn_relu(x, projection)


@remember
class Stem(nn.Sequential):
    """Convolution, batch norm, ReLU (once, or three times), then max pooling: 1/4 resolution."""

    def forward(self, x: Tensor) -> Tensor:
        if len(self) % 3 != 1 or not may_fuse(x):
            return super().forward(x)
        *modules, pool = self
        layers = list(zip(modules[::3], modules[1::3], modules[2::3], strict=True))
        if trains_stem(x, layers, pool):
            return stem(x, layers)
        for layer in layers:
            x = conv_bn_relu(x, layer)
        return pool(x)


STEMS = {"deep": (64, 64, 128), "v1c": (32, 32, 64), "torchvision": (64,)}
"""Channels of the stems' convolutions: three of 3x3, or one of 7x7."""


def make_stem(stem: str, images: int = 3) -> tuple[Stem, int]:
    """The stem of a name in `STEMS` for images of so many channels, and its output channels."""
    widths = STEMS[stem]
    kernel = 3 if len(widths) == 3 else 7
    layers: list[nn.Module] = []
    for i, (in_channels, channels) in enumerate(zip((images, *widths), widths, strict=False)):
        conv = nn.Conv2d(in_channels, channels, kernel, 2 if i == 0 else 1, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return Stem(*layers, nn.MaxPool2d(3, 2, padding=1)), widths[-1]


def make_stages(
    layers: int,
    in_channels: int,
    dilation: str,
    output_stride: int,
    *,
    stride_in_1x1: bool = False,
    avg_down: bool = False,
    recompute: bool = False,
) -> tuple[list[nn.Sequential], list[int]]:
    """layer1 to layer4 and their output channels, at strides 4, 8 and `output_stride` (8 or 16).

    dilation "semseg" dilates every 3x3 of a stage alike; "mit" halves the rate in the stage's first 3x3; "mmseg" does
    so too, and leaves the second 3x3 of basic blocks undilated. recompute has bottlenecks computed again in backward.
    """
    block = BasicBlock if layers < 50 else Bottleneck
    strides, dilations = ((1, 2, 1, 1), (1, 1, 2, 4)) if output_stride == 8 else ((1, 2, 2, 1), (1, 1, 1, 2))
    stages, channels = [], []
    for i, (blocks, stride, rate) in enumerate(zip(BLOCKS[layers], strides, dilations, strict=True)):
        width = 64 * 2**i
        contracted = rate if dilation == "semseg" else max(rate // 2, 1)
        second = 1 if dilation == "mmseg" else rate
        stage: list[nn.Module] = []
        for j in range(blocks):
            block_stride, first = (stride, contracted) if j == 0 else (1, rate)
            made = block(in_channels, width, Geometry(block_stride, first, second, stride_in_1x1, avg_down))
            made.recompute = recompute
            stage.append(made)
            in_channels = width * block.expansion
        stages.append(nn.Sequential(*stage))
        channels.append(in_channels)
    return stages, channels


def initialise(module: nn.Module) -> None:
    """He initialisation (fan out) of every convolution, as the residual networks' authors train them."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
