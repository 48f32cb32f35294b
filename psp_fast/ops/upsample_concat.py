"""Concatenation of a map with the bilinearly upsampled levels of its pyramid, written once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from psp_fast.ops import backend, reference
from psp_fast.ops.arguments import check_given
from psp_fast.ops.derivatives import as_forward, first_order

_DEVICES = ("cpu", "cuda")
_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
backend.register("upsample_concat", "cpu", backend.Kernel("csrc/cpu", _CPU_DTYPES, backend.missing_native))
backend.register("upsample_concat", "cuda", backend.Kernel("triton", _CUDA_DTYPES, backend.missing_triton))


def upsample_concat(x: Tensor, pyramid: Sequence[Tensor], align_corners: bool = True) -> Tensor:
    """x and every level of its pyramid, upsampled bilinearly to x's height and width, side by side.

    Args:
        x: (N, C, H, W), float, H and W at least 1, any strides.
        pyramid: tensors (N, C_b, h, w) on x's device, any number, channels and sides, any strides. Where types differ,
            as they may under autocast, all become the widest, as in torch.cat.
        align_corners: as in torch.nn.functional.interpolate.

    Returns:
        (N, C + sum C_b, H, W), channels_last where x is.

    Raises:
        TypeError, ValueError: an argument is not as above.
        PspFastError: the compiled module is missing or broken.
    """
    levels = checked_pyramid("upsample_concat", x, pyramid)
    dtype = reduce(torch.promote_types, (level.dtype for level in levels), x.dtype)
    x, levels = x.to(dtype), [level.to(dtype) for level in levels]
    if backend.choose("upsample_concat", x) == "reference":
        return reference.upsample_concat(x, levels, align_corners)
    return _UpsampleConcat.apply(x, align_corners, *levels)


def checked_pyramid(op: str, x: Tensor, pyramid: Sequence[Tensor]) -> list[Tensor]:
    """The levels as a list; raises TypeError or ValueError where they or x are not what `op` takes."""
    if isinstance(pyramid, Tensor) or not isinstance(pyramid, Sequence):
        raise TypeError(f"{op}: pyramid must be a list or tuple of tensors, not {type(pyramid).__name__}")
    names = ["x", *(f"pyramid[{i}]" for i in range(len(pyramid)))]
    for name, tensor in zip(names, (x, *pyramid), strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, not {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must have a float type, not {tensor.dtype}")
        if tensor.dim() != 4 or min(tensor.shape[1:]) < 1:
            shape = tuple(tensor.shape)
            raise ValueError(f"{op}: {name} must be (N, C, H, W) with C, H and W at least 1, not {shape}")
        if tensor.device != x.device:
            raise ValueError(f"{op}: {name} must be on x's device, {x.device}, not on {tensor.device}")
        if tensor.shape[0] != x.shape[0]:
            raise ValueError(f"{op}: {name} must have x's batch size, {x.shape[0]}, not {tensor.shape[0]}")
    return list(pyramid)


class _UpsampleConcat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, align_corners: bool, *levels: Tensor) -> Tensor:
        ctx.setting = backend.current_setting()
        ctx.align_corners = align_corners
        ctx.channels = x.shape[1]
        ctx.sizes = [level.shape[1:] for level in levels]
        return torch.ops.psp_fast.upsample_concat(x, levels, align_corners)

    @staticmethod
    @first_order("upsample_concat")
    @as_forward
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = dy[:, : ctx.channels] if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[2:]):
            return dx, None, *(None for _ in ctx.sizes)
        sizes = [side for size in ctx.sizes for side in size]
        return dx, None, *torch.ops.psp_fast.upsample_concat_backward(dy, ctx.channels, sizes, ctx.align_corners)


torch.library.define("psp_fast::upsample_concat", "(Tensor x, Tensor[] pyramid, bool align_corners) -> Tensor")
torch.library.define(
    "psp_fast::upsample_concat_backward",
    "(Tensor dy, SymInt channels, SymInt[] sizes, bool align_corners) -> Tensor[]",
)


def _forward(x: Tensor, pyramid: Sequence[Tensor], align_corners: bool) -> Tensor:
    out = _empty_output(x, pyramid, align_corners)
    if out.numel() == 0:
        return out
    channels_last = is_channels_last(x)
    levels = [level.contiguous(memory_format=memory_format(channels_last)) for level in pyramid]
    if backend.runs_triton("upsample_concat", x):
        _kernels().forward(x, levels, out, align_corners)
    else:
        _run_cpu("forward", x.shape, _with_dense_lines(x, channels_last), out, channels_last, levels, align_corners)
    return out


@torch.library.register_fake("psp_fast::upsample_concat")
def _empty_output(x: Tensor, pyramid: Sequence[Tensor], align_corners: bool) -> Tensor:
    """The uninitialised output, in x's memory format."""
    checked_pyramid("upsample_concat", x, pyramid)
    for i, level in enumerate(pyramid):
        check_given("upsample_concat", f"pyramid[{i}]", level, x, level.shape, x.dtype)
    n, c, height, width = x.shape
    size = (n, c + sum(level.shape[1] for level in pyramid), height, width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(is_channels_last(x)))


