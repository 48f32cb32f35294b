"""A whole residual bottleneck in training: 1x1, 3x3, 1x1 convolutions, their batch norms, the shortcut, ReLU.

It exists for memory. Kept for backward are the block's input and output, which the neighbours keep anyway, and the
first two convolutions' results. The two inner activations and the last convolution's result are computed again:
elementwise, and by one 1x1 convolution. For C inner and 4 C outer channels that is 6 C values a pixel instead of 12 C.

Not among the seven public ops: the backbone calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from psp_fast.ops import backend
from psp_fast.ops.conv3x3 import convolution, convolution_backward
from psp_fast.ops.sync_batch_norm_relu import (
    batch_norm_backward,
    inverse_deviation,
    merge_ranks,
    unbiased_variance,
    update_running,
)


class BatchNorm(NamedTuple):
    """The arguments of `sync_batch_norm_relu` that belong to one layer."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    momentum: float
    eps: float
    process_group: dist.ProcessGroup | None


def runs_bottleneck(x: Tensor) -> bool:
    """Whether there are kernels for x."""
    return backend.choose("sync_batch_norm_relu", x) != "reference"


def bottleneck(
    x: Tensor,
    shortcut: Tensor,
    weights: Sequence[Tensor],
    norms: Sequence[BatchNorm],
    *,
    stride: int,
    dilation: int,
) -> Tensor:
    """relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut), with less memory than op by op.

    Args:
        x: (N, 4 C or other, H, W), float.
        shortcut: (N, O, H', W'), x itself where there is no convolution on the shortcut.
        weights: (C, _, 1, 1), (C, C, 3, 3) with padding equal to dilation, (O, C, 1, 1).
        norms: of the three convolutions, each training or frozen; running statistics are updated.
        stride, dilation: of the 3x3 convolution.

    Returns:
        (N, O, H', W') in x's type, or in autocast's.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    frozen = [_frozen(norm, dtype) for norm in norms]
    with torch.autocast(device, enabled=False):
        y, *running = _Bottleneck.apply(
            x.to(dtype),
            None if shortcut is x else shortcut.to(dtype),
            *weights,
            *(p for norm in norms for p in (norm.weight, norm.bias)),
            *(statistic for pair in frozen for statistic in pair),
            [norm.eps for norm in norms],
            norms[0].process_group,
            stride,
            dilation,
        )
        for norm, batch in zip(norms, running, strict=True):
            if norm.training and norm.running_mean is not None and norm.running_var is not None:
                mean, var = batch.unbind()
                update_running(norm.running_mean, norm.running_var, mean, var, norm.momentum)
    return y


def _frozen(norm: BatchNorm, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Mean and 1 / standard deviation of a layer that does not use the batch's."""
    if norm.training:
        return None, None
    assert norm.running_mean is not None and norm.running_var is not None
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    return norm.running_mean.to(kept), (norm.running_var.to(kept) + norm.eps).rsqrt()


