"""Data sets in the layouts in which they are distributed: root folder and splits in, samples out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from psp_fast.data.official import ade20k, camvid, cityscapes, folders, voc
from psp_fast.data.pairs import PairDataset
from psp_fast.errors import ConfigError, DataError

LAYOUTS = {"ade20k": ade20k.LAYOUT, "camvid": camvid.LAYOUT, "cityscapes": cityscapes.LAYOUT, "voc": voc.LAYOUT}


def official_dataset(name: str, root: str | Path, splits: Sequence[str], channels: int = 3) -> PairDataset:
    """The splits of a data set of `LAYOUTS`, one after the other; channels as in `PairDataset`.

    Raises:
        ConfigError: a split that the data set does not have.
        DataError: files that are not where the distribution has them, or splits whose labels differ in kind.
    """
    if not Path(root).is_dir():
        raise DataError(f"{root}: there is no such folder; data.root is where {name} lies")
    layout = LAYOUTS[name]
    for split in splits:
        if split not in layout.splits:
            raise ConfigError(f"{name} has no split {split!r}: choose of {', '.join(layout.splits)}")
    parts = [layout.find(Path(root), split) for split in splits]
    if len({part.label_ids for part in parts}) > 1:
        raise DataError(f"{root}: of {', '.join(splits)} some have labelIds and some labelTrainIds; make them alike")
    pairs = [pair for part in parts for pair in part.pairs]
    return PairDataset(pairs, layout.classes, layout.palette, parts[0].label_ids, parts[0].ignored_ids, channels)


def folder_dataset(
    root: str | Path,
    splits: Sequence[str],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]] | np.ndarray | None = None,
    label_ids: Sequence[int] | None = None,
    channels: int = 3,
) -> PairDataset:
    """Images in root/images/<split> with labels in root/labels/<split>; the rest as in `PairDataset`."""
    pairs = [pair for split in splits for pair in folders.find(Path(root), split).pairs]
    return PairDataset(pairs, classes, palette, label_ids, channels=channels)
