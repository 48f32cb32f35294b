"""Batch norm, residual sum and ReLU in one op, statistics over the batches of all processes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from psp_fast.kernels import sync_batch_norm_relu_cuda
from psp_fast.ops import backend, reference
from psp_fast.ops.derivatives import first_order

_OP = "sync_batch_norm_relu"
_DEVICES = ("cpu", "cuda")
_LANES = 16  # of the CPU kernels' vectors
_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
backend.register(_OP, "cpu", backend.Kernel("csrc/cpu", _CPU_DTYPES, backend.missing_native))
backend.register(_OP, "cuda", backend.Kernel("csrc/cuda", _CUDA_DTYPES, backend.missing_cuda))
backend.register(_OP, "cuda", backend.Kernel("triton", _CUDA_DTYPES, backend.missing_triton))


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
    group = process_group if training and _ranks(process_group) > 1 else None
    if backend.choose(_OP, x) == "reference":
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
        if group is None and _in_one_call(x, running_mean, running_var):
            count = x.numel() // x.shape[1]
        else:
            mean, invstd, count = batch_statistics(x, running_mean, running_var, momentum, eps, group)
    else:
        assert running_mean is not None and running_var is not None  # _check has seen to it
        kept = _statistics_dtype(x)
        # A copy: backward must find what forward used, though training may go on meanwhile.
        mean, invstd = running_mean.to(kept, copy=True), (running_var.to(kept) + eps).rsqrt()
    updated = (running_mean, running_var) if mean is None else (None, None)
    return _BatchNormRelu.apply(x, weight, bias, residual, mean, invstd, count, relu, group, *updated, momentum, eps)


def _in_one_call(x: Tensor, *running: Tensor | None) -> bool:
    """Whether `batch_norm_forward` can train on x, rather than one op for the statistics and one that applies them."""
    kept = _statistics_dtype(x)
    updatable = all(value is None or (value.dtype == kept and value.is_contiguous()) for value in running)
    return updatable and x.numel() > 0 and backend.choose(_OP, x) in ("csrc/cpu", "csrc/cuda")


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
    group = process_group if _ranks(process_group) > 1 else None
    _check_count(x, group)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    mean, invstd, total = merge_statistics(stats, count, running_mean, running_var, momentum, eps, group)
    kept = (None, None, momentum, eps)  # they have been updated
    return _BatchNormRelu.apply(x, weight, bias, residual, mean, invstd, total, relu, group, *kept)


@torch.no_grad()
def batch_statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    process_group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """`merge_statistics` of x (N, C, H, W)."""
    stats = torch.ops.psp_fast.batch_norm_statistics(x)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    return merge_statistics(stats, count, running_mean, running_var, momentum, eps, process_group)


@torch.no_grad()
def merge_statistics(
    stats: Tensor,
    local_count: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    process_group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Mean and 1 / sqrt(variance + eps) of the batches of all ranks, and their number of values per channel.

    stats (2, C) holds mean and sum of squared deviations of this rank's local_count values a channel. Updates the
    running statistics in place.
    """
    stats, count = merge_ranks(stats, local_count, process_group)
    mean, deviations = stats.unbind()
    if running_mean is not None and running_var is not None and (isinstance(count, Tensor) or count > 0):
        update_running(running_mean, running_var, mean, unbiased_variance(deviations, count), momentum)
    return mean, inverse_deviation(deviations, count, eps), count


def inverse_deviation(deviations: Tensor, count: Tensor | float, eps: float) -> Tensor:
    """1 / sqrt(variance + eps) of `count` values with this sum of squared deviations."""
    return (deviations / _at_least_one(count)).add_(eps).rsqrt_()


def unbiased_variance(deviations: Tensor, count: Tensor | float) -> Tensor:
    """The variance that running statistics keep, of `count` values with this sum of squared deviations."""
    return deviations / _at_least_one(count - 1)


def _at_least_one(count: Tensor | float) -> Tensor | float:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


@torch.no_grad()
def update_running(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float) -> None:
    """Take a batch's mean and unbiased variance into the running statistics, in place."""
    running_mean.lerp_(mean.to(running_mean), momentum)
    running_var.lerp_(var.to(running_var), momentum)


