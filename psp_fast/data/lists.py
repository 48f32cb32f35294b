"""Data sets given by a list file: one `image label` pair a line."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from psp_fast.data.base import IGNORE, check_sample
from psp_fast.data.images import read_pair
from psp_fast.errors import DataError


class ListDataset:
    """Images and labels named in a list file.

    root: the folder that the names in the list are relative to (absolute names stay as they are).
    list_file: `image label` a line, separated by white space, or by one tab when names hold spaces; blank lines and
        lines starting with # are skipped. Looked for in `root` first, then as given.
    classes: 2 to 255 names; the position of a name is its id.
    palette: (C, 3) RGB in 0..255; `default_palette` when left out.
    label_ids: the value that each class has in the label files, when that is not 0..C-1; all other values are then
        ignored. ADE20K: 1 to 150. Cityscapes `labelIds`: the 19 evaluated ids.

    Raises DataError, here for the list and its options, in `load` for a sample; check-data reads all samples.
    """

    def __init__(
        self,
        root: str | Path,
        list_file: str | Path,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]] | np.ndarray | None = None,
        label_ids: Sequence[int] | None = None,
    ) -> None:
        self.classes = tuple(classes)
        if not 2 <= len(self.classes) <= IGNORE:
            raise DataError(f"a data set needs at least two classes and at most {IGNORE}; named: {len(self.classes)}")
        if len(set(self.classes)) < len(self.classes):
            raise DataError(f"class names must differ from each other, but are {', '.join(self.classes)}")
        self.palette = _check_palette(palette, len(self.classes))
        self.root = Path(root)
        self.pairs = _read_list(_find_list(self.root, Path(list_file)))
        self._mapping = None if label_ids is None else _mapping(label_ids, len(self.classes))

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Path of the image."""
        return str(self.root / self.pairs[index][0])

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB, label (H, W) uint8 in 0..C-1 or 255. Raises DataError naming the file."""
        image_path, label_path = (self.root / name for name in self.pairs[index])
        image, label = read_pair(image_path, label_path)
        if self._mapping is not None:
            label = self._mapping[label]
        check_sample(image, label, len(self.classes), str(image_path), str(label_path))
        return image, label


def default_palette(count: int) -> np.ndarray:
    """(count, 3) uint8 RGB colours that differ as much as the eye allows; the first n are the same for every count."""
    return _distinct_colours(count).copy()


@lru_cache
def _distinct_colours(count: int) -> np.ndarray:
    """Greedy farthest points in CIELAB among colours neither dark nor garish, started from black (ignored pixels)."""
    levels = np.arange(0, 256, 15)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _to_lab(rgb)
    usable = (lab[:, 0] > 30) & (lab[:, 0] < 92) & (np.hypot(lab[:, 1], lab[:, 2]) < 85)
    rgb, lab = rgb[usable], lab[usable]
    distance = np.linalg.norm(lab, axis=1)
    chosen = []
    for _ in range(count):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return rgb[chosen].astype(np.uint8)


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """(N, 3) sRGB in 0..255 -> (N, 3) CIELAB under D65."""
    linear = np.where(rgb <= 10.31475, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def _check_palette(palette: Sequence[Sequence[int]] | np.ndarray | None, count: int) -> np.ndarray:
    if palette is None:
        return default_palette(count)
    colours = np.asarray(palette)
    if colours.shape != (count, 3) or colours.min() < 0 or colours.max() > 255:
        raise DataError(f"the palette must hold {count} RGB colours in 0..255 but has the shape {colours.shape}")
    return colours.astype(np.uint8)


def _mapping(label_ids: Sequence[int], count: int) -> np.ndarray:
    """(256,) uint8: value in the file -> class id."""
    if len(label_ids) != count or len(set(label_ids)) != count or not all(0 <= value <= 255 for value in label_ids):
        raise DataError(f"label_ids must hold {count} different values in 0..255 but is {list(label_ids)}")
    mapping = np.full(256, IGNORE, np.uint8)
    mapping[list(label_ids)] = np.arange(count)
    return mapping


def _find_list(root: Path, list_file: Path) -> Path:
    return root / list_file if (root / list_file).exists() else list_file


def _read_list(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"{path}: the list of images and labels cannot be read ({reason}); check its path") from error
    pairs = [
        _split(line, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not pairs:
        raise DataError(f"{path}: the list is empty; it needs one 'image label' pair a line")
    return pairs


def _split(line: str, where: str) -> tuple[str, str]:
    names = [name.strip() for name in line.strip().split("\t")] if "\t" in line.strip() else line.split()
    if len(names) == 2 and all(names):
        return names[0], names[1]
    raise DataError(
        f"{where}: expected an image and a label but found {len(names)} name{'s' if len(names) > 1 else ''}; "
        "separate the two by a tab if they hold spaces"
    )
