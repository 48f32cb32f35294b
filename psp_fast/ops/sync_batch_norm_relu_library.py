"""The kernels of `sync_batch_norm_relu` as ops of torch.library: their arguments, their fakes, and who runs them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from psp_fast.kernels import sync_batch_norm_relu_cuda
from psp_fast.ops import backend

OP = "sync_batch_norm_relu"
_DEVICES = ("cpu", "cuda")
_LANES = 16  # of the CPU kernels' vectors
_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
backend.register(OP, "cpu", backend.Kernel("csrc/cpu", _CPU_DTYPES, backend.missing_native))
backend.register(OP, "cuda", backend.Kernel("csrc/cuda", _CUDA_DTYPES, backend.missing_cuda))
backend.register(OP, "cuda", backend.Kernel("triton", _CUDA_DTYPES, backend.missing_triton))


_MAPS = ("x", "dy", "residual", "y", "dx", "g")  # arrays of x's shape; other arrays have a value a channel
_PAIRS = ("stats", "sums", "means")  # arrays of two values a channel
_UPDATED = ("running_mean", "running_var")
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
    return torch.empty((2, x.shape[1]), dtype=statistics_dtype(x), device=x.device)


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


def apply_in_place(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """A frozen layer of x, a dense map that nobody else has, in its memory."""
    kept = statistics_dtype(x)
    vectors = {"mean": running_mean.to(kept), "invstd": (running_var.to(kept) + eps).rsqrt()}
    _run("apply", x, relu, y=x, residual=residual, weight=weight, bias=bias, **vectors)
    return x


@torch.library.register_fake("psp_fast::batch_norm_apply")
def _empty_output(x: Tensor, *rest: Any) -> Tensor:
    _check_devices(x, *rest)
    return torch.empty_like(x, memory_format=_format(x))


def forward(
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
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{OP}: give both running_mean and running_var, or neither")
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
    _check_devices(x, weight, bias, residual, *rest)
    relu = rest[-1]
    vector = torch.empty(x.shape[1], dtype=statistics_dtype(x), device=x.device)
    y, mask = torch.empty_like(x, memory_format=_format(x)), _empty_mask(x, relu and residual is not None)
    return y, vector, torch.empty_like(vector), mask


def _empty_mask(x: Tensor, wanted: bool) -> Tensor:
    """For where ReLU is active, as csrc/cpu has it: words of 16 bits, each plane's or each pixel's after another's."""
    shape = _mask_shape(x, _channels_last(x)) if wanted and backend.choose(OP, x) == "csrc/cpu" else (0, 0)
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
    _check_devices(x, dy, *rest)
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
def _empty_input(dy: Tensor, x: Tensor, y: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    _check_devices(x, dy, y, *rest)
    return _empty_gradients(x, y, rest[-1])


def _empty_gradients(x: Tensor, y: Tensor | None, residual: bool) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=_format(x, y))
    return dx, torch.empty_like(dx) if residual else dx.new_empty(0)


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
    dx, g = _empty_gradients(x, y, residual)
    sums = _empty_statistics(x)
    vectors = {"mean": mean, "invstd": invstd, "weight": weight, "bias": bias, "sums": sums}
    _run("backward", x, relu, dy=dy, y=y, dx=dx, g=g if residual else None, **vectors)
    return dx, g, sums


@torch.library.register_fake("psp_fast::batch_norm_backward")
def _empty_backward(dy: Tensor, x: Tensor, y: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(x, dy, y, *rest)
    return *_empty_gradients(x, y, rest[-1]), _empty_statistics(x)


def _check_devices(x: Tensor, *arguments: Any) -> None:
    for argument in arguments:
        if isinstance(argument, Tensor) and argument.device != x.device:
            raise ValueError(f"{OP}: all tensors must be on x's device, {x.device}, not on {argument.device}")


def _channels_last(x: Tensor, y: Tensor | None = None) -> bool:
    """Whether what is computed from x is channels_last; a slice of a channels_last map counts as channels_last.

    With a mask in place of y, whether that is one of channels_last maps: what was saved with it may have been copied.
    """
    if y is not None and y.dtype == torch.int16:
        return tuple(y.shape) == _mask_shape(x, True)
    return not x.is_contiguous() and x.stride(1) == 1 and x.shape[1] > 1


def _format(x: Tensor, y: Tensor | None = None) -> torch.memory_format:
    return torch.channels_last if _channels_last(x, y) else torch.contiguous_format


def statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _dense(x: Tensor, layout: torch.memory_format, **arrays: Tensor | None) -> dict[str, Tensor]:
    """x and the arrays that are not None: maps in x's type and the layout, the others in the type of statistics.

    An array that is so already is not touched: each call that copies nothing still takes a microsecond.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"{OP}: x must be float (N, C, H, W), not {x.dtype} {tuple(x.shape)}")
    _check_devices(x, *arrays.values())
    shape, kept, given = x.shape, statistics_dtype(x), {}
    for name, array in {"x": x, **arrays}.items():
        if array is None:
            continue
        wanted_shape: tuple[int, ...] = shape[1:2]
        dtype, wanted = kept, torch.contiguous_format
        if name in _MAPS:
            wanted_shape, dtype, wanted = shape, x.dtype, layout
        elif name in _PAIRS:
            wanted_shape = (2, shape[1])
        elif name == "mask":
            wanted_shape, dtype = _mask_shape(x, layout == torch.channels_last), torch.int16
        if array.shape != wanted_shape:
            raise ValueError(f"{OP}: {name} of shape {tuple(array.shape)} does not fit x of shape {tuple(shape)}")
        if array.dtype != dtype or not array.is_contiguous(memory_format=wanted):
            if name in _UPDATED:
                raise ValueError(f"{OP}: {name} must be contiguous, of {kept}: it is updated in place")
            array = in_type(array, dtype).contiguous(memory_format=wanted)
        given[name] = array
    return given


def _run(
    kernel: str, x: Tensor, relu: bool, numbers: Mapping[str, float] = MappingProxyType({}), /, **arrays: Tensor | None
) -> None:
    """Run one kernel on x and the arrays and numbers it takes, whose names are those of BatchNormArgs."""
    y = arrays.get("y")
    channels_last, implementation = _channels_last(x, y), backend.choose(OP, x)
    if y is not None and y.dtype == torch.int16:
        arrays = {**arrays, "mask": y, "y": None}
    given = _dense(x, _format(x, y), **arrays)
    if implementation == "csrc/cuda":
        sync_batch_norm_relu_cuda.run(kernel, channels_last, relu, given, **numbers)
    elif x.is_cuda or implementation == "triton":
        from psp_fast.kernels import sync_batch_norm_relu as kernels

        getattr(kernels, kernel)(channels_last, relu, **given)
    elif x.dtype not in _CPU_DTYPES:
        raise TypeError(f"{OP}: no CPU kernel for {x.dtype}: convert x to float32")
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
    ("forward", forward),
    ("backward_sums", _backward_sums),
    ("backward_input", _backward_input),
    ("backward", backward),
):
    torch.library.impl(f"psp_fast::batch_norm_{_name}", _DEVICES, _implementation)


def in_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), without the call where it would do nothing."""
    return x if x.dtype == dtype else x.to(dtype)
