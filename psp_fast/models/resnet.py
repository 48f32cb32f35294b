"""Dilated residual networks with semseg's module names: 18, 34 (basic blocks), 50, 101, 152, 269 (bottlenecks)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from psp_fast.nn import bottleneck, conv_bn_relu, is_relu, stem, trains_bottleneck, trains_stem

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    269: (3, 30, 48, 8),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut; in the "mmseg" style (contracted) only the first is dilated."""

    expansion = 1
    recompute = False

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        downsample: nn.Sequential | None,
        dilate_second: bool,
    ) -> None:
        super().__init__()
        second = dilation if dilate_second else 1
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=second, dilation=second, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = conv_bn_relu(x, self.conv1, self.bn1)
        return conv_bn_relu(out, self.conv2, self.bn2, residual=_shortcut(x, self.downsample))


class Bottleneck(nn.Module):
    """1x1, 3x3 (stride and dilation here), 1x1 convolutions and the shortcut; the output has 4 times `channels`."""

    expansion = 4
    recompute = False
    """Compute the block again in backward, to keep less of it in memory."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        downsample: nn.Sequential | None,
        dilate_second: bool,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        layers: list[tuple] = [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]
        if self.downsample is not None:
            layers.append(tuple(self.downsample))
        if trains_bottleneck(x, layers):
            return bottleneck(x, layers, self.recompute)
        out = conv_bn_relu(x, self.conv1, self.bn1)
        out = conv_bn_relu(out, self.conv2, self.bn2)
        return conv_bn_relu(out, self.conv3, self.bn3, residual=_shortcut(x, self.downsample))


def _shortcut(x: Tensor, downsample: nn.Sequential | None) -> Tensor:
    if downsample is None:
        return x
    return conv_bn_relu(x, cast(nn.Conv2d, downsample[0]), downsample[1], relu=False)


class Stem(nn.Sequential):
    """Convolution, batch norm, ReLU (once, or three times), then max pooling: 1/4 resolution."""

    def forward(self, x: Tensor) -> Tensor:
        *modules, pool = self
        layers = [(cast(nn.Conv2d, conv), bn) for conv, bn in zip(modules[::3], modules[1::3], strict=True)]
        if not all(is_relu(act) for act in modules[2::3]):
            return super().forward(x)
        if trains_stem(x, layers, pool):
            return stem(x, layers)
        for conv, bn in layers:
            x = conv_bn_relu(x, conv, bn)
        return pool(x)


def make_stem(stem: str) -> tuple[Stem, int]:
    """The stem and its output channels: "deep" is 3x3 x3 with 64-64-128 channels, "torchvision" is 7x7 with 64."""
    if stem == "deep":
        convs = [_conv3x3(3, 64, 2), _conv3x3(64, 64, 1), _conv3x3(64, 128, 1)]
    else:
        convs = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)]
    layers: list[nn.Module] = []
    for conv in convs:
        layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]
    return Stem(*layers, nn.MaxPool2d(3, 2, padding=1)), convs[-1].out_channels


def _conv3x3(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def make_stages(
    layers: int, in_channels: int, dilation: str, output_stride: int, recompute: bool = False
) -> tuple[list[nn.Sequential], list[int]]:
    """layer1 to layer4 and their output channels, at strides 4, 8 and `output_stride` (8 or 16).

    dilation "semseg" dilates every 3x3 of a stage alike; "mmseg" halves it in the stage's first block. recompute has
    bottlenecks computed again in backward.
    """
    block = BasicBlock if layers < 50 else Bottleneck
    strides, dilations = ((1, 2, 1, 1), (1, 1, 2, 4)) if output_stride == 8 else ((1, 2, 2, 1), (1, 1, 1, 2))
    stages, channels = [], []
    for i, (blocks, stride, rate) in enumerate(zip(BLOCKS[layers], strides, dilations, strict=True)):
        width = 64 * 2**i
        first = max(rate // 2, 1) if dilation == "mmseg" else rate
        rates = [first] + [rate] * (blocks - 1)
        stage: list[nn.Module] = []
        for j, block_rate in enumerate(rates):
            out_channels = width * block.expansion
            reshape = j == 0 and (in_channels != out_channels or stride != 1)
            shortcut = _downsample(in_channels, out_channels, stride) if reshape else None
            dilate_second = dilation == "semseg"
            made = block(in_channels, width, stride if j == 0 else 1, block_rate, shortcut, dilate_second)
            made.recompute = recompute
            stage.append(made)
            in_channels = out_channels
        stages.append(nn.Sequential(*stage))
        channels.append(in_channels)
    return stages, channels


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def initialise(module: nn.Module) -> None:
    """He initialisation (fan out) of every convolution, as the residual networks' authors train them."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
