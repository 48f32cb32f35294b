"""The pyramid pooling module (arXiv 1612.01105, section 3.2) and the two segmentation heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from psp_fast import ops
from psp_fast.nn.exact import is_exactly, may_fuse, remember
from psp_fast.nn.fused import conv_bn_relu, conv_bn_relu_levels, is_3x3, pyramid_conv_bn_relu
from psp_fast.nn.sync_batch_norm import is_batch_norm, synced_group
from psp_fast.ops import backend, reference

_POOLS: dict[str, type[nn.Module]] = {"avg": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}


@remember
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
        self.bins, self.pool, self.align_corners = tuple(map(int, bins)), pool, align_corners
        self.features = nn.ModuleList()
        for b in self.bins:
            level = [_POOLS[pool](b)]
            if reduced_channels is not None:
                conv = nn.Conv2d(in_channels, reduced_channels, 1, bias=False)
                level += [conv, nn.BatchNorm2d(reduced_channels), nn.ReLU(inplace=True)]
            self.features.append(nn.Sequential(*level))
        self.out_channels = in_channels + len(self.bins) * (reduced_channels or in_channels)

    def levels(self, x: Tensor) -> list[Tensor]:
        """The levels of x (N, C, H, W), each (N, C_b, b, b), coarsest resolution first as in bins."""
        pools = self._pools() if may_fuse(x) else None
        if pools is None:
            return [level(x) for level in self.features]
        pooled = ops.pyramid_pool(x, *pools)
        layers: list[Any] = [tuple(cast(nn.Sequential, level))[1:] for level in self.features]
        if not any(layers):
            return list(pooled)
        for i, p in enumerate(pooled):
            self._check_batch(p, i)
        return conv_bn_relu_levels(pooled, layers)

    def _pools(self) -> tuple[list[int], str] | None:
        """Bins and mode of the levels where one op may pool for all of them, else None."""
        levels = [level for level in self.features if is_exactly(level, nn.Sequential)]
        whole = len(levels) == len(self.features) > 0
        if not whole or {len(level) for level in levels} not in ({1}, {4}):
            return None
        pools = [level[0] for level in levels]
        bins: list[Any] = [getattr(pool, "output_size", None) for pool in pools]
        for mode, kind in _POOLS.items():
            if all(is_exactly(pool, kind) and not getattr(pool, "return_indices", False) for pool in pools):
                return (bins, mode) if all(isinstance(b, int) for b in bins) else None
        return None

    def _check_batch(self, pooled: Tensor, i: int) -> None:
        """Raise ValueError where the batch norm of level i would train on one value a channel."""
        bn = cast(nn.Sequential, self.features[i])[2]
        if is_batch_norm(bn) and bn.training and pooled.numel() == pooled.shape[1] and synced_group(bn) is None:
            raise ValueError(
                f"ppm.features.{i}.2: batch norm of bin {pooled.shape[2]} sees one value per channel with a batch of 1 "
                "in training: use a larger batch, several processes with SyncBatchNorm, or put ppm in eval mode"
            )

    def forward(self, x: Tensor) -> Tensor:
        """x and its upsampled levels, concatenated: (N, out_channels, H, W)."""
        levels = self.levels(x)
        upsample_concat = ops.upsample_concat if _may_join(x, levels) else reference.upsample_concat
        return upsample_concat(x, levels, self.align_corners)


@remember
class Head(nn.Sequential):
    """3x3 convolution, batch norm, ReLU, dropout of whole channels, 1x1 classifier."""

    def __init__(self, in_channels: int, channels: int, classes: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, classes, 1),
        )

    def __getitem__(self, index: int | slice) -> Any:
        """A module, or those of a slice as an nn.Sequential."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes, H, W) of x (N, C, H, W)."""
        if len(self) < 3 or not may_fuse(x):
            return super().forward(x)
        conv, bn, relu, *rest = self
        return _apply(rest, conv_bn_relu(x, (conv, bn, relu)))


def head_of_pyramid(head: nn.Module, ppm: nn.Module, x: Tensor) -> Tensor:
    """head(ppm(x)), without upsampled levels where both are what this module makes."""
    if not (may_fuse(x) and is_exactly(ppm, PyramidPooling) and is_exactly(head, Head) and len(head) >= 3):
        return head(ppm(x))
    conv, bn, relu, *rest = head
    if not (is_3x3(conv) and conv.dilation == (1, 1)):
        return head(ppm(x))
    levels = ppm.levels(x)
    if not _may_join(x, levels):
        return head(reference.upsample_concat(x, levels, ppm.align_corners))
    return _apply(rest, pyramid_conv_bn_relu(x, levels, (conv, bn, relu), ppm.align_corners))


def _may_join(x: Tensor, levels: Sequence[Tensor]) -> bool:
    """Whether an op takes x and its levels side by side: they have one type, or autocast gives them one."""
    if not (may_fuse(x) and all(map(may_fuse, levels))):
        return False
    return backend.autocasts(x) or all(level.dtype == x.dtype for level in levels)


def _apply(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x
