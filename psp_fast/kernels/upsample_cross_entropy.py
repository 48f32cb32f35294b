"""Cross entropy of bilinearly upsampled logits and its gradient, in Triton.

The gradient is in two steps without atomics: every cell sums what its pixels give to its four corners, then every
logit gathers from the four cells around it.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from psp_fast.kernels.upsample_cells import (
    blend,
    cell_of_program,
    configuration,
    corner_offsets,
    first_output,
    largest,
    next_input,
    next_weight,
)


@triton.jit
def load_label(target, at, mask, channels, ignore_index):
    """(class or 0, whether the pixel counts, whether its label is wrong)."""
    label = tl.load(target + at, mask=mask, other=0).to(tl.int64)
    counts = mask & (label != ignore_index)
    known = (label >= 0) & (label < channels)
    return tl.where(known, label, 0).to(tl.int32), counts, counts & (known == 0)


@triton.jit
def sum_weights(weight, channels, CLASSES: tl.constexpr):
    total = tl.zeros([CLASSES], tl.float32)
    for start in range(0, channels, CLASSES):
        c = start + tl.arange(0, CLASSES)
        total += tl.load(weight + c, mask=c < channels, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["channels", "h", "w", "height", "width", "ignore_index"])
def forward_kernel(
    logits,
    target,
    weight,
    losses,
    argmax,
    lse,
    partial,
    channels,
    h,
    w,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    ignore_index,
    kept,
    spread,
    ALIGN: tl.constexpr,
    SIDE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    PIXELS: tl.constexpr = SIDE * SIDE
    n, i, j = cell_of_program(h, w)
    image = logits + n.to(tl.int64) * stride_n
    upper_left, upper_right, lower_left, lower_right = corner_offsets(i, j, h, w, height, width, stride_h, stride_w)
    y_end, x_end = first_output(i + 1, h, height, ALIGN), first_output(j + 1, w, width, ALIGN)
    pixel, lanes = tl.arange(0, PIXELS), tl.arange(0, CLASSES)
    total_weight = sum_weights(weight, channels, CLASSES)
    cell_loss, cell_weight = tl.zeros([PIXELS], tl.float32), tl.zeros([PIXELS], tl.float32)
    for y_start in range(first_output(i, h, height, ALIGN), y_end, SIDE):
        for x_start in range(first_output(j, w, width, ALIGN), x_end, SIDE):
            y, x = y_start + pixel // SIDE, x_start + pixel % SIDE
            mask = (y < y_end) & (x < x_end)
            at = (n.to(tl.int64) * height + y) * width + x
            down, right = next_weight(y, i, h, height, ALIGN), next_weight(x, j, w, width, ALIGN)
            top, best = largest(
                image,
                upper_left,
                upper_right,
                lower_left,
                lower_right,
                channels,
                stride_c,
                down,
                right,
                PIXELS,
                CLASSES,
            )
            label, counts, wrong = load_label(target, at, mask, channels, ignore_index)
            sums = tl.zeros([PIXELS, CLASSES], tl.float32)
            own = tl.zeros([PIXELS, CLASSES], tl.float32)
            others = tl.zeros([PIXELS, CLASSES], tl.float32)
            for start in range(0, channels, CLASSES):
                c = start + lanes
                value = blend(
                    image, upper_left, upper_right, lower_left, lower_right, c, channels, stride_c, down, right
                )
                value -= top[:, None]
                sums += tl.exp(value)
                own += tl.where(label[:, None] == c[None, :], value, 0.0)
                if spread != 0.0:
                    class_weight = tl.load(weight + c, mask=c < channels, other=0.0)
                    others += class_weight[None, :] * tl.where(c[None, :] < channels, value, 0.0)
            log_sum = tl.log(tl.sum(sums, 1))
            label_weight = tl.load(weight + label)
            loss = kept * label_weight * (log_sum - tl.sum(own, 1))
            if spread != 0.0:
                loss += spread * (total_weight * log_sum - tl.sum(others, 1))
            loss = tl.where(wrong, float("nan"), tl.where(counts, loss, 0.0))
            cell_loss += loss
            cell_weight += tl.where(counts, label_weight, 0.0)
            tl.store(lse + at, top + log_sum, mask=mask)
            tl.store(argmax + at, best.to(argmax.dtype.element_ty), mask=mask)
            if losses is not None:
                tl.store(losses + at, loss, mask=mask)
    cell = tl.program_id(0).to(tl.int64)
    tl.store(partial + 2 * cell, tl.sum(cell_loss, 0))
    tl.store(partial + 2 * cell + 1, tl.sum(cell_weight, 0))


@triton.jit(do_not_specialize=["cells"])
def reduce_kernel(partial, loss, divisor, cells, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """Sums the cells in one fixed order."""
    total_loss, total_weight = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for start in range(0, cells, BLOCK):
        cell = start + tl.arange(0, BLOCK)
        total_loss += tl.load(partial + 2 * cell, mask=cell < cells, other=0.0)
        total_weight += tl.load(partial + 2 * cell + 1, mask=cell < cells, other=0.0)
    weight = tl.sum(total_weight, 0)
    by = tl.where(weight > 0, weight, 1.0) if MEAN else weight * 0 + 1
    tl.store(divisor, by.to(tl.float32))
    if loss is not None:
        tl.store(loss, (tl.sum(total_loss, 0) / by).to(tl.float32))


@triton.jit(do_not_specialize=["channels", "h", "w", "height", "width", "ignore_index"])
def cell_gradient_kernel(
    logits,
    target,
    weight,
    lse,
    divisor,
    grad,
    corners,
    channels,
    h,
    w,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    stride_grad,
    ignore_index,
    kept,
    spread,
    ALIGN: tl.constexpr,
    SIDE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Writes what each cell gives to its corners: (cells, 4, channels), corners as in corner_offsets."""
    n, i, j = cell_of_program(h, w)
    c = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    image = logits + n.to(tl.int64) * stride_n
    upper_left, upper_right, lower_left, lower_right = corner_offsets(i, j, h, w, height, width, stride_h, stride_w)
    y_end, x_end = first_output(i + 1, h, height, ALIGN), first_output(j + 1, w, width, ALIGN)
    pixel = tl.arange(0, SIDE * SIDE)
    class_weight = tl.load(weight + c, mask=c < channels, other=0.0)
    others, own = spread * class_weight, kept * class_weight
    total_weight = sum_weights(weight, channels, CLASSES)
    by = tl.load(divisor)
    at_upper_left, at_upper_right = tl.zeros([CLASSES], tl.float32), tl.zeros([CLASSES], tl.float32)
    at_lower_left, at_lower_right = tl.zeros([CLASSES], tl.float32), tl.zeros([CLASSES], tl.float32)
    for y_start in range(first_output(i, h, height, ALIGN), y_end, SIDE):
        for x_start in range(first_output(j, w, width, ALIGN), x_end, SIDE):
            y, x = y_start + pixel // SIDE, x_start + pixel % SIDE
            mask = (y < y_end) & (x < x_end)
            at = (n.to(tl.int64) * height + y) * width + x
            down, right = next_weight(y, i, h, height, ALIGN), next_weight(x, j, w, width, ALIGN)
            label, counts, wrong = load_label(target, at, mask, channels, ignore_index)
            upstream = tl.load(grad + at * stride_grad, mask=counts, other=0.0) / by
            upstream = tl.where(wrong, float("nan"), upstream)
            softmax = upstream * (kept * tl.load(weight + label) + spread * total_weight)
            value = blend(image, upper_left, upper_right, lower_left, lower_right, c, channels, stride_c, down, right)
            value = softmax[:, None] * tl.exp(value - tl.load(lse + at, mask=mask, other=float("inf"))[:, None])
            picked = others[None, :] + tl.where(label[:, None] == c[None, :], own[None, :], 0.0)
            value = tl.where(mask[:, None], value - upstream[:, None] * picked, 0.0)
            upper, lower = value * (1 - down)[:, None], value * down[:, None]
            at_upper_left += tl.sum(upper * (1 - right)[:, None], 0)
            at_upper_right += tl.sum(upper * right[:, None], 0)
            at_lower_left += tl.sum(lower * (1 - right)[:, None], 0)
            at_lower_right += tl.sum(lower * right[:, None], 0)
    if next_input(i, h, height) == i:  # the lower corners are the upper ones
        at_upper_left += at_lower_left
        at_upper_right += at_lower_right
        at_lower_right = tl.zeros([CLASSES], tl.float32)
    if next_input(j, w, width) == j:
        at_upper_left += at_upper_right
        at_lower_left += at_lower_right
    to = corners + tl.program_id(0).to(tl.int64) * 4 * channels + c
    tl.store(to, at_upper_left, mask=c < channels)
    tl.store(to + channels, at_upper_right, mask=c < channels)
    tl.store(to + 2 * channels, at_lower_left, mask=c < channels)
    tl.store(to + 3 * channels, at_lower_right, mask=c < channels)


