"""Matrix products of the 1x1 convolution, batch norm and ReLU in Triton, forward and backward.

A map is the matrix pixels x channels: that of all images where it is channels_last, else one an image. Sums are fp32;
fp32 matrices are multiplied as three products of tf32 halves, which keeps fp32's accuracy on tensor cores. Statistics
and long sums are gathered in parts, one a tile, and merged in a fixed order: results do not depend on timing.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PRECISION = tl.constexpr("tf32x3")  # of fp32 factors; half precisions are exact in the product
PROBLEMS = 4
"""Products that one launch may group."""
ENOUGH_TILES = 128
"""Programs that fill a GPU, about its number of multiprocessors; fixed, so that GPUs of all sizes round alike."""
SPLIT_PIXELS = 2048
"""A weight's gradient sums at least so many pixels a part."""


class Config(NamedTuple):
    """Tile of the result, length of the steps along the sum, warps, stages of the pipeline."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


CONFIGS = {  # by bytes an element, largest tiles first
    2: (Config(128, 128, 64, 8, 3), Config(64, 64, 64, 4, 4), Config(16, 64, 64, 4, 4)),
    4: (Config(128, 64, 16, 8, 3), Config(64, 64, 32, 8, 3), Config(16, 32, 32, 4, 4)),
}
MERGE_PARTS, MERGE_COLUMNS = 32, 64


class _Maps(NamedTuple):
    """Dense maps of one layout, type and number of channels, as matrices."""

    maps: list[Tensor]
    memory_format: torch.memory_format
    channels_last: bool
    """Whether all images make one matrix of neighbouring channels, else each makes one of neighbouring pixels."""

    @property
    def images(self) -> int:
        """Matrices a map."""
        return 1 if self.channels_last else self.maps[0].shape[0]

    def pixels(self, problem: int) -> int:
        """Rows of a matrix; 0 where there is no such map."""
        if problem >= len(self.maps):
            return 0
        n, _, height, width = self.maps[problem].shape
        return n * height * width // max(self.images, 1)

    def tiles(self, rows: int) -> int:
        """Of so many rows, in all maps."""
        return self.images * sum(triton.cdiv(self.pixels(k), rows) for k in range(len(self.maps)))

    def empty(self, channels: int) -> list[Tensor]:
        """Uninitialised maps as these, with other channels."""
        return [
            torch.empty_like(x[:, :1].expand(-1, channels, -1, -1), memory_format=self.memory_format) for x in self.maps
        ]

    def like(self, x: Tensor) -> Tensor:
        """x in the layout of these maps."""
        return x.contiguous(memory_format=self.memory_format)


def matmul_statistics(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """z = prologue(x) @ weight^T and the batch statistics of z, for up to four maps with a weight each.

    Args:
        xs: maps (N, C, H, W), which may differ in H and W.
        weights: an (O, C) matrix a map, of its type.
        scale, shift, relu: the prologue is relu(x * scale + shift) with fp32 factors (C), x itself without them: what
            the previous layer's batch norm stores nowhere.

    Returns:
        The maps z (N, O, H, W), in x's type and layout, and for each the (2, O) fp32 means of z, as rounded to its
        type, and sums of squared deviations from them; zeros for an empty map.
    """
    x = _maps(*xs)
    outputs, channels = weights[0].shape
    zs = x.empty(outputs)
    config = _config(x, outputs)
    tiles = x.tiles(config.rows)
    stats = torch.empty((len(xs), 2, outputs), dtype=torch.float32, device=xs[0].device)
    if tiles == 0:
        return zs, list(stats.zero_())
    parts = torch.empty((tiles, 2, outputs), dtype=torch.float32, device=xs[0].device)
    pixels = [x.pixels(k) for k in range(PROBLEMS)]
    with torch.cuda.device_of(xs[0]):
        multiply_with_statistics[(tiles * triton.cdiv(outputs, config.columns),)](
            *_four(x.maps),
            *_four([weight.contiguous() for weight in weights]),
            *_four(zs),
            *(parts, scale if scale is not None else parts, shift if shift is not None else parts),
            *(*pixels, x.images, channels, outputs),
            GROUPED=len(xs) > 1,
            PROLOGUE=scale is not None,
            RELU=relu,
            **_constants(x, config),
        )
        merge_statistics[(len(xs) * triton.cdiv(outputs, MERGE_COLUMNS),)](
            *(parts, stats, *pixels, x.images, outputs),
            GROUPED=len(xs) > 1,
            ROWS=config.rows,
            PARTS=MERGE_PARTS,
            COLUMNS=MERGE_COLUMNS,
        )
    return zs, list(stats)


def matmul_affine_relu(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None, relu: bool = True
) -> Tensor:
    """relu((x @ weight^T) * scale + shift + residual), rounded once.

    x is (N, C, H, W), weight (O, C), scale and shift (O), the residual like the result.
    """
    maps = _maps(x)
    outputs, channels = weight.shape
    (y,) = maps.empty(outputs)
    config = _config(maps, outputs)
    with torch.cuda.device_of(x):
        multiply_with_affine[(maps.tiles(config.rows) * triton.cdiv(outputs, config.columns),)](
            *(maps.maps[0], weight.contiguous(), scale, shift, y if residual is None else maps.like(residual), y),
            *(maps.pixels(0), channels, outputs),
            RESIDUAL=residual is not None,
            RELU=relu,
            **_constants(maps, config),
        )
    return y


class Normalisation(NamedTuple):
    """The batch norm (and ReLU) whose result was multiplied: its input and fp32 factors (C)."""

    x: Tensor
    scale: Tensor
    shift: Tensor
    mean: Tensor
    invstd: Tensor
    relu: bool


def matmul_input_gradient(
    dz: Tensor, weight: Tensor, before: Normalisation | None = None
) -> tuple[Tensor, Tensor | None]:
    """The gradient of what was multiplied, dz @ weight, for dz (N, O, H, W) and weight (O, C), in dz's layout.

    With `before`, instead the gradient g of that batch norm's result before its ReLU (0 where x * scale + shift is not
    positive), and the fp32 (2, C) sums of g and of g * (x - mean) * invstd over all pixels, g as rounded to its type.
    """
    maps = _maps(dz)
    outputs, channels = weight.shape
    (dx,) = maps.empty(channels)
    config = _config(maps, channels)
    tiles = maps.tiles(config.rows)
    x = dx if before is None else maps.like(before.x)
    parts = torch.empty((tiles if before else 0, 2, channels), dtype=torch.float32, device=dz.device)
    factors = (parts,) * 4 if before is None else before[1:5]
    with torch.cuda.device_of(dz):
        multiply_back[(tiles * triton.cdiv(channels, config.columns),)](
            *(maps.maps[0], weight.contiguous(), dx, parts, x, *factors),
            *(maps.pixels(0), outputs, channels),
            NORMALISED=before is not None,
            RELU=before is not None and before.relu,
            **_constants(maps, config),
        )
    return dx, None if before is None else _sum(parts, torch.float32)


def matmul_weight_gradient(
    dz: Tensor, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, relu: bool = False
) -> Tensor:
    """The gradient (O, C) of the weight, dz^T @ prologue(x), in x's type; the prologue is `matmul_statistics`'s."""
    maps = _maps(x)
    channels, outputs = x.shape[1], dz.shape[1]
    config = _weight_config(maps, outputs, channels)
    steps = maps.tiles(config.inner)
    tiles = triton.cdiv(outputs, config.rows) * triton.cdiv(channels, config.columns)
    a_part = max(triton.cdiv(steps * tiles, ENOUGH_TILES), SPLIT_PIXELS // config.inner)
    count = triton.cdiv(steps, a_part)
    parts = torch.empty((count, outputs, channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        multiply_over_pixels[(count * tiles,)](
            *(maps.like(dz), maps.maps[0], parts),
            *(scale if scale is not None else parts, shift if shift is not None else parts),
            *(maps.pixels(0), outputs, channels, steps, a_part),
            PROLOGUE=scale is not None,
            RELU=relu,
            **_constants(maps, config),
        )
    return _sum(parts, x.dtype)


def _maps(*xs: Tensor) -> _Maps:
    channels_last = any(not x.is_contiguous() and x.stride(1) == 1 and x.shape[1] > 1 for x in xs)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    dense = [x.contiguous(memory_format=memory_format) for x in xs]
    return _Maps(dense, memory_format, channels_last or all(x.shape[2:] == (1, 1) for x in xs))


def _config(maps: _Maps, columns: int) -> Config:
    """The largest tiles of which there are enough for all multiprocessors, else the smallest."""
    configs = CONFIGS[maps.maps[0].element_size()]
    for config in configs:
        if maps.tiles(config.rows) * triton.cdiv(columns, config.columns) >= ENOUGH_TILES:
            return config
    return configs[-1]


def _weight_config(maps: _Maps, rows: int, columns: int) -> Config:
    """Large tiles for large weights: pixels fill the GPU. The flattest tiles are for few pixels, not here."""
    large, small = CONFIGS[maps.maps[0].element_size()][:2]
    return large if rows >= large.rows and columns >= large.columns else small


def _constants(maps: _Maps, config: Config) -> dict[str, int | bool]:
    return {
        "CHANNELS_LAST": maps.channels_last,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "INNER": config.inner,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def _four(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [*tensors, *[tensors[0]] * (PROBLEMS - len(tensors))]


def _sum(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first dimension, always in the same order."""
    total = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    columns = total.numel()
    with torch.cuda.device_of(parts):
        sum_parts[(triton.cdiv(columns, MERGE_COLUMNS),)](
            parts, total, len(parts), columns, PARTS=MERGE_PARTS, COLUMNS=MERGE_COLUMNS
        )
    return total


