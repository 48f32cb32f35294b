"""Batch norm, residual sum and ReLU in one op, statistics over the batches of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from psp_fast.ops import backend, reference
from psp_fast.ops import sync_batch_norm_relu_library as library
from psp_fast.ops.batch_statistics import batch_statistics, merge_statistics, ranks, sum_over_ranks
from psp_fast.ops.derivatives import as_forward, first_order
from psp_fast.ops.sync_batch_norm_relu_library import OP, in_type, statistics_dtype


def sync_batch_norm_relu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    relu: bool = True,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """relu(batch_norm(x) + residual) for x (N, C, H, W).

    Args:
        x: (N, C, H, W), float, any strides. Statistics are kept in at least 32 bits, also under autocast.
        weight, bias: (C,), or None for ones and zeros.
        running_mean, running_var: (C,). Normalise x where `training` is false; where it is true they are updated in
            place (variance unbiased; an empty batch leaves them), or both None.
        training: normalise x by the statistics of the batch.
        momentum: the weight of the new batch in the running statistics.
        eps: added to the variance, above 0.
        residual: x's shape, any float type, added before ReLU, or None.
        relu: whether to apply ReLU.
        process_group: ranks whose batches count as one in training, of any sizes, also 0: every one of them must call
            the op and its backward. They exchange one message of 2 * C + 1 numbers forward, one of 2 * C backward.
            None, or one rank: nothing is exchanged. As DistributedDataParallel expects, the gradients of weight and
            bias are those of this rank's batch.

    Returns:
        Like x: shape, type, and channels_last where x is. Autograd keeps x, 2 * C statistics, and where residual and
        ReLU come together a bit an element, or this result: else x tells where ReLU was active.

    Raises:
        TypeError, ValueError: an argument is not as above, or training on a single value per channel.
        PspFastError: the compiled module is missing or broken.
    """
    _check(x, weight, bias, running_mean, running_var, training, eps, residual)
    group = process_group if training and ranks(process_group) > 1 else None
    implementation = backend.choose(OP, x)
    if implementation == "reference":
        return reference.sync_batch_norm_relu(
            x,
            weight,
            bias,
            running_mean,
            running_var,
            training=training,
            momentum=momentum,
            eps=eps,
            residual=residual,
            relu=relu,
            process_group=group,
        )
    count: Tensor | float | None = None
    mean = invstd = None
    if training:
        _check_count(x, group)
        if group is None and implementation != "triton" and _updatable(x, running_mean, running_var):
            count = x.numel() // x.shape[1]
        else:
            mean, invstd, count = batch_statistics(x, running_mean, running_var, momentum, eps, group)
    else:
        assert running_mean is not None and running_var is not None  # _check has seen to it
        kept = statistics_dtype(x)
        # A copy: backward must find what forward used, though training may go on meanwhile.
        mean, invstd = running_mean.to(kept, copy=True), (running_var.to(kept) + eps).rsqrt()
    updated = (running_mean, running_var) if mean is None else (None, None)
    return _BatchNormRelu.apply(x, weight, bias, residual, mean, invstd, count, relu, group, *updated, momentum, eps)


def _updatable(x: Tensor, *running: Tensor | None) -> bool:
    """Whether a C++ kernel can train on x and update the running statistics in one call."""
    kept = statistics_dtype(x)
    return x.numel() > 0 and all(value is None or (value.dtype == kept and value.is_contiguous()) for value in running)


def batch_norm_relu_of_statistics(
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    momentum: float,
    eps: float,
    residual: Tensor | None,
    relu: bool,
    process_group: dist.ProcessGroup | None,
) -> Tensor:
    """`sync_batch_norm_relu` in training where `psp_fast::batch_norm_statistics` of x, stats, are known."""
    _check(x, weight, bias, running_mean, running_var, True, eps, residual)
    group = process_group if ranks(process_group) > 1 else None
    _check_count(x, group)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    mean, invstd, total = merge_statistics(stats, count, running_mean, running_var, momentum, eps, group)
    kept = (None, None, momentum, eps)  # they have been updated
    return _BatchNormRelu.apply(x, weight, bias, residual, mean, invstd, total, relu, group, *kept)


def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    count: Tensor | float | None,
    *,
    relu: bool,
    residual: bool,
    process_group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of x, of the residual where asked for, and (2, C): this rank's gradients of bias and weight.

    count is the number of values that mean and invstd are of, None for a frozen layer. y is the layer's output, or the
    mask that `psp_fast::batch_norm_forward` gives; None has the mask of ReLU computed again from x.
    """
    given = (dy, x, y, mean, invstd, weight, bias)
    if count is not None and ranks(process_group) < 2:
        backward = library.backward if backend.unobserved(*given) else torch.ops.psp_fast.batch_norm_backward
        return backward(*given, relu, residual)
    sums = torch.ops.psp_fast.batch_norm_backward_sums(*given, relu)
    means = None if count is None else sum_over_ranks(sums, process_group) / count
    dx, g = torch.ops.psp_fast.batch_norm_backward_input(*given, means, relu, residual)
    return dx, g, sums


