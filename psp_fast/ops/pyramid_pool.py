"""Adaptive pooling of a map to every level of the pyramid in one read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from psp_fast.kernels.tables import device_tables
from psp_fast.ops import backend, reference
from psp_fast.ops.arguments import check_given, whole_numbers
from psp_fast.ops.derivatives import as_forward, first_order

_DEVICES = ("cpu", "cuda")
_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
backend.register("pyramid_pool", "cpu", backend.Kernel("csrc/cpu", _CPU_DTYPES, backend.missing_native))
backend.register("pyramid_pool", "cuda", backend.Kernel("csrc/cuda", _CUDA_DTYPES, backend.missing_cuda))
backend.register("pyramid_pool", "cuda", backend.Kernel("triton", _CUDA_DTYPES, backend.missing_triton))


def pyramid_pool(x: Tensor, bins: Sequence[int] = (1, 2, 3, 6), mode: str = "avg") -> tuple[Tensor, ...]:
    """Adaptive average ("avg") or maximum ("max") pooling of x to b x b cells, for every b in bins.

    Args:
        x: (N, C, H, W), float, H and W at least 1, any strides. Sums are kept in at least 32 bits.
        bins: one positive number a level, an int or NumPy's; windows overlap where it does not divide a side, as in
            adaptive pooling.
        mode: "avg" or "max".

    Returns:
        One (N, C, b, b) tensor a level, of x's type, channels_last where x is.

    Raises:
        TypeError, ValueError: an argument is not as above.
        PspFastError: the compiled module is missing or broken.
    """
    levels = _checked(x, bins, mode)
    if backend.choose("pyramid_pool", x) == "reference":
        return reference.pyramid_pool(x, levels, mode)
    return _PyramidPool.apply(x, levels, mode)


def _checked(x: Tensor, bins: Sequence[int], mode: str) -> tuple[int, ...]:
    if not isinstance(x, Tensor):
        raise TypeError(f"pyramid_pool: x must be a tensor, not {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"pyramid_pool: x must have a float type, not {x.dtype}")
    if x.dim() != 4 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"pyramid_pool: x must be (N, C, H, W) with H and W at least 1, not {tuple(x.shape)}")
    if x.shape[2] * x.shape[3] >= 2**31:
        raise ValueError(f"pyramid_pool: x may have at most 2**31 - 1 pixels, not {x.shape[2]} x {x.shape[3]}")
    if mode not in ("avg", "max"):
        raise ValueError(f"pyramid_pool: mode must be 'avg' or 'max', not {mode!r}")
    levels = whole_numbers(bins)
    if not levels or min(levels) < 1:
        raise ValueError(f"pyramid_pool: bins must be positive whole numbers, at least one, not {bins!r}")
    return levels


class _PyramidPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bins: tuple[int, ...], mode: str) -> tuple[Tensor, ...]:
        ctx.setting = backend.current_setting()
        outputs, indices = torch.ops.psp_fast.pyramid_pool(x, bins, mode)
        ctx.save_for_backward(*indices)
        ctx.size = x.shape[2:]
        ctx.channels_last = _channels_last(x)
        return tuple(outputs)

    @staticmethod
    @first_order("pyramid_pool")
    @as_forward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        height, width = ctx.size
        dx = torch.ops.psp_fast.pyramid_pool_backward(grads, ctx.saved_tensors, height, width, ctx.channels_last)
        return dx, None, None


torch.library.define("psp_fast::pyramid_pool", "(Tensor x, int[] bins, str mode) -> (Tensor[], Tensor[])")
torch.library.define(
    "psp_fast::pyramid_pool_backward",
    "(Tensor[] grads, Tensor[] indices, SymInt height, SymInt width, bool channels_last) -> Tensor",
)


def _forward(x: Tensor, bins: Sequence[int], mode: str) -> tuple[list[Tensor], list[Tensor]]:
    outputs, indices = _empty_levels(x, bins, mode)
    if x.numel() == 0:
        return outputs, indices
    channels_last = _channels_last(x)
    readable = x if channels_last or x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()
    _run("forward", readable, channels_last, outputs, indices)
    return outputs, indices


@torch.library.register_fake("psp_fast::pyramid_pool")
def _empty_levels(x: Tensor, bins: Sequence[int], mode: str) -> tuple[list[Tensor], list[Tensor]]:
    """Uninitialised outputs in x's memory format, and for "max" the indices of the maxima (h * W + w)."""
    _checked(x, bins, mode)
    n, c = x.shape[:2]
    memory_format = _format(_channels_last(x))
    outputs = [torch.empty((n, c, b, b), dtype=x.dtype, device=x.device, memory_format=memory_format) for b in bins]
    return outputs, [torch.empty_like(y, dtype=torch.int32) for y in outputs] if mode == "max" else []


def _backward(
    grads: Sequence[Tensor], indices: Sequence[Tensor], height: int, width: int, channels_last: bool
) -> Tensor:
    dx = _empty_gradient(grads, indices, height, width, channels_last)
    if dx.numel() == 0:
        return dx
    _check_indices(indices, height * width)
    dense = [grad.contiguous(memory_format=_format(channels_last)) for grad in grads]
    indices = [index.contiguous(memory_format=_format(channels_last)) for index in indices]
    _run("backward", dx, channels_last, dense, indices)
    return dx


