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
from psp_fast.engine.report import write_report
from psp_fast.engine.report.confusions import most_confused, row_shares, worst_confusions
from psp_fast.engine.report.plots import confusion_figure, iou_figure
from psp_fast.engine.report.writing import chosen
from psp_fast.engine.run import build_model
from psp_fast.engine.samples import build_dataset
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


def test_page_has_the_numbers_and_pictures_and_loads_nothing(tmp_path):
    confusion = torch.eye(18, dtype=torch.int64) * 1000
    confusion[3, 4] = 3000
    page, text = report(tmp_path, confusion=confusion)
    words = " ".join(page.words)
    metrics = Metrics.from_confusion(confusion, ["x"] * 18, "skip")
    for value in (metrics.miou, metrics.pixel_accuracy, metrics.mean_accuracy, metrics.score):
        assert f"{100 * value:.2f} %" in words
    assert "75.00" in words and "3,000" in words, "the largest confusion"
    assert "3 images of scenes, whole images, scale 1, not mirrored" in words
    assert all(reference.startswith("data:image/") for reference in page.references) and "<script" not in text
    assert not re.search(r"url\(|@import|https?:", text)
    assert len(page.pictures) == 4 and all(picture["alt"] for picture in page.pictures)
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