@triton.jit
def _of(problem, a, b, c, d):
    return tl.where(problem == 0, a, tl.where(problem == 1, b, tl.where(problem == 2, c, d)))


@triton.jit
def _ends(images, pixels0, pixels1, pixels2, ROWS: tl.constexpr):
    """The numbers of the tiles of rows that begin problems 1, 2 and 3."""
    first = images * tl.cdiv(pixels0, ROWS)
    second = first + images * tl.cdiv(pixels1, ROWS)
    return first, second, second + images * tl.cdiv(pixels2, ROWS)


@triton.jit
def _map_tile(x, p, c, pixels, channels, CHANNELS_LAST: tl.constexpr):
    """Addresses of pixels p x channels c of one matrix, and which of them exist."""
    if CHANNELS_LAST:
        offset = p.to(tl.int64)[:, None] * channels + c[None, :]
    else:
        offset = c.to(tl.int64)[None, :] * pixels + p[:, None]
    return x + offset, (p < pixels)[:, None] & (c < channels)[None, :]


@triton.jit
def _normalised(x, scale, shift, c, channels, RELU: tl.constexpr):
    """relu(x * scale + shift) in fp32, for a tile of channels c."""
    a = tl.load(scale + c, c < channels, other=0)[None, :]
    b = tl.load(shift + c, c < channels, other=0)[None, :]
    y = x.to(tl.float32) * a + b
    return tl.where(y < 0, 0.0, y) if RELU else y


