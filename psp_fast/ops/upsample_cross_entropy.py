"""Cross entropy of upsampled logits against full-resolution labels, without the upsampled logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from psp_fast.ops import backend, reference
from psp_fast.ops.arguments import check_given, whole_number
from psp_fast.ops.derivatives import as_forward, first_order
from psp_fast.ops.upsampling import accumulator, check_logits, dense, label_dtype, memory_format

_DEVICES = ("cpu", "cuda")
_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
backend.register("upsample_cross_entropy", "cpu", backend.Kernel("csrc/cpu", _CPU_DTYPES, backend.missing_native))
backend.register("upsample_cross_entropy", "cuda", backend.Kernel("triton", _CUDA_DTYPES, backend.missing_triton))


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of logits, upsampled bilinearly to the size of target, which costs no memory of that size times C.

    As torch.nn.functional.cross_entropy of torch.nn.functional.interpolate, except that "mean" is 0 where no pixel
    counts. Computes in at least 32 bits, under autocast too. Besides its inputs, one number a pixel is kept for the
    backward: the log of the sum of the exponentials. Gradients exist for logits only, once.

    Args:
        logits: (N, C, h, w), float, any strides; C, h and w at least 1.
        target: (N, H, W) or (N, 1, H, W), uint8, int16, int32 or int64, class ids or ignore_index; H and W at least 1,
            larger or smaller than h, w.
            On the CPU another label is an error. On CUDA finding one would make the host wait, so the pixel's loss is
            NaN, and with it the mean or sum, and all gradients that it reaches.
        weight: (C,), float, of each class; None means 1. Must not require a gradient.
        ignore_index: pixels with this label count for nothing; any whole number, also negative.
        label_smoothing: between 0 and 1, as in torch.nn.functional.cross_entropy, with weight as there.
        align_corners: as in torch.nn.functional.interpolate.
        reduction: "mean" divides by the summed weight of the pixels that count (their number without weight), "sum"
            does not divide, "none" keeps the pixels apart.

    Returns:
        A scalar, or (N, H, W) for "none": float64 for float64 logits, else float32.

    Raises:
        TypeError, ValueError: an argument is not as above; for a label with its value and position.
        PspFastError: the compiled module is missing or broken.
    """
    target, ignore_index = _plain(target, ignore_index)
    arguments = (weight, ignore_index, label_smoothing, align_corners, reduction)
    _check("upsample_cross_entropy", logits, target, *arguments)
    if backend.choose("upsample_cross_entropy", logits) == "reference":
        return _reference(logits, target, *arguments)
    return _UpsampleCrossEntropy.apply(logits, target, *arguments)[0]


def upsample_cross_entropy_argmax(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = True,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """`upsample_cross_entropy` and, from the same pass, `upsample_argmax` of the logits at the size of target."""
    target, ignore_index = _plain(target, ignore_index)
    arguments = (weight, ignore_index, label_smoothing, align_corners, reduction)
    _check("upsample_cross_entropy_argmax", logits, target, *arguments)
    if backend.choose("upsample_cross_entropy", logits) == "reference":
        labels = reference.upsample_argmax(logits.detach(), target.shape[1:], align_corners)
        return _reference(logits, target, *arguments), labels
    return _UpsampleCrossEntropy.apply(logits, target, *arguments)


def _reference(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    reduction: str,
) -> Tensor:
    return reference.upsample_cross_entropy(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        align_corners=align_corners,
        reduction=reduction,
    )


def _plain(target: Tensor, ignore_index: int) -> tuple[Tensor, int]:
    """The target as uint8 or int64 without a dimension of channels, and ignore_index as an int, where they can be."""
    if isinstance(target, Tensor):
        target = target.long() if target.dtype in (torch.int16, torch.int32) else target
        target = target.squeeze(1) if target.dim() == 4 else target
    whole = whole_number(ignore_index)
    return target, ignore_index if whole is None else whole


def _check(
    op: str,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    reduction: str,
) -> None:
    check_logits(op, logits)
    n, classes = logits.shape[:2]
    if not isinstance(target, Tensor) or target.dtype not in (torch.uint8, torch.int64):
        found = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"{op}: target must be a tensor of uint8, int16, int32 or int64, not {found}")
    if target.dim() != 3 or target.shape[0] != n or min(target.shape[1:]) < 1:
        raise ValueError(
            f"{op}: target must be (N, H, W) or (N, 1, H, W) with N = {n} as in logits, H and W at least 1, "
            f"not {tuple(target.shape)}"
        )
    if target.device != logits.device:
        raise ValueError(f"{op}: target must be on {logits.device} as logits, not on {target.device}")
    if weight is not None:
        _check_weight(op, weight, classes, logits.device)
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool):
        raise TypeError(f"{op}: ignore_index must be a whole number, not {ignore_index!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing must be between 0 and 1, not {label_smoothing!r}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{op}: reduction must be 'mean', 'sum' or 'none', not {reduction!r}")