class _Bottleneck(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shortcut: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        weights, affine, frozen, (eps, group, stride, dilation) = rest[:3], rest[3:9], rest[9:15], rest[15:]
        ctx.group, ctx.stride, ctx.dilation, ctx.counts = group, stride, dilation, []
        statistics: list[Tensor | None] = []
        running: list[Tensor] = []

        def normalise(i: int, z: Tensor, residual: Tensor | None = None) -> Tensor:
            mean, invstd, count, batch = _statistics(z, frozen[2 * i], frozen[2 * i + 1], eps[i], group)
            statistics.extend((mean, invstd, count if isinstance(count, Tensor) else None))
            ctx.counts.append(None if isinstance(count, Tensor) else count)
            running.append(batch)
            return _apply(z, mean, invstd, affine[2 * i], affine[2 * i + 1], residual)

        z1 = _pointwise(x, weights[0])
        z2 = _middle(normalise(0, z1), weights[1], stride, dilation)
        z3 = _pointwise(normalise(1, z2), weights[2])
        y = normalise(2, z3, x if shortcut is None else shortcut)
        ctx.own_shortcut = shortcut is None
        ctx.shortcut_dtype = None if shortcut is None else shortcut.dtype
        ctx.save_for_backward(x, z1, z2, y, *weights, *affine, *statistics)
        ctx.mark_non_differentiable(*running)
        return y, *running

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        x, z1, z2, y, *saved = ctx.saved_tensors
        weights, affine, statistics = saved[:3], saved[3:9], saved[9:]
        daffine: list[Tensor | None] = [None] * 6
        dweights: list[Tensor | None] = [None] * 3

        def normalised(i: int, z: Tensor) -> Tensor:
            mean, invstd = statistics[3 * i : 3 * i + 2]
            return _apply(z, mean, invstd, affine[2 * i], affine[2 * i + 1], None)

        def gradient(i: int, dy: Tensor, z: Tensor, y: Tensor | None, residual: bool = False) -> tuple[Tensor, Tensor]:
            mean, invstd, total = statistics[3 * i : 3 * i + 3]
            count = ctx.counts[i] if total is None else total
            weight, bias = affine[2 * i : 2 * i + 2]
            dz, g, sums = batch_norm_backward(
                dy, z, y, mean, invstd, weight, bias, count, relu=True, residual=residual, process_group=ctx.group
            )
            if weight is not None:
                daffine[2 * i] = sums[1].to(weight.dtype)
            if bias is not None:
                daffine[2 * i + 1] = sums[0].to(bias.dtype)
            return dz, g

        y2 = normalised(1, z2)
        dz, g = gradient(2, dy, _pointwise(y2, weights[2]), y, residual=True)
        dz, dweights[2] = _pointwise_backward(dz, y2, weights[2])
        del y2
        dz = gradient(1, dz, z2, None)[0]
        dz, dweights[1] = _middle_backward(dz, normalised(0, z1), weights[1], ctx.stride, ctx.dilation)
        dz = gradient(0, dz, z1, None)[0]
        dx, dweights[0] = _pointwise_backward(dz, x, weights[0])
        if ctx.own_shortcut:
            return dx.add_(g), None, *dweights, *daffine, *[None] * 10
        return dx, g, *dweights, *daffine, *[None] * 10


def _statistics(
    z: Tensor, mean: Tensor | None, invstd: Tensor | None, eps: float, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor | float | None, Tensor]:
    """Mean, 1 / standard deviation, the count they are of (None: frozen), and what the running statistics take in."""
    if mean is not None and invstd is not None:
        return mean, invstd, None, z.new_empty(0)
    values = z.shape[0] * z.shape[2] * z.shape[3]
    stats, count = merge_ranks(torch.ops.psp_fast.batch_norm_statistics(z), values, group)
    mean, deviations = stats.unbind()
    running = torch.stack([mean, unbiased_variance(deviations, count)])
    return mean, inverse_deviation(deviations, count, eps), count, running


def _apply(z: Tensor, mean: Tensor, invstd: Tensor, weight: Any, bias: Any, residual: Tensor | None) -> Tensor:
    return torch.ops.psp_fast.batch_norm_apply(z, mean, invstd, weight, bias, residual, True)


def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight.to(x.dtype))


def _pointwise_backward(dz: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return _aten_backward(dz, x, weight, 1, 0, 1)


def _middle(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """The 3x3 convolution."""
    weight = weight.to(x.dtype)
    return convolution(x, weight, dilation) if stride == 1 else F.conv2d(x, weight, None, stride, dilation, dilation)


def _middle_backward(dz: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    if stride != 1:
        return _aten_backward(dz, x, weight, stride, dilation, dilation)
    dx, dweight = convolution_backward(dz, x, weight.to(x.dtype), dilation, [True, True])
    assert dx is not None and dweight is not None  # the mask asks for both
    return dx, dweight.to(weight.dtype)


def _aten_backward(
    dz: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int
) -> tuple[Tensor, Tensor]:
    sizes = [stride] * 2, [padding] * 2, [dilation] * 2
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        dz, x, weight.to(x.dtype), None, *sizes, False, [0, 0], 1, [True, True, False]
    )
    return dx, dweight.to(weight.dtype)
