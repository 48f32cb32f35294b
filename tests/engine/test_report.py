"""The page of an evaluation: which images, which numbers, and that it needs nothing else."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from psp_fast.engine.distributed import Ranks
from psp_fast.engine.evaluate import Evaluation, evaluate
from psp_fast.engine.metrics import Metrics
from psp_fast.engine.plots import pixels_of
from psp_fast.engine.report import write_report
from psp_fast.engine.report.confusions import most_confused, row_shares, worst_confusions
from psp_fast.engine.report.plots import confusion_figure, iou_figure
from psp_fast.engine.report.writing import chosen
from psp_fast.engine.run import build_model
from psp_fast.engine.samples import build_dataset
from psp_fast.error_pictures import WRONG
from psp_fast.errors import DataError
from tests.engine import small

NAN = float("nan")


class Page(HTMLParser):
    """What a page holds: its text, pictures and references; every tag closed."""

    def __init__(self, text):
        super().__init__()
        self.words, self.pictures, self.references, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.references += [values[name] for name in ("src", "href", "srcset") if name in values]
        if tag == "img":
            self.pictures.append(values)
        if tag not in ("img", "meta", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


class Named:
    """A data set under other names."""

    def __init__(self, dataset, classes=None):
        self.dataset, self.classes, self.palette = dataset, classes or dataset.classes, dataset.palette

    def __len__(self):
        return len(self.dataset)

    def load(self, index):
        return self.dataset.load(index)

    def name(self, index):
        return f"<{index}>&.png"


def report(folder, classes=None, count=2, confusion=None, image_iou=(0.2, NAN, 0.9)):
    config = small.config(data__val_list="val.txt")
    dataset = Named(build_dataset(config.data, "val"), classes)
    torch.manual_seed(0)
    size = len(dataset.classes)
    model = build_model(config.model, size)
    counts = torch.eye(size, dtype=torch.int64) * 1000 if confusion is None else confusion
    found = Evaluation(Metrics.from_confusion(counts, dataset.classes, "skip"), counts, list(image_iou))
    written = write_report(folder, "best<1>.pth", model, dataset, found, config, count)
    return Page(written.read_text()), written.read_text()


@pytest.mark.parametrize(
    ("ious", "count", "best", "worst"),
    [
        ([0.5, 0.1, 0.9, 0.3], 1, [2], [1]),
        ([0.5, 0.1, 0.9, 0.3], 5, [2, 0], [1, 3]),
        ([0.5, NAN, 0.9], 5, [2], [0]),
        ([0.5], 3, [], [0]),
        ([NAN], 3, [], []),
    ],
)
def test_chosen_images(ious, count, best, worst):
    assert chosen(ious, count) == (best, worst)


def test_confusions():
    counts = np.array([[90, 10, 0], [0, 0, 0], [30, 0, 10]])
    assert np.array_equal(row_shares(counts), [[0.9, 0.1, 0], [NAN] * 3, [0.75, 0, 0.25]], equal_nan=True)
    assert worst_confusions(counts, 9) == [(2, 0, 0.75, 30), (0, 1, 0.1, 10)]
    assert most_confused(counts, 2) == [0, 2]
    assert most_confused(np.diag([5, 9, 7]), 2) == [1, 2], "without confusions the classes with the most pixels"


def test_page_has_the_numbers_and_pictures_and_loads_nothing(tmp_path):
    confusion = torch.eye(18, dtype=torch.int64) * 1000
    confusion[3, 4] = 3000
    page, text = report(tmp_path, confusion=confusion)
    words = " ".join(page.words)
    metrics = Metrics.from_confusion(confusion, ["x"] * 18, "skip")
    for value in (metrics.miou, metrics.pixel_accuracy, metrics.mean_accuracy, metrics.score):
        assert f"{100 * value:.2f} %" in words
    assert "75.00" in words and "3,000" in words, "the largest confusion"
    assert "3 images of scenes, whole images, scale 1, not mirrored. A class in neither" in words
    assert all(reference.startswith("data:image/") for reference in page.references) and "<script" not in text
    assert not re.search(r"url\(|@import|https?:", text)
    assert len(page.pictures) == 2 + 2 * 4 and all(picture["alt"] for picture in page.pictures)
    for picture in page.pictures:
        Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))).verify()
    names = {"best_1.png", "worst_1.png", "classes.png", "confusion.png"}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == names


def test_names_are_escaped(tmp_path):
    classes = ("<b>&", *(f"class {i}" for i in range(17)))
    page, text = report(tmp_path, classes)
    assert "<b>" not in text and "&lt;b&gt;&amp;" in text
    assert "<0>&.png: mean IoU 20.0 %" in page.words and "<2>&.png: mean IoU 90.0 %" in page.words
    assert "Evaluation of best<1>.pth" in page.words


def test_what_the_page_says_of_means_over_fewer_classes_and_of_names_that_are_not_utf8(tmp_path, monkeypatch):
    monkeypatch.setattr(Named, "name", lambda self, index: f"caf\udce9{index}.png")
    confusion = torch.eye(18, dtype=torch.int64)
    confusion[3, 3] = 0
    page, _ = report(tmp_path, confusion=confusion)
    assert "mean IoU over 17 of 18 classes" in page.words
    assert "caf\\udce90.png: mean IoU 20.0 %" in page.words


def test_absent_classes_and_pictures_of_an_earlier_page(tmp_path):
    report(tmp_path)
    confusion = torch.zeros(18, 18, dtype=torch.int64)
    page, _ = report(tmp_path, confusion=confusion, image_iou=(NAN, NAN, NAN))
    assert page.words.count("absent") == 36
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"classes.png", "confusion.png"}


@pytest.mark.parametrize("classes", [2, 19, 150])
def test_plots_of_any_number_of_classes(classes):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (classes, classes)) + 900 * np.eye(classes, dtype=np.int64)
    counts[1] = 0
    names = [f"class {i} of a long name, ${i}" for i in range(classes)]
    axes = confusion_figure(counts, names).axes[0]
    shown = min(classes, 30)
    assert len(axes.get_yticks()) == shown and len(axes.get_xticks()) == shown + (classes > 30)
    bars = iou_figure([NAN, *np.linspace(0, 1, classes - 1)], names, np.zeros((classes, 3), np.uint8))
    assert sum(len(axes.patches) for axes in bars.axes) == classes
    assert "absent" in {text.get_text() for text in bars.axes[-1].texts}


@pytest.mark.parametrize("counts", [np.zeros((150, 150), np.int64), np.diag(np.arange(150))])
def test_confusion_figure_of_many_classes_without_a_confusion(counts):
    axes = confusion_figure(counts, [f"class {i}" for i in range(150)]).axes[0]
    assert axes.get_yticklabels()[0].get_text() == ("class 120" if counts.any() else "class 0")
    assert pixels_of(axes.figure).shape[2] == 3


class Rigged(torch.nn.Module):
    """Predicts what the image's red channel says."""

    classes = 3

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def predict(self, images):
        return images[:, 0].round().byte()


