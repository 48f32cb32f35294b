"""Data sets of image and label files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from psp_fast.data.base import IGNORE, check_ids, check_sample
from psp_fast.data.images import read_pair
from psp_fast.data.palette import checked_palette
from psp_fast.errors import DataError


class PairDataset:
    """Images with their labels, a file each.

    pairs: paths of an image and its label.
    classes: 2 to 255 names; the position of a name is its id.
    palette: (C, 3) RGB in 0..255; `default_palette` when left out.
    label_ids: the value that each class has in the label files, when that is not 0..C-1; all other values are then
        ignored.
    ignored_ids: with `label_ids`, the other values that may occur; anything else is then an error of the sample.
    channels: of the images: 3 (RGB), 1 (grey), or 4, all bands of files that have as many.

    Raises DataError, here for the options, in `load` for a sample; check-data reads all samples.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        classes: Sequence[str],
        palette: Sequence[Sequence[int]] | np.ndarray | None = None,
        label_ids: Sequence[int] | None = None,
        ignored_ids: Sequence[int] | None = None,
        channels: int = 3,
    ) -> None:
        self.classes = tuple(classes)
        if not 2 <= len(self.classes) <= IGNORE:
            raise DataError(f"a data set needs at least two classes and at most {IGNORE}; named: {len(self.classes)}")
        if len(set(self.classes)) < len(self.classes):
            raise DataError(f"class names must differ from each other, but are {', '.join(self.classes)}")
        self.palette = checked_palette(palette, len(self.classes))
        self.pairs, self.channels = pairs, channels
        self._known = None if label_ids is None or ignored_ids is None else (*label_ids, *ignored_ids)
        self._mapping = None if label_ids is None else _mapping(label_ids, len(self.classes))

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Path of the image."""
        return str(self.pairs[index][0])

    def stamp(self, index: int) -> str:
        """Sizes in bytes and times of change in nanoseconds of image and label."""
        return " ".join(_stamp(path) for path in self.pairs[index])

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, channels) uint8, label (H, W) uint8 in 0..C-1 or 255. Raises DataError naming the file."""
        image_path, label_path = self.pairs[index]
        image, label = read_pair(image_path, label_path, self.channels)
        if self._known is not None:
            check_ids(label, self._known, str(label_path))
        if self._mapping is not None:
            label = self._mapping[label]
        check_sample(image, label, len(self.classes), str(image_path), str(label_path))
        return image, label


def _stamp(path: Path) -> str:
    try:
        file = path.stat()
    except OSError:
        return "missing"
    return f"{file.st_size}.{file.st_mtime_ns}"


def _mapping(label_ids: Sequence[int], count: int) -> np.ndarray:
    """(256,) uint8: value in the file -> class id."""
    if len(label_ids) != count or len(set(label_ids)) != count or not all(0 <= value <= 255 for value in label_ids):
        raise DataError(f"label_ids must hold {count} different values in 0..255 but is {list(label_ids)}")
    mapping = np.full(256, IGNORE, np.uint8)
    mapping[list(label_ids)] = np.arange(count)
    return mapping
