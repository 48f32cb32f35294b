"""CamVid in SegNet's 11 classes: <split>/*.png with <split>annot/*.png, or list files <split>.txt."""

from pathlib import Path

import numpy as np

from psp_fast.data.base import IGNORE
from psp_fast.data.lists import read_list
from psp_fast.data.official.folders import matching
from psp_fast.data.official.layout import Layout, Samples

_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
_PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip


def _find(root: Path, split: str) -> Samples:
    annotations = root / f"{split}annot"
    if annotations.is_dir():  # SegNet's own list files there name absolute paths of their authors' machine
        pairs = matching(root / split, annotations).pairs
    else:
        pairs = read_list(root, root / f"{split}.txt")
    return Samples(pairs, tuple(range(len(_CLASSES))), (11, IGNORE))  # 11: unlabelled


LAYOUT = Layout(_CLASSES, np.array(_PALETTE, np.uint8), ("train", "val", "test"), _find)
