"""3x3 convolution of a map and the upsampled levels of its pyramid, without upsampling them.

The convolution is linear and so is bilinear upsampling, separably: each level's share of the output is its few cells
times the weight's nine taps, contracted along x, then along y. What is saved for backward is the inputs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from psp_fast.ops import backend, reference
from psp_fast.ops.arguments import check_given
from psp_fast.ops.conv3x3 import backward_weight, convolution, convolution_backward, uses_winograd
from psp_fast.ops.derivatives import as_forward, first_order
from psp_fast.ops.upsample_concat import checked_pyramid, is_channels_last, memory_format, native_levels

_DEVICES = ("cpu", "cuda")
_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
backend.register("pyramid_conv3x3", "cpu", backend.Kernel("csrc/cpu", _CPU_DTYPES, backend.missing_native))
backend.register("pyramid_conv3x3", "cuda", backend.Kernel("triton", _CUDA_DTYPES, backend.missing_triton))


def pyramid_conv3x3(x: Tensor, pyramid: Sequence[Tensor], weight: Tensor, align_corners: bool = True) -> Tensor:
    """conv2d, padding 1, of `upsample_concat(x, pyramid)` with weight; neither upsampled maps nor concatenation exist.

    Args:
        x: (N, C, H, W), float, H and W at least 1, any strides.
        pyramid: tensors (N, C_b, h, w) on x's device, any number, channels and sides, any strides.
        weight: (O, C + sum C_b, 3, 3). Under autocast x is converted to autocast's type and the result has that type,
            while levels and weight may have any float type; else all have x's type. The levels' share is summed in at
            least 32 bits and rounded once.
        align_corners: as in torch.nn.functional.interpolate.

    Returns:
        (N, O, H, W), channels_last where x or weight is. Where the convolution of x runs Winograd's algorithm, a NaN or
        an infinity of x spreads over the 4x4 pixels of a tile, as in `conv3x3`.

    Raises:
        TypeError, ValueError: an argument is not as above.
        PspFastError: the compiled module is missing or broken.
    """
    x, levels, weight = _checked(x, pyramid, weight)
    if backend.choose("pyramid_conv3x3", x) == "reference":
        return reference.pyramid_conv3x3(x, levels, weight, align_corners)
    return _PyramidConv.apply(x, weight, align_corners, False, *levels)[0]


def gathers_statistics(x: Tensor) -> bool:
    """Whether `pyramid_conv3x3_statistics` of x saves the batch norm after it a pass: its fp32 is enough for x."""
    kernels = (backend.choose(op, x) for op in ("pyramid_conv3x3", "sync_batch_norm_relu"))
    return x.dtype != torch.float64 and "reference" not in kernels


def pyramid_conv3x3_statistics(
    x: Tensor, pyramid: Sequence[Tensor], weight: Tensor, align_corners: bool = True
) -> tuple[Tensor, Tensor]:
    """`pyramid_conv3x3`, and (2, O) in fp32: mean and sum of squared deviations of each channel of the result.

    They come from the pass that writes the result. They have no gradient: the backward of the batch norm that uses
    them accounts for them.
    """
    x, levels, weight = _checked(x, pyramid, weight)
    if backend.choose("pyramid_conv3x3", x) == "reference":
        out = reference.pyramid_conv3x3(x, levels, weight, align_corners)
        return out, _statistics_of(out.detach())
    return _PyramidConv.apply(x, weight, align_corners, True, *levels)


def _checked(x: Tensor, pyramid: Sequence[Tensor], weight: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """x in the type of the convolution, the levels, and the weight in that type or fp32, which the kernels take."""
    levels = _check_shapes(x, pyramid, weight)
    if backend.autocasts(x) and x.dtype != torch.float64:
        x = x.to(backend.compute_dtype(x))
        return x, levels, weight if weight.dtype in (x.dtype, torch.float32) else weight.float()
    for name, tensor in (("weight", weight), *((f"pyramid[{i}]", level) for i, level in enumerate(levels))):
        if tensor.dtype != x.dtype:
            raise TypeError(f"pyramid_conv3x3: {name} must have x's type, {x.dtype}, not {tensor.dtype}: convert it")
    return x, levels, weight


def _check_shapes(x: Tensor, pyramid: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """The levels; raises TypeError or ValueError where x, pyramid and weight do not fit together."""
    levels = checked_pyramid("pyramid_conv3x3", x, pyramid)
    if not isinstance(weight, Tensor):
        raise TypeError(f"pyramid_conv3x3: weight must be a tensor, not {type(weight).__name__}")
    if not weight.is_floating_point():
        raise TypeError(f"pyramid_conv3x3: weight must have a float type, not {weight.dtype}")
    if weight.device != x.device:
        raise ValueError(f"pyramid_conv3x3: weight must be on x's device, {x.device}, not on {weight.device}")
    channels = x.shape[1] + sum(level.shape[1] for level in levels)
    if weight.dim() != 4 or weight.shape[0] < 1 or weight.shape[1:] != (channels, 3, 3):
        raise ValueError(
            f"pyramid_conv3x3: weight must be (O, {channels}, 3, 3) for the channels of x and pyramid, "
            f"not {tuple(weight.shape)}"
        )
    return levels


def _check_kernels(x: Tensor, pyramid: Sequence[Tensor], weight: Tensor) -> None:
    """As `_check_shapes`, and what the kernels need of types."""
    _check_shapes(x, pyramid, weight)
    kinds = (x.dtype,) if x.dtype == torch.float64 else (x.dtype, torch.float32)
    if weight.dtype not in kinds:
        raise TypeError(f"pyramid_conv3x3: weight must have one of {kinds} for x of {x.dtype}, not {weight.dtype}")


def _statistics_of(out: Tensor) -> Tensor:
    values = reference.at_least_fp32(out)
    if out.shape[0] == 0:
        return out.new_zeros((2, out.shape[1]), dtype=torch.float32)
    mean = values.mean((0, 2, 3))
    return torch.stack([mean, (values - mean.view(-1, 1, 1)).square().sum((0, 2, 3))]).float()


class _PyramidConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, align_corners: bool, statistics: bool, *levels: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.setting = backend.current_setting()
        ctx.save_for_backward(x, weight, *levels)
        ctx.align_corners = align_corners
        out, stats = torch.ops.psp_fast.pyramid_conv3x3(x, levels, weight, align_corners, statistics)
        ctx.mark_non_differentiable(stats)
        return out, stats

    @staticmethod
    @first_order("pyramid_conv3x3")
    @as_forward
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *levels = ctx.saved_tensors
        need_x, need_weight, _, _, *need_levels = ctx.needs_input_grad
        mask = [need_x, need_weight, any(need_levels)]
        dx, dweight, dlevels = torch.ops.psp_fast.pyramid_conv3x3_backward(
            dy, x, levels, weight, ctx.align_corners, mask
        )
        return (
            dx if mask[0] else None,
            dweight if mask[1] else None,
            None,
            None,
            *(dlevels if mask[2] else [None] * len(levels)),
        )


torch.library.define(
    "psp_fast::pyramid_conv3x3",
    "(Tensor x, Tensor[] pyramid, Tensor weight, bool align_corners, bool statistics) -> (Tensor, Tensor)",
)
torch.library.define(
    "psp_fast::pyramid_conv3x3_backward",
    "(Tensor dy, Tensor x, Tensor[] pyramid, Tensor weight, bool align_corners, bool[] mask)"
    " -> (Tensor, Tensor, Tensor[])",
)


def _convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, dweight: Tensor | None, mask: Sequence[bool]
) -> Tensor | None:
    """The convolution of x alone: the gradient of x, and that of weight written to dweight, each where mask has it."""
    if dweight is None or not uses_winograd(x, weight, 1):
        dx, whole = convolution_backward(dy, x, weight, 1, mask)
        if dweight is not None and whole is not None:
            dweight.copy_(whole)
        return dx
    backward_weight(dy, x, 1, dweight)  # in its place within the gradient of the whole weight: no copy
    return convolution_backward(dy, x, weight, 1, [True, False])[0] if mask[0] else None


def _forward(
    x: Tensor, pyramid: Sequence[Tensor], weight: Tensor, align_corners: bool, statistics: bool
) -> tuple[Tensor, Tensor]:
    _check_kernels(x, pyramid, weight)
    channels = x.shape[1]
    stats = _empty_statistics(x, weight, statistics)
    if x.numel() == 0:
        return _empty_output(x, pyramid, weight, align_corners, statistics)[0], stats.zero_()
    levels = [_accumulated(level, x) for level in pyramid]
    # The types below are chosen here, whatever autocast would make of them.
    with torch.autocast(x.device.type, enabled=False):
        out = convolution(x, weight[:, :channels].to(x.dtype)).contiguous(memory_format=_output_format(x, weight))
        _run_forward(out, levels, weight[:, channels:], stats if statistics else None, align_corners)
    return out, stats


@torch.library.register_fake("psp_fast::pyramid_conv3x3")
def _empty_output(
    x: Tensor, pyramid: Sequence[Tensor], weight: Tensor, align_corners: bool, statistics: bool
) -> tuple[Tensor, Tensor]:
    """The uninitialised output and statistics."""
    _check_kernels(x, pyramid, weight)
    size = (x.shape[0], weight.shape[0], *x.shape[2:])
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=_output_format(x, weight))
    return out, _empty_statistics(x, weight, statistics)


def _empty_statistics(x: Tensor, weight: Tensor, statistics: bool) -> Tensor:
    return torch.empty((2, weight.shape[0] if statistics else 0), dtype=torch.float32, device=x.device)


def _output_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """As a convolution in PyTorch: channels_last where x or weight is."""
    return memory_format(is_channels_last(x) or is_channels_last(weight))


def _accumulated(level: Tensor, x: Tensor) -> Tensor:
    """A level, dense, in the type that sums are kept in."""
    return level.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()


def _backward(
    dy: Tensor,
    x: Tensor,
    pyramid: Sequence[Tensor],
    weight: Tensor,
    align_corners: bool,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    _check_gradient(dy, x, pyramid, weight, mask)
    if dy.numel() == 0:
        dx, dweight, dlevels = _empty_gradients(dy, x, pyramid, weight, align_corners, mask)
        return dx, dweight.zero_(), dlevels
    need_x, need_weight, need_levels = mask
    channels = x.shape[1]
    dx, dweight = x.new_empty(0), torch.empty_like(weight) if need_weight else weight.new_empty(0)
    levels = [_accumulated(level, x) for level in pyramid]
    sums = [torch.empty_like(level) for level in levels] if need_levels else []
    with torch.autocast(x.device.type, enabled=False):
        if need_x or need_weight:
            own = dweight[:, :channels] if need_weight else None
            conv_dx = _convolution_backward(dy, x, weight[:, :channels].to(x.dtype), own, mask[:2])
            dx = dx if conv_dx is None else conv_dx.contiguous(memory_format=_output_format(x, weight))
        if need_weight or need_levels:
            share = dweight[:, channels:] if need_weight else None
            _run_backward(dy, levels, weight[:, channels:], sums, share, align_corners)
    return dx, dweight, [total.to(level.dtype) for total, level in zip(sums, pyramid, strict=False)]


@torch.library.register_fake("psp_fast::pyramid_conv3x3_backward")
def _empty_gradients(
    dy: Tensor,
    x: Tensor,
    pyramid: Sequence[Tensor],
    weight: Tensor,
    align_corners: bool,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The uninitialised gradients of x, weight and the levels; empty ones, and no levels, where mask has False."""
    _check_gradient(dy, x, pyramid, weight, mask)
    dense = _output_format(x, weight)
    return (
        torch.empty_like(x, memory_format=dense) if mask[0] else x.new_empty(0),
        torch.empty_like(weight) if mask[1] else weight.new_empty(0),
        [torch.empty_like(level, memory_format=torch.contiguous_format) for level in pyramid] if mask[2] else [],
    )


