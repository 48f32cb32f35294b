"""The paper's measures against counts by hand."""

import json
import math

import numpy as np
import pytest
import torch

from psp_fast.engine.metrics import Metrics, confusion_matrix

TARGET = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]])
FOUND = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 1]], dtype=torch.uint8)


def test_confusion_counts_pixels_and_leaves_ignored_ones_out():
    assert confusion_matrix(TARGET, FOUND, 3).tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]


def test_confusion_of_random_maps():
    rng = np.random.default_rng(0)
    target, found = rng.integers(0, 7, (2, 50, 40))
    target[:3] = 255
    counts = np.zeros((7, 7), int)
    for t, f in zip(target.ravel(), found.ravel(), strict=True):
        if t != 255:
            counts[t, f] += 1
    assert confusion_matrix(torch.from_numpy(target), torch.from_numpy(found), 7).numpy().tolist() == counts.tolist()


@pytest.mark.parametrize(("absent", "miou"), [("skip", 0.5), ("zero", 1 / 3)])
def test_measures(absent, miou, tmp_path):
    metrics = Metrics.from_confusion(confusion_matrix(TARGET, FOUND, 3), ["a", "b", "c"], absent)
    assert metrics.miou == pytest.approx(miou)
    assert metrics.pixel_accuracy == pytest.approx(4 / 6)
    assert metrics.score == pytest.approx((miou + 4 / 6) / 2)
    assert metrics.class_iou[:2] == pytest.approx([0.5, 0.5])
    assert metrics.class_accuracy[:2] == pytest.approx([2 / 3, 2 / 3])
    assert math.isnan(metrics.class_iou[2]) == (absent == "skip")
    metrics.save(tmp_path / "m.json")
    saved = json.loads((tmp_path / "m.json").read_text())
    assert saved["miou"] == pytest.approx(miou)
    assert saved["classes"]["c"]["iou"] == (None if absent == "skip" else 0)
    assert "50.00" in metrics.table() and "66.67" in metrics.table()


def test_nothing_labelled_is_zero_not_a_crash():
    metrics = Metrics.from_confusion(torch.zeros(2, 2, dtype=torch.int64), ["a", "b"], "skip")
    assert (metrics.miou, metrics.pixel_accuracy) == (0, 0)


def test_a_mean_over_fewer_classes_than_there_are_says_so():
    alone = Metrics.from_confusion(torch.tensor([[9, 0], [0, 0]]), ["background", "object"], "skip")
    assert alone.headline() == "mIoU 100.00 % over 1 of 2 classes, pixel accuracy 100.00 %"
    assert "100.00    100.00   (over 1 of 2 classes)" in alone.table()
    predicted = Metrics.from_confusion(torch.tensor([[9, 1], [0, 0]]), ["background", "object"], "skip")
    assert predicted.over() == ""
    assert "(IoU over 2 and accuracy over 1 of 2 classes)" in predicted.table()
    for confusion, absent in (([[9, 0], [0, 0]], "zero"), ([[9, 1], [1, 3]], "skip")):
        complete = Metrics.from_confusion(torch.tensor(confusion), ["background", "object"], absent)
        assert "over" not in complete.headline() + complete.table()
