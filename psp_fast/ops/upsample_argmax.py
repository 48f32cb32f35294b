"""Label map straight from low-resolution logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from psp_fast.ops import backend, reference
from psp_fast.ops.upsampling import check_logits, dense, label_dtype

_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
backend.register("upsample_argmax", "cpu", backend.Kernel("csrc/cpu", _CPU_DTYPES, backend.missing_native))
backend.register("upsample_argmax", "cuda", backend.Kernel("triton", _CUDA_DTYPES, backend.missing_triton))


def upsample_argmax(logits: Tensor, size: Sequence[int], align_corners: bool = True) -> Tensor:
    """Class of the largest logit of every pixel after bilinear upsampling; the upsampled logits never exist.

    Ties go to the first class, and NaN counts as the largest, as in torch.argmax. Two logits that differ by a rounding
    error may come out in either order. Interpolates in at least 32 bits, under autocast too.

    Args:
        logits: (N, C, h, w), float, any strides; C, h and w at least 1.
        size: (H, W) of the label map, each at least 1, larger or smaller than h and w.
        align_corners: as in torch.nn.functional.interpolate.

    Returns:
        (N, H, W), uint8 up to 256 classes, else int64. Not differentiable.

    Raises:
        TypeError, ValueError: an argument is not as above.
        PspFastError: the compiled module is missing or broken.
    """
    check_logits("upsample_argmax", logits)
    whole = isinstance(size, Sequence) and all(isinstance(s, int | torch.SymInt) for s in size)
    if not whole or len(size) != 2 or min(size) < 1:
        raise ValueError(f"upsample_argmax: size must be two positive whole numbers (H, W), not {size!r}")
    if backend.choose("upsample_argmax", logits) == "reference":
        return reference.upsample_argmax(logits, size, align_corners)
    return torch.ops.psp_fast.upsample_argmax(logits.detach(), size, align_corners)


torch.library.define("psp_fast::upsample_argmax", "(Tensor logits, SymInt[2] size, bool align_corners) -> Tensor")


def _forward(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    labels = _empty_labels(logits, size, align_corners)
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
    n, classes = logits.shape[:2]
    return torch.empty((n, *size), dtype=label_dtype(classes), device=logits.device)


torch.library.impl("psp_fast::upsample_argmax", ("cpu", "cuda"), _forward)
