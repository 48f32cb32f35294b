"""Data sets in the layouts in which they are distributed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from psp_fast.data import LAYOUTS, check_dataset, folder_dataset, official_dataset
from psp_fast.data.images import read_label
from psp_fast.data.official import cityscapes
from psp_fast.engine.metrics import Metrics, confusion_matrix
from psp_fast.errors import ConfigError, DataError
from tests.data import cityscapes_numbers, trees

VOC_SETS = "VOCdevkit/VOC2012/ImageSets/Segmentation"

OFFICIAL = json.loads(cityscapes_numbers.NUMBERS.read_text())
TRAIN_IDS = {i: train_id for _, i, train_id, _ in OFFICIAL["labels"] if i >= 0}


def names(dataset):
    return [dataset.name(i).rsplit("/", 1)[-1] for i in range(len(dataset))]


def labels(dataset):
    return [dataset.load(i)[1] for i in range(len(dataset))]


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("inner", ["", "ADEChallengeData2016"])
def test_ade20k(tmp_path, inner):
    root = trees.ade20k(tmp_path)
    train = official_dataset("ade20k", root / inner, ["train"])
    assert names(train) == [f"ADE_train_{i:08d}.jpg" for i in (1, 2, 3)]
    assert names(official_dataset("ade20k", root, ["val"])) == ["ADE_val_00000001.jpg", "ADE_val_00000002.jpg"]
    for i, label in enumerate(labels(train), start=1):
        stored = pixels(root / f"ADEChallengeData2016/annotations/training/ADE_train_{i:08d}.png")
        assert np.array_equal(label, np.where(stored == 0, 255, stored.astype(int) - 1))
        assert label.shape == train.load(i - 1)[0].shape[:2] == (48 + 4 * i, 60)
    assert (train.classes[0], train.classes[12], train.classes[149]) == ("wall", "person", "flag")
    assert train.palette[[0, 2, 149]].tolist() == [[120, 120, 120], [6, 230, 230], [92, 0, 255]]


def test_ade20k_with_an_id_it_does_not_have(tmp_path):
    root = trees.ade20k(tmp_path)
    path = root / "ADEChallengeData2016/annotations/training/ADE_train_00000002.png"
    damaged = pixels(path).copy()
    damaged[3, 5] = 151
    Image.fromarray(damaged).save(path)
    report = check_dataset(official_dataset("ade20k", root, ["train"]), progress=False)
    assert len(report.problems) == 1
    assert (
        "ADE_train_00000002.png: label ids that its data set does not have: 151 (1 pixel, first at row 3, column 5)"
        in (report.problems[0])
    )


@pytest.mark.parametrize("inner", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc(tmp_path, inner):
    root = trees.voc(tmp_path)
    val = official_dataset("voc", root / inner, ["val"])
    assert names(val) == [f"{name}.jpg" for name in trees.VOC_VAL]
    assert all(np.array_equal(label, trees.voc_label(n)) for label, n in zip(labels(val), trees.VOC_VAL, strict=True))
    assert len(official_dataset("voc", root / inner, ["trainval"])) == 4
    assert np.array_equal(val.palette, trees.voc_palette()[:21])
    assert (val.classes[0], val.classes[15], val.classes[20]) == ("background", "person", "tvmonitor")


def assert_augmented(root, expected):
    dataset = official_dataset("voc", root, ["train_aug"])
    assert names(dataset) == [f"{name}.jpg" for name in expected]
    for name, label in zip(expected, labels(dataset), strict=True):
        assert np.array_equal(label, (trees.voc_label if name in trees.VOC_TRAIN else trees.sbd_label)(name))


def test_train_aug_from_sbd_as_distributed(tmp_path):
    """VOC's labels where it has some, nothing of the validation set, SBD's for the others."""
    assert_augmented(trees.sbd(trees.voc(tmp_path)), [*trees.VOC_TRAIN, "2008_000002", "2008_000003"])


@pytest.mark.parametrize(
    ("list_name", "line"),
    [("trainaug", "{0}\n"), ("train_aug", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n")],
)
def test_train_aug_from_a_folder_of_converted_labels(tmp_path, list_name, line):
    home = trees.voc(tmp_path) / "VOCdevkit" / "VOC2012"
    everything = ["2008_000003", *trees.VOC_TRAIN]
    for name in everything:
        trees.label(home / "SegmentationClassAug" / f"{name}.png", trees.sbd_label(name))
    with pytest.raises(DataError, match=r"SegmentationClassAug has no list: put trainaug\.txt or train_aug\.txt"):
        official_dataset("voc", tmp_path, ["train_aug"])
    (home / f"ImageSets/Segmentation/{list_name}.txt").write_text("".join(line.format(n) for n in everything))
    assert_augmented(tmp_path, [*trees.VOC_TRAIN, "2008_000003"])


def test_train_aug_without_sbd(tmp_path):
    with pytest.raises(DataError, match=r"train_aug needs SBD's labels: .*SegmentationClassAug.*benchmark_RELEASE"):
        official_dataset("voc", trees.voc(tmp_path), ["train_aug"])


def test_pipes_in_the_place_of_files(tmp_path):
    root = trees.sbd(trees.voc(tmp_path))
    mat, names = (root / name for name in ("benchmark_RELEASE/dataset/cls/2008_000002.mat", f"{VOC_SETS}/val.txt"))
    for path in (mat, names):
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(DataError, match=r"val\.txt: the list of images cannot be read \(it is not a regular file"):
        official_dataset("voc", root, ["val"])
    with pytest.raises(DataError, match=r"2008_000002\.mat: cannot be read \(it is not a regular file"):
        read_label(mat)


def test_mat_files_that_are_none(tmp_path):
    from scipy.io import savemat

    root = trees.sbd(trees.voc(tmp_path))
    cls = root / "benchmark_RELEASE/dataset/cls"
    (cls / "2008_000002.mat").write_bytes((cls / "2008_000002.mat").read_bytes()[:200])
    savemat(cls / "2008_000003.mat", {"GTcls": {"Segmentation": np.zeros((32, 40))}})
    problems = check_dataset(official_dataset("voc", root, ["train_aug"]), progress=False).problems
    assert len(problems) == 2
    assert "2008_000002.mat: holds no GTcls.Segmentation" in problems[0]
    assert "2008_000003.mat: GTcls.Segmentation is (32, 40) float64, not (H, W) uint8 class ids" in problems[1]
    (cls / "2008_000002.mat").unlink()
    with pytest.raises(DataError, match=r"2008_000002\.mat: no such file"):
        official_dataset("voc", root, ["train_aug"]).load(2)


def test_cityscapes_classes_are_the_official_ones():
    counted = sorted((row for row in OFFICIAL["labels"] if 0 <= row[2] < 19), key=lambda row: row[2])
    layout = LAYOUTS["cityscapes"]
    assert list(layout.classes) == [row[0] for row in counted]
    assert list(cityscapes.IDS) == [row[1] for row in counted]
    assert layout.palette.tolist() == [row[3] for row in counted]


def test_cityscapes_ids_and_train_ids_are_the_same_labels(tmp_path):
    root = trees.cityscapes(tmp_path, TRAIN_IDS)
    from_ids = official_dataset("cityscapes", root, ["train"])
    cities = ("aachen_000000", "bochum_000001")
    assert names(from_ids) == [f"{city}_00000{frame}_leftImg8bit.png" for city in cities for frame in (0, 1)]
    expected = labels(from_ids)
    assert set(np.unique(expected)) == {*range(19), 255}
    for path in root.glob("gtFine/train/*/*_labelIds.png"):
        path.unlink()
    from_train_ids = official_dataset("cityscapes", root, ["train"])
    assert all(str(label).endswith("_gtFine_labelTrainIds.png") for _, label in from_train_ids.pairs)
    assert all(np.array_equal(one, other) for one, other in zip(labels(from_train_ids), expected, strict=True))


def test_cityscapes_coarse(tmp_path):
    root = trees.cityscapes(tmp_path)
    both = official_dataset("cityscapes", root, ["train", "train_extra"])
    assert [name.split("_")[0] for name in names(both)] == ["aachen"] * 2 + ["bochum"] * 2 + ["augsburg"] * 2
    assert str(both.pairs[-1][1]).endswith("gtCoarse/train_extra/augsburg/augsburg_000000_000001_gtCoarse_labelIds.png")
    coarse, fine = (labels(official_dataset("cityscapes", root, [split])) for split in ("train_coarse", "train"))
    for one, other in zip(coarse, fine, strict=True):
        assert np.array_equal(one[:, :4], other[:, :4]) and (one[:, 4:8] == 255).all()


def test_cityscapes_splits_of_different_kinds(tmp_path):
    root = trees.cityscapes(tmp_path, TRAIN_IDS)
    for path in root.glob("gtFine/val/*/*_labelIds.png"):
        path.unlink()
    with pytest.raises(DataError, match="of train, val some have labelIds and some labelTrainIds"):
        official_dataset("cityscapes", root, ["train", "val"])


def test_cityscapes_scores_are_those_of_the_official_evaluation(tmp_path):
    dataset = official_dataset("cityscapes", trees.cityscapes(tmp_path), ["val"])
    confusion = torch.zeros(19, 19, dtype=torch.int64)
    for i, truth in enumerate(labels(dataset)):
        predicted = cityscapes_numbers.prediction(truth, i)
        confusion += confusion_matrix(torch.from_numpy(truth), torch.from_numpy(predicted), 19)
    metrics = Metrics.from_confusion(confusion, dataset.classes, "skip")
    expected = [OFFICIAL["class_iou"][name] for name in dataset.classes]
    assert expected[16] is None and sum(iou is not None for iou in expected) == 18
    np.testing.assert_allclose(metrics.class_iou, [np.nan if v is None else v for v in expected], rtol=1e-12)
    assert metrics.miou == pytest.approx(OFFICIAL["mean_iou"], rel=1e-12)


def test_camvid_in_segnets_folders(tmp_path):
    root = trees.camvid(tmp_path)
    train = official_dataset("camvid", root, ["train"])
    assert names(train) == [f"0001TP_train{i}.png" for i in range(3)]
    for i, label in enumerate(labels(train)):
        stored = pixels(root / f"trainannot/0001TP_train{i}.png")
        assert np.array_equal(label, np.where(stored == 11, 255, stored))
    assert (len(official_dataset("camvid", root, ["val"])), len(official_dataset("camvid", root, ["test"]))) == (2, 1)


def test_camvid_in_lists(tmp_path):
    trees.image(tmp_path / "images/a.jpg", (36, 48), 0)
    trees.label(tmp_path / "labels/a.png", trees.blocks((36, 48), [*range(11), 255], 0))
    (tmp_path / "val.txt").write_text("images/a.jpg labels/a.png\n")
    dataset = official_dataset("camvid", tmp_path, ["val"])
    assert np.array_equal(dataset.load(0)[1], pixels(tmp_path / "labels/a.png"))


def test_any_folder(tmp_path):
    dataset = folder_dataset(trees.folder(tmp_path), ["train"], ["sky", "road", "tree"])
    assert [str(image.relative_to(tmp_path)) for image, _ in dataset.pairs] == [
        f"images/train/{name}.jpg" for name in ("2", "a/1", "b/1")
    ]
    assert np.array_equal(dataset.load(1)[1], pixels(tmp_path / "labels/train/a/1.png"))
    mapped = folder_dataset(tmp_path, ["train", "val"], ["road", "tree"], label_ids=[1, 2])
    assert len(mapped) == 6 and set(np.unique(mapped.load(0)[1])) == {0, 1, 255}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "labels/train/a/1.png").unlink(), r"1 images without a label: .*images/train/a/1\.jpg"),
        (lambda root: (root / "images/train/2.jpg").unlink(), r"1 labels without an image: .*labels/train/2\.png"),
        (lambda root: trees.image(root / "images/train/2.png", (8, 8), 0), r"2\.png and 2\.jpg have the same name but"),
        (lambda root: (root / "images").rename(root / "pictures"), r"images/train: no such folder"),
    ],
)
def test_folders_that_do_not_match(tmp_path, harm, message):
    harm(trees.folder(tmp_path))
    with pytest.raises(DataError, match=message):
        folder_dataset(tmp_path, ["train"], ["sky", "road", "tree"])


def test_hidden_files_and_folders_are_no_samples(tmp_path):
    root = trees.folder(tmp_path)
    trees.image(root / "images/train/.thumbnails/3.jpg", (8, 8), 0)
    (root / "images/train/._2.jpg").write_bytes(b"of another file system")
    assert len(folder_dataset(root, ["train"], ["sky", "road", "tree"])) == 3


def test_an_empty_folder(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"images/train: there are no images"):
        folder_dataset(tmp_path, ["train"], ["sky", "road", "tree"])


@pytest.mark.parametrize("name", [*sorted(LAYOUTS), "folder"])
def test_a_root_relative_to_the_working_directory(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    root = getattr(trees, name)(Path("data") / "mine")
    if name == "folder":
        dataset = folder_dataset(root, ["val"], ["sky", "road", "tree"])
    else:
        dataset = official_dataset(name, root, ["val"])
    assert dataset.name(0).startswith("data/mine/")
    assert dataset.load(0)[1].size > 0


def behind_links(folder, store):
    """Move every folder that holds files to `store`, with a link in its place."""
    for i, path in enumerate(sorted({file.parent for file in folder.rglob("*") if file.is_file()}, reverse=True)):
        path.rename(store / str(i))
        path.symlink_to(store / str(i), target_is_directory=True)


@pytest.mark.parametrize("name", [*sorted(LAYOUTS), "folder"])
def test_folders_behind_links_are_read(tmp_path, name):
    def samples():
        if name == "folder":
            return folder_dataset(tmp_path / "data", ["train"], ["sky", "road", "tree"])
        return official_dataset(name, tmp_path / "data", ["train"])

    getattr(trees, name)(tmp_path / "data")
    before = samples().pairs
    (tmp_path / "store").mkdir()
    behind_links(tmp_path / "data", tmp_path / "store")
    assert samples().pairs == before
    assert samples().load(len(before) - 1)[1].size > 0


def test_links_that_lead_back_end(tmp_path):
    trees.folder(tmp_path)
    for kind in ("images", "labels"):
        (tmp_path / kind / "train/a/round").symlink_to(tmp_path / kind / "train", target_is_directory=True)
        (tmp_path / kind / "train/again").symlink_to(tmp_path / kind / "train/b", target_is_directory=True)
    dataset = folder_dataset(tmp_path, ["train"], ["sky", "road", "tree"])
    assert [str(image.relative_to(tmp_path / "images/train")) for image, _ in dataset.pairs] == [
        "2.jpg",
        "a/1.jpg",
        "again/1.jpg",
        "b/1.jpg",
    ]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    def scandir(folder):
        if str(folder).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return given(folder)

    given = os.scandir
    trees.folder(tmp_path)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"images/train/a: this folder cannot be read \(Permission denied\)"):
        folder_dataset(tmp_path, ["train"], ["sky", "road", "tree"])


def test_camvid_lists_in_a_relative_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees.image(Path("data/images/a.png"), (8, 8), 0)
    trees.label(Path("data/labels/a.png"), trees.blocks((8, 8), [0, 1, 10, 255], 0))
    Path("data/val.txt").write_text("images/a.png labels/a.png\n")
    assert official_dataset("camvid", "data", ["val"]).name(0) == "data/images/a.png"
    assert official_dataset("camvid", "data", ["val"]).load(0)[1].shape == (8, 8)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_root_that_is_not_the_data_set(tmp_path, name):
    with pytest.raises(DataError, match=str(tmp_path)):
        official_dataset(name, tmp_path, ["train"])
    with pytest.raises(ConfigError, match=f"{name} has no split 'holdout': choose of train, val"):
        official_dataset(name, tmp_path, ["holdout"])


@pytest.mark.parametrize(("name", "count"), [("ade20k", 150), ("camvid", 11), ("cityscapes", 19), ("voc", 21)])
def test_names_and_colours(name, count):
    layout = LAYOUTS[name]
    assert len(set(layout.classes)) == count and layout.palette.shape == (count, 3) and layout.palette.dtype == np.uint8


def test_names_that_are_not_utf8(tmp_path):
    trees.folder(tmp_path)
    for kind, ending in (("images", ".jpg"), ("labels", ".png")):
        path = tmp_path / kind / "train" / f"2{ending}"
        path.rename(path.with_name(os.fsdecode(b"caf\xe9") + ending))
    dataset = folder_dataset(tmp_path, ["train"], ["sky", "road", "tree"])
    assert len({dataset.load(i)[0].shape for i in range(3)}) == 1
    (tmp_path / "images/train" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"none")
    text = check_dataset(dataset, progress=False).text()
    assert "caf\\udce9.jpg: is empty or not in a known image format" in text
    text.encode()
