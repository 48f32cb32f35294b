"""Batch norm, residual sum and ReLU in Triton: statistics, normalisation, and both steps of the gradient.

A channels_last map is one segment of N * H * W rows of C values; else each image is a segment of H * W rows, whose
channels lie C planes apart. Programs work on tiles of ROWS rows by CHANNELS channels that never leave a segment.
Reductions write a partial result for every chunk of tiles, which a second kernel merges in a fixed order.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTIALS = tl.constexpr(32)
"""How many chunks' results the merging kernels read at a time."""
_PROGRAMS = 1024  # of a reduction: enough to fill a GPU, few enough to merge


@triton.jit
def _tile(tile, channel, rows, channels, ROWS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Offsets and mask (ROWS, CHANNELS) of a tile."""
    tiles = tl.cdiv(rows, ROWS)  # of a segment
    row = tile % tiles * ROWS + tl.arange(0, ROWS)
    segment = (tile // tiles).to(tl.int64)
    if CHANNELS_LAST:
        offsets = row.to(tl.int64)[:, None] * channels + channel[None, :]
    else:
        offsets = (segment * channels + channel)[None, :] * rows + row[:, None]
    return offsets, (row < rows)[:, None] & (channel < channels)[None, :]


@triton.jit
def _rows_before(tile, rows, ROWS: tl.constexpr):
    """How many rows all tiles before this one have."""
    tiles = tl.cdiv(rows, ROWS)
    return tile // tiles * rows + tl.minimum(tile % tiles * ROWS, rows)


@triton.jit
def _parameter(vector, channel, channels, default: tl.constexpr):
    """A vector's values for some channels (1, CHANNELS), or the default where there is no vector."""
    value = tl.full([channel.shape[0]], default, tl.float32)
    if vector is not None:
        value = tl.load(vector + channel, mask=channel < channels, other=0)
    return value[None, :]


@triton.jit
def statistics_kernel(
    x,
    partial,  # (3, chunks, channels)
    rows,
    channels,
    tiles,
    length,  # of a chunk, in tiles
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """The mean of a chunk, in two parts to be added, and its sum of squared deviations.

    Squares are summed around the mean of the chunk's first tile: where that is far from the others, the chunk has so
    large a variance that nothing is lost.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    chunk = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    first = chunk * length
    last = tl.minimum(first + length, tiles)
    offsets, mask = _tile(first, channel, rows, channels, ROWS, CHANNELS_LAST)
    count = _rows_before(first + 1, rows, ROWS) - _rows_before(first, rows, ROWS)
    centre = tl.sum(tl.load(x + offsets, mask=mask, other=0).to(tl.float32), 0) / count
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    squares = tl.zeros([ROWS, CHANNELS], tl.float32)
    for tile in range(first, last):
        offsets, mask = _tile(tile, channel, rows, channels, ROWS, CHANNELS_LAST)
        value = tl.load(x + offsets, mask=mask, other=0).to(tl.float32)
        value = tl.where(mask, value - centre[None, :], 0)
        total += value
        squares += value * value
    rest = tl.sum(total, 0)
    count = _rows_before(last, rows, ROWS) - _rows_before(first, rows, ROWS)
    error = tl.where(centre - centre == 0, rest / count, 0)  # an infinite mean stays infinite
    out = partial + chunk.to(tl.int64) * channels + channel
    step = (tl.num_programs(0) // blocks).to(tl.int64) * channels
    tl.store(out, centre, mask=channel < channels)
    tl.store(out + step, error, mask=channel < channels)
    tl.store(out + 2 * step, tl.sum(squares, 0) - rest * error, mask=channel < channels)


@triton.jit
def merge_statistics_kernel(
    partial,
    stats,  # (2, channels)
    rows,
    channels,
    tiles,
    length,
    chunks,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Statistics of all chunks (Chan, Golub, LeVeque), means relative to the first chunk's."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    count = _rows_before(tiles, rows, ROWS)
    pivot = tl.load(partial + channel, mask=channel < channels, other=0)
    pivot = tl.where(pivot - pivot == 0, pivot, 0)
    total = tl.zeros([PARTIALS, CHANNELS], tl.float32)
    for start in range(0, chunks, PARTIALS):
        mean, number, _ = _chunks(partial, pivot, start, channel, rows, channels, tiles, length, chunks, ROWS)
        total += tl.where(number > 0, number * mean, 0)
    merged = tl.sum(total, 0) / count
    deviations = tl.zeros([PARTIALS, CHANNELS], tl.float32)
    for start in range(0, chunks, PARTIALS):
        mean, number, own = _chunks(partial, pivot, start, channel, rows, channels, tiles, length, chunks, ROWS)
        difference = mean - merged[None, :]
        deviations += tl.where(number > 0, own + number * difference * difference, 0)
    tl.store(stats + channel, pivot + merged, mask=channel < channels)
    tl.store(stats + channels + channel, tl.sum(deviations, 0), mask=channel < channels)


@triton.jit
def _chunks(partial, pivot, start, channel, rows, channels, tiles, length, chunks, ROWS: tl.constexpr):
    """Mean less pivot, number of rows and squared deviations of the chunks from start on."""
    chunk = start + tl.arange(0, PARTIALS)
    first = tl.minimum(chunk * length, tiles)
    last = tl.minimum(first + length, tiles)
    number = (_rows_before(last, rows, ROWS) - _rows_before(first, rows, ROWS)).to(tl.float32)
    centre = _partial(partial, 0, chunk, channel, channels, chunks)
    error = _partial(partial, 1, chunk, channel, channels, chunks)
    deviations = _partial(partial, 2, chunk, channel, channels, chunks)
    return (centre - pivot[None, :]) + error, number[:, None], deviations


@triton.jit
def _partial(partial, part: tl.constexpr, chunk, channel, channels, chunks):
    """One of the partial results of some chunks; 0 beyond the last chunk."""
    offsets = (part * chunks + chunk).to(tl.int64)[:, None] * channels + channel[None, :]
    return tl.load(partial + offsets, mask=(chunk < chunks)[:, None] & (channel < channels)[None, :], other=0)


@triton.jit
def apply_kernel(
    x,
    residual,
    y,
    mean,
    invstd,
    weight,
    bias,
    rows,
    channels,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """y of one tile."""
    blocks = tl.cdiv(channels, CHANNELS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    offsets, mask = _tile(tl.program_id(0) // blocks, channel, rows, channels, ROWS, CHANNELS_LAST)
    scale = _parameter(invstd, channel, channels, 1) * _parameter(weight, channel, channels, 1)
    centred = tl.load(x + offsets, mask=mask, other=0).to(tl.float32) - _parameter(mean, channel, channels, 0)
    value = centred * scale + _parameter(bias, channel, channels, 0)
    if residual is not None:
        value += tl.load(residual + offsets, mask=mask, other=0).to(tl.float32)
    if RELU:
        value = tl.where(value < 0, 0, value)  # NaN stays
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _gradient(dy, x, y, mean, scale, shift, offsets, mask, RELU: tl.constexpr):
    """The gradient g before ReLU, and x - mean; without y the sign of the output is found again from x."""
    g = tl.load(dy + offsets, mask=mask, other=0).to(tl.float32)
    centred = tl.load(x + offsets, mask=mask, other=0).to(tl.float32) - mean
    if RELU:
        output = centred * scale + shift
        if y is not None:
            output = tl.load(y + offsets, mask=mask, other=0).to(tl.float32)
        g = tl.where(output <= 0, 0, g)  # a NaN lets the gradient pass, as in PyTorch
    return g, centred


@triton.jit
def sums_kernel(
    dy,
    x,
    y,
    mean,
    invstd,
    weight,
    bias,
    partial,  # (2, chunks, channels)
    rows,
    channels,
    tiles,
    length,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Sum of g and of g * xhat over a chunk."""
    blocks = tl.cdiv(channels, CHANNELS)
    chunk = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    centre = _parameter(mean, channel, channels, 0)
    deviation = _parameter(invstd, channel, channels, 1)
    scale = deviation * _parameter(weight, channel, channels, 1)
    shift = _parameter(bias, channel, channels, 0)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    products = tl.zeros([ROWS, CHANNELS], tl.float32)
    for tile in range(chunk * length, tl.minimum(chunk * length + length, tiles)):
        offsets, mask = _tile(tile, channel, rows, channels, ROWS, CHANNELS_LAST)
        g, centred = _gradient(dy, x, y, centre, scale, shift, offsets, mask, RELU)
        total += g
        products += tl.where(mask, g * centred, 0)
    out = partial + chunk.to(tl.int64) * channels + channel
    tl.store(out, tl.sum(total, 0), mask=channel < channels)
    out += (tl.num_programs(0) // blocks).to(tl.int64) * channels
    tl.store(out, tl.sum(products * deviation, 0), mask=channel < channels)


@triton.jit
def merge_sums_kernel(partial, sums, channels, chunks, CHANNELS: tl.constexpr):
    """Sums over all chunks."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([PARTIALS, CHANNELS], tl.float32)
    products = tl.zeros([PARTIALS, CHANNELS], tl.float32)
    for start in range(0, chunks, PARTIALS):
        chunk = start + tl.arange(0, PARTIALS)
        total += _partial(partial, 0, chunk, channel, channels, chunks)
        products += _partial(partial, 1, chunk, channel, channels, chunks)
    tl.store(sums + channel, tl.sum(total, 0), mask=channel < channels)
    tl.store(sums + channels + channel, tl.sum(products, 0), mask=channel < channels)


@triton.jit
def input_kernel(
    x,
    dy,
    y,
    dx,
    g_out,  # may be None
    mean,
    invstd,
    weight,
    bias,
    sums,  # None: a frozen layer
    share,  # what each value weighs in the sums' means
    rows,
    channels,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """dx, and the residual's gradient, of one tile."""
    blocks = tl.cdiv(channels, CHANNELS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    offsets, mask = _tile(tl.program_id(0) // blocks, channel, rows, channels, ROWS, CHANNELS_LAST)
    deviation = _parameter(invstd, channel, channels, 1)
    scale = deviation * _parameter(weight, channel, channels, 1)
    shift = _parameter(bias, channel, channels, 0)
    g, centred = _gradient(dy, x, y, _parameter(mean, channel, channels, 0), scale, shift, offsets, mask, RELU)
    value = g
    if sums is not None:
        value -= _parameter(sums, channel, channels, 0) * share
        value -= centred * deviation * (_parameter(sums + channels, channel, channels, 0) * share)
    tl.store(dx + offsets, (value * scale).to(dx.dtype.element_ty), mask=mask)
    if g_out is not None:
        tl.store(g_out + offsets, g.to(g_out.dtype.element_ty), mask=mask)


class _Plan(NamedTuple):
    """How a map is cut."""

    rows: int  # of a segment
    channels: int
    tiles: int  # of all segments
    blocks: int  # of channels
    tile: dict[str, Any]
    """The kernels' constants: the size of a tile, and the layout."""

    @property
    def length(self) -> int:
        """Of a chunk, in tiles."""
        chunks = max(1, _PROGRAMS // self.blocks)
        return triton.cdiv(self.tiles, chunks)

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.tiles, self.length)


TILES = {"channels_last": (32, 64), "planes": (1024, 1), "small planes": (128, 1)}
"""ROWS and CHANNELS of each kind of map."""


def _plan(x: Tensor, channels_last: bool) -> _Plan:
    n, channels, height, width = x.shape
    segments, rows = (1, n * height * width) if channels_last else (n, height * width)
    kind = "channels_last" if channels_last else "planes" if rows > 256 else "small planes"
    size, block = TILES[kind]
    tile = {"ROWS": size, "CHANNELS": block, "CHANNELS_LAST": channels_last}
    return _Plan(rows, channels, segments * triton.cdiv(rows, size), triton.cdiv(channels, block), tile)


def statistics(channels_last: bool, relu: bool, *, x: Tensor, stats: Tensor) -> None:
    """Fill stats (2, C) with mean and sum of squared deviations of x."""
    if x.numel() == 0:
        stats.zero_()
        return
    plan = _plan(x, channels_last)
    partial = torch.empty((3, plan.chunks, plan.channels), dtype=torch.float32, device=x.device)
    size = (plan.rows, plan.channels, plan.tiles, plan.length)
    with torch.cuda.device_of(x):
        statistics_kernel[(plan.chunks * plan.blocks,)](x, partial, *size, **plan.tile)
        merge_statistics_kernel[(triton.cdiv(plan.channels, 32),)](
            partial, stats, *size, plan.chunks, plan.tile["ROWS"], CHANNELS=32
        )


def apply(
    channels_last: bool,
    relu: bool,
    *,
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    invstd: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Fill y with x normalised, plus the residual, through ReLU."""
    _each_tile(apply_kernel, channels_last, relu, x, residual, y, mean, invstd, weight, bias)


def backward_sums(
    channels_last: bool,
    relu: bool,
    *,
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    sums: Tensor,
    y: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Fill sums (2, C) with the sum of g and of g * xhat."""
    if x.numel() == 0:
        sums.zero_()
        return
    plan = _plan(x, channels_last)
    partial = torch.empty((2, plan.chunks, plan.channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        sums_kernel[(plan.chunks * plan.blocks,)](
            dy, x, y, mean, invstd, weight, bias, partial, plan.rows, plan.channels, plan.tiles, plan.length,
            RELU=relu, **plan.tile,
        )  # fmt: skip
        merge_sums_kernel[(triton.cdiv(plan.channels, 32),)](partial, sums, plan.channels, plan.chunks, CHANNELS=32)


def backward_input(
    channels_last: bool,
    relu: bool,
    *,
    dy: Tensor,
    x: Tensor,
    dx: Tensor,
    mean: Tensor,
    invstd: Tensor,
    y: Tensor | None = None,
    g: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    means: Tensor | None = None,
    share: float = 1.0,
) -> None:
    """Fill dx, and g, the residual's gradient; means * share are the means of g and of g * xhat."""
    _each_tile(input_kernel, channels_last, relu, x, dy, y, dx, g, mean, invstd, weight, bias, means, share)


def backward(channels_last: bool, relu: bool, *, x: Tensor, sums: Tensor, **arrays: Tensor) -> None:
    """`backward_sums`, and `backward_input` by the means of those sums."""
    outputs = {name: arrays.pop(name) for name in ("dx", "g") if name in arrays}
    backward_sums(channels_last, relu, x=x, sums=sums, **arrays)
    share = x.shape[1] / max(x.numel(), 1)
    backward_input(channels_last, relu, x=x, means=sums, share=share, **arrays, **outputs)


def _each_tile(kernel: Any, channels_last: bool, relu: bool, x: Tensor, *arrays: Tensor | float | None) -> None:
    if x.numel() == 0:
        return
    plan = _plan(x, channels_last)
    with torch.cuda.device_of(x):
        kernel[(plan.tiles * plan.blocks,)](x, *arrays, plan.rows, plan.channels, RELU=relu, **plan.tile)