@triton.jit(do_not_specialize=["channels", "h", "w", "height", "width"])
def gather_kernel(
    corners,
    dlogits,
    cells,
    channels,
    h,
    w,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    CELLS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Adds up what the cells around each logit give to it, in one fixed order."""
    cell = tl.program_id(0).to(tl.int64) * CELLS + tl.arange(0, CELLS)
    c = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    n, i, j = cell // (h * w), cell // w % h, cell % w
    inside = (cell < cells)[:, None] & (c < channels)[None, :]
    below = inside & ((i > 0) & (next_input(i - 1, h, height) == i))[:, None]
    behind = ((j > 0) & (next_input(j - 1, w, width) == j))[:, None]
    at = corners + (cell * 4 * channels)[:, None] + c[None, :]
    above = at - 4 * channels * w
    total = tl.load(at, mask=inside, other=0.0)
    total += tl.load(at - 3 * channels, mask=inside & behind, other=0.0)
    total += tl.load(above + 2 * channels, mask=below, other=0.0)
    total += tl.load(above - channels, mask=below & behind, other=0.0)
    to = dlogits + (n * stride_n + i * stride_h + j * stride_w)[:, None] + (c.to(tl.int64) * stride_c)[None, :]
    tl.store(to, total.to(dlogits.dtype.element_ty), mask=inside)


REDUCE_BLOCK = 1024
GATHER_CELLS = 32


def forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    reduction: str,
    loss: Tensor,
    argmax: Tensor,
    lse: Tensor,
    divisor: Tensor,
) -> None:
    """Fill loss, argmax, lse and divisor from dense logits (N, C, h, w) and target (N, H, W), weight (C,) in fp32."""
    n, channels, h, w = logits.shape
    size = target.shape[1], target.shape[2]
    cells = n * h * w
    partial = torch.empty((cells, 2), dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        if cells:
            forward_kernel[(cells,)](
                logits,
                target,
                weight,
                loss if reduction == "none" else None,
                argmax,
                lse,
                partial,
                channels,
                h,
                w,
                *size,
                *logits.stride(),
                ignore_index,
                1 - label_smoothing,
                label_smoothing / channels,
                ALIGN=align_corners,
                **configuration((h, w), size),
            )
        mean, one_loss = reduction == "mean", None if reduction == "none" else loss
        reduce_kernel[(1,)](partial, one_loss, divisor, cells, MEAN=mean, BLOCK=REDUCE_BLOCK)


def backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    lse: Tensor,
    divisor: Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    dlogits: Tensor,
) -> None:
    """Fill dlogits from grad, a scalar or dense (N, H, W), and what the forward read and wrote."""
    n, channels, h, w = logits.shape
    size = target.shape[1], target.shape[2]
    chosen = configuration((h, w), size)
    cells, blocks = n * h * w, triton.cdiv(channels, chosen["CLASSES"])
    if not cells:
        return
    corners = torch.empty((cells, 4, channels), dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        cell_gradient_kernel[(cells, blocks)](
            logits,
            target,
            weight,
            lse,
            divisor,
            grad,
            corners,
            channels,
            h,
            w,
            *size,
            *logits.stride(),
            min(grad.dim(), 1),
            ignore_index,
            1 - label_smoothing,
            label_smoothing / channels,
            ALIGN=align_corners,
            **chosen,
        )
        gather_kernel[(triton.cdiv(cells, GATHER_CELLS), blocks)](
            corners,
            dlogits,
            cells,
            channels,
            h,
            w,
            *size,
            *dlogits.stride(),
            CELLS=GATHER_CELLS,
            CLASSES=chosen["CLASSES"],
        )
