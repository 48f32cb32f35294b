"""Averaged class scores of one scale of an image, read from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psp_fast.configs import Config
from psp_fast.engine.windows import Grid, read_crop
from psp_fast.models import PSPNet


class ScoreRows:
    """Mean scores over the crops of a grid; kept are the rows from the last ones asked for to the last ones computed.

    Args:
        model: in eval mode.
        image: (3, H, W) uint8 on the model's device.
        config: what is averaged, crops a batch, mean and std.
        grid: the crops.
        flips: for every crop, whether it is taken as it is (False), mirrored (True), or both.
        columns: range of the resized image's columns that are wanted; crops outside are left out.
        most_rows: the most rows that one call asks for.
    """

    def __init__(
        self,
        model: PSPNet,
        image: Tensor,
        config: Config,
        grid: Grid,
        flips: Sequence[bool],
        columns: tuple[int, int],
        most_rows: int,
    ) -> None:
        self.model, self.image, self.config = model, image, config
        self.grid, self.flips, self.columns = grid, flips, columns
        above, before = grid.padding
        self.tops, self.lefts = [top - above for top in grid.tops], [left - before for left in grid.lefts]
        height = min(grid.size[0], grid.crop[0] + most_rows)
        self.total = image.new_zeros((classes_of(model), height, columns[1] - columns[0]), dtype=torch.float32)
        self.first, self.rows_of_crops = 0, 0  # the buffer's first row, and how many rows of crops are in it
        down = _coverage(self.tops, grid.crop[0], (0, grid.size[0]), image.device)
        across = _coverage(self.lefts, grid.crop[1], columns, image.device)
        self.down, self.weight = down, 1 / (across * len(flips))

    def read(self, start: int, stop: int) -> Tensor:
        """Mean scores (C, stop - start, columns) float32 of these rows; none above `start` can be read afterwards."""
        while self._complete() < stop:
            self._add_row_of_crops(start)
        part = self.total[:, start - self.first : stop - self.first] * self.weight
        return part.div_(self.down[start:stop, None])

    def _complete(self) -> int:
        """Rows that no further crop adds to."""
        return self.tops[self.rows_of_crops] if self.rows_of_crops < len(self.tops) else self.grid.size[0]

    def _add_row_of_crops(self, start: int) -> None:
        top = self.tops[self.rows_of_crops]
        if min(top + self.grid.crop[0], self.grid.size[0]) - self.first > self.total.shape[1]:
            self._forget(start)
        wanted = [
            (left, flip)
            for left, flip in product(self.lefts, self.flips)
            if left < self.columns[1] and left + self.grid.crop[1] > self.columns[0]
        ]
        size = self.config.eval.batch_size
        for i in range(0, len(wanted), size):
            self._add_crops(top, wanted[i : i + size])
        self.rows_of_crops += 1

    def _add_crops(self, top: int, wanted: Sequence[tuple[int, bool]]) -> None:
        above, before = self.grid.padding
        crops = {
            left: read_crop(self.image, self.grid, top + above, left + before, self.config.augment)
            for left in {left for left, _ in wanted}
        }
        batch = torch.stack([crops[left].flip(2) if flip else crops[left] for left, flip in wanted])
        for scores, (left, flip) in zip(logits(self.model, batch), wanted, strict=True):
            self._add(scores.flip(2) if flip else scores, top, left)

    def _add(self, scores: Tensor, top: int, left: int) -> None:
        first = max(top, self.first)
        rows = first, max(min(top + self.grid.crop[0], self.grid.size[0]), first)
        columns = max(left, self.columns[0]), min(left + self.grid.crop[1], self.columns[1])
        part = scores[:, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left].float()
        if self.config.eval.average == "probabilities":
            part = part.softmax(0)
        self.total[
            :,
            rows[0] - self.first : rows[1] - self.first,
            columns[0] - self.columns[0] : columns[1] - self.columns[0],
        ] += part

    def _forget(self, start: int) -> None:
        """Move the rows from `start` on to the buffer's top; class by class, so that no second buffer is needed."""
        shift = start - self.first
        for plane in self.total:
            plane[:-shift] = plane[shift:].clone()
            plane[-shift:] = 0
        self.first = start


def logits(model: PSPNet, images: Tensor) -> Tensor:
    """Logits (N, C, H, W) at the size of images (N, 3, H, W), whatever the model's zoom_factor."""
    found = model(images.contiguous(memory_format=torch.channels_last))
    if found.shape[2:] == images.shape[2:]:
        return found
    return F.interpolate(found, images.shape[2:], mode="bilinear", align_corners=model.align_corners)


def classes_of(model: PSPNet) -> int:
    """Number of classes of a model."""
    return cast(nn.Conv2d, model.cls[-1]).out_channels


def _coverage(starts: Sequence[int], length: int, span: tuple[int, int], device: torch.device) -> Tensor:
    """How many of the windows of `length` pixels cover each pixel of the span, float32."""
    counts = torch.zeros(span[1] - span[0])
    for start in starts:
        counts[max(start - span[0], 0) : max(start + length - span[0], 0)] += 1
    return counts.to(device)