def _check_gradient(dy: Tensor, x: Tensor, pyramid: Sequence[Tensor], weight: Tensor, mask: Sequence[bool]) -> None:
    _check_kernels(x, pyramid, weight)
    check_given("pyramid_conv3x3", "dy", dy, x, (x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype)
    if len(mask) != 3:
        raise ValueError(f"pyramid_conv3x3: mask must have three values, for x, weight and levels, not {len(mask)}")


def _run_forward(
    out: Tensor, levels: Sequence[Tensor], weight: Tensor, statistics: Tensor | None, align_corners: bool
) -> None:
    """Add the share of the levels, with their part of the weight, to out; fill statistics (2, O) of the result."""
    if backend.runs_triton("pyramid_conv3x3", out):
        _kernels().forward(out, levels, weight, statistics, align_corners)
    else:
        backend.native().pyramid_conv3x3_forward_cpu(
            *_native_arguments(out, levels, weight, align_corners),
            0 if statistics is None else statistics.data_ptr(),
            torch.get_num_threads(),
        )


def _run_backward(
    dy: Tensor,
    levels: Sequence[Tensor],
    weight: Tensor,
    dlevels: Sequence[Tensor],
    dweight: Tensor | None,
    align_corners: bool,
) -> None:
    """Fill the gradients of the levels (none for an empty list) and of their part of the weight."""
    if backend.runs_triton("pyramid_conv3x3", dy):
        _kernels().backward(dy, levels, weight, dlevels, dweight, align_corners)
    else:
        backend.native().pyramid_conv3x3_backward_cpu(
            *_native_arguments(dy, levels, weight, align_corners),
            native_levels(dlevels),
            0 if dweight is None else dweight.data_ptr(),
            (0, 0, 0, 0) if dweight is None else dweight.stride(),
            torch.get_num_threads(),
        )


def _native_arguments(pixels: Tensor, levels: Sequence[Tensor], weight: Tensor, align_corners: bool) -> tuple[Any, ...]:
    """What both directions pass to the CPU kernels first; pixels (N, O, H, W) is the output or its gradient."""
    return (
        str(pixels.dtype).removeprefix("torch."),
        str(weight.dtype).removeprefix("torch."),
        align_corners,
        tuple(pixels.shape),
        pixels.data_ptr(),
        pixels.stride(),
        native_levels(levels),
        weight.data_ptr(),
        weight.stride(),
    )


def _kernels() -> Any:
    from psp_fast.kernels import pyramid_conv3x3 as kernels

    return kernels


torch.library.impl("psp_fast::pyramid_conv3x3", _DEVICES, _forward)
torch.library.impl("psp_fast::pyramid_conv3x3_backward", _DEVICES, _backward)
