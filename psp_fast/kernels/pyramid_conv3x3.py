"""Triton kernels for the pyramid's share of pyramid_conv3x3: Q, the products of cells and taps, is contracted along x
into few rows, then along y into the convolution's output; backward runs the transposes. See csrc/cpu/pyramid_conv3x3.h.

Q (N, 3 * h, 3 * w, O) of a level of h x w cells has line dy * h + i along y and dx * w + j along x.
"""

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

MERGE_BLOCKS = {"BLOCK_P": 64, "BLOCK_C": 32}


def forward(
    out: Tensor, levels: Sequence[Tensor], weight: Tensor, statistics: Tensor | None, align_corners: bool
) -> None:
    """Add the share of the levels (fp32), with their part of the weight, to out; fill statistics (2, O)."""
    with torch.cuda.device_of(out):
        rows = _empty_rows(out, levels)
        for level, part, lines in zip(levels, _split(weight, levels), _split_lines(rows, levels), strict=True):
            axis = make_axis(out.shape[3], (level.shape[3],), 3, align_corners, out.device)
            expand_columns(_products(level, part), lines, axis)
        _add_rows(rows, out, _axis_y(out, levels, align_corners), statistics)


def backward(
    dy: Tensor,
    levels: Sequence[Tensor],
    weight: Tensor,
    dlevels: Sequence[Tensor],
    dweight: Tensor | None,
    align_corners: bool,
) -> None:
    """Fill the gradients of the levels (none for an empty list) and of their part of the weight."""
    if not levels:
        return
    with torch.cuda.device_of(dy):
        rows = _empty_rows(dy, levels)
        gather_rows(dy, rows, _axis_y(dy, levels, align_corners))
        all_lines, weights = _split_lines(rows, levels), _split(weight, levels)
        for i, (level, lines, part) in enumerate(zip(levels, all_lines, weights, strict=True)):
            n, _, height, width = level.shape
            products = torch.empty((n, 3 * height, 3 * width, dy.shape[1]), dtype=torch.float32, device=dy.device)
            gather_columns(lines, products, make_axis(dy.shape[3], (width,), 3, align_corners, dy.device))
            by_tap = (
                products.view(n, 3, height, 3, width, -1).permute(1, 3, 0, 2, 4, 5).reshape(9, n * height * width, -1)
            )
            if dlevels:
                cells = torch.bmm(by_tap, _taps(part).transpose(1, 2)).sum(0)
                dlevels[i].copy_(cells.view(n, height, width, -1).permute(0, 3, 1, 2))
            if dweight is not None:
                taps = torch.bmm(by_tap.transpose(1, 2), _cells(level).expand(9, -1, -1))
                _split(dweight, levels)[i].copy_(taps.unflatten(0, (3, 3)).permute(2, 3, 0, 1))


def _products(level: Tensor, weight: Tensor) -> Tensor:
    """Q of a level: its cells times the weight's taps, reading the weight where it lies if it is in fp32."""
    n, channels, height, width = level.shape
    outputs = weight.shape[0]
    if weight.stride(1) == 1:
        products = torch.bmm(_cells(level).expand(9, -1, -1), _taps(weight))
        products = products.view(3, 3, n, height, width, outputs)
    else:
        by_output = weight.float().reshape(outputs, channels, 9)
        products = torch.bmm(_cells(level).expand(outputs, -1, -1), by_output)
        products = products.view(outputs, n, height, width, 3, 3).permute(4, 5, 1, 2, 3, 0)
    return products.permute(2, 0, 3, 1, 4, 5).reshape(n, 3 * height, 3 * width, outputs)


def _cells(level: Tensor) -> Tensor:
    """A level as (1, cells of all images, C)."""
    return level.permute(0, 2, 3, 1).reshape(1, -1, level.shape[1])


def _taps(weight: Tensor) -> Tensor:
    """A weight as (9, C, O) in fp32, a view of a channels_last one."""
    return weight.float().permute(2, 3, 1, 0).reshape(9, weight.shape[1], weight.shape[0])


def _split(weight: Tensor, levels: Sequence[Tensor]) -> Sequence[Tensor]:
    return weight.split([level.shape[1] for level in levels], 1)


def _empty_rows(pixels: Tensor, levels: Sequence[Tensor]) -> Tensor:
    n, outputs, _, width = pixels.shape
    lines = 3 * sum(level.shape[2] for level in levels)
    return torch.empty((n, lines, width, outputs), dtype=torch.float32, device=pixels.device)


