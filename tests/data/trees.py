"""Small data sets in the folders, names and formats in which they are distributed; numpy and Pillow alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CITIES = {
    "train": ("aachen", "bochum"),
    "val": ("frankfurt", "lindau"),
    "train_extra": ("augsburg",),
    "test": ("berlin",),
}


def image(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def label(path: Path, ids: np.ndarray, palette: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids.astype(np.uint8))
    if palette is not None:
        picture.putpalette(palette.astype(np.uint8).tobytes())
    picture.save(path)


def blocks(size: tuple[int, int], values: list[int], seed: int) -> np.ndarray:
    """Random values in blocks of 4x4 pixels, every value at least once where there are blocks enough."""
    count = (size[0] // 4) * (size[1] // 4)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.concatenate([values, rng.choice(values, count)])[:count])
    return chosen.reshape(size[0] // 4, size[1] // 4).repeat(4, 0).repeat(4, 1)


def ade20k(root: Path) -> Path:
    """ADEChallengeData2016 with 3 training and 2 validation images of various sizes."""
    home = root / "ADEChallengeData2016"
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(1, count + 1):
            size = 48 + 4 * i, 60
            image(home / "images" / split / f"ADE_{short}_{i:08d}.jpg", size, i)
            label(home / "annotations" / split / f"ADE_{short}_{i:08d}.png", blocks(size, list(range(151)), i))
    (home / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1576\t11664\t1172\t1\twall\n")
    (home / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    return root


def voc_palette() -> np.ndarray:
    """The colours of VOC's label files as its development kit computes them, (256, 3)."""
    colours = []
    for index in range(256):
        red = green = blue = 0
        for shift in range(7, -1, -1):
            red, green, blue = (v | (index >> k & 1) << shift for k, v in enumerate((red, green, blue)))
            index >>= 3
        colours.append((red, green, blue))
    return np.array(colours)


VOC_TRAIN, VOC_VAL = ["2007_000032", "2007_000039"], ["2007_000033", "2007_000042"]
SBD_TRAIN, SBD_VAL = ["2007_000032", "2007_000033", "2008_000002"], ["2008_000003", "2007_000042"]
VOC_SIZE = (32, 40)


def voc(root: Path) -> Path:
    """VOCdevkit/VOC2012: segmentation's lists, images of SBD besides, and palette PNGs with 255 at the borders."""
    home = root / "VOCdevkit" / "VOC2012"
    for i, name in enumerate(sorted({*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL})):
        image(home / "JPEGImages" / f"{name}.jpg", VOC_SIZE, i)
        if name in VOC_TRAIN + VOC_VAL:
            label(home / "SegmentationClass" / f"{name}.png", voc_label(name), voc_palette())
    sets = home / "ImageSets" / "Segmentation"
    sets.mkdir(parents=True)
    for split, names in (("train", VOC_TRAIN), ("val", VOC_VAL), ("trainval", sorted(VOC_TRAIN + VOC_VAL))):
        (sets / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def voc_label(name: str) -> np.ndarray:
    return blocks(VOC_SIZE, [*range(21), 255], int(name[-3:]))


def sbd_label(name: str) -> np.ndarray:
    return blocks(VOC_SIZE, list(range(21)), 1000 + int(name[-3:]))


def sbd(root: Path) -> Path:
    """benchmark_RELEASE/dataset: lists, and cls/*.mat with a struct GTcls (needs SciPy)."""
    from scipy.io import savemat

    home = root / "benchmark_RELEASE" / "dataset"
    (home / "cls").mkdir(parents=True)
    for split, names in (("train", SBD_TRAIN), ("val", SBD_VAL)):
        (home / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            ids = sbd_label(name).astype(np.uint8)
            boundaries = np.empty((20, 1), object)
            boundaries[:, 0] = [np.zeros((2, 2), np.uint8)] * 20
            present = np.unique(ids[ids > 0])[:, None]
            truth = {"Boundaries": boundaries, "Segmentation": ids, "CategoriesPresent": present}
            savemat(home / "cls" / f"{name}.mat", {"GTcls": truth}, do_compression=True)
    return root


CITY_SIZE = (32, 64)


def cityscapes(root: Path, train_ids: dict[int, int] | None = None) -> Path:
    """leftImg8bit, gtFine and gtCoarse in ids; with `train_ids` (id -> trainId) gtFine's labelTrainIds besides.

    No label of val has the class train, 31.
    """
    for split, cities in CITIES.items():
        for number, city in enumerate(cities):
            for frame in range(2):
                name, seed = f"{city}_{number:06d}_{frame:06d}", 100 * number + frame + 10 * len(split)
                image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", CITY_SIZE, seed)
                if split == "test":
                    continue
                truth = blocks(CITY_SIZE, [i for i in range(34) if (split, i) != ("val", 31)], seed)
                if split != "train_extra":
                    fine = root / "gtFine" / split / city / f"{name}_gtFine"
                    label(Path(f"{fine}_labelIds.png"), truth)
                    label(Path(f"{fine}_instanceIds.png"), truth)
                    Image.new("RGBA", CITY_SIZE[::-1]).save(f"{fine}_color.png")
                    Path(f"{fine}_polygons.json").write_text("{}")
                    if train_ids is not None:
                        label(Path(f"{fine}_labelTrainIds.png"), np.vectorize(train_ids.get)(truth))
                coarse = np.where(np.arange(CITY_SIZE[1]) % 8 < 4, truth, 0)
                label(root / "gtCoarse" / split / city / f"{name}_gtCoarse_labelIds.png", coarse)
    return root


def camvid(root: Path) -> Path:
    """SegNet's copy of CamVid: 12 ids, of which 11 is unlabelled, and lists with its authors' absolute paths."""
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        lines = []
        for i in range(count):
            name = f"0001TP_{split}{i}.png"
            image(root / split / name, (36, 48), i)
            label(root / f"{split}annot" / name, blocks((36, 48), list(range(12)), i))
            lines.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    return root


def folder(root: Path) -> Path:
    """images/<split> and labels/<split>, nested, of 3 classes."""
    for split in ("train", "val"):
        for i, name in enumerate(("a/1", "b/1", "2")):
            image(root / "images" / split / f"{name}.jpg", (32, 40), i)
            label(root / "labels" / split / f"{name}.png", blocks((32, 40), [0, 1, 2, 255], i))
    return root
