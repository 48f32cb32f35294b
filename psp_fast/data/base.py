"""What a data set and a transform are, and the check that every sample has to pass."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from psp_fast.errors import DataError

IGNORE = 255  # the label of pixels that count neither in the loss nor in the metrics

_LISTED_IDS = 5  # wrong ids spelled out in one message


class Dataset(Protocol):
    """Labelled images, read by position; three channels are RGB."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; their position is the id in the labels."""

    @property
    def palette(self) -> np.ndarray:
        """(C, 3) uint8 RGB, one colour a class."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, channels) uint8, label (H, W) uint8 in 0..C-1 or `IGNORE`. Raises DataError naming the file."""

    def name(self, index: int) -> str:
        """What messages and output files call the sample; for files the path of the image."""

    def stamp(self, index: int) -> str:
        """What is another when the sample has changed; for files their sizes and times of change."""


class Transform(Protocol):
    """Turns a sample into what the model takes. All randomness comes from `rng`, so that a resumed run repeats it."""

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, C) uint8 image, (H, W) uint8 label -> (C, h, w) float32 image, normalised, and (h, w) int64 label."""


def check_sample(
    image: np.ndarray, label: np.ndarray, num_classes: int, name: str, label_name: str | None = None
) -> None:
    """Raise DataError unless image is (H, W, 1, 3 or 4) uint8, label (H, W) uint8 with 0..num_classes-1 or `IGNORE`.

    `name` and `label_name` (default: `name`) are what the message calls the two.
    """
    label_name = label_name or name
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise DataError(f"{name}: the image must be (H, W, 3) uint8 but is {image.shape} {image.dtype}")
    if label.dtype != np.uint8 or label.ndim != 2:
        raise DataError(f"{label_name}: the label must be (H, W) uint8 but is {label.shape} {label.dtype}")
    if image.shape[:2] != label.shape:
        raise DataError(
            f"{name}: the image is {_size(image)} pixels (width x height) but its label {label_name} is "
            f"{_size(label)}; export both at the same size, or correct the pair in the list"
        )
    wrong = (label >= num_classes) & (label != IGNORE)
    if wrong.any():
        raise DataError(
            f"{label_name}: label ids other than 0..{num_classes - 1} and {IGNORE} (ignored): "
            f"{_describe_ids(label, wrong)}; name all classes of the data set, or map the files' ids with label_ids "
            "(ADE20K: 1 to 150)"
        )


def check_ids(label: np.ndarray, known: Sequence[int], label_name: str) -> None:
    """Raise DataError for a label (H, W) uint8 in the file's own ids, some of which are not among the `known`."""
    strange = np.ones(256, bool)
    strange[list(known)] = False
    if strange[label].any():
        raise DataError(
            f"{label_name}: label ids that its data set does not have: {_describe_ids(label, strange[label])}; "
            "copy the file again from the distribution"
        )


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _describe_ids(label: np.ndarray, wrong: np.ndarray) -> str:
    ids, first, counts = np.unique(label[wrong], return_index=True, return_counts=True)
    rows, columns = np.nonzero(wrong)
    parts = [
        f"{value} ({count} pixel{'s' if count > 1 else ''}, first at row {rows[at]}, column {columns[at]})"
        for value, at, count in list(zip(ids, first, counts, strict=True))[:_LISTED_IDS]
    ]
    if len(ids) > _LISTED_IDS:
        parts.append(f"and {len(ids) - _LISTED_IDS} more ids")
    return ", ".join(parts)