def _backward(dy: Tensor, channels: int, sizes: Sequence[int], align_corners: bool) -> list[Tensor]:
    gradients = _empty_gradients(dy, channels, sizes, align_corners)
    if dy.shape[0] == 0:
        return gradients
    channels_last = is_channels_last(dy)
    if backend.runs_triton("upsample_concat", dy):
        _kernels().backward(dy, channels, gradients, align_corners)
    else:
        x_shape = (dy.shape[0], channels, *dy.shape[2:])
        dense = _with_dense_lines(dy, channels_last)
        _run_cpu("backward", x_shape, dense, dense, channels_last, gradients, align_corners)
    return gradients


@torch.library.register_fake("psp_fast::upsample_concat_backward")
def _empty_gradients(dy: Tensor, channels: int, sizes: Sequence[int], align_corners: bool) -> list[Tensor]:
    """The uninitialised gradients of the levels, whose channels, height and width `sizes` has one after the other."""
    if not dy.is_floating_point() or dy.dim() != 4 or min(dy.shape[1:]) < 1:
        raise ValueError(f"upsample_concat: dy must be float (N, C, H, W), not {dy.dtype} {tuple(dy.shape)}")
    if len(sizes) % 3 != 0 or min(channels, *sizes, 1) < 1 or channels + sum(sizes[::3]) != dy.shape[1]:
        raise ValueError(
            f"upsample_concat: channels and sizes must be at least 1 and add up to the {dy.shape[1]} channels of dy, "
            f"not {channels} and {tuple(sizes)}"
        )
    dense = memory_format(is_channels_last(dy))
    return [
        torch.empty((dy.shape[0], *sizes[i : i + 3]), dtype=dy.dtype, device=dy.device, memory_format=dense)
        for i in range(0, len(sizes), 3)
    ]


def is_channels_last(x: Tensor) -> bool:
    """Whether x's channels lie side by side in memory; a slice of a channels_last map counts as channels_last."""
    return not x.is_contiguous() and x.stride(1) == 1 and x.shape[1] > 1


def memory_format(channels_last: bool) -> torch.memory_format:
    """The dense format of a map."""
    return torch.channels_last if channels_last else torch.contiguous_format


def _with_dense_lines(x: Tensor, channels_last: bool) -> Tensor:
    """x itself where its lines (channels_last: pixels) are dense, as the CPU kernels need them, else a copy."""
    return x if channels_last or x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _run_cpu(
    direction: str,
    x_shape: Sequence[int],
    x: Tensor,
    out: Tensor,
    channels_last: bool,
    levels: Sequence[Tensor],
    align_corners: bool,
) -> None:
    """Run "forward", from x and levels to out, or "backward", from the gradient out to levels."""
    getattr(backend.native(), f"upsample_concat_{direction}_cpu")(
        str(out.dtype).removeprefix("torch."),
        channels_last,
        align_corners,
        tuple(x_shape),
        x.data_ptr(),
        x.stride(),
        out.data_ptr(),
        out.stride(),
        native_levels(levels),
        torch.get_num_threads(),
    )


def native_levels(levels: Sequence[Tensor]) -> list[tuple[int, int, int, int]]:
    """Dense levels as the CPU kernels take them: channels, height, width and address."""
    return [(level.shape[1], level.shape[2], level.shape[3], level.data_ptr()) for level in levels]


def _kernels() -> Any:
    from psp_fast.kernels import upsample_concat as kernels

    return kernels


torch.library.impl("psp_fast::upsample_concat", _DEVICES, _forward)
torch.library.impl("psp_fast::upsample_concat_backward", _DEVICES, _backward)
