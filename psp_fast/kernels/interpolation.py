"""Bilinear interpolation between the cells of pyramid levels and maps, one axis at a time, and its transposes.

`rows` (N, R, W, C) in fp32 stand between the axes: cells contracted along x only. With three taps, an axis also has the
shifts by -1, 0 and 1 of a 3x3 convolution, whose terms outside the map are missing.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from psp_fast.kernels.tables import device_tables

NUM_WARPS = 4


class Axis(NamedTuple):
    """How `length` positions of an axis mix the cells of levels; line (level, tap, cell) counts in this order."""

    near: Tensor
    """(length, terms), int32: the line of each term, -1 behind the last."""
    share: Tensor
    """(length, terms), fp32: the weight of each term."""
    counts: Tensor
    """(length), int32: how many terms there are."""
    span: Tensor
    """(lines, 2), int32: first and end position that have a line among their terms."""
    weight: Tensor
    """(lines, length), fp32: the weight of each line at each position."""


@device_tables(256)
def make_axis(length: int, cells: tuple[int, ...], taps: int, align_corners: bool, device: torch.device) -> Axis:
    """The axis of levels with these numbers of cells; taps is 1, or 3 for the shifts of a 3x3 convolution."""
    lines, most = taps * sum(cells), 2 * taps * len(cells)
    terms: list[list[tuple[int, float]]] = []
    for position in range(length):
        terms.append([])
        first = 0
        for count in cells:
            for tap in range(taps):
                terms[-1] += _terms(position + tap - taps // 2, length, count, first, align_corners)
                first += count
    weight = [[0.0] * length for _ in range(lines)]
    span = [[0, 0] for _ in range(lines)]
    for position, mixed in enumerate(terms):
        for line, share in mixed:
            weight[line][position] += share
            span[line] = [span[line][0] if span[line][1] else position, position + 1]
    padded = [mixed + [(-1, 0.0)] * (most - len(mixed)) for mixed in terms]
    return Axis(
        torch.tensor([[line for line, _ in mixed] for mixed in padded], dtype=torch.int32, device=device),
        torch.tensor([[share for _, share in mixed] for mixed in padded], dtype=torch.float32, device=device),
        torch.tensor([len(mixed) for mixed in terms], dtype=torch.int32, device=device),
        torch.tensor(span, dtype=torch.int32, device=device),
        torch.tensor(weight, dtype=torch.float32, device=device),
    )


def _terms(position: int, length: int, cells: int, first: int, align_corners: bool) -> list[tuple[int, float]]:
    """The two cells, counted from `first`, that a position of the map lies between, with PyTorch's coordinates.

    As there, a level of the map's own size is not interpolated: no cell has to do with the next one's NaN.
    """
    if not 0 <= position < length:
        return []
    if cells == length:
        return [(first + position, 1.0), (first + position, 0.0)]
    if align_corners:
        source = (cells - 1) / (length - 1) * position if length > 1 else 0.0
    else:
        source = max(cells / length * (position + 0.5) - 0.5, 0.0)
    low = min(int(source), cells - 1)
    share = min(source - low, 1.0)
    return [(first + low, 1 - share), (first + min(low + 1, cells - 1), share)]


def blocks(stride_c: int) -> dict[str, int]:
    """Shape of a tile of pixels of a row and channels: long where the map is dense."""
    return {"BLOCK_W": 16, "BLOCK_C": 64} if stride_c == 1 else {"BLOCK_W": 64, "BLOCK_C": 16}


def expand_columns(cells: Tensor, rows: Tensor, axis: Axis) -> None:
    """Fill rows (N, R, W, C), dense but for N, with cells (N, R, lines, C), dense, interpolated along x."""
    n, count, width, channels = rows.shape
    block = blocks(1)
    grid = (n * count, triton.cdiv(width, block["BLOCK_W"]), triton.cdiv(channels, block["BLOCK_C"]))
    expand_columns_kernel[grid](
        cells,
        rows,
        axis.near,
        axis.share,
        axis.near.shape[1],
        count,
        cells.shape[2],
        width,
        channels,
        rows.stride(0),
        num_warps=NUM_WARPS,
        **block,
    )


@triton.jit
def expand_columns_kernel(
    cells,
    rows,
    near,
    share,
    terms,
    count,
    lines,
    width,
    channels,
    stride_rows,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = (tl.program_id(0) // count).to(tl.int64)
    r = (tl.program_id(0) % count).to(tl.int64)
    w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_W, BLOCK_C), dtype=tl.float32)
    for k in range(terms):
        j = tl.load(near + w * terms + k, mask=w < width, other=-1)
        u = tl.load(share + w * terms + k, mask=w < width, other=0.0)
        at = (tl.program_id(0).to(tl.int64) * lines + j[:, None]) * channels + c[None, :]
        value = tl.load(cells + at, mask=(j >= 0)[:, None] & (c < channels)[None, :], other=0.0)
        total += u[:, None] * value.to(tl.float32)
    at = n * stride_rows + (r * width + w[:, None]) * channels + c[None, :]
    tl.store(rows + at, total, mask=(w < width)[:, None] & (c < channels)[None, :])


@triton.jit
def mix_rows(rows, near, share, counts, terms, h, total, at, mask, line):
    """total plus the terms of row h of a map; `at` leads from a line of rows, `line` elements long, to the tile."""
    for k in range(tl.load(counts + h)):
        r = tl.load(near + h * terms + k)
        u = tl.load(share + h * terms + k)
        total += u * tl.load(rows + r.to(tl.int64) * line + at, mask=mask, other=0.0)
    return total


def gather_rows(dy: Tensor, rows: Tensor, axis: Axis) -> None:
    """The transpose along y: rows (N, lines, W, C), dense, of a gradient dy (N, C, H, W), any strides."""
    n, lines, width, channels = rows.shape
    block = blocks(dy.stride(1))
    grid = (n * lines, triton.cdiv(width, block["BLOCK_W"]), triton.cdiv(channels, block["BLOCK_C"]))
    gather_rows_kernel[grid](
        dy,
        rows,
        axis.span,
        axis.weight,
        lines,
        dy.shape[2],
        width,
        channels,
        *dy.stride(),
        num_warps=NUM_WARPS,
        **block,
    )


@triton.jit
def gather_rows_kernel(
    dy,
    rows,
    span,
    weight,
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
    n = (tl.program_id(0) // lines).to(tl.int64)
    line = tl.program_id(0) % lines
    w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (w < width)[:, None] & (c < channels)[None, :]
    at = n * stride_n + c[None, :].to(tl.int64) * stride_c + w[:, None].to(tl.int64) * stride_w
    total = tl.zeros((BLOCK_W, BLOCK_C), dtype=tl.float32)
    for h in range(tl.load(span + 2 * line), tl.load(span + 2 * line + 1)):
        value = tl.load(dy + at + tl.cast(h, tl.int64) * stride_h, mask=mask, other=0.0)
        total += tl.load(weight + line * height + h) * value.to(tl.float32)
    to = (tl.program_id(0).to(tl.int64) * width + w[:, None]) * channels + c[None, :]
    tl.store(rows + to, total, mask=mask)


def gather_columns(rows: Tensor, cells: Tensor, axis: Axis) -> None:
    """The transpose along x: cells (N, R, lines, C), any strides, of rows (N, R, W, C), dense but for N."""
    n, count, width, channels = rows.shape
    block = blocks(1)
    grid = (n * count, cells.shape[2], triton.cdiv(channels, block["BLOCK_C"]))
    gather_columns_kernel[grid](
        rows,
        cells,
        axis.span,
        axis.weight,
        count,
        width,
        channels,
        rows.stride(0),
        *cells.stride(),
        num_warps=NUM_WARPS,
        **block,
    )


@triton.jit
def gather_columns_kernel(
    rows,
    cells,
    span,
    weight,
    count,
    width,
    channels,
    stride_rows,
    stride_n,
    stride_r,
    stride_j,
    stride_c,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = (tl.program_id(0) // count).to(tl.int64)
    r = (tl.program_id(0) % count).to(tl.int64)
    line = tl.program_id(1)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    end = tl.load(span + 2 * line + 1)
    total = tl.zeros((BLOCK_W, BLOCK_C), dtype=tl.float32)
    for start in range(tl.load(span + 2 * line), end, BLOCK_W):
        w = start + tl.arange(0, BLOCK_W)
        u = tl.load(weight + line * width + w, mask=w < end, other=0.0)
        at = n * stride_rows + (r * width + w[:, None]) * channels + c[None, :]
        total += u[:, None] * tl.load(rows + at, mask=(w < end)[:, None] & (c < channels)[None, :], other=0.0)
    at = n * stride_n + r * stride_r + line * stride_j + c * stride_c
    tl.store(cells + at, tl.sum(total, 0), mask=c < channels)
