"""1x1 convolutions as matrix products in Triton: with the batch's statistics in training, with all folded in inference.

Internal: `conv1x1_bn_relu` and the pyramid call it. Kept for backward are the convolutions' inputs and weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from psp_fast.ops import backend
from psp_fast.ops.arguments import check_given
from psp_fast.ops.derivatives import as_forward, first_order

_OP = "conv1x1_bn_relu"
_DEVICES = ("cpu", "cuda")  # CPU tensors run in Triton's interpreter


def convolve_with_statistics(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """conv2d(x, weight) of every map x (N, C, H, W) with its weight (O, C, 1, 1) in one launch, with its statistics.

    Maps and weights differ in H and W alone. Statistics are `psp_fast::batch_norm_statistics` of the results: (2, O),
    mean and sum of squared deviations. Under autocast all run in autocast's type.
    """
    device = xs[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else xs[0].dtype
    matrices = [weight.flatten(1).to(dtype) for weight in weights]
    results = _Convolutions.apply(len(xs), *(x.to(dtype) for x in xs), *matrices)
    return list(zip(results[: len(xs)], results[len(xs) :], strict=True))


class _Convolutions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *operands: Tensor) -> tuple[Tensor, ...]:
        ctx.setting = backend.current_setting()
        ctx.save_for_backward(*operands)
        ctx.count = count
        zs, stats = torch.ops.psp_fast.pointwise_statistics(operands[:count], operands[count:])
        ctx.mark_non_differentiable(*stats)
        return *zs, *stats

    @staticmethod
    @first_order(_OP)
    @as_forward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        xs, weights = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        need_x, need_weight = ctx.needs_input_grad[1 : ctx.count + 1], ctx.needs_input_grad[ctx.count + 1 :]
        dxs = [
            torch.ops.psp_fast.pointwise_input_gradient(dz, weight) if needed else None
            for dz, weight, needed in zip(grads, weights, need_x, strict=False)
        ]
        dweights = [
            torch.ops.psp_fast.pointwise_weight_gradient(dz, x) if needed else None
            for dz, x, needed in zip(grads, xs, need_weight, strict=False)
        ]
        return None, *dxs, *dweights


# With scale and shift (C) the convolution is of relu(x * scale + shift), a batch norm's result that is stored nowhere.
torch.library.define(
    "psp_fast::pointwise_statistics",
    "(Tensor[] xs, Tensor[] weights, Tensor? scale=None, Tensor? shift=None) -> (Tensor[], Tensor[])",
)
torch.library.define("psp_fast::pointwise_input_gradient", "(Tensor dz, Tensor weight) -> Tensor")
torch.library.define(
    "psp_fast::pointwise_weight_gradient", "(Tensor dz, Tensor x, Tensor? scale=None, Tensor? shift=None) -> Tensor"
)
# The gradient behind that ReLU, and (2, C): its sums alone and times the normalised x, for the batch norm's backward.
torch.library.define(
    "psp_fast::pointwise_normalised_gradient",
    "(Tensor dz, Tensor weight, Tensor x, Tensor scale, Tensor shift, Tensor mean, Tensor invstd) -> (Tensor, Tensor)",
)


def _check_map(name: str, x: Tensor) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"{_OP}: {name} must be float (N, C, H, W), not {x.dtype} {tuple(x.shape)}")


def _check_factors(x: Tensor, **factors: Tensor | None) -> None:
    """Raise where what normalises x (N, C, H, W) has not a value for each channel."""
    if len({factor is None for factor in factors.values()}) > 1:
        raise ValueError(f"{_OP}: give all of {', '.join(factors)}, or none")
    for name, factor in factors.items():
        if factor is not None:
            check_given(_OP, name, factor, x, x.shape[1:2])


def _check_statistics(
    xs: Sequence[Tensor], weights: Sequence[Tensor], scale: Tensor | None, shift: Tensor | None
) -> None:
    if not xs or len(xs) != len(weights):
        raise ValueError(f"{_OP}: xs and weights must be as many, at least one, not {len(xs)} and {len(weights)}")
    _check_map("xs[0]", xs[0])
    (n, channels), outputs = xs[0].shape[:2], weights[0].shape[0] if weights[0].dim() > 0 else 0
    for i, (x, weight) in enumerate(zip(xs, weights, strict=True)):
        _check_map(f"xs[{i}]", x)
        check_given(_OP, f"xs[{i}]", x, xs[0], (n, channels, *x.shape[2:]), xs[0].dtype)
        check_given(_OP, f"weights[{i}]", weight, xs[0], (outputs, channels), xs[0].dtype)
        _check_factors(x, scale=scale, shift=shift)


def _check_input_gradient(dz: Tensor, weight: Tensor) -> None:
    _check_map("dz", dz)
    check_given(_OP, "weight", weight, dz, (dz.shape[1], *weight.shape[1:2]), dz.dtype)
    if weight.dim() != 2:
        raise ValueError(f"{_OP}: weight must be (O, C), not {tuple(weight.shape)}")


def _check_weight_gradient(dz: Tensor, x: Tensor) -> None:
    _check_map("x", x)
    _check_map("dz", dz)
    check_given(_OP, "dz", dz, x, (x.shape[0], dz.shape[1], *x.shape[2:]), x.dtype)


def _statistics(
    xs: Sequence[Tensor], weights: Sequence[Tensor], scale: Tensor | None = None, shift: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    _check_statistics(xs, weights, scale, shift)
    from psp_fast.kernels import conv1x1_bn_relu as kernels

    zs: list[Tensor] = []
    stats: list[Tensor] = []
    for first in range(0, len(xs), kernels.PROBLEMS):
        some = slice(first, first + kernels.PROBLEMS)
        more_zs, more_stats = kernels.matmul_statistics(xs[some], weights[some], scale, shift, scale is not None)
        zs += more_zs
        stats += more_stats if len(more_stats) == 1 else [stat.clone() for stat in more_stats]  # they share memory
    return zs, stats


@torch.library.register_fake("psp_fast::pointwise_statistics")
def _empty_statistics(
    xs: Sequence[Tensor], weights: Sequence[Tensor], scale: Tensor | None = None, shift: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    _check_statistics(xs, weights, scale, shift)
    channels_last = any(not x.is_contiguous() and x.stride(1) == 1 and x.shape[1] > 1 for x in xs)
    zs = [_empty_map(x, weight.shape[0], channels_last) for x, weight in zip(xs, weights, strict=True)]
    return zs, [torch.empty((2, weight.shape[0]), dtype=torch.float32, device=weight.device) for weight in weights]


def _input_gradient(dz: Tensor, weight: Tensor) -> Tensor:
    _check_input_gradient(dz, weight)
    from psp_fast.kernels import conv1x1_bn_relu as kernels

    return kernels.matmul_input_gradient(dz, weight)[0]


@torch.library.register_fake("psp_fast::pointwise_input_gradient")
def _empty_input_gradient(dz: Tensor, weight: Tensor) -> Tensor:
    _check_input_gradient(dz, weight)
    channels_last = not dz.is_contiguous() and dz.stride(1) == 1 and dz.shape[1] > 1
    return _empty_map(dz, weight.shape[1], channels_last)


def _normalised_gradient(
    dz: Tensor, weight: Tensor, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor]:
    _check_input_gradient(dz, weight)
    check_given(_OP, "x", x, dz, (dz.shape[0], weight.shape[1], *dz.shape[2:]), dz.dtype)
    _check_factors(x, scale=scale, shift=shift, mean=mean, invstd=invstd)
    from psp_fast.kernels import conv1x1_bn_relu as kernels

    before = kernels.Normalisation(x, scale, shift, mean, invstd, relu=True)
    g, sums = kernels.matmul_input_gradient(dz, weight, before)
    assert sums is not None  # with `before` there are sums
    return g, sums


@torch.library.register_fake("psp_fast::pointwise_normalised_gradient")
def _empty_normalised_gradient(dz: Tensor, weight: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    sums = torch.empty((2, weight.shape[1]), dtype=torch.float32, device=dz.device)
    return _empty_input_gradient(dz, weight), sums


def _weight_gradient(dz: Tensor, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    _check_weight_gradient(dz, x)
    _check_factors(x, scale=scale, shift=shift)
    from psp_fast.kernels import conv1x1_bn_relu as kernels

    return kernels.matmul_weight_gradient(dz, x, scale, shift, scale is not None)


@torch.library.register_fake("psp_fast::pointwise_weight_gradient")
def _empty_weight_gradient(dz: Tensor, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    _check_weight_gradient(dz, x)
    return x.new_empty((dz.shape[1], x.shape[1]))


def _empty_map(x: Tensor, channels: int, channels_last: bool) -> Tensor:
    """An uninitialised map like x, with other channels."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    size = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format)


for _name, _implementation in (
    ("statistics", _statistics),
    ("input_gradient", _input_gradient),
    ("normalised_gradient", _normalised_gradient),
    ("weight_gradient", _weight_gradient),
):
    torch.library.impl(f"psp_fast::pointwise_{_name}", _DEVICES, _implementation)
