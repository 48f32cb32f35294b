"""Label map straight from low-resolution logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from psp_fast.ops import backend, reference
from psp_fast.ops.arguments import whole_number, whole_numbers
from psp_fast.ops.upsampling import check_logits, dense, label_dtype

_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
backend.register("upsample_argmax", "cpu", backend.Kernel("csrc/cpu", _CPU_DTYPES, backend.missing_native))
backend.register("upsample_argmax", "cuda", backend.Kernel("triton", _CUDA_DTYPES, backend.missing_triton))


def upsample_argmax(
    logits: Tensor,
    size: Sequence[SupportsIndex] | SupportsIndex,
    align_corners: bool = True,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Class of the largest logit of every pixel after bilinear upsampling; the upsampled logits never exist.

    Ties go to the first class, and NaN counts as the largest, as in torch.argmax. Two logits that differ by a rounding
    error may come out in either order. Interpolates in at least 32 bits, under autocast too.

    Args:
        logits: (N, C, h, w), float, any strides; C, h and w at least 1.
        size: (H, W) of the label map, each at least 1, larger or smaller than h and w; one number for both. Whole
            numbers of any type: int, NumPy's, or a tensor's elements.
        align_corners: as in torch.nn.functional.interpolate.
        dtype: torch.uint8 (up to 256 classes) or torch.int64; None for uint8 up to 256 classes, else int64.

    Returns:
        (N, H, W) of dtype. Not differentiable. Arithmetic in uint8 overflows: `150 * label + pred` for a confusion
        matrix needs dtype=torch.int64, or `pred.long()`.

    Raises:
        TypeError, ValueError: an argument is not as above.
        PspFastError: the compiled module is missing or broken.
    """
    check_logits("upsample_argmax", logits)
    height_width, dtype = _size(size), _dtype(dtype, logits.shape[1])
    if backend.choose("upsample_argmax", logits) == "reference":
        return reference.upsample_argmax(logits, height_width, align_corners, dtype=dtype)
    return torch.ops.psp_fast.upsample_argmax(logits.detach(), height_width, align_corners).to(dtype)


def _size(size: Sequence[SupportsIndex] | SupportsIndex) -> tuple[int, int]:
    side = whole_number(size)
    sides = whole_numbers(size) if side is None else (side, side)
    if sides is None or len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"upsample_argmax: size must be one or two positive whole numbers (H, W), not {size!r}")
    return sides[0], sides[1]


def _dtype(dtype: torch.dtype | None, classes: int) -> torch.dtype:
    narrowest = label_dtype(classes)
    if dtype not in (None, narrowest, torch.int64):
        raise ValueError(
            f"upsample_argmax: dtype must be torch.int64, or torch.uint8 for up to 256 classes, not {dtype} for "
            f"{classes} classes"
        )
    return narrowest if dtype is None else dtype


torch.library.define("psp_fast::upsample_argmax", "(Tensor logits, SymInt[2] size, bool align_corners) -> Tensor")


def _forward(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    labels = _empty_labels(logits, size, align_corners)
    if labels.numel() == 0:
        return labels
    logits = dense(logits)
    if backend.runs_triton("upsample_argmax", logits):
        from psp_fast.kernels import upsample_argmax as kernels

        kernels.launch(logits, labels, align_corners)
        return labels
    backend.native().upsample_argmax_cpu(
        str(logits.dtype).removeprefix("torch."),
        logits.data_ptr(),
        tuple(logits.shape),
        logits.stride(),
        tuple(size),
        align_corners,
        labels.data_ptr(),
        torch.get_num_threads(),
    )
    return labels


@torch.library.register_fake("psp_fast::upsample_argmax")
def _empty_labels(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """The uninitialised label map."""
    check_logits("upsample_argmax", logits)
    if min(size) < 1:
        raise ValueError(f"upsample_argmax: size must be at least 1 x 1, not {tuple(size)}")
    n, classes = logits.shape[:2]
    return torch.empty((n, *size), dtype=label_dtype(classes), device=logits.device)


torch.library.impl("psp_fast::upsample_argmax", ("cpu", "cuda"), _forward)