class Shown(Named):
    """One image a share of wrong pixels; None: no pixel counts."""

    def __init__(self, shares):
        self.shares, self.classes = shares, ("sky", "road", "tree")
        self.palette = np.array([[0, 0, 200], [200, 0, 0], [0, 200, 0]], np.uint8)

    def __len__(self):
        return len(self.shares)

    def load(self, index):
        share = self.shares[index]
        image, label = np.zeros((20, 640, 3), np.uint8), np.zeros((20, 640), np.uint8)
        if share is None:
            label[:] = 255
        else:
            image[:, : round(640 * share), 0] = 2
        return image, label


def rigged(folder, shares, count):
    """The page of a network that is wrong on these shares of its images' pixels."""
    config = small.config(augment__mean=(0, 0, 0), augment__std=(1, 1, 1))
    model, dataset = Rigged(), Shown(shares)
    found = evaluate(model, dataset, config, Ranks(0, 1, torch.device("cpu")))
    return Page(write_report(folder, "x", model, dataset, found, config, count).read_text())


def test_best_and_worst_of_a_rigged_network(tmp_path):
    page = rigged(tmp_path, [0.5, 0.0, None, 0.25, 0.75], 2)
    captions = [words for words in page.words if ": mean IoU" in words]
    # IoU of sky is the share that is right; tree, where it is predicted, has none.
    expected = [(1, "100.0"), (3, "37.5"), (4, "12.5"), (0, "25.0")]
    assert captions == [f"<{index}>&.png: mean IoU {iou} %" for index, iou in expected]
    assert "37.50" in page.words, "tree for sky: 1.5 of 4 images that count"
    errors = np.asarray(Image.open(tmp_path / "pictures" / "worst_1.png"))[52 + 32 + 10]
    left = 8 + 640 + 8  # of the right panel
    assert tuple(errors[left + 100]) == WRONG and tuple(errors[left + 500]) == (166, 166, 166)


def test_one_image_and_none_that_counts(tmp_path):
    page = rigged(tmp_path, [0.5], 5)
    assert [words for words in page.words if words.endswith("images")] == ["Worst images"]
    page = rigged(tmp_path, [None], 5)
    assert len(page.pictures) == 2


def test_pictures_are_those_of_the_evaluation(tmp_path):
    """The images with the lowest and highest IoU of an evaluation, drawn by the network in its former mode."""
    config = small.config()
    dataset = build_dataset(config.data, "val")
    torch.manual_seed(0)
    model = build_model(config.model, len(dataset.classes)).train()
    found = evaluate(model, dataset, config, Ranks(0, 1, torch.device("cpu")))
    page = Page(write_report(tmp_path, "x", model, dataset, found, config, 1).read_text())
    captions = [words for words in page.words if words.startswith("scenes/")]
    low, high = int(np.argmin(found.image_iou)), int(np.argmax(found.image_iou))
    expected = [f"{dataset.name(i)}: mean IoU {100 * found.image_iou[i]:.1f} %" for i in (high, low)]
    assert captions == expected and model.training
    assert dataclasses.asdict(found.metrics)["classes"] == list(dataset.classes)


def test_pictures_and_pages_of_others_are_neither_removed_nor_replaced(tmp_path):
    report(tmp_path)
    (tmp_path / "pictures" / "best_3.png").write_text("mine")
    Image.new("RGB", (3, 3)).save(tmp_path / "pictures" / "worst_holiday.png")
    report(tmp_path, count=1)
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"best_1.png", "best_3.png", "worst_1.png", "worst_holiday.png", "confusion.png", "classes.png"}
    for name, message in (
        ("pictures/classes.png", r"classes\.png is there"),
        ("evaluation.html", r"evaluation\.html is"),
    ):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_text("mine")
        with pytest.raises(DataError, match=message):
            report(tmp_path, count=1)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).write_bytes(kept)
    with pytest.raises(DataError, match=r"best_3\.png is there already and is not from an earlier evaluation: move it"):
        report(tmp_path, count=3)