def _check_count(x: Tensor, group: dist.ProcessGroup | None) -> None:
    if group is None and x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise ValueError(f"{OP}: training needs more than one value per channel, not x of shape {tuple(x.shape)}")


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    residual: Tensor | None,
) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{OP}: x must be a tensor, not {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"{OP}: x must be (N, C, H, W), not {tuple(x.shape)}")
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, value in {"x": x, **vectors, "residual": residual}.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{OP}: {name} must be a tensor, not {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{OP}: {name} must have a float type, not {value.dtype}")
        if value.device != x.device:
            raise ValueError(f"{OP}: {name} must be on x's device, {x.device}, not on {value.device}")
        if name in vectors and value.shape != x.shape[1:2]:
            raise ValueError(
                f"{OP}: {name} must have one value for each of x's {x.shape[1]} channels, not {tuple(value.shape)}"
            )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"{OP}: residual must have x's shape, {tuple(x.shape)}, not {tuple(residual.shape)}")
    check_options(OP, running_mean, running_var, training, eps)


def check_options(op: str, running_mean: Tensor | None, running_var: Tensor | None, training: bool, eps: float) -> None:
    """Raise ValueError where these do not go together in an op with a batch norm."""
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{op}: give both running_mean and running_var, or neither")
    if not training and running_mean is None:
        raise ValueError(f"{op}: running_mean and running_var are needed where training is false")
    if not eps > 0:
        raise ValueError(f"{op}: eps must be above 0, not {eps}")


class _BatchNormRelu(torch.autograd.Function):
    """Normalises by given statistics, or by x's own where mean is None, then updating the running ones.

    `count` is the number of values that the statistics are of, None for a frozen layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor | None,
        invstd: Tensor | None,
        count: Tensor | float | None,
        relu: bool,
        group: dist.ProcessGroup | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        ctx.setting = backend.current_setting()
        mask = None
        if mean is None:
            plain = backend.unobserved(x, weight, bias, residual, running_mean, running_var)
            forward = library.forward if plain else torch.ops.psp_fast.batch_norm_forward
            y, mean, invstd, mask = forward(x, weight, bias, residual, running_mean, running_var, momentum, eps, relu)
        else:
            y = torch.ops.psp_fast.batch_norm_apply(x, mean, invstd, weight, bias, residual, relu)
        total = count if isinstance(count, Tensor) else None
        masked = None  # x says where ReLU was active
        if relu and residual is not None:
            masked = y if mask is None or mask.numel() == 0 else mask
        ctx.save_for_backward(x, masked, mean, invstd, weight, bias, total)
        ctx.count, ctx.relu, ctx.group = None if total is not None else count, relu, group
        ctx.residual_dtype = None if residual is None else residual.dtype
        return y

    @staticmethod
    @first_order("sync_batch_norm_relu")
    @as_forward
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, y, mean, invstd, weight, bias, total = ctx.saved_tensors
        count = ctx.count if total is None else total
        need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
        masked = ctx.relu and need_residual
        given = (dy, x, y, mean, invstd, weight, bias)
        dx, g, sums = None, dy, dy  # sums are read only where one of their gradients is needed
        if need_x and (count is not None or need_weight or need_bias):
            dx, g, sums = batch_norm_backward(*given, count, relu=ctx.relu, residual=masked, process_group=ctx.group)
        else:
            if need_weight or need_bias:
                sums = torch.ops.psp_fast.batch_norm_backward_sums(*given, ctx.relu)
            if need_x or masked:
                dx, g = torch.ops.psp_fast.batch_norm_backward_input(*given, None, ctx.relu, masked)
        return (
            dx if need_x else None,
            in_type(sums[1], weight.dtype) if need_weight else None,
            in_type(sums[0], bias.dtype) if need_bias else None,
            in_type(g if masked else dy, ctx.residual_dtype) if need_residual else None,
            *[None] * 9,
        )
