"""The pyramid pooling module (arXiv 1612.01105, section 3.2) and the two segmentation heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from psp_fast import ops
from psp_fast.nn import batch_norm_relu, conv_bn_relu, conv_bn_relu_levels, is_relu, synced_group
from psp_fast.ops.pyramid_conv3x3 import gathers_statistics, pyramid_conv3x3_statistics


class PyramidPooling(nn.Module):
    """Pools a map to b x b cells for every b in bins, and reduces each level by a 1x1 convolution, batch norm and ReLU.

    Args:
        in_channels: channels of the map.
        reduced_channels: channels of each level; None leaves the pooled maps as they are (the paper's rows without DR).
        bins: side of each level in cells.
        pool: "avg" or "max".
        align_corners: how `forward` upsamples the levels.
    """

    def __init__(
        self, in_channels: int, reduced_channels: int | None, bins: Sequence[int], pool: str, align_corners: bool
    ) -> None:
        super().__init__()
        self.bins, self.pool, self.align_corners = tuple(bins), pool, align_corners
        self.reduce = reduced_channels is not None
        adaptive_pool = nn.AdaptiveAvgPool2d if pool == "avg" else nn.AdaptiveMaxPool2d
        self.features = nn.ModuleList()
        for b in self.bins:
            level: list[nn.Module] = [adaptive_pool(b)]
            if reduced_channels is not None:
                conv = nn.Conv2d(in_channels, reduced_channels, 1, bias=False)
                level += [conv, nn.BatchNorm2d(reduced_channels), nn.ReLU(inplace=True)]
            self.features.append(nn.Sequential(*level))
        self.out_channels = in_channels + len(self.bins) * (reduced_channels or in_channels)

    def levels(self, x: Tensor) -> list[Tensor]:
        """The levels of x (N, C, H, W), each (N, C_b, b, b), coarsest resolution first as in bins."""
        pooled = ops.pyramid_pool(x, self.bins, self.pool)
        if not self.reduce:
            return list(pooled)
        layers = []
        for i, p in enumerate(pooled):
            _, conv, bn, _ = cast(nn.Sequential, self.features[i])
            if p.numel() == p.shape[1] and bn.training and synced_group(bn) is None:
                raise ValueError(
                    f"ppm.features.{i}.2: batch norm of bin {self.bins[i]} sees one value per channel with a batch "
                    "of 1 in training: "
                    "use a larger batch, several processes with SyncBatchNorm, or put ppm in eval mode"
                )
            layers.append((cast(nn.Conv2d, conv), bn))
        activations = [cast(nn.Sequential, level)[3] for level in self.features]
        if all(is_relu(act) for act in activations):
            return conv_bn_relu_levels(pooled, layers)
        levels = zip(pooled, layers, activations, strict=True)
        return [act(conv_bn_relu(p, *layer, relu=False)) for p, layer, act in levels]

    def forward(self, x: Tensor) -> Tensor:
        """x and its upsampled levels, concatenated: (N, out_channels, H, W)."""
        return ops.upsample_concat(x, self.levels(x), self.align_corners)


class Head(nn.Sequential):
    """3x3 convolution, batch norm, ReLU, dropout of whole channels, 1x1 classifier."""

    def __init__(self, in_channels: int, channels: int, classes: int, dropout: float, align_corners: bool) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, classes, 1),
        )
        self.align_corners = align_corners

    def forward(self, x: Tensor, pyramid: Sequence[Tensor] = ()) -> Tensor:  # type: ignore[override]
        """Logits (N, classes, H, W) of x (N, C, H, W) with the levels of its pyramid."""
        conv, bn, act, dropout, classifier = self
        weight, relu = cast(nn.Conv2d, conv).weight, is_relu(act)
        if not pyramid:
            out = conv_bn_relu(x, cast(nn.Conv2d, conv), bn, relu=relu)
            return classifier(dropout(out if relu else act(out)))
        stats = None
        if bn.training and gathers_statistics(x):
            out, stats = pyramid_conv3x3_statistics(x, pyramid, weight, self.align_corners)
        else:
            out = ops.pyramid_conv3x3(x, pyramid, weight, self.align_corners)
        out = batch_norm_relu(bn, out, stats=stats, relu=relu)
        return classifier(dropout(out if relu else act(out)))
