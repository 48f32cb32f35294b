"""PASCAL VOC 2012, and the Semantic Boundaries Dataset's labels of more of its images.

VOCdevkit/VOC2012/JPEGImages  SegmentationClass  ImageSets/Segmentation/{train,val,trainval}.txt
benchmark_RELEASE/dataset/{train,val}.txt  cls/*.mat      SBD as distributed, or instead, converted by others:
VOCdevkit/VOC2012/SegmentationClassAug                    with ImageSets/Segmentation/trainaug.txt or train_aug.txt
"""

from pathlib import Path

import numpy as np

from psp_fast.data.official.layout import Layout, Samples, unpacked
from psp_fast.data.reading import read_lines
from psp_fast.errors import DataError

_SETS = "ImageSets/Segmentation"
_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def _palette(count: int) -> np.ndarray:
    """VOC's colours: an id's bits 0, 3, 6 are red's upper bits from the top down, 1, 4, 7 green's, 2, 5, 8 blue's."""
    ids, palette = np.arange(count), np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def _find(root: Path, split: str) -> Samples:
    home = unpacked(root, _SETS, "VOC2012", "VOCdevkit/VOC2012")
    if split == "train_aug":
        return _augmented(root, home)
    return Samples([_pair(home, name) for name in _names(home / _SETS / f"{split}.txt")])


def _augmented(root: Path, home: Path) -> Samples:
    """VOC's training images with VOC's labels, and what SBD has besides them and the validation images."""
    own, converted = _names(home / _SETS / "train.txt"), home / "SegmentationClassAug"
    released = next((f for folder in (root, home) if (f := folder / "benchmark_RELEASE/dataset").is_dir()), None)
    if converted.is_dir():
        lists = [path for name in ("trainaug", "train_aug") if (path := home / _SETS / f"{name}.txt").is_file()]
        if not lists:
            raise DataError(f"{converted} has no list: put trainaug.txt or train_aug.txt into {home / _SETS}")
        names, folder, ending = _names(lists[0]), converted, ".png"
    elif released is not None:
        held_out = set(_names(home / _SETS / "val.txt"))
        everything = {*own, *_names(released / "train.txt"), *_names(released / "val.txt")}
        names, folder, ending = sorted(everything - held_out), released / "cls", ".mat"
    else:
        raise DataError(
            f"{root}: train_aug needs SBD's labels: {converted} with its list, or benchmark_RELEASE as distributed, "
            "in data.root"
        )
    more = [(home / "JPEGImages" / f"{name}.jpg", folder / f"{name}{ending}") for name in names if name not in set(own)]
    return Samples([_pair(home, name) for name in own] + more)


def _pair(home: Path, name: str) -> tuple[Path, Path]:
    return home / "JPEGImages" / f"{name}.jpg", home / "SegmentationClass" / f"{name}.png"


def _names(path: Path) -> list[str]:
    """Names of images in a list of VOC's; those that others made may have paths of image and label."""
    return [Path(line.split()[0]).stem for line in read_lines(path, "the list of images") if line.strip()]


LAYOUT = Layout(_CLASSES, _palette(len(_CLASSES)), ("train", "val", "trainval", "train_aug"), _find)
