"""Launchers of the CUDA C++ kernels of batch norm (csrc/cuda/sync_batch_norm_relu.h says what each computes)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from psp_fast.ops import backend


def statistics(x: Tensor) -> Tensor:
    """(2, C): mean and sum of squared deviations from it."""
    x = _dense(x)
    result = _per_channel(x)
    _call("statistics", x, x, _scratch(x), result)
    return result


def apply(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """relu(batch_norm(x) + residual), like x."""
    x = _dense(x)
    y = torch.empty_like(x)
    _call("apply", x, _addresses(mean, invstd, weight, bias), relu, x, _like(x, residual), y)
    return y


def backward_sums(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    relu: bool,
) -> Tensor:
    """(2, C): sums of g and of g * normalised x, where g is dy where the ReLU let pass."""
    x = _dense(x)
    sums = _per_channel(x)
    channels = _addresses(mean, invstd, weight, bias)
    _call("backward_sums", x, channels, relu, _like(x, dy), x, _like(x, y), _scratch(x), sums)
    return sums


def backward_input(
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
    """The gradient of x, and of a residual where there was one, else an empty tensor."""
    x = _dense(x)
    dx, g = torch.empty_like(x), _residual_gradient(x, residual)
    channels = _addresses(mean, invstd, weight, bias)
    _call("backward_input", x, channels, relu, _like(x, dy), x, _like(x, y), means, dx, g if residual else None)
    return dx, g


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    residual: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Training on one process: y, mean and invstd; updates the running statistics. One read of x where it fits."""
    x = _dense(x)
    y, mean, invstd = torch.empty_like(x), *_per_channel(x)
    batch = _addresses(mean, invstd, running_mean, running_var)
    _call("forward", x, batch, momentum, eps, weight, bias, relu, x, _like(x, residual), y, _scratch(x))
    return y, mean, invstd


def backward(
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
    """Training on one process: `backward_sums` and both results of `backward_input`, from one read where it fits."""
    x = _dense(x)
    sums, dx, g = _per_channel(x), torch.empty_like(x), _residual_gradient(x, residual)
    channels = _addresses(mean, invstd, weight, bias)
    maps = (_like(x, dy), x, _like(x, y))
    _call("backward", x, channels, relu, *maps, sums, dx, g if residual else None, _scratch(x))
    return sums, dx, g


def _channels_last(x: Tensor) -> bool:
    return x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last)


def _dense(x: Tensor) -> Tensor:
    """x, or a copy, without gaps: channels_last where channels lie side by side, else NCHW."""
    channels_last = x.stride(1) == 1 and not x.is_contiguous()
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _like(x: Tensor, other: Tensor | None) -> Tensor | None:
    """other in the layout of the dense x."""
    memory_format = torch.channels_last if _channels_last(x) else torch.contiguous_format
    return None if other is None else other.contiguous(memory_format=memory_format)


def _per_channel(x: Tensor) -> Tensor:
    return torch.empty((2, x.shape[1]), dtype=torch.float32, device=x.device)


def _residual_gradient(x: Tensor, wanted: bool) -> Tensor:
    return torch.empty_like(x) if wanted else x.new_empty(0)


def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)


def _scratch(x: Tensor) -> Tensor:
    with torch.cuda.device_of(x):
        return torch.empty(_plan_of(x).scratch, dtype=torch.float32, device=x.device)


def _plan_of(x: Tensor) -> Any:
    return _plan(str(x.dtype).removeprefix("torch."), _channels_last(x), tuple(x.shape), x.device)


@lru_cache(maxsize=256)
def _plan(dtype: str, channels_last: bool, shape: tuple[int, ...], device: torch.device) -> Any:
    """How the kernels share out such a map on this device, which is the current one."""
    return backend.native().BatchNormPlanCuda(dtype, channels_last, shape)


def _call(name: str, x: Tensor, *arguments: Any) -> None:
    """Queue a kernel for x on its device's current stream; tensors cross as their addresses, None as 0."""
    plain = [_addresses(a)[0] if a is None or isinstance(a, Tensor) else a for a in arguments]
    with torch.cuda.device_of(x):
        getattr(backend.native(), f"batch_norm_{name}_cuda")(_plan_of(x), *plain, _stream(x))


def _stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream
