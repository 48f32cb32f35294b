"""Where the crops of an image lie at one scale of the evaluation, and what they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from psp_fast.configs import AugmentConfig, EvalConfig
from psp_fast.data.transforms import fit
from psp_fast.engine.resampling import Axis, resized


@dataclass(frozen=True)
class Grid:
    """The crops of an image that is resized to `size` and, where smaller than the crop, padded around its centre.

    Args:
        size: height and width of the resized image.
        crop: height and width of a crop.
        tops: first row of every row of crops in the padded image.
        lefts: first column of every column of crops in the padded image.
    """

    size: tuple[int, int]
    crop: tuple[int, int]
    tops: list[int]
    lefts: list[int]

    @property
    def padding(self) -> tuple[int, int]:
        """Rows above and columns to the left of the image."""
        above, left = (max(crop - side, 0) // 2 for crop, side in zip(self.crop, self.size, strict=True))
        return above, left


def make_grid(shape: tuple[int, int], scale: float, config: EvalConfig, mirrored: bool = False) -> Grid:
    """The crops of an image of shape (height, width) at a scale.

    mirrored: lay the columns from the right, where a window that slides over the mirrored image has them.
    """
    size = scaled_size(shape, scale, config.base_size)
    if config.mode == "whole":
        return Grid(size, size, [0], [0])
    crop = config.crop
    if config.average == "logits":  # mmseg's window shrinks to a small image, semseg's is padded
        crop = min(crop[0], size[0]), min(crop[1], size[1])
    tops, lefts = (window_starts(side, length, config.stride) for side, length in zip(size, crop, strict=True))
    if mirrored:
        lefts = [max(size[1] - crop[1], 0) - left for left in reversed(lefts)]
    return Grid(size, crop, tops, lefts)


def scaled_size(shape: tuple[int, int], scale: float, base_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of an image of `shape` at a scale, by semseg's rounding or, of a base_size pair, by mmseg's."""
    if isinstance(base_size, tuple):
        return fit(shape, base_size, scale)
    height, width = shape
    long = max(round(scale * (base_size or max(shape))), 1)
    if height > width:
        return long, max(round(long / height * width), 1)
    return max(round(long / width * height), 1), long


def window_starts(length: int, crop: int, stride: float) -> list[int]:
    """First pixels of the windows of `crop` pixels that cover `length` pixels, ceil(crop * stride) apart.

    The last one is moved back to end at the border.
    """
    step = math.ceil(crop * stride)
    windows = math.ceil(max(length - crop, 0) / step) + 1
    return [min(i * step, max(length - crop, 0)) for i in range(windows)]


def read_crop(image: Tensor, grid: Grid, top: int, left: int, augment: AugmentConfig) -> Tensor:
    """A normalised crop (3, crop height, crop width) of image (3, H, W) uint8; outside the image it is 0, the mean."""
    axes = Axis(image.shape[1], grid.size[0]), Axis(image.shape[2], grid.size[1])
    spans, pads = [], []
    for start, crop, side, before in zip((top, left), grid.crop, grid.size, grid.padding, strict=True):
        first, last = max(start - before, 0), min(start - before + crop, side)
        spans.append((first, last))
        pads.append((first - (start - before), crop - (first - (start - before)) - (last - first)))
    pixels = resized(image, axes, spans[0], spans[1], (0, 0))
    mean, std = (torch.tensor(value, device=image.device)[:, None, None] for value in (augment.mean, augment.std))
    return F.pad((pixels - mean) / std, (*pads[1], *pads[0]))
