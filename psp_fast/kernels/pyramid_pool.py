"""Pyramid pooling in Triton, as csrc/pyramid_plan.h cuts the map.

The edges of all windows cut it into elementary rectangles. Forward: one launch reduces every rectangle, one a level
merges rectangles into windows. Backward gathers, so that every element is written once and nothing depends on timing.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from psp_fast.kernels.tables import device_tables

_LAST = tl.constexpr(2**31 - 1)  # an index after all others


class Tile(NamedTuple):
    """What a program holds at once: some pixels (along axis 0 or 1 of the tile) of some channels."""

    axis: int
    pixels: int
    channels: int


CHANNELS_LAST = Tile(axis=0, pixels=16, channels=128)
PLANES = Tile(axis=1, pixels=128, channels=4)  # with 8 channels, their masks spill
MERGE = Tile(axis=0, pixels=32, channels=32)


class _Axis(NamedTuple):
    """How one axis of the map is cut, in the device's memory."""

    segments: int
    edges: Tensor
    """(segments + 1): segment r is [edges[r], edges[r + 1])."""
    windows: Tensor
    """(cells of all levels, 2): first and end segment of a cell's window."""
    cover: Tensor
    """(levels, segments, 2): first and end cell over a segment."""


def forward(x: Tensor, levels: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
    """Pool x to the levels (N, C, b, b): maxima where there are indices for their places, else averages."""
    n, channels, height, width = x.shape
    bins = tuple(level.shape[2] for level in levels)
    rows, columns = _cut(height, bins, x.device), _cut(width, bins, x.device)
    values = torch.empty((n, rows.segments * columns.segments, channels), dtype=torch.float32, device=x.device)
    places = torch.empty_like(values, dtype=torch.int32) if indices else values
    with torch.cuda.device_of(x):
        tile = _tile(x)
        reduce_rectangles[_grid(n * values.shape[1], channels, tile)](
            *(x, values, places, rows.edges, columns.edges, rows.segments, columns.segments),
            *(channels, width, *x.stride()),
            **_constants(tile, indices),
        )
        first = 0
        for level, y in enumerate(levels):
            b = bins[level]
            merge_windows[_grid(n * b * b, channels, MERGE)](
                *(values, places, y, indices[level] if indices else y),
                *(rows.edges, columns.edges, rows.windows, columns.windows, rows.segments, columns.segments),
                *(channels, b, first, y.stride(1), y.stride(3)),
                **_constants(MERGE, indices),
            )
            first += b


def backward(dx: Tensor, grads: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
    """Write the gradient of forward's x for the gradients of its levels."""
    n, channels, height, width = dx.shape
    bins = tuple(grad.shape[2] for grad in grads)
    rows, columns = _cut(height, bins, dx.device), _cut(width, bins, dx.device)
    dy = _cells_of_all_levels(grads)
    places = _cells_of_all_levels(indices) if indices else dy
    with torch.cuda.device_of(dx):
        tile = _tile(dx)
        gather_gradient[_grid(n * rows.segments * columns.segments, channels, tile)](
            *(dx, dy, places, _areas(height, width, bins, dx.device), rows.edges, columns.edges),
            *(rows.cover, columns.cover, _numbers(bins, dx.device), rows.segments, columns.segments),
            *(channels, width, len(bins), dy.shape[1], *dx.stride()),
            **_constants(tile, indices),
        )


def _tile(x: Tensor) -> Tile:
    return CHANNELS_LAST if x.stride(1) == 1 and x.shape[1] > 1 else PLANES


def _grid(programs: int, channels: int, tile: Tile) -> tuple[int]:
    return (programs * triton.cdiv(channels, tile.channels),)


def _constants(tile: Tile, indices: Sequence[Tensor]) -> dict[str, int | bool]:
    return {"IS_MAX": len(indices) > 0, "AXIS": tile.axis, "PIXELS": tile.pixels, "CHANNELS": tile.channels}


def _cells_of_all_levels(levels: Sequence[Tensor]) -> Tensor:
    """(N, cells of all levels, C)."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)


def _windows(length: int, b: int) -> list[tuple[int, int]]:
    """Adaptive pooling's windows: they overlap where b does not divide length."""
    return [(i * length // b, triton.cdiv((i + 1) * length, b)) for i in range(b)]


@device_tables(128)
def _cut(length: int, bins: tuple[int, ...], device: torch.device) -> _Axis:
    windows = [window for b in bins for window in _windows(length, b)]
    edges = sorted({edge for window in windows for edge in window})
    segment = {edge: number for number, edge in enumerate(edges)}
    # All positions of a segment are covered by the same cells.
    cover = [cell for b in bins for h in edges[:-1] for cell in (h * b // length, triton.cdiv((h + 1) * b, length))]
    bounds = [segment[edge] for window in windows for edge in window]
    tables = (_numbers(tuple(numbers), device) for numbers in (edges, bounds, cover))
    return _Axis(len(edges) - 1, *tables)


@device_tables(128)
def _areas(height: int, width: int, bins: tuple[int, ...], device: torch.device) -> Tensor:
    """(cells of all levels): the pixels of each cell's window."""
    lengths = [[[end - begin for begin, end in _windows(side, b)] for side in (height, width)] for b in bins]
    areas = [h * w for rows, columns in lengths for h in rows for w in columns]
    return torch.tensor(areas, dtype=torch.float32, device=device)


@device_tables(128)
def _numbers(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)


@triton.jit
def _program(channels, CHANNELS: tl.constexpr):
    """Number of the program among those of its channels, and these channels."""
    tiles = tl.cdiv(channels, CHANNELS)
    task = tl.program_id(0)
    return task // tiles, task % tiles * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def _rectangle(q, row_edges, column_edges, segments_w):
    """First row and column of rectangle q, its number of columns and of pixels."""
    r, s = q // segments_w, q % segments_w
    h, w = tl.load(row_edges + r), tl.load(column_edges + s)
    columns = tl.load(column_edges + s + 1) - w
    return h, w, columns, (tl.load(row_edges + r + 1) - h) * columns


@triton.jit
def _greater(x, index, best, best_index):
    """The rule of csrc/maximum.h: the last NaN in reading order, else the first maximum."""
    nan, best_nan = x != x, best != best
    number = (x > best) | ((x == best) & (index < best_index))
    picked = tl.where(nan | best_nan, nan & ((best == best) | (index > best_index)), number)
    return tl.where(picked, x, best), tl.where(picked, index, best_index)


@triton.jit
def _greatest(best, best_index, AXIS: tl.constexpr):
    """`_greater` along an axis of a tile."""
    nan = tl.max(tl.where(best != best, best_index, -1), AXIS)
    number = tl.where(best != best, float("-inf"), best)
    top = tl.max(number, AXIS)
    first = tl.min(tl.where(number == tl.expand_dims(top, AXIS), best_index, _LAST), AXIS)
    return tl.where(nan < 0, top, float("nan")), tl.where(nan < 0, first, nan)


@triton.jit
def reduce_rectangles(
    x, values, places, row_edges, column_edges, segments_h, segments_w, channels, width, stride_n, stride_c, stride_h,
    stride_w, IS_MAX: tl.constexpr, AXIS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sum or maximum of a rectangle into values and places (N, rectangles, C)."""
    q, c = _program(channels, CHANNELS)
    rectangles = segments_h * segments_w
    h, w, columns, pixels = _rectangle(q % rectangles, row_edges, column_edges, segments_w)
    x += (q // rectangles).to(tl.int64) * stride_n
    best = tl.zeros((PIXELS, CHANNELS) if AXIS == 0 else (CHANNELS, PIXELS), tl.float32)
    if IS_MAX:
        best += float("-inf")
        best_index = tl.full(best.shape, _LAST, tl.int32)
    for start in range(0, pixels, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        row, column = h + pixel // columns, w + pixel % columns
        offset = tl.expand_dims(row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w, 1 - AXIS)
        offset += tl.expand_dims(c.to(tl.int64) * stride_c, AXIS)
        inside = tl.expand_dims(pixel < pixels, 1 - AXIS) & tl.expand_dims(c < channels, AXIS)
        if IS_MAX:
            value = tl.load(x + offset, inside, other=float("-inf")).to(tl.float32)
            index = tl.where(inside, tl.expand_dims(row * width + column, 1 - AXIS), _LAST)
            best, best_index = _greater(value, index, best, best_index)
        else:
            best += tl.load(x + offset, inside, other=0).to(tl.float32)
    to = q.to(tl.int64) * channels + c
    if IS_MAX:
        value, index = _greatest(best, best_index, AXIS)
        tl.store(values + to, value, c < channels)
        tl.store(places + to, index, c < channels)
    else:
        tl.store(values + to, tl.sum(best, AXIS), c < channels)


@triton.jit
def merge_windows(
    values, places, y, indices, row_edges, column_edges, row_windows, column_windows, segments_h, segments_w, channels,
    b, first, stride_c, stride_cell, IS_MAX: tl.constexpr, AXIS: tl.constexpr, PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """A cell of a level from the rectangles of its window; `first` is the level's first window on either axis."""
    cell, c = _program(channels, CHANNELS)
    image, cell = (cell // (b * b)).to(tl.int64), cell % (b * b)
    rows, columns = row_windows + 2 * (first + cell // b), column_windows + 2 * (first + cell % b)
    r, s = tl.load(rows), tl.load(columns)
    r_end, s_end = tl.load(rows + 1), tl.load(columns + 1)
    count = (r_end - r) * (s_end - s)
    best = tl.zeros((PIXELS, CHANNELS), tl.float32)
    if IS_MAX:
        best += float("-inf")
        best_index = tl.full(best.shape, _LAST, tl.int32)
    for start in range(0, count, PIXELS):
        k = start + tl.arange(0, PIXELS)
        q = (r + k // (s_end - s)) * segments_w + s + k % (s_end - s)
        offset = ((image * segments_h * segments_w + q) * channels)[:, None] + c[None, :]
        inside = (k < count)[:, None] & (c < channels)[None, :]
        if IS_MAX:
            value = tl.load(values + offset, inside, other=float("-inf"))
            index = tl.load(places + offset, inside, other=_LAST)
            best, best_index = _greater(value, index, best, best_index)
        else:
            best += tl.load(values + offset, inside, other=0)
    to = image * channels * b * b + c.to(tl.int64) * stride_c + cell * stride_cell
    if IS_MAX:
        value, index = _greatest(best, best_index, AXIS)
        tl.store(y + to, value, c < channels)
        tl.store(indices + to, index, c < channels)
    else:
        height = tl.load(row_edges + r_end) - tl.load(row_edges + r)
        area = height.to(tl.float32) * (tl.load(column_edges + s_end) - tl.load(column_edges + s))
        tl.store(y + to, tl.sum(best, AXIS) / area, c < channels)


@triton.jit
def _gather(
    total, here, dy, places, areas, row_cover, column_cover, bins, levels, segments_h, segments_w, q, channels, c,
    IS_MAX: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """Add to total what the cells over rectangle q give: to each pixel a share, or all to the one that was picked."""
    first = 0
    for level in range(levels):
        b = tl.load(bins + level)
        rows = row_cover + 2 * (level * segments_h + q // segments_w)
        columns = column_cover + 2 * (level * segments_w + q % segments_w)
        for i in range(tl.load(rows), tl.load(rows + 1)):
            for j in range(tl.load(columns), tl.load(columns + 1)):
                cell = first + i * b + j
                at = cell.to(tl.int64) * channels + c
                gradient = tl.load(dy + at, c < channels, other=0).to(tl.float32)
                if IS_MAX:
                    picked = tl.load(places + at, c < channels, other=-1)
                    total += tl.where(tl.expand_dims(picked, AXIS) == here, tl.expand_dims(gradient, AXIS), 0)
                else:
                    total += gradient / tl.load(areas + cell)
        first += b * b
    return total


@triton.jit
def gather_gradient(
    dx, dy, places, areas, row_edges, column_edges, row_cover, column_cover, bins, segments_h, segments_w, channels,
    width, levels, cells, stride_n, stride_c, stride_h, stride_w, IS_MAX: tl.constexpr, AXIS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of a rectangle's pixels from dy (N, cells, C)."""
    q, c = _program(channels, CHANNELS)
    image, q = (q // (segments_h * segments_w)).to(tl.int64), q % (segments_h * segments_w)
    h, w, columns, pixels = _rectangle(q, row_edges, column_edges, segments_w)
    dx += image * stride_n
    dy += image * cells * channels
    places += image * cells * channels
    if not IS_MAX:
        share = _gather(
            tl.zeros((CHANNELS,), tl.float32), 0, dy, places, areas, row_cover, column_cover, bins, levels, segments_h,
            segments_w, q, channels, c, IS_MAX, AXIS,
        )  # fmt: skip
    for start in range(0, pixels, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        row, column = h + pixel // columns, w + pixel % columns
        total = tl.zeros((PIXELS, CHANNELS) if AXIS == 0 else (CHANNELS, PIXELS), tl.float32)
        if IS_MAX:
            total = _gather(
                total, tl.expand_dims(row * width + column, 1 - AXIS), dy, places, areas, row_cover, column_cover,
                bins, levels, segments_h, segments_w, q, channels, c, IS_MAX, AXIS,
            )  # fmt: skip
        else:
            total += tl.expand_dims(share, AXIS)
        offset = tl.expand_dims(row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w, 1 - AXIS)
        offset += tl.expand_dims(c.to(tl.int64) * stride_c, AXIS)
        inside = tl.expand_dims(pixel < pixels, 1 - AXIS) & tl.expand_dims(c < channels, AXIS)
        tl.store(dx + offset, total, inside)
