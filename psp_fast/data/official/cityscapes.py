"""Cityscapes: leftImg8bit/<split>/<city>/*_leftImg8bit.png with gtFine or gtCoarse/<split>/<city>/*_labelIds.png.

Labels are `labelIds` as distributed, of which 19 of 34 count, or, where a split has none, `labelTrainIds`.
"""

from pathlib import Path

import numpy as np

from psp_fast.data.official.layout import Layout, Samples, listed, paired, unpacked
from psp_fast.errors import DataError

_IMAGE = "_leftImg8bit.png"
_FOLDERS = {  # split: folder of splits, labels
    "train": ("train", "gtFine"),
    "val": ("val", "gtFine"),
    "train_coarse": ("train", "gtCoarse"),
    "val_coarse": ("val", "gtCoarse"),
    "train_extra": ("train_extra", "gtCoarse"),
}
_TABLE: tuple[tuple[str, int, tuple[int, int, int]], ...] = (  # name, id, colour; the position is the trainId
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
IDS = tuple(row[1] for row in _TABLE)
_VOID = tuple(i for i in range(34) if i not in IDS)


def submitted(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W) in 0..18 -> (H, W) uint8 ids, which the server wants."""
    return np.array(IDS, np.uint8)[labels]


def images_to_submit(root: Path) -> list[Path]:
    """Images of the test set, whose labels the server alone has, sorted. DataError where there are none."""
    folder = unpacked(root, "leftImg8bit") / "leftImg8bit" / "test"
    images = list(listed(folder, [_IMAGE]).values())
    if not images:
        raise DataError(f"{folder}: there are no images *{_IMAGE}; check data.root")
    return images


def _find(root: Path, split: str) -> Samples:
    home = unpacked(root, "leftImg8bit")
    part, truth = _FOLDERS[split]
    images, labels = home / "leftImg8bit" / part, home / truth / part
    ids, train_ids = (listed(labels, [f"_{truth}_{kind}.png"]) for kind in ("labelIds", "labelTrainIds"))
    samples = paired(listed(images, [_IMAGE]), ids or train_ids, (images, labels))
    return Samples(samples.pairs, IDS, _VOID) if ids else samples


LAYOUT = Layout(tuple(row[0] for row in _TABLE), np.array([row[2] for row in _TABLE], np.uint8), tuple(_FOLDERS), _find)
