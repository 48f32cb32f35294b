"""Class of the largest bilinearly upsampled logit, in Triton."""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from psp_fast.kernels.upsample_cells import (
    cell_of_program,
    configuration,
    corner_offsets,
    first_output,
    largest,
    next_weight,
)


@triton.jit(do_not_specialize=["channels", "h", "w", "height", "width"])
def argmax_kernel(
    logits,
    labels,
    channels,
    h,
    w,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    ALIGN: tl.constexpr,
    SIDE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    n, i, j = cell_of_program(h, w)
    image = logits + n.to(tl.int64) * stride_n
    upper_left, upper_right, lower_left, lower_right = corner_offsets(i, j, h, w, height, width, stride_h, stride_w)
    y_end, x_end = first_output(i + 1, h, height, ALIGN), first_output(j + 1, w, width, ALIGN)
    pixel = tl.arange(0, SIDE * SIDE)
    for y_start in range(first_output(i, h, height, ALIGN), y_end, SIDE):
        for x_start in range(first_output(j, w, width, ALIGN), x_end, SIDE):
            y, x = y_start + pixel // SIDE, x_start + pixel % SIDE
            down, right = next_weight(y, i, h, height, ALIGN), next_weight(x, j, w, width, ALIGN)
            _, label = largest(
                image,
                upper_left,
                upper_right,
                lower_left,
                lower_right,
                channels,
                stride_c,
                down,
                right,
                SIDE * SIDE,
                CLASSES,
            )
            at = labels + (n.to(tl.int64) * height + y) * width + x
            tl.store(at, label.to(labels.dtype.element_ty), mask=(y < y_end) & (x < x_end))


def launch(logits: Tensor, labels: Tensor, align_corners: bool) -> None:
    """Fill labels (N, H, W) from dense logits (N, C, h, w)."""
    n, channels, h, w = logits.shape
    if labels.numel() == 0:
        return
    size = labels.shape[1], labels.shape[2]
    with torch.cuda.device_of(logits):
        argmax_kernel[(n * h * w,)](
            logits,
            labels,
            channels,
            h,
            w,
            *size,
            *logits.stride(),
            ALIGN=align_corners,
            **configuration((h, w), size),
        )