def merge_ranks(
    stats: Tensor, local_count: int, process_group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor | float]:
    """stats (2, C), mean and sum of squared deviations, and the count of all ranks' values, from one message.

    It is in float64, where sums of values and of squares are exact enough: the statistics have 24 bits.
    """
    if _ranks(process_group) < 2:
        return stats, local_count
    mean, deviations = stats.double().unbind()
    total = mean * local_count
    count = total.new_full((1,), local_count)
    packed = sum_over_ranks(torch.cat([total, deviations + total * mean, count]), process_group)
    count = packed[-1]
    total, squares = packed[:-1].view(2, -1)
    mean = total / _at_least_one(count)
    return torch.stack([mean, (squares - total * mean).clamp_(min=0)]).to(stats.dtype), count


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
    if count is not None and _ranks(process_group) < 2:
        backward = _backward if backend.unobserved(*given) else torch.ops.psp_fast.batch_norm_backward
        return backward(*given, relu, residual)
    sums = torch.ops.psp_fast.batch_norm_backward_sums(*given, relu)
    means = None if count is None else sum_over_ranks(sums, process_group) / count
    dx, g = torch.ops.psp_fast.batch_norm_backward_input(*given, means, relu, residual)
    return dx, g, sums


def sum_over_ranks(sums: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """The sum of all ranks' sums; `sums` itself where there is one rank."""
    if _ranks(process_group) < 2:
        return sums
    total = sums.clone()
    dist.all_reduce(total, group=process_group)
    return total


def _check_count(x: Tensor, group: dist.ProcessGroup | None) -> None:
    if group is None and x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise ValueError(f"{_OP}: training needs more than one value per channel, not x of shape {tuple(x.shape)}")


def _ranks(group: dist.ProcessGroup | None) -> int:
    return 1 if group is None else dist.get_world_size(group)


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
        raise TypeError(f"{_OP}: x must be a tensor, not {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"{_OP}: x must be (N, C, H, W), not {tuple(x.shape)}")
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, value in {"x": x, **vectors, "residual": residual}.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{_OP}: {name} must be a tensor, not {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{_OP}: {name} must have a float type, not {value.dtype}")
        if value.device != x.device:
            raise ValueError(f"{_OP}: {name} must be on x's device, {x.device}, not on {value.device}")
        if name in vectors and value.shape != x.shape[1:2]:
            raise ValueError(
                f"{_OP}: {name} must have one value for each of x's {x.shape[1]} channels, not {tuple(value.shape)}"
            )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"{_OP}: residual must have x's shape, {tuple(x.shape)}, not {tuple(residual.shape)}")
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{_OP}: give both running_mean and running_var, or neither")
    if not training and running_mean is None:
        raise ValueError(f"{_OP}: running_mean and running_var are needed where training is false")
    if not eps > 0:
        raise ValueError(f"{_OP}: eps must be above 0, not {eps}")


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
        mask = None
        if mean is None:
            plain = backend.unobserved(x, weight, bias, residual, running_mean, running_var)
            forward = _forward if plain else torch.ops.psp_fast.batch_norm_forward
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
            _in_type(sums[1], weight.dtype) if need_weight else None,
            _in_type(sums[0], bias.dtype) if need_bias else None,
            _in_type(g if masked else dy, ctx.residual_dtype) if need_residual else None,
            *[None] * 9,
        )


def _in_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), without the call where it would do nothing."""
    return x if x.dtype == dtype else x.to(dtype)


_PARAMETERS = "Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias"
torch.library.define("psp_fast::batch_norm_statistics", "(Tensor x) -> Tensor")
torch.library.define("psp_fast::batch_norm_apply", f"(Tensor x, {_PARAMETERS}, Tensor? residual, bool relu) -> Tensor")
torch.library.define(
    "psp_fast::batch_norm_forward",
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "float momentum, float eps, bool relu) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "psp_fast::batch_norm_backward_sums", f"(Tensor dy, Tensor x, Tensor? y, {_PARAMETERS}, bool relu) -> Tensor"
)
torch.library.define(
    "psp_fast::batch_norm_backward_input",
    f"(Tensor dy, Tensor x, Tensor? y, {_PARAMETERS}, Tensor? means, bool relu, bool residual) -> (Tensor, Tensor)",
)
torch.library.define(
    "psp_fast::batch_norm_backward",
    f"(Tensor dy, Tensor x, Tensor? y, {_PARAMETERS}, bool relu, bool residual) -> (Tensor, Tensor, Tensor)",
)


def _statistics(x: Tensor) -> Tensor:
    stats = _empty_statistics(x)
    _run("statistics", x, False, stats=stats)
    return stats


@torch.library.register_fake("psp_fast::batch_norm_statistics")
def _empty_statistics(x: Tensor) -> Tensor:
    return torch.empty((2, x.shape[1]), dtype=_statistics_dtype(x), device=x.device)


def _apply(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    y = _empty_output(x, mean, invstd, weight, bias, residual, relu)
    _run("apply", x, relu, y=y, residual=residual, mean=mean, invstd=invstd, weight=weight, bias=bias)
    return y


@torch.library.register_fake("psp_fast::batch_norm_apply")
def _empty_output(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=_format(x))


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, mean, invstd, mask = _empty_forward(x, weight, bias, residual, running_mean, running_var, momentum, eps, relu)
    vectors = {"mean": mean, "invstd": invstd, "weight": weight, "bias": bias}
    running = {"running_mean": running_mean, "running_var": running_var}
    numbers = {"momentum": momentum, "eps": eps}
    _run(
        "forward",
        x,
        relu,
        numbers,
        y=y,
        residual=residual,
        mask=mask if mask.numel() > 0 else None,
        **vectors,
        **running,
    )
    # Who keeps something made of the running statistics sees that they have changed.
    torch.autograd.graph.increment_version([t for t in running.values() if t is not None])
    return y, mean, invstd, mask


@torch.library.register_fake("psp_fast::batch_norm_forward")
def _empty_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    relu = rest[-1]
    vector = torch.empty(x.shape[1], dtype=_statistics_dtype(x), device=x.device)
    y, mask = torch.empty_like(x, memory_format=_format(x)), _empty_mask(x, relu and residual is not None)
    return y, vector, torch.empty_like(vector), mask


def _empty_mask(x: Tensor, wanted: bool) -> Tensor:
    """For where ReLU is active, as csrc/cpu has it: words of 16 bits, each plane's or each pixel's after another's."""
    shape = _mask_shape(x, _channels_last(x)) if wanted and backend.choose(_OP, x) == "csrc/cpu" else (0, 0)
    return torch.empty(shape, dtype=torch.int16, device=x.device)