def _check_weight(op: str, weight: Tensor, classes: int, device: torch.device) -> None:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        found = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"{op}: weight must be a float tensor or None, not {found}")
    if tuple(weight.shape) != (classes,):
        raise ValueError(f"{op}: weight must be ({classes},), one for each class, not {tuple(weight.shape)}")
    if weight.device != device:
        raise ValueError(f"{op}: weight must be on {device} as logits, not on {weight.device}")
    if weight.requires_grad:
        raise ValueError(f"{op}: weight has no gradient and must not require one: pass weight.detach()")


def _check_kernels_target(target: Tensor) -> None:
    """Raise where the public functions would have converted the target."""
    if target.dim() != 3 or target.dtype not in (torch.uint8, torch.int64):
        shape = tuple(target.shape)
        raise TypeError(
            f"upsample_cross_entropy: target must be (N, H, W) of uint8 or int64, not {shape} of {target.dtype}"
        )


class _UpsampleCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        label_smoothing: float,
        align_corners: bool,
        reduction: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.setting = backend.current_setting()
        loss, argmax, lse, divisor = torch.ops.psp_fast.upsample_cross_entropy(
            logits, target, weight, ignore_index, label_smoothing, align_corners, reduction
        )
        ctx.save_for_backward(logits, target, weight, lse, divisor)
        ctx.settings = ignore_index, label_smoothing, align_corners
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)
        return loss, argmax

    @staticmethod
    @first_order("upsample_cross_entropy")
    @as_forward
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        dlogits = None
        if grad is not None:
            dlogits = torch.ops.psp_fast.upsample_cross_entropy_backward(grad, *ctx.saved_tensors, *ctx.settings)
        return dlogits, *(None,) * 6


torch.library.define(
    "psp_fast::upsample_cross_entropy",
    "(Tensor logits, Tensor target, Tensor? weight, int ignore_index, float label_smoothing, bool align_corners, "
    "str reduction) -> (Tensor loss, Tensor argmax, Tensor lse, Tensor divisor)",
)
torch.library.define(
    "psp_fast::upsample_cross_entropy_backward",
    "(Tensor grad, Tensor logits, Tensor target, Tensor? weight, Tensor lse, Tensor divisor, int ignore_index, "
    "float label_smoothing, bool align_corners) -> Tensor",
)


def _forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _empty_outputs(logits, target, weight, ignore_index, label_smoothing, align_corners, reduction)
    if target.numel() == 0:
        loss, _, _, divisor = outputs
        loss.zero_()
        divisor.fill_(1)
        return outputs
    logits, target, weight = dense(logits), target.contiguous(), _class_weight(weight, logits)
    if backend.runs_triton("upsample_cross_entropy", logits):
        from psp_fast.kernels import upsample_cross_entropy as kernels

        kernels.forward(logits, target, weight, ignore_index, label_smoothing, align_corners, reduction, *outputs)
        return outputs
    loss, argmax, lse, divisor = outputs
    wrong = backend.native().upsample_cross_entropy_forward_cpu(
        *_common_arguments(logits, target, weight, ignore_index, label_smoothing, align_corners),
        reduction == "mean",
        0 if reduction == "none" else loss.data_ptr(),
        loss.data_ptr() if reduction == "none" else 0,
        lse.data_ptr(),
        divisor.data_ptr(),
        argmax.data_ptr(),
        torch.get_num_threads(),
    )
    if wrong >= 0:
        _refuse_label(target, wrong, logits.shape[1], ignore_index)
    return outputs


