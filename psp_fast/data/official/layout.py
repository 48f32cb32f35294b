"""What is known of a data set as it is distributed, and finding its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from psp_fast.errors import DataError

_LISTED = 3  # names spelled out in one message


class Samples(NamedTuple):
    """Paths of images with their labels; for labels that are not 0..C-1 and 255, each class's value and the ignored."""

    pairs: list[tuple[Path, Path]]
    label_ids: tuple[int, ...] | None = None
    ignored_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """A data set as it is distributed.

    classes: names in the order of the ids that training sees.
    palette: (C, 3) uint8 RGB, the data set's own colours.
    splits: what `find` takes.
    find: root folder and split -> its samples; DataError where files are not where the distribution has them.
    """

    classes: tuple[str, ...]
    palette: np.ndarray
    splits: tuple[str, ...]
    find: Callable[[Path, str], Samples]


def unpacked(root: Path, marker: str, *inner: str) -> Path:
    """The folder with `marker` in it: root itself, or one of the `inner` folders that archives unpack into."""
    for folder in (root, *(root / name for name in inner)):
        if (folder / marker).exists():
            return folder
    where = " or ".join(["it", *inner])
    raise DataError(f"{root}: there is no {marker} in {where}; give data.root the folder the archive was unpacked to")


def listed(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Files in and below a folder by their path in it without their ending, sorted.

    Hidden files and folders are left out. Folders behind links count, except links to a folder that they are in.
    Raises DataError for unreadable folders.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check data.root and the split")
    found: dict[str, Path] = {}
    for path in sorted(_files(folder, frozenset())):
        name = path.relative_to(folder).as_posix()
        ending = next((ending for ending in endings if name.lower().endswith(ending.lower())), None)
        if ending is None:
            continue
        if other := found.get(name[: -len(ending)]):
            raise DataError(f"{path} and {other.name} have the same name but for the ending; remove one")
        found[name[: -len(ending)]] = path
    return found


def _files(folder: Path, around: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Files in and below a folder, not hidden; `around` has the device and number of each folder on the way to it."""
    try:
        place = folder.stat()
        with os.scandir(folder) as entries:
            inside = [(Path(entry.path), entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: this folder cannot be read ({error.strerror}); check its permissions") from error
    if (place.st_dev, place.st_ino) in around:  # a link back would lead round for ever
        return
    for path, is_folder in inside:
        if is_folder:
            yield from _files(path, around | {(place.st_dev, place.st_ino)})
        else:
            yield path


def paired(images: Mapping[str, Path], labels: Mapping[str, Path], folders: tuple[Path, Path]) -> Samples:
    """Images with the labels of the same name; DataError for one without the other, and where there is none at all."""
    for ones, others, what in ((images, labels, "images without a label"), (labels, images, "labels without an image")):
        if alone := [str(path) for name, path in ones.items() if name not in others]:
            names = ", ".join(alone[:_LISTED]) + (", ..." if len(alone) > _LISTED else "")
            raise DataError(f"{folders[0]} and {folders[1]}: {len(alone)} {what}: {names}; add or remove files")
    if not images:
        raise DataError(f"{folders[0]}: there are no images; check data.root and the split")
    return Samples([(path, labels[name]) for name, path in images.items()])
