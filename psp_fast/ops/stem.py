"""A network's stem in training: convolutions with batch norm and ReLU, then max pooling to half the size.

It exists for memory: at the stem's resolution every map is large. Kept for backward are the images and the
convolutions' results; the activations, the largest of which only the pooling reads, and the pooling's indices are
computed again.

Not among the seven public ops: the backbone calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from psp_fast.ops import backend
from psp_fast.ops.block import (
    TENSORS,
    BatchNorm,
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

_OP = "stem"
_POOL = [3, 3], [2, 2], [1, 1], [1, 1], False  # kernel, stride, padding, dilation, ceil_mode


def stem(x: Tensor, weights: Sequence[Tensor], norms: Sequence[BatchNorm], strides: Sequence[int]) -> Tensor:
    """max_pool(relu(bn(conv(...)))) of x, 3x3 with stride 2, after one or more convolutions, batch norms and ReLUs.

    Args:
        x: images (N, I, H, W), float.
        weights: (O, I, k, k), each for the channels before it, k odd, with padding k // 2.
        norms: of the convolutions, each training or frozen; running statistics are updated.
        strides: of the convolutions.

    Returns:
        (N, O, H', W') in x's type, or in autocast's.
    """
    channels = x.shape[1]
    for i, (weight, norm) in enumerate(zip(weights, norms, strict=True), 1):
        check_tensor(_OP, f"the weight of conv{i}", weight, x.device)
        if weight.shape[1] != channels:
            raise ValueError(f"{_OP}: the weight of conv{i} must be for {channels} channels, not {weight.shape[1]}")
        channels = weight.shape[0]
        norm.check(_OP, f"bn{i}", channels, x.device)
    dtype = backend.compute_dtype(x)
    options = [norm.eps for norm in norms], [norm.process_group for norm in norms], strides
    with torch.autocast(x.device.type, enabled=False):
        tensors = [tensor for norm in norms for tensor in tensors_of(norm, dtype)]
        y, *batches = _Stem.apply(x.to(dtype), len(weights), *weights, *tensors, *options)
        update_all(norms, batches)
    return y


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *rest: Any) -> tuple[Tensor, ...]:
        ctx.setting = backend.current_setting()
        weights, tensors = rest[:count], rest[count : (1 + TENSORS) * count]
        eps, groups, ctx.strides = rest[(1 + TENSORS) * count :]
        layers, y, zs = Layers(tensors, eps, groups), x, []
        for weight, stride in zip(weights, ctx.strides, strict=True):
            zs.append(convolve(y, weight, stride))
            y = layers.add(zs[-1]).apply(zs[-1])
        layers.save(ctx, x, *zs, *weights)
        return torch.ops.aten.max_pool2d_with_indices(y, *_POOL)[0], *layers.batches

    @staticmethod
    @first_order(_OP)
    @as_forward
    def backward(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(dy.device.type, enabled=False):
            return _gradients(ctx, dy)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (x, *saved), layers = restore(ctx)
    zs, weights = saved[: len(layers)], saved[len(layers) :]
    y = layers[-1].apply(zs[-1])
    indices = torch.ops.aten.max_pool2d_with_indices(y, *_POOL)[1]
    gradient: Tensor | None = torch.ops.aten.max_pool2d_with_indices_backward(dy, y, *_POOL, indices)
    del y, indices
    dweights, sums = [], []
    for i in reversed(range(len(layers))):
        assert gradient is not None  # only that of x may be
        gradient, _, layer_sums = layers[i].backward(gradient, zs[i])
        below = x if i == 0 else layers[i - 1].apply(zs[i - 1])
        need = i > 0 or ctx.needs_input_grad[0]
        gradient, dweight = convolve_backward(gradient, below, weights[i], ctx.strides[i], need_dx=need)
        del below
        dweights.append(dweight)
        sums.append(layer_sums)
    return gradient, None, *dweights[::-1], *affine_gradients(layers, sums[::-1]), *[None] * 3
