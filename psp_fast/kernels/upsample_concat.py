"""Triton kernels for upsample_concat: a level is interpolated along x into few rows, then along y into the output."""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from psp_fast.kernels.interpolation import (
    NUM_WARPS,
    Axis,
    blocks,
    expand_columns,
    gather_columns,
    gather_rows,
    make_axis,
    mix_rows,
)


def forward(x: Tensor, levels: Sequence[Tensor], out: Tensor, align_corners: bool) -> None:
    """Fill out (N, C + sum C_b, H, W) with x and the upsampled levels."""
    if out.numel() == 0:
        return
    n, first, height, width = x.shape
    with torch.cuda.device_of(x):
        out[:, :first].copy_(x)
        for level in levels:
            channels, cells_y, cells_x = level.shape[1:]
            rows = torch.empty((n, cells_y, width, channels), dtype=torch.float32, device=x.device)
            columns = make_axis(width, (cells_x,), 1, align_corners, x.device)
            expand_columns(level.permute(0, 2, 3, 1), rows, columns)
            axis = make_axis(height, (cells_y,), 1, align_corners, x.device)
            _write_rows(rows, out[:, first : first + channels], axis)
            first += channels


def backward(dy: Tensor, first: int, gradients: Sequence[Tensor], align_corners: bool) -> None:
    """Fill the gradients of the levels, whose channels in dy (N, C + sum C_b, H, W) begin at `first`."""
    if dy.numel() == 0:
        return
    n, _, height, width = dy.shape
    with torch.cuda.device_of(dy):
        for gradient in gradients:
            channels, cells_y, cells_x = gradient.shape[1:]
            rows = torch.empty((n, cells_y, width, channels), dtype=torch.float32, device=dy.device)
            axis = make_axis(height, (cells_y,), 1, align_corners, dy.device)
            gather_rows(dy[:, first : first + channels], rows, axis)
            columns = make_axis(width, (cells_x,), 1, align_corners, dy.device)
            gather_columns(rows, gradient.permute(0, 2, 3, 1), columns)
            first += channels


def _write_rows(rows: Tensor, out: Tensor, axis: Axis) -> None:
    """Fill out (N, C, H, W), any strides, with rows (N, lines, W, C), dense, interpolated along y."""
    n, channels, height, width = out.shape
    block = blocks(out.stride(1))
    grid = (n * height, triton.cdiv(width, block["BLOCK_W"]), triton.cdiv(channels, block["BLOCK_C"]))
    write_rows_kernel[grid](
        rows,
        out,
        axis.near,
        axis.share,
        axis.terms,
        axis.near.shape[1],
        rows.shape[1],
        height,
        width,
        channels,
        *out.stride(),
        num_warps=NUM_WARPS,
        **block,
    )


@triton.jit
def write_rows_kernel(
    rows,
    out,
    near,
    share,
    count,
    terms,
    lines,
    height,
    width,
    channels,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = (tl.program_id(0) // height).to(tl.int64)
    h = tl.program_id(0) % height
    w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (w < width)[:, None] & (c < channels)[None, :]
    total = tl.zeros((BLOCK_W, BLOCK_C), dtype=tl.float32)
    at = n * lines * width * channels + w[:, None] * channels + c[None, :]
    total = mix_rows(rows, near, share, count, terms, h, total, at, mask, width * channels)
    to = n * stride_n + c[None, :].to(tl.int64) * stride_c + h.to(tl.int64) * stride_h + w[:, None] * stride_w
    tl.store(out + to, total, mask=mask)