@triton.jit
def _product(
    x, weight, scale, shift, p, o, pixels, inner, outputs, stride_inner, stride_output, PROLOGUE: tl.constexpr,
    RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """The tile pixels p x outputs o of prologue(x) @ weight, fp32."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, inner, INNER):
        c = start + tl.arange(0, INNER)
        at, exists = _map_tile(x, p, c, pixels, inner, CHANNELS_LAST)
        a = tl.load(at, exists, other=0)
        if PROLOGUE:
            a = _normalised(a, scale, shift, c, inner, RELU).to(a.dtype)
        at = weight + (c.to(tl.int64) * stride_inner)[:, None] + (o.to(tl.int64) * stride_output)[None, :]
        b = tl.load(at, (c < inner)[:, None] & (o < outputs)[None, :], other=0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def multiply_with_statistics(
    x0, x1, x2, x3, weight0, weight1, weight2, weight3, z0, z1, z2, z3, parts, scale, shift, pixels0, pixels1, pixels2,
    pixels3, images, channels, outputs, GROUPED: tl.constexpr, PROLOGUE: tl.constexpr, RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """z = prologue(x) @ weight^T, and parts (tiles of rows, 2, O): mean and squared deviations of a tile's columns.

    All tiles of the same rows follow one another: x is read once, the weight stays in L2.
    """
    columns = tl.cdiv(outputs, COLUMNS)
    tile = tl.program_id(0) // columns
    o = tl.program_id(0) % columns * COLUMNS + tl.arange(0, COLUMNS)
    x, weight, z, pixels, row = x0, weight0, z0, pixels0, tile
    if GROUPED:
        end0, end1, end2 = _ends(images, pixels0, pixels1, pixels2, ROWS)
        k = (tile >= end0).to(tl.int32) + (tile >= end1).to(tl.int32) + (tile >= end2).to(tl.int32)
        x, weight, z = _of(k, x0, x1, x2, x3), _of(k, weight0, weight1, weight2, weight3), _of(k, z0, z1, z2, z3)
        pixels = _of(k, pixels0, pixels1, pixels2, pixels3)
        row = tile - _of(k, 0, end0, end1, end2)
    rows = tl.cdiv(pixels, ROWS)
    image = (row // rows).to(tl.int64)
    p = row % rows * ROWS + tl.arange(0, ROWS)
    total = _product(
        x + image * pixels * channels, weight, scale, shift, p, o, pixels, channels, outputs, 1, channels, PROLOGUE,
        RELU, CHANNELS_LAST, ROWS, COLUMNS, INNER,
    )  # fmt: skip
    at, exists = _map_tile(z + image * pixels * outputs, p, o, pixels, outputs, CHANNELS_LAST)
    rounded = total.to(z0.dtype.element_ty)
    tl.store(at, rounded, exists)
    value = tl.where(exists, rounded.to(tl.float32), 0.0)
    mean = tl.sum(value, 0) / tl.minimum(pixels - row % rows * ROWS, ROWS)
    deviation = tl.where(exists, value - mean[None, :], 0.0)
    part = parts + tile.to(tl.int64) * 2 * outputs + o
    tl.store(part, mean, o < outputs)
    tl.store(part + outputs, tl.sum(deviation * deviation, 0), o < outputs)


@triton.jit
def merge_statistics(
    parts, stats, pixels0, pixels1, pixels2, pixels3, images, outputs, GROUPED: tl.constexpr, ROWS: tl.constexpr,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Stats (problems, 2, O) of all rows from those of their tiles, by Chan's formula around the mean of all."""
    columns = tl.cdiv(outputs, COLUMNS)
    k = tl.program_id(0) // columns
    o = tl.program_id(0) % columns * COLUMNS + tl.arange(0, COLUMNS)
    pixels, begin = pixels0, k * 0
    if GROUPED:
        end0, end1, end2 = _ends(images, pixels0, pixels1, pixels2, ROWS)
        pixels, begin = _of(k, pixels0, pixels1, pixels2, pixels3), _of(k, 0, end0, end1, end2)
    rows = tl.cdiv(pixels, ROWS)
    parts += begin.to(tl.int64) * 2 * outputs
    origin = tl.load(parts + o, o < outputs, other=0)  # sums of small differences from it lose nothing
    mean = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, images * rows, PARTS):
        part = start + tl.arange(0, PARTS)
        count = tl.minimum(pixels - part % rows * ROWS, ROWS).to(tl.float32)[:, None]
        exists = (part < images * rows)[:, None] & (o < outputs)[None, :]
        at = parts + (part.to(tl.int64) * 2 * outputs)[:, None] + o[None, :]
        mean += tl.sum(tl.where(exists, count * (tl.load(at, exists, other=0) - origin[None, :]), 0.0), 0)
    mean = origin + mean / images / pixels
    deviations = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, images * rows, PARTS):
        part = start + tl.arange(0, PARTS)
        count = tl.minimum(pixels - part % rows * ROWS, ROWS).to(tl.float32)[:, None]
        exists = (part < images * rows)[:, None] & (o < outputs)[None, :]
        at = parts + (part.to(tl.int64) * 2 * outputs)[:, None] + o[None, :]
        apart = tl.load(at, exists, other=0) - mean[None, :]
        within = tl.load(at + outputs, exists, other=0)
        deviations += tl.sum(tl.where(exists, within + count * apart * apart, 0.0), 0)
    stat = stats + k * 2 * outputs + o
    tl.store(stat, mean, o < outputs)
    tl.store(stat + outputs, deviations, o < outputs)