def _mask_shape(x: Tensor, channels_last: bool) -> tuple[int, int]:
    """(pixels, words) of channels_last maps, else (planes, words); never the same, so that a mask tells its layout."""
    n, c, height, width = x.shape
    if channels_last:
        return n * height * width, -(-c // _LANES)
    return n * c, -(-height * width // _LANES) + 1


def _backward_sums(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    relu: bool,
) -> Tensor:
    sums = _empty_statistics(x)
    _run("backward_sums", x, relu, dy=dy, y=y, mean=mean, invstd=invstd, weight=weight, bias=bias, sums=sums)
    return sums


@torch.library.register_fake("psp_fast::batch_norm_backward_sums")
def _empty_sums(dy: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return _empty_statistics(x)


def _backward_input(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    means: Tensor | None,
    relu: bool,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    dx, g = _empty_gradients(x, y, residual)
    vectors = {"mean": mean, "invstd": invstd, "weight": weight, "bias": bias, "means": means}
    _run("backward_input", x, relu, dy=dy, y=y, dx=dx, g=g if residual else None, **vectors)
    return dx, g


@torch.library.register_fake("psp_fast::batch_norm_backward_input")
def _empty_input(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    means: Tensor | None,
    relu: bool,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_gradients(x, y, residual)


def _empty_gradients(x: Tensor, y: Tensor | None, residual: bool) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=_format(x, y))
    return dx, torch.empty_like(dx) if residual else dx.new_empty(0)


def _backward(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    relu: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, g = _empty_gradients(x, y, residual)
    sums = _empty_statistics(x)
    vectors = {"mean": mean, "invstd": invstd, "weight": weight, "bias": bias, "sums": sums}
    _run("backward", x, relu, dy=dy, y=y, dx=dx, g=g if residual else None, **vectors)
    return dx, g, sums


@torch.library.register_fake("psp_fast::batch_norm_backward")
def _empty_backward(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    relu: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return *_empty_gradients(x, y, residual), _empty_statistics(x)


def _channels_last(x: Tensor, y: Tensor | None = None) -> bool:
    """Whether what is computed from x is channels_last; a slice of a channels_last map counts as channels_last.

    With a mask in place of y, whether that is one of channels_last maps: what was saved with it may have been copied.
    """
    if y is not None and y.dtype == torch.int16:
        return tuple(y.shape) == _mask_shape(x, True)
    return not x.is_contiguous() and x.stride(1) == 1 and x.shape[1] > 1


def _format(x: Tensor, y: Tensor | None = None) -> torch.memory_format:
    return torch.channels_last if _channels_last(x, y) else torch.contiguous_format


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _dense(x: Tensor, layout: torch.memory_format, **arrays: Tensor | None) -> dict[str, Tensor]:
    """x and the arrays that are not None: maps in x's type and the layout, the others in the type of statistics."""
    given = {"x": x, **{name: array for name, array in arrays.items() if array is not None}}
    return {name: _dense_array(name, array, x, layout) for name, array in given.items()}


def _dense_array(name: str, array: Tensor, x: Tensor, layout: torch.memory_format) -> Tensor:
    """The array itself where it is as it should be: each call that copies nothing still takes a microsecond."""
    maps = array.dim() == 4
    shapes: list[tuple[int, ...]]
    if name == "mask":
        shapes, dtype = [_mask_shape(x, layout == torch.channels_last)], torch.int16
    elif maps:
        shapes, dtype = [x.shape], x.dtype
    else:
        shapes, dtype = [(x.shape[1],), (2, x.shape[1])], _statistics_dtype(x)
    if array.shape not in shapes:
        raise ValueError(f"{_OP}: {name} of shape {tuple(array.shape)} does not fit x of shape {tuple(x.shape)}")
    wanted = layout if maps else torch.contiguous_format
    if array.dtype == dtype and array.is_contiguous(memory_format=wanted):
        return array
    return _in_type(array, dtype).contiguous(memory_format=wanted)


def _run(
    kernel: str, x: Tensor, relu: bool, numbers: Mapping[str, float] = MappingProxyType({}), /, **arrays: Tensor | None
) -> None:
    """Run one kernel on x and the arrays and numbers it takes, whose names are those of BatchNormArgs."""
    y = arrays.get("y")
    channels_last, implementation = _channels_last(x, y), backend.choose(_OP, x)
    if y is not None and y.dtype == torch.int16:
        arrays = {**arrays, "mask": y, "y": None}
    given = _dense(x, _format(x, y), **arrays)
    if implementation == "csrc/cuda":
        sync_batch_norm_relu_cuda.run(kernel, channels_last, relu, given, **numbers)
    elif x.is_cuda or implementation == "triton":
        from psp_fast.kernels import sync_batch_norm_relu as kernels

        getattr(kernels, kernel)(channels_last, relu, **given)
    elif x.dtype not in _CPU_DTYPES:
        raise TypeError(f"{_OP}: no CPU kernel for {x.dtype}: convert x to float32")
    else:
        n, c, height, width = x.shape
        getattr(backend.native(), f"batch_norm_{kernel}_cpu")(
            str(x.dtype).removeprefix("torch."),
            channels_last,
            relu,
            (n, c, height * width),
            torch.get_num_threads(),
            **{name: array.data_ptr() for name, array in given.items()},
            **numbers,
        )


for _name, _implementation in (
    ("statistics", _statistics),
    ("apply", _apply),
    ("forward", _forward),
    ("backward_sums", _backward_sums),
    ("backward_input", _backward_input),
    ("backward", _backward),
):
    torch.library.impl(f"psp_fast::batch_norm_{_name}", _DEVICES, _implementation)
