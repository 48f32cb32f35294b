"""Bilinear interpolation inside Triton kernels, one cell of the low-resolution map at a time.

Cell (i, j) is all pixels that lie between the logits (i, j) and (next(i), next(j)): they share their four corners.
Positions are exact fractions, so that every pixel belongs to one cell however sizes divide.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_output(i, inputs, outputs, ALIGN: tl.constexpr):
    """The first output along an axis whose source is input i or one after it; `outputs` where there is none."""
    i64, n_in, n_out = i.to(tl.int64), inputs.to(tl.int64), outputs.to(tl.int64)
    if ALIGN:
        steps = tl.maximum(n_in - 1, 1)
        first = (i64 * (n_out - 1) + steps - 1) // steps
        first = tl.where((i64 > 0) & (n_out == 1), n_out, first)
    else:
        first = (tl.maximum(n_out * (2 * i64 + 1) - n_in, 0) + 2 * n_in - 1) // (2 * n_in)
        first = tl.where(i64 == 0, 0, first)
    return tl.where(i64 >= n_in, n_out, tl.minimum(first, n_out)).to(tl.int32)


@triton.jit
def next_weight(x, i, inputs, outputs, ALIGN: tl.constexpr):
    """How much of output x, whose source is input i, the input after i is."""
    x64, i64, n_in, n_out = x.to(tl.int64), i.to(tl.int64), inputs.to(tl.int64), outputs.to(tl.int64)
    if ALIGN:
        denominator = tl.maximum(n_out - 1, 1)
        numerator = x64 * (n_in - 1)
    else:
        denominator = 2 * n_out
        numerator = tl.maximum((2 * x64 + 1) * n_in - n_out, 0)
    return (numerator - i64 * denominator).to(tl.float32) / denominator.to(tl.float32)


@triton.jit
def next_input(i, inputs, outputs):
    """The input after i; i itself at the end, and as in PyTorch where there is nothing to interpolate."""
    return tl.where((i + 1 < inputs) & (inputs != outputs), i + 1, i)


@triton.jit
def cell_of_program(h, w):
    """(n, i, j) of this program, which owns one cell."""
    cell = tl.program_id(0)
    return cell // (h * w), cell // w % h, cell % w


@triton.jit
def corner_offsets(i, j, h, w, height, width, stride_h, stride_w):
    """Where the corners of cell (i, j) lie in an image: upper left, upper right, lower left, lower right."""
    upper, lower = i.to(tl.int64) * stride_h, next_input(i, h, height).to(tl.int64) * stride_h
    left, right = j.to(tl.int64) * stride_w, next_input(j, w, width).to(tl.int64) * stride_w
    return upper + left, upper + right, lower + left, lower + right


@triton.jit
def blend(image, upper_left, upper_right, lower_left, lower_right, c, channels, stride_c, down, right):
    """Logits (pixels, classes c) of one cell's pixels, `down` and `right` their shares; -inf past the last class."""
    inside = c < channels
    at = image + c.to(tl.int64) * stride_c
    a = tl.load(at + upper_left, mask=inside, other=0.0).to(tl.float32)[None, :]
    b = tl.load(at + upper_right, mask=inside, other=0.0).to(tl.float32)[None, :]
    upper = a * (1 - right)[:, None] + b * right[:, None]
    a = tl.load(at + lower_left, mask=inside, other=0.0).to(tl.float32)[None, :]
    b = tl.load(at + lower_right, mask=inside, other=0.0).to(tl.float32)[None, :]
    lower = a * (1 - right)[:, None] + b * right[:, None]
    value = upper * (1 - down)[:, None] + lower * down[:, None]
    return tl.where(inside[None, :], value, -float("inf"))


@triton.jit
def largest(
    image,
    upper_left,
    upper_right,
    lower_left,
    lower_right,
    channels,
    stride_c,
    down,
    right,
    PIXELS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """The largest logit of each pixel and its class: the first NaN, else the first of the largest."""
    lanes = tl.arange(0, CLASSES)
    best = tl.full([PIXELS, CLASSES], -float("inf"), tl.float32)
    label = tl.zeros([PIXELS, CLASSES], tl.int32) + lanes[None, :]
    for start in range(0, channels, CLASSES):
        c = start + lanes
        value = blend(image, upper_left, upper_right, lower_left, lower_right, c, channels, stride_c, down, right)
        taken = (value > best) | ((value != value) & (best == best))
        best = tl.where(taken, value, best)
        label = tl.where(taken, c[None, :], label)
    nan = best != best
    has_nan = tl.max(nan.to(tl.int32), 1) > 0
    top = tl.max(tl.where(nan, -float("inf"), best), 1)
    wins = tl.where(has_nan[:, None], nan, best == top[:, None])
    first = tl.min(tl.where(wins, label, 2147483647), 1)
    return tl.where(has_nan, float("nan"), top), first


CONFIGURATIONS = {side: {"SIDE": side, "CLASSES": 32, "num_warps": side} for side in (4, 8)}
"""For each side of the square of pixels that a program handles at a time; CLASSES are handled at a time, too."""


def configuration(inputs: tuple[int, int], outputs: tuple[int, int]) -> dict[str, int]:
    """The configuration whose square holds most cells."""
    side = max(-(-out // size) for size, out in zip(inputs, outputs, strict=True))
    return CONFIGURATIONS[4 if side <= 4 else 8]