def _split_lines(rows: Tensor, levels: Sequence[Tensor]) -> Sequence[Tensor]:
    """Each level's part of rows."""
    return rows.split([3 * level.shape[2] for level in levels], 1)


def _axis_y(pixels: Tensor, levels: Sequence[Tensor], align_corners: bool) -> Axis:
    cells = tuple(level.shape[2] for level in levels)
    return make_axis(pixels.shape[2], cells, 3, align_corners, pixels.device)


def _add_rows(rows: Tensor, out: Tensor, axis: Axis, statistics: Tensor | None) -> None:
    """Add rows (N, lines, W, O), dense, contracted along y, to out (N, O, H, W); fill statistics of the result."""
    n, outputs, height, width = out.shape
    block = blocks(out.stride(1))
    tiles = triton.cdiv(width, block["BLOCK_W"])
    parts = rows.new_empty((2, n * height * tiles if statistics is not None else 0, outputs))
    add_rows_kernel[(n * height, tiles, triton.cdiv(outputs, block["BLOCK_C"]))](
        rows,
        out,
        axis.near,
        axis.share,
        axis.terms,
        parts,
        axis.near.shape[1],
        rows.shape[1],
        height,
        width,
        outputs,
        *out.stride(),
        parts.stride(0),
        STATISTICS=statistics is not None,
        num_warps=NUM_WARPS,
        **block,
    )
    if statistics is not None:
        merge_statistics_kernel[(triton.cdiv(outputs, MERGE_BLOCKS["BLOCK_C"]),)](
            parts,
            statistics,
            parts.shape[1],
            tiles,
            width,
            n * height * width,
            outputs,
            parts.stride(0),
            TILE=block["BLOCK_W"],
            num_warps=NUM_WARPS,
            **MERGE_BLOCKS,
        )


@triton.jit
def add_rows_kernel(
    rows,
    out,
    near,
    share,
    count,
    parts,
    terms,
    lines,
    height,
    width,
    channels,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    stride_parts,
    STATISTICS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = (tl.program_id(0) // height).to(tl.int64)
    h = tl.program_id(0) % height
    w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (w < width)[:, None] & (c < channels)[None, :]
    to = n * stride_n + c[None, :].to(tl.int64) * stride_c + h.to(tl.int64) * stride_h + w[:, None] * stride_w
    total = tl.zeros((BLOCK_W, BLOCK_C), dtype=tl.float32)
    at = n * lines * width * channels + w[:, None] * channels + c[None, :]
    total = mix_rows(rows, near, share, count, terms, h, total, at, mask, width * channels)
    result = (tl.load(out + to, mask=mask, other=0.0).to(tl.float32) + total).to(out.dtype.element_ty)
    tl.store(out + to, result, mask=mask)
    if STATISTICS:
        size = tl.minimum(width - tl.program_id(1) * BLOCK_W, BLOCK_W)
        value = tl.where(mask, result.to(tl.float32), 0.0)
        mean = tl.sum(value, 0) / size
        deviation = tl.where(mask, value - mean[None, :], 0.0)
        part = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * channels + c
        tl.store(parts + part, mean, mask=c < channels)
        tl.store(parts + stride_parts + part, tl.sum(deviation * deviation, 0), mask=c < channels)


@triton.jit
def merge_statistics_kernel(
    parts,
    statistics,
    part_count,
    tiles,
    width,
    pixels,
    channels,
    stride_parts,
    TILE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Part p is (mean, sum of squared deviations) of tile p % tiles, TILE wide at most, of a row of `width` pixels."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for start in range(0, part_count, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < part_count)[:, None] & (c < channels)[None, :]
        count = tl.minimum(width - p % tiles * TILE, TILE)
        at = p[:, None].to(tl.int64) * channels + c[None, :]
        total += count[:, None] * tl.load(parts + at, mask=mask, other=0.0)
    mean = tl.sum(total, 0) / pixels
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for start in range(0, part_count, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < part_count)[:, None] & (c < channels)[None, :]
        count = tl.minimum(width - p % tiles * TILE, TILE)
        at = p[:, None].to(tl.int64) * channels + c[None, :]
        apart = tl.where(mask, tl.load(parts + at, mask=mask, other=0.0) - mean[None, :], 0.0)
        total += tl.load(parts + stride_parts + at, mask=mask, other=0.0) + count[:, None] * apart * apart
    tl.store(statistics + c, mean, mask=c < channels)
    tl.store(statistics + channels + c, tl.sum(total, 0), mask=c < channels)