@torch.library.register_fake("psp_fast::pyramid_pool_backward")
def _empty_gradient(
    grads: Sequence[Tensor], indices: Sequence[Tensor], height: int, width: int, channels_last: bool
) -> Tensor:
    """The uninitialised gradient of x."""
    if not grads or grads[0].dim() < 2 or not grads[0].is_floating_point():
        raise ValueError("pyramid_pool: grads must hold a float gradient (N, C, b, b) for each level, at least one")
    if len(indices) not in (0, len(grads)):
        raise ValueError(f"pyramid_pool: indices must be as many as grads, {len(grads)}, or none, not {len(indices)}")
    if min(height, width) < 1 or height * width >= 2**31:
        raise ValueError(f"pyramid_pool: height and width must be 1 to 2**31 - 1 pixels, not {height} x {width}")
    n, c = grads[0].shape[:2]
    for i, grad in enumerate(grads):
        if grad.dim() != 4 or grad.shape[2] != grad.shape[3] or grad.shape[2] < 1:
            raise ValueError(f"pyramid_pool: grads[{i}] must be (N, C, b, b), not {tuple(grad.shape)}")
        check_given("pyramid_pool", f"grads[{i}]", grad, grads[0], (n, c, *grad.shape[2:]), grads[0].dtype)
    for i, (index, grad) in enumerate(zip(indices, grads, strict=False)):
        check_given("pyramid_pool", f"indices[{i}]", index, grad, grad.shape, torch.int32)
    return torch.empty(
        (n, c, height, width), dtype=grads[0].dtype, device=grads[0].device, memory_format=_format(channels_last)
    )


def _check_indices(indices: Sequence[Tensor], pixels: int) -> None:
    """Raise where a maximum is outside the map: the CPU kernel would write there. On CUDA the kernels only compare."""
    for i, index in enumerate(indices):
        if not index.is_cuda and index.numel() > 0:
            low, high = (int(end) for end in index.aminmax())
            if low < 0 or high >= pixels:
                raise ValueError(f"pyramid_pool: indices[{i}] must be 0 to {pixels - 1}, not {low} to {high}")


def _channels_last(x: Tensor) -> bool:
    """Whether x's channels lie side by side in memory; a slice of a channels_last map counts as channels_last."""
    return not x.is_contiguous() and x.stride(1) == 1 and x.shape[1] > 1


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _run(
    direction: str, pixels: Tensor, channels_last: bool, levels: Sequence[Tensor], indices: Sequence[Tensor]
) -> None:
    """Run "forward", from pixels (N, C, H, W) to dense levels, or "backward", from levels to pixels."""
    implementation = backend.choose("pyramid_pool", pixels)
    if implementation == "csrc/cuda":
        _run_cuda(direction, pixels, channels_last, levels, indices)
    elif implementation == "triton" or pixels.is_cuda:
        _run_triton(direction, pixels, levels, indices)
    else:
        arguments = _arguments(pixels, channels_last, levels, indices)
        getattr(backend.native(), f"pyramid_pool_{direction}_cpu")(*arguments, torch.get_num_threads())


def _arguments(
    pixels: Tensor, channels_last: bool, levels: Sequence[Tensor], indices: Sequence[Tensor]
) -> tuple[Any, ...]:
    """What every C++ kernel is told."""
    return (
        str(pixels.dtype).removeprefix("torch."),
        len(indices) > 0,
        channels_last,
        pixels.data_ptr(),
        tuple(pixels.shape),
        pixels.stride(),
        [level.shape[2] for level in levels],
        [level.data_ptr() for level in levels],
        [index.data_ptr() for index in indices],
    )


def _run_triton(direction: str, pixels: Tensor, levels: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
    from psp_fast.kernels import pyramid_pool as kernels

    getattr(kernels, direction)(pixels, levels, indices)


def _run_cuda(
    direction: str, pixels: Tensor, channels_last: bool, levels: Sequence[Tensor], indices: Sequence[Tensor]
) -> None:
    n, c, height, width = pixels.shape
    plan, rectangles = _cuda_plan(height, width, tuple(level.shape[2] for level in levels), pixels.device)
    values = torch.empty((n, c, rectangles), dtype=torch.float32, device=pixels.device)
    places = torch.empty_like(values, dtype=torch.int32)
    with torch.cuda.device(pixels.device):
        stream = torch.cuda.current_stream().cuda_stream
        kernel = getattr(backend.native(), f"pyramid_pool_{direction}_cuda")
        arguments = _arguments(pixels, channels_last, levels, indices)
        kernel(*arguments, plan.data_ptr(), values.data_ptr(), places.data_ptr(), stream)


@device_tables(64)
def _cuda_plan(height: int, width: int, bins: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """How a map of this size is cut, in the device's memory, and the number of its elementary rectangles."""
    numbers, rectangles = backend.native().pyramid_plan(height, width, bins)
    return torch.tensor(numbers, dtype=torch.int32, device=device), rectangles


torch.library.impl("psp_fast::pyramid_pool", _DEVICES, _forward)
torch.library.impl("psp_fast::pyramid_pool_backward", _DEVICES, _backward)
