"""The network as other runtimes get it: batch norm folded into the convolutions, every op in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from psp_fast.models import PSPNet
from psp_fast.models.pyramid import PyramidPooling
from psp_fast.ops import reference

Output = Literal["logits", "labels"]


class ExportNetwork(nn.Module):
    """A trained network's copy for exporters, on the CPU in fp32: images (N, 3, H, W), normalised, to its output.

    Args:
        model: in eval mode; it is not changed.
        output: "logits", what model(images) gives, or "labels", what model.predict(images) gives.
    """

    def __init__(self, model: PSPNet, output: Output) -> None:
        super().__init__()
        self.output = output
        # Folded in float64: the product of a weight and its scale is rounded once.
        self.model = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
        if hasattr(self.model, "aux"):
            del self.model.aux
        _fold_batch_norms(self.model)
        if torch.__version__ < (2, 12):  # type: ignore[operator]
            _free_sizes(self.model)
        if model.use_ppm:
            self.model.ppm = _Pyramid(self.model.ppm)  # type: ignore[assignment]
        self.model.float().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.model(images)) if self.output == "logits" else self.model.predict(images)


def _free_sizes(model: PSPNet) -> None:
    """Pool with stride 1, and keep every other pixel: torch 2.11 exports stride 2 for the example's parity alone."""
    model.layer0[-1] = _MaxPool()
    for module in model.modules():
        if isinstance(getattr(module, "pool", None), nn.AvgPool2d):
            module.pool = _AveragePool()


class _MaxPool(nn.Module):
    """The stem's: 3x3, stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 1, 1)[:, :, ::2, ::2]


class _AveragePool(nn.Module):
    """A shortcut's: 2x2, stride 2, of what is inside the map where its side is odd."""

    def forward(self, x: Tensor) -> Tensor:
        total, share = (F.avg_pool2d(F.pad(t, (0, 1, 0, 1)), 2, 1) for t in (x, torch.ones_like(x[:1, :1])))
        return (total / share)[:, :, ::2, ::2]


class _Pyramid(nn.Module):
    """The levels of a `PyramidPooling` in ops that every exporter knows, for a size known at run time alone."""

    def __init__(self, pyramid: PyramidPooling) -> None:
        super().__init__()
        self.bins, self.pool = pyramid.bins, average_pool if pyramid.pool == "avg" else max_pool
        self.reduce = nn.ModuleList(cast(nn.Sequential, level)[1:] for level in pyramid.features)
        self.align_corners = pyramid.align_corners

    def forward(self, x: Tensor) -> Tensor:
        levels = [layers(self.pool(x, b)) for b, layers in zip(self.bins, self.reduce, strict=True)]
        return reference.upsample_concat(x, levels, self.align_corners)


def average_pool(x: Tensor, bins: int) -> Tensor:
    """Adaptive average pooling of x (N, C, H, W) to (N, C, bins, bins): a product with every cell's weights."""
    rows, columns = (_shares(_windows(length, bins, x.device), x.dtype) for length in x.shape[2:])
    weights = rows[:, None, :, None] * columns[:, None, :]  # (bins, bins, H, W)
    return F.linear(x.flatten(2), weights.flatten(2).flatten(0, 1)).unflatten(2, (bins, bins))


def max_pool(x: Tensor, bins: int) -> Tensor:
    """Adaptive max pooling of x (N, C, H, W) to (N, C, bins, bins): of the rows, then of the columns."""
    rows, columns = (_windows(length, bins, x.device) for length in x.shape[2:])
    x = torch.stack([torch.where(row[:, None], x, -torch.inf).amax(2) for row in rows.unbind()], 2)
    return torch.stack([torch.where(column, x, -torch.inf).amax(3) for column in columns.unbind()], 3)


def _windows(length: int, bins: int, device: torch.device) -> Tensor:
    """Whether each of `length` positions is in adaptive pooling's windows: (bins, length) bool.

    Window i goes from floor(i * length / bins) to ceil((i + 1) * length / bins): windows may overlap.
    """
    starts = torch.arange(bins, device=device)[:, None] * length
    positions = torch.arange(length, device=device) * bins
    # In units of 1 / bins pixels, where nothing has to be divided.
    return (positions > starts - bins) & (positions < starts + length)


def _shares(windows: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight of each position in the average of its window: (bins, length)."""
    weights = windows.to(dtype)
    return weights / weights.sum(1, keepdim=True)


def _fold_batch_norms(model: nn.Module) -> None:
    """Put every batch norm behind a convolution into it, and nothing in its place."""
    for module in list(model.modules()):
        for conv, bn in _convolutions(module):
            norm = getattr(module, bn)
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), norm))
            setattr(module, bn, nn.Identity())


def _convolutions(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the children that are a convolution and the batch norm behind it."""
    children = list(module.named_children())
    for (first, conv), (second, bn) in pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
            yield first, second
