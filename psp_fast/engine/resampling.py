"""Bilinear resizing of a part of an image or score map, so that the whole resized map never exists.

There is no anti-aliasing, also where the map shrinks: OpenCV's INTER_LINEAR and PyTorch's interpolate have none either,
and the published results rest on them. Pillow's resize would give other pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Axis(NamedTuple):
    """One side of a map that is resized: how many pixels it has before and after, and which convention is used."""

    before: int
    after: int
    align_corners: bool = False

    def reads(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the source pixels that the results start..stop-1 are made of."""
        first, last = self._positions(torch.tensor([start, stop - 1])).tolist()
        return int(first), min(int(last) + 2, self.before)

    def neighbours(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """For the results start..stop-1: two source indices (int64), and the second one's weight (float32)."""
        positions = self._positions(torch.arange(start, stop, device=device))
        first = positions.long()
        return first, (first + 1).clamp_(max=self.before - 1), (positions - first).float()

    def _positions(self, indices: Tensor) -> Tensor:
        """Where results lie among the source's pixels, float64."""
        if self.align_corners:
            return indices.double() * ((self.before - 1) / max(self.after - 1, 1))
        centres = (indices.double() + 0.5) * (self.before / self.after) - 0.5
        return centres.clamp_(0, self.before - 1)


def resized(
    source: Tensor, axes: tuple[Axis, Axis], rows: tuple[int, int], columns: tuple[int, int], origin: tuple[int, int]
) -> Tensor:
    """Rows and columns (start, stop) of a resized map, (C, rows, columns) float32.

    Args:
        source: (C, h, w) of any dtype, that part of the map which these rows and columns read.
        axes: of the whole map, vertical and horizontal.
        rows: of the result.
        columns: of the result.
        origin: row and column that the source starts at in the map.
    """
    vertical, horizontal = axes
    if vertical.before == vertical.after and horizontal.before == horizontal.after:
        part = source[:, rows[0] - origin[0] : rows[1] - origin[0], columns[0] - origin[1] : columns[1] - origin[1]]
        return part.float()
    above, below, down = vertical.neighbours(*rows, source.device)
    left, right, across = horizontal.neighbours(*columns, source.device)
    first, last = int(left[0]), int(right.max()) + 1
    part = source[:, :, first - origin[1] : last - origin[1]]
    found = torch.lerp(part[:, above - origin[0]].float(), part[:, below - origin[0]].float(), down[:, None])
    return torch.lerp(found[:, :, left - first], found[:, :, right - first], across)
