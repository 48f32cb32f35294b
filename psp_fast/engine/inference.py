"""Label maps of images of any size: whole images or sliding windows, at several scales, mirrored or not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from psp_fast.configs import Config
from psp_fast.engine.resampling import Axis, resized
from psp_fast.engine.scores import ScoreRows, classes_of
from psp_fast.engine.windows import Grid, make_grid, read_crop
from psp_fast.errors import DataError
from psp_fast.models import PSPNet

_BAND = 32  # rows of the label map made at once
_BYTES = 1 << 30  # of scores kept at once; a wider image is evaluated in strips of columns


_OF_MEMORY = re.compile("can't allocate memory|out of memory|not enough memory|bad_alloc")


def label_map(
    model: PSPNet, image: Tensor, config: Config, most_bytes: int = _BYTES, name: str | Path = "an image"
) -> Tensor:
    """Class ids (H, W) of an image of any size: uint8 up to 256 classes, else int64.

    What a window sees and what is averaged, `EvalConfig` says. Scores exist for a band of rows at a time, so that a
    sliding window needs memory for the image, a few crops and `most_bytes`, however large the image is; where they
    allow no whole row of the image, it is evaluated in strips, and crops on the border of two are computed twice.

    Args:
        model: in eval mode.
        image: (H, W, C) uint8, RGB for a network of three channels, on the model's device.
        config: its fields eval, and mean and std of augment.
        most_bytes: of scores to keep.
        name: what the error calls the image.

    Raises:
        DataError: there is not enough memory.
    """
    try:
        return _label_map(model, image, config, most_bytes)
    except (MemoryError, RuntimeError) as error:
        if not of_memory(error):
            raise
        whole = config.eval.mode == "whole"
        advice = "predict it with --eval.mode slide" if whole else "lower --eval.crop or --eval.batch_size"
        raise DataError(
            f"{name}: there is not enough memory for its {image.shape[1]}x{image.shape[0]} pixels"
            f"{' at once' if whole else ''}: {advice}"
        ) from error


def of_memory(error: BaseException) -> bool:
    """Whether torch raised error because memory is short, on whatever device."""
    return isinstance(error, MemoryError) or bool(_OF_MEMORY.search(str(error)))


@torch.no_grad()
def _label_map(model: PSPNet, image: Tensor, config: Config, most_bytes: int) -> Tensor:
    image = image.permute(2, 0, 1)
    views = _views(model, image, config)
    if _is_plain(views, image):
        grid = views[0].grid
        return model.predict(read_crop(image, grid, 0, 0, config.augment)[None])[0]
    labels = torch.empty(
        image.shape[1:], dtype=torch.uint8 if classes_of(model) <= 256 else torch.int64, device=image.device
    )
    for columns in _strips(model, image, config, views, most_bytes):
        streams = [view.stream(model, image, config, columns) for view in views]
        for top in range(0, image.shape[1], _BAND):
            rows = top, min(top + _BAND, image.shape[1])
            labels[rows[0] : rows[1], columns[0] : columns[1]] = _mean_scores(views, streams, rows, columns).argmax(0)
        del streams  # before the next strip's are made
    return labels


@dataclass(frozen=True)
class View:
    """One way of looking at the image: a grid of crops, mirrored, as they are, or both; and the way back.

    Args:
        grid: the crops.
        flips: for every crop, whether it is taken as it is (False), mirrored (True), or both.
        axes: from the scores' rows and columns to the label map's.
        softmax: the resized scores are logits that become probabilities before views are averaged.
    """

    grid: Grid
    flips: tuple[bool, ...]
    axes: tuple[Axis, Axis]
    softmax: bool

    @property
    def most_rows(self) -> int:
        """Rows of scores that a band of the label map reads, at most."""
        return min(_BAND * self.axes[0].before // self.axes[0].after + 3, self.axes[0].before)

    def stream(self, model: PSPNet, image: Tensor, config: Config, columns: tuple[int, int]) -> ScoreRows:
        """This view's scores for a range of the label map's columns."""
        return ScoreRows(model, image, config, self.grid, self.flips, self.axes[1].reads(*columns), self.most_rows)

    def scores(self, stream: ScoreRows, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """(C, rows, columns) float32 for a part of the label map."""
        read = self.axes[0].reads(*rows)
        found = resized(stream.read(*read), self.axes, rows, columns, (read[0], stream.columns[0]))
        return found.softmax(0) if self.softmax else found


def _views(model: PSPNet, image: Tensor, config: Config) -> list[View]:
    """Of probabilities one view a scale; of logits mirrored ones besides, as softmax comes after resizing."""
    evaluation, shape = config.eval, (image.shape[1], image.shape[2])
    logits = evaluation.average == "logits"
    both = (False, True) if evaluation.mirror else (False,)
    several = len(evaluation.scales) * len(both) > 1
    views = []
    for scale in evaluation.scales:
        for flips in [(flip,) for flip in both] if logits else [both]:
            grid = make_grid(shape, scale, evaluation, mirrored=flips == (True,))
            corners = logits and model.align_corners
            axes = Axis(grid.size[0], shape[0], corners), Axis(grid.size[1], shape[1], corners)
            views.append(View(grid, flips, axes, softmax=logits and several))
    return views


def _is_plain(views: list[View], image: Tensor) -> bool:
    """Whether nothing is averaged or resized, so that the model's own prediction is the result."""
    grid = views[0].grid
    return len(views) == 1 and views[0].flips == (False,) and grid.crop == grid.size == tuple(image.shape[1:])


def _strips(
    model: PSPNet, image: Tensor, config: Config, views: list[View], most_bytes: int
) -> Iterator[tuple[int, int]]:
    """Ranges of columns of the label map whose scores fit into most_bytes; all columns where crops are whole images."""
    width = image.shape[2]
    a_column = sum(
        4 * classes_of(model) * (view.grid.crop[0] + view.most_rows) * view.axes[1].before / width for view in views
    )
    strip = width if config.eval.mode == "whole" else min(max(int(most_bytes / a_column), 1), width)
    count = -(-width // strip)
    for i in range(count):
        yield i * width // count, (i + 1) * width // count


def _mean_scores(
    views: list[View], streams: list[ScoreRows], rows: tuple[int, int], columns: tuple[int, int]
) -> Tensor:
    """Sum over the views; its maximum is the mean's."""
    total = views[0].scores(streams[0], rows, columns)
    for view, stream in zip(views[1:], streams[1:], strict=True):
        total += view.scores(stream, rows, columns)
    return total


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