def _refuse_label(target: Tensor, pixel: int, classes: int, ignore_index: int) -> None:
    _, height, width = target.shape
    n, h, w = pixel // (height * width), pixel // width % height, pixel % width
    raise ValueError(
        f"upsample_cross_entropy: target[{n}, {h}, {w}] is {target[n, h, w].item()}, neither one of the {classes} "
        f"classes (0 to {classes - 1}) nor ignore_index ({ignore_index})"
    )


def _common_arguments(
    logits: Tensor, target: Tensor, weight: Tensor, ignore_index: int, label_smoothing: float, align_corners: bool
) -> tuple[Any, ...]:
    return (
        str(logits.dtype).removeprefix("torch."),
        logits.data_ptr(),
        tuple(logits.shape),
        logits.stride(),
        tuple(target.shape[1:]),
        align_corners,
        target.data_ptr(),
        target.dtype == torch.int64,
        weight.data_ptr(),
        ignore_index,
        label_smoothing,
    )


def _class_weight(weight: Tensor | None, logits: Tensor) -> Tensor:
    if weight is None:
        return torch.ones(logits.shape[1], dtype=accumulator(logits), device=logits.device)
    return weight.to(accumulator(logits)).contiguous()


@torch.library.register_fake("psp_fast::upsample_cross_entropy")
def _empty_outputs(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised loss, argmax, log-sum-exp of every pixel, and what the sum is divided by."""
    _check_kernels_target(target)
    _check("upsample_cross_entropy", logits, target, weight, ignore_index, label_smoothing, align_corners, reduction)
    device, dtype = logits.device, accumulator(logits)
    return (
        torch.empty(target.shape if reduction == "none" else (), dtype=dtype, device=device),
        torch.empty(target.shape, dtype=label_dtype(logits.shape[1]), device=device),
        torch.empty(target.shape, dtype=dtype, device=device),
        torch.empty((), dtype=dtype, device=device),
    )


def _backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    divisor: Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    dlogits = _empty_gradient(grad, logits, target, weight, lse, divisor, ignore_index, label_smoothing, align_corners)
    if dlogits.numel() == 0:
        return dlogits
    weight = _class_weight(weight, logits)
    logits, target, lse, grad = dense(logits), target.contiguous(), lse.contiguous(), grad.contiguous()
    if backend.runs_triton("upsample_cross_entropy", logits):
        from psp_fast.kernels import upsample_cross_entropy as kernels

        kernels.backward(
            grad, logits, target, weight, lse, divisor, ignore_index, label_smoothing, align_corners, dlogits
        )
        return dlogits
    backend.native().upsample_cross_entropy_backward_cpu(
        *_common_arguments(logits, target, weight, ignore_index, label_smoothing, align_corners),
        lse.data_ptr(),
        divisor.data_ptr(),
        grad.data_ptr(),
        min(grad.dim(), 1),
        dlogits.data_ptr(),
        torch.get_num_threads(),
    )
    return dlogits


@torch.library.register_fake("psp_fast::upsample_cross_entropy_backward")
def _empty_gradient(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    divisor: Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    """The uninitialised gradient of the logits."""
    op, kept = "upsample_cross_entropy", accumulator(logits)
    _check_kernels_target(target)
    _check(op, logits, target, weight, ignore_index, label_smoothing, align_corners, "mean")
    check_given(op, "lse", lse, logits, target.shape, kept)
    check_given(op, "divisor", divisor, logits, (), kept)
    check_given(op, "grad", grad, logits, target.shape if grad.dim() > 0 else (), kept)
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device, memory_format=memory_format(logits))


torch.library.impl("psp_fast::upsample_cross_entropy", _DEVICES, _forward)
torch.library.impl("psp_fast::upsample_cross_entropy_backward", _DEVICES, _backward)
