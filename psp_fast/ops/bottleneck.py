"""A whole residual bottleneck in training: 1x1, 3x3, 1x1 convolutions, their batch norms, the shortcut, ReLU.

It exists for memory. Kept for backward are the block's input and output, which the neighbours keep anyway, and the
first two convolutions' results. The two inner activations and the last convolution's result are computed again:
elementwise, and by one 1x1 convolution. For C inner and 4 C outer channels that is 6 C values a pixel instead of 12 C.
In Triton the second activation never exists: the last convolution normalises what it reads, in both directions.

Not among the seven public ops: the backbone calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from psp_fast.ops import backend
from psp_fast.ops.conv3x3 import convolution, convolution_backward
from psp_fast.ops.derivatives import first_order
from psp_fast.ops.sync_batch_norm_relu import (
    batch_norm_backward,
    inverse_deviation,
    merge_ranks,
    sum_over_ranks,
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
    """Whether there are kernels for x, in the type that autocast gives it."""
    return backend.choose("sync_batch_norm_relu", x, _compute_dtype(x)) != "reference"


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    autocast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else x.dtype


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
    _check(x, shortcut, weights, norms, stride)
    dtype = _compute_dtype(x)
    frozen = [_frozen(norm, dtype) for norm in norms]
    with torch.autocast(x.device.type, enabled=False):
        y, *running = _Bottleneck.apply(
            x.to(dtype),
            None if shortcut is x else shortcut.to(dtype),
            *weights,
            *(p for norm in norms for p in (norm.weight, norm.bias)),
            *(statistic for pair in frozen for statistic in pair),
            [norm.eps for norm in norms],
            [norm.process_group for norm in norms],
            stride,
            dilation,
        )
        for norm, batch in zip(norms, running, strict=True):
            if batch.numel() > 0 and norm.running_mean is not None and norm.running_var is not None:
                mean, var = batch.unbind()
                update_running(norm.running_mean, norm.running_var, mean, var, norm.momentum)
    return y


def _check(x: Tensor, shortcut: Tensor, weights: Sequence[Tensor], norms: Sequence[BatchNorm], stride: int) -> None:
    inner, outer = weights[0].shape[0], weights[2].shape[0]
    shapes = ((inner, x.shape[1], 1, 1), (inner, inner, 3, 3), (outer, inner, 1, 1))
    for i, (weight, shape, norm) in enumerate(zip(weights, shapes, norms, strict=True), 1):
        if weight.shape != shape:
            raise ValueError(f"bottleneck: the weight of conv{i} must be {shape}, not {tuple(weight.shape)}")
        for name, vector in zip(norm._fields, norm[:4], strict=False):
            if vector is not None and vector.shape != shape[:1]:
                raise ValueError(
                    f"bottleneck: {name} of bn{i} must have one value for each of {shape[0]} channels, "
                    f"not {tuple(vector.shape)}"
                )
        if not norm.training and norm.running_mean is None:
            raise ValueError(f"bottleneck: bn{i} is frozen and has no running statistics")
    result = (x.shape[0], outer, *((side - 1) // stride + 1 for side in x.shape[2:]))
    if shortcut.shape != result:
        raise ValueError(
            f"bottleneck: the shortcut must have the result's shape, {result}, not {tuple(shortcut.shape)}"
        )


def _frozen(norm: BatchNorm, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Mean and 1 / standard deviation of a layer that does not use the batch's."""
    if norm.training:
        return None, None
    assert norm.running_mean is not None and norm.running_var is not None
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    return norm.running_mean.to(kept), (norm.running_var.to(kept) + norm.eps).rsqrt()


class _Layer(NamedTuple):
    """A batch norm of the block: its parameters, what it normalises by, and the count that is of (None: frozen)."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    invstd: Tensor
    total: Tensor | float | None

    def apply(self, z: Tensor, residual: Tensor | None = None) -> Tensor:
        """relu(normalised z + residual)."""
        parameters = (self.mean, self.invstd, self.weight, self.bias)
        return torch.ops.psp_fast.batch_norm_apply(z, *parameters, residual, True)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(scale, shift): the normalised z is scale * z + shift."""
        scale = self.invstd if self.weight is None else self.invstd * self.weight
        shift = -self.mean * scale
        return scale, shift if self.bias is None else shift + self.bias


