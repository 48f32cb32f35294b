"""A whole residual bottleneck in training: 1x1, 3x3, 1x1 convolutions, their batch norms, the shortcut, ReLU.

It exists for memory. Kept for backward are the block's input and output, which the neighbours keep anyway, and, unless
they are computed again as well, the first two convolutions' results. The two inner activations, the last convolution's
result and the shortcut's are always computed again: elementwise, and by 1x1 convolutions. For C inner and 4 C outer
channels that is 6 C values a pixel, or 4 C, instead of 12 C. In Triton the second activation never exists: the last
convolution normalises what it reads, in both directions.

Not among the seven public ops: the backbone calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from psp_fast.ops import backend
from psp_fast.ops.batch_statistics import sum_over_ranks
from psp_fast.ops.block import (
    TENSORS,
    BatchNorm,
    Layer,
    Layers,
    affine_gradients,
    check_tensor,
    convolve,
    convolve_backward,
    restore,
    tensors_of,
    update_all,
)
from psp_fast.ops.derivatives import as_forward, first_order

_OP = "bottleneck"


def bottleneck(
    x: Tensor,
    weights: Sequence[Tensor],
    norms: Sequence[BatchNorm],
    *,
    stride: int,
    dilation: int,
    recompute: bool = False,
) -> Tensor:
    """relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut), with less memory than op by op.

    Args:
        x: (N, I, H, W), float.
        weights: (C, I, 1, 1), (C, C, 3, 3) with padding equal to dilation, (O, C, 1, 1), and (O, I, 1, 1) where the
            shortcut is bn4(conv4(x)) rather than x.
        norms: of the convolutions, each training or frozen; running statistics are updated.
        stride, dilation: of the 3x3 convolution, and stride of the shortcut.
        recompute: compute all of the block again in backward: about a third more work, a third less memory.

    Returns:
        (N, O, H', W') in x's type, or in autocast's.
    """
    _check(x, weights, norms, stride)
    dtype = backend.compute_dtype(x)
    options = ([norm.eps for norm in norms], [norm.process_group for norm in norms], stride, dilation, recompute)
    with torch.autocast(x.device.type, enabled=False):
        tensors = [tensor for norm in norms for tensor in tensors_of(norm, dtype)]
        y, *batches = _Bottleneck.apply(x.to(dtype), len(weights), *weights, *tensors, *options)
        update_all(norms, batches)
    return y


def _check(x: Tensor, weights: Sequence[Tensor], norms: Sequence[BatchNorm], stride: int) -> None:
    inner, outer = weights[0].shape[0], weights[2].shape[0]
    shapes = ((inner, x.shape[1], 1, 1), (inner, inner, 3, 3), (outer, inner, 1, 1), (outer, x.shape[1], 1, 1))
    for i, (weight, shape, norm) in enumerate(zip(weights, shapes, norms, strict=False), 1):
        check_tensor(_OP, f"the weight of conv{i}", weight, x.device)
        if weight.shape != shape:
            raise ValueError(f"{_OP}: the weight of conv{i} must be {shape}, not {tuple(weight.shape)}")
        norm.check(_OP, f"bn{i}", shape[0], x.device)
    if len(weights) == 3 and (stride != 1 or outer != x.shape[1]):
        raise ValueError(
            f"{_OP}: x of shape {tuple(x.shape)} is no shortcut for {outer} channels at stride {stride}: give conv4"
        )


class _Bottleneck(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *rest: Any) -> tuple[Tensor, ...]:
        ctx.setting = backend.current_setting()
        weights, tensors = rest[:count], rest[count : (1 + TENSORS) * count]
        eps, groups, stride, dilation, recompute = rest[(1 + TENSORS) * count :]
        layers = Layers(tensors, eps, groups)
        z1, stats = _pointwise(x, weights[0])
        first = layers.add(z1, stats)
        z2 = convolve(first.apply(z1), weights[1], stride, dilation)
        second = layers.add(z2)
        z3, stats = _last(z2, second, weights[2])
        third = layers.add(z3, stats)
        shortcut = x
        if count == 4:
            z4, stats = _pointwise(x, weights[3], stride)
            shortcut = layers.add(z4, stats).apply(z4, relu=False)
            del z4
        y = third.apply(z3, shortcut)
        ctx.stride, ctx.dilation = stride, dilation
        layers.save(ctx, x, y, None if recompute else z1, None if recompute else z2, *weights)
        return y, *layers.batches

    @staticmethod
    @first_order(_OP)
    @as_forward
    def backward(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(dy.device.type, enabled=False):
            return _gradients(ctx, dy)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (x, y, z1, z2, *weights), layers = restore(ctx)
    first, second, third, *_ = layers
    if z1 is None:
        z1 = _pointwise(x, weights[0])[0]
    if z2 is None:
        z2 = convolve(first.apply(z1), weights[1], ctx.stride, ctx.dilation)
    # Whatever is not needed any more is dropped at once: here a step needs the most memory.
    z3 = _last(z2, second, weights[2])[0]
    dz3, g, sums3 = third.backward(dy, z3, y, residual=True)
    del dy, y, z3
    dz2, dw3, sums2 = _last_backward(dz3, z2, second, weights[2])
    del dz3, z2
    dy1, dw2 = convolve_backward(dz2, first.apply(z1), weights[1], ctx.stride, ctx.dilation)
    assert dy1 is not None
    del dz2
    dz1, _, sums1 = first.backward(dy1, z1)
    del dy1, z1
    dx, dw1 = convolve_backward(dz1, x, weights[0])
    assert dx is not None
    del dz1
    dweights, sums = [dw1, dw2, dw3], [sums1, sums2, sums3]
    if len(layers) == 4:
        dz4, _, sums4 = layers[3].backward(g, _pointwise(x, weights[3], ctx.stride)[0], relu=False)
        del g
        dshortcut, dw4 = convolve_backward(dz4, x, weights[3], ctx.stride)
        dweights, sums = [*dweights, dw4], [*sums, sums4]
    else:
        dshortcut = g
    assert dshortcut is not None
    return dx.add_(dshortcut), None, *dweights, *affine_gradients(layers, sums), *[None] * 5


def _fuses(x: Tensor) -> bool:
    """Whether a 1x1 convolution of x normalises what it reads and gathers statistics of what it writes."""
    return backend.choose("conv1x1_bn_relu", x) == "triton"


def _pointwise(x: Tensor, weight: Tensor, stride: int = 1) -> tuple[Tensor, Tensor | None]:
    """The 1x1 convolution of x, and its statistics where they come with it."""
    if stride != 1 or not _fuses(x):
        return convolve(x, weight, stride), None
    (z,), (stats,) = torch.ops.psp_fast.pointwise_statistics([x], [weight.flatten(1).to(x.dtype)])
    return z, stats


def _last(z2: Tensor, second: Layer, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """conv3 of the second layer's result, and its statistics where they come with it."""
    if not _fuses(z2):
        return convolve(second.apply(z2), weight), None
    factors = second.factors()
    (z3,), (stats,) = torch.ops.psp_fast.pointwise_statistics([z2], [weight.flatten(1).to(z2.dtype)], *factors)
    return z3, stats


def _last_backward(dz3: Tensor, z2: Tensor, second: Layer, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z2 and of conv3's weight, and the second layer's sums."""
    if not _fuses(z2):
        dy2, dweight = convolve_backward(dz3, second.apply(z2), weight)
        assert dy2 is not None
        dz2, _, sums = second.backward(dy2, z2)
        return dz2, dweight, sums
    scale, shift = second.factors()
    matrix = weight.flatten(1).to(z2.dtype)
    dweight = torch.ops.psp_fast.pointwise_weight_gradient(dz3, z2, scale, shift)
    factors = (scale, shift, second.mean, second.invstd)
    g, sums = torch.ops.psp_fast.pointwise_normalised_gradient(dz3, matrix, z2, *factors)
    means = None if second.total is None else sum_over_ranks(sums, second.group) / second.total
    parameters = (second.mean, second.invstd, second.weight, second.bias, means)
    dz2, _ = torch.ops.psp_fast.batch_norm_backward_input(g, z2, None, *parameters, False, False)
    return dz2, dweight.view_as(weight).to(weight.dtype), sums
