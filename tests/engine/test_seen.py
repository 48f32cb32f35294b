"""Warnings of classes that the training labels do not show."""

import torch

from psp_fast.engine.distributed import Ranks
from psp_fast.engine.seen import SeenLabels

ONE = Ranks(0, 1, torch.device("cpu"))
CLASSES = ["sky", "road", "tree"]


def labels(*values):
    return torch.tensor(values).repeat(2, 3, 1)  # two crops


def test_classes_are_missing_only_after_an_epoch():
    seen = SeenLabels(CLASSES, samples=4)
    seen.add(labels(0, 255))
    assert seen.warning(ONE, last=False) is None
    seen.add(labels(1, 255))
    assert seen.warning(ONE, last=False) == "no pixel of the 4 training crops so far has the class tree"
    assert seen.warning(ONE, last=True) is None, "told once"


def test_the_last_step_warns_without_an_epoch():
    seen = SeenLabels(CLASSES, samples=100)
    seen.add(labels(255))
    assert seen.warning(ONE, last=False) is None
    assert "every pixel of the 2 training crops so far is ignored" in seen.warning(ONE, last=True)


def test_nothing_is_said_of_complete_labels():
    seen = SeenLabels(CLASSES, samples=2)
    for _ in range(3):
        seen.add(labels(0, 1, 2, 255))
        assert seen.warning(ONE, last=False) is None
    assert seen.counts.tolist()[:3] == [6, 6, 6], "counting has stopped after the first"


def test_other_processes_labels_count(monkeypatch):
    others = torch.bincount(labels(1, 255).flatten(), minlength=256)
    monkeypatch.setattr(Ranks, "sum", lambda self, counts: counts + others)
    seen = SeenLabels(CLASSES, samples=4)
    seen.add(labels(0, 255))
    two = Ranks(0, 2, torch.device("cpu"))
    assert seen.warning(two, last=False) == "no pixel of the 4 training crops so far has the class tree"