class _Bottleneck(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shortcut: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        weights, affine, frozen, (eps, groups, stride, dilation) = rest[:3], rest[3:9], rest[9:15], rest[15:]
        layers: list[_Layer] = []
        running: list[Tensor] = []

        def add_layer(z: Tensor, stats: Tensor | None = None) -> _Layer:
            i = len(layers)
            mean, invstd, count, batch = _statistics(z, stats, frozen[2 * i], frozen[2 * i + 1], eps[i], groups[i])
            layers.append(_Layer(affine[2 * i], affine[2 * i + 1], mean, invstd, count))
            running.append(batch)
            return layers[i]

        z1, stats = _first(x, weights[0])
        z2 = _middle(add_layer(z1, stats).apply(z1), weights[1], stride, dilation)
        z3, stats = _last(z2, add_layer(z2), weights[2])
        y = add_layer(z3, stats).apply(z3, x if shortcut is None else shortcut)
        ctx.own_shortcut = shortcut is None
        ctx.groups, ctx.stride, ctx.dilation = groups, stride, dilation
        ctx.counts = [None if isinstance(layer.total, Tensor) else layer.total for layer in layers]
        totals = [layer.total if isinstance(layer.total, Tensor) else None for layer in layers]
        statistics = [tensor for layer in layers for tensor in (layer.mean, layer.invstd)]
        ctx.save_for_backward(x, z1, z2, y, *weights, *affine, *statistics, *totals)
        ctx.mark_non_differentiable(*running)
        return y, *running

    @staticmethod
    @first_order("bottleneck")
    def backward(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(dy.device.type, enabled=False):
            return _Bottleneck._gradients(ctx, dy)

    @staticmethod
    def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, z1, z2, y, w1, w2, w3, *saved = ctx.saved_tensors
        affine, statistics, totals = saved[:6], saved[6:12], saved[12:]
        counts = [count if total is None else total for count, total in zip(ctx.counts, totals, strict=True)]
        parts = zip(affine[::2], affine[1::2], statistics[::2], statistics[1::2], counts, strict=True)
        first, second, third = (_Layer(*part) for part in parts)
        # The block from its end; `sums` are (2, C), a layer's gradients of bias and weight.
        y2 = None if _fuses(z2) else second.apply(z2)
        z3 = _last(z2, second, w3)[0] if y2 is None else _pointwise(y2, w3)
        dz3, g, sums3 = _layer_backward(dy, z3, y, third, ctx.groups[2], residual=True)
        del z3
        if y2 is None:
            dz2, dw3, sums2 = _last_backward(dz3, z2, second, w3, ctx.groups[1])
        else:
            dy2, dw3 = _pointwise_backward(dz3, y2, w3)
            dz2, _, sums2 = _layer_backward(dy2, z2, None, second, ctx.groups[1])
        dy1, dw2 = _middle_backward(dz2, first.apply(z1), w2, ctx.stride, ctx.dilation)
        dz1, _, sums1 = _layer_backward(dy1, z1, None, first, ctx.groups[0])
        dx, dw1 = _pointwise_backward(dz1, x, w1)
        daffine = []
        for layer, sums in ((first, sums1), (second, sums2), (third, sums3)):
            daffine.append(None if layer.weight is None else sums[1].to(layer.weight.dtype))
            daffine.append(None if layer.bias is None else sums[0].to(layer.bias.dtype))
        dx, dshortcut = (dx.add_(g), None) if ctx.own_shortcut else (dx, g)
        return dx, dshortcut, dw1, dw2, dw3, *daffine, *[None] * 10


def _statistics(
    z: Tensor,
    stats: Tensor | None,
    mean: Tensor | None,
    invstd: Tensor | None,
    eps: float,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor | float | None, Tensor]:
    """Mean, 1 / standard deviation, the count they are of (None: frozen), and what the running statistics take in.

    stats are those of z where the convolution gathered them; mean and invstd are a frozen layer's.
    """
    if mean is not None and invstd is not None:
        return mean, invstd, None, z.new_empty(0)
    if stats is None:
        stats = torch.ops.psp_fast.batch_norm_statistics(z)
    stats, count = merge_ranks(stats, z.shape[0] * z.shape[2] * z.shape[3], group)
    mean, deviations = stats.unbind()
    empty = not isinstance(count, Tensor) and count == 0  # leaves the running statistics
    running = z.new_empty(0) if empty else torch.stack([mean, unbiased_variance(deviations, count)])
    return mean, inverse_deviation(deviations, count, eps), count, running


def _layer_backward(
    dy: Tensor, z: Tensor, y: Tensor | None, layer: _Layer, group: dist.ProcessGroup | None, residual: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of z, of the residual where asked for, and the layer's sums; without y the mask comes from z."""
    parameters = (layer.mean, layer.invstd, layer.weight, layer.bias, layer.total)
    return batch_norm_backward(dy, z, y, *parameters, relu=True, residual=residual, process_group=group)


def _fuses(x: Tensor) -> bool:
    """Whether a 1x1 convolution of x normalises what it reads and gathers statistics of what it writes."""
    return backend.choose("conv1x1_bn_relu", x) == "triton"


def _first(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """conv1 of x, and its statistics where they come with it."""
    if not _fuses(x):
        return _pointwise(x, weight), None
    (z,), (stats,) = torch.ops.psp_fast.pointwise_statistics([x], [weight.flatten(1).to(x.dtype)])
    return z, stats


def _last(z2: Tensor, second: _Layer, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """conv3 of the second layer's result, and its statistics where they come with it."""
    if not _fuses(z2):
        return _pointwise(second.apply(z2), weight), None
    factors = second.factors()
    (z3,), (stats,) = torch.ops.psp_fast.pointwise_statistics([z2], [weight.flatten(1).to(z2.dtype)], *factors)
    return z3, stats


def _last_backward(
    dz3: Tensor, z2: Tensor, second: _Layer, weight: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z2 and of conv3's weight, and the second layer's sums, where conv3 normalised what it read."""
    scale, shift = second.factors()
    matrix = weight.flatten(1).to(z2.dtype)
    dweight = torch.ops.psp_fast.pointwise_weight_gradient(dz3, z2, scale, shift)
    factors = (scale, shift, second.mean, second.invstd)
    g, sums = torch.ops.psp_fast.pointwise_normalised_gradient(dz3, matrix, z2, *factors)
    means = None if second.total is None else sum_over_ranks(sums, group) / second.total
    parameters = (second.mean, second.invstd, second.weight, second.bias, means)
    dz2, _ = torch.ops.psp_fast.batch_norm_backward_input(g, z2, None, *parameters, False, False)
    return dz2, dweight.view_as(weight).to(weight.dtype), sums


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
