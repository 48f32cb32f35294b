"""Data sets given by a list file: one `image label` pair a line."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from psp_fast.data.pairs import PairDataset
from psp_fast.data.reading import read_lines
from psp_fast.errors import DataError


class ListDataset(PairDataset):
    """Images and labels named in a list file.

    root: the folder that the names in the list are relative to (absolute names stay as they are).
    list_file: `image label` a line, separated by white space, or by one tab when names hold spaces; blank lines and
        lines starting with # are skipped. Looked for in `root` first, then as given.
    classes, palette, label_ids, channels: as `PairDataset` has them.

    Raises DataError, here for the list and its options, in `load` for a sample; check-data reads all samples.
    """

    def __init__(
        self,
        root: str | Path,
        list_file: str | Path,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]] | np.ndarray | None = None,
        label_ids: Sequence[int] | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__(read_list(Path(root), list_file), classes, palette, label_ids, channels=channels)


def read_list(root: Path, list_file: str | Path) -> list[tuple[Path, Path]]:
    """Paths of the images and labels in a list file, which is looked for in `root` first, then as given."""
    return [(root / image, root / label) for image, label in _read(_find(root, Path(list_file)))]


def _find(root: Path, list_file: Path) -> Path:
    places = dict.fromkeys((root / list_file, list_file))
    found = next((path for path in places if path.exists()), None)
    if found is None:
        raise DataError(
            f"{' and '.join(map(str, places))}: no such list of images and labels; check data.root and data.train_list "
            "or data.val_list"
        )
    return found


def _read(path: Path) -> list[tuple[str, str]]:
    pairs = [
        _split(line, f"{path}, line {number}")
        for number, line in enumerate(read_lines(path, "the list of images and labels"), start=1)
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