@triton.jit
def multiply_with_affine(
    x, weight, scale, shift, residual, y, pixels, channels, outputs, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """y = relu((x @ weight^T) * scale + shift + residual), programs in the order of multiply_with_statistics."""
    columns = tl.cdiv(outputs, COLUMNS)
    tile = tl.program_id(0) // columns
    o = tl.program_id(0) % columns * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.cdiv(pixels, ROWS)
    image = (tile // rows).to(tl.int64)
    p = tile % rows * ROWS + tl.arange(0, ROWS)
    total = _product(
        x + image * pixels * channels, weight, scale, shift, p, o, pixels, channels, outputs, 1, channels, False, False,
        CHANNELS_LAST, ROWS, COLUMNS, INNER,
    )  # fmt: skip
    factor = tl.load(scale + o, o < outputs, other=0).to(tl.float32)[None, :]
    total = total * factor + tl.load(shift + o, o < outputs, other=0).to(tl.float32)[None, :]
    at, exists = _map_tile(y + image * pixels * outputs, p, o, pixels, outputs, CHANNELS_LAST)
    if RESIDUAL:
        other, exists = _map_tile(residual + image * pixels * outputs, p, o, pixels, outputs, CHANNELS_LAST)
        total += tl.load(other, exists, other=0).to(tl.float32)
    if RELU:
        total = tl.where(total < 0, 0.0, total)
    tl.store(at, total, exists)


@triton.jit
def multiply_back(
    dz, weight, dx, parts, x, scale, shift, mean, invstd, pixels, outputs, channels, NORMALISED: tl.constexpr,
    RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """dx = dz @ weight, where NORMALISED through the ReLU before it, with parts (tiles of rows, 2, C) of its sums."""
    columns = tl.cdiv(channels, COLUMNS)
    tile = tl.program_id(0) // columns
    c = tl.program_id(0) % columns * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.cdiv(pixels, ROWS)
    image = (tile // rows).to(tl.int64)
    p = tile % rows * ROWS + tl.arange(0, ROWS)
    total = _product(
        dz + image * pixels * outputs, weight, scale, shift, p, c, pixels, outputs, channels, channels, 1, False, False,
        CHANNELS_LAST, ROWS, COLUMNS, INNER,
    )  # fmt: skip
    rounded = total.to(dx.dtype.element_ty)
    to, exists = _map_tile(dx + image * pixels * channels, p, c, pixels, channels, CHANNELS_LAST)
    if NORMALISED:
        at, exists = _map_tile(x + image * pixels * channels, p, c, pixels, channels, CHANNELS_LAST)
        value = tl.load(at, exists, other=0)
        if RELU:
            off = _normalised(value, scale, shift, c, channels, False) <= 0
            rounded = tl.where(off, 0.0, rounded).to(rounded.dtype)
        m = tl.load(mean + c, c < channels, other=0)[None, :]
        normal = (value.to(tl.float32) - m) * tl.load(invstd + c, c < channels, other=0)[None, :]
        gradient = tl.where(exists, rounded.to(tl.float32), 0.0)
        part = parts + tile.to(tl.int64) * 2 * channels + c
        tl.store(part, tl.sum(gradient, 0), c < channels)
        tl.store(part + channels, tl.sum(gradient * normal, 0), c < channels)
    tl.store(to, rounded, exists)


@triton.jit
def multiply_over_pixels(
    dz, x, parts, scale, shift, pixels, outputs, channels, steps, a_part, PROLOGUE: tl.constexpr, RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """parts (parts, O, C) of dz^T @ prologue(x): part k sums steps k * a_part to (k + 1) * a_part of INNER pixels."""
    columns, rows = tl.cdiv(channels, COLUMNS), tl.cdiv(outputs, ROWS)
    tile, k = tl.program_id(0) % (rows * columns), tl.program_id(0) // (rows * columns)
    o = tile // columns * ROWS + tl.arange(0, ROWS)
    c = tile % columns * COLUMNS + tl.arange(0, COLUMNS)
    an_image = tl.cdiv(pixels, INNER)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(k * a_part, tl.minimum((k + 1) * a_part, steps)):
        image = (step // an_image).to(tl.int64)
        p = step % an_image * INNER + tl.arange(0, INNER)
        at, exists = _map_tile(dz + image * pixels * outputs, p, o, pixels, outputs, CHANNELS_LAST)
        a = tl.load(at, exists, other=0)
        at, exists = _map_tile(x + image * pixels * channels, p, c, pixels, channels, CHANNELS_LAST)
        b = tl.load(at, exists, other=0)
        if PROLOGUE:
            b = _normalised(b, scale, shift, c, channels, RELU).to(b.dtype)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
    to = parts + (k.to(tl.int64) * outputs + o)[:, None] * channels + c[None, :]
    tl.store(to, total, (o < outputs)[:, None] & (c < channels)[None, :])


@triton.jit
def sum_parts(parts, total, count, columns, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """total (columns) = the sum of parts (count, columns)."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    value = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        exists = (part < count)[:, None] & (c < columns)[None, :]
        value += tl.sum(tl.load(parts + (part.to(tl.int64) * columns)[:, None] + c[None, :], exists, other=0), 0)
    tl.store(total + c, value, c < columns)
