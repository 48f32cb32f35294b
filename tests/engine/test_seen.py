"""Warnings of classes that the training labels do not show."""

import torch

from psp_fast.engine.distributed import Ranks
from psp_fast.engine.seen import SeenLabels

ONE = Ranks(0, 1, torch.device("cpu"))
CLASSES = ["sky", "road", "tree"]


def warning(seen, validating=False, last=False):
    return seen.warning(ONE, validating=validating, last=last)


def labels(*values):
    return torch.tensor(values).repeat(2, 3, 1)  # two crops


def test_classes_are_missing_only_after_an_epoch():
    seen = SeenLabels(CLASSES, samples=4)
    seen.add(labels(0, 255))
    assert warning(seen) is None
    seen.add(labels(1, 255))
    assert warning(seen) == "no pixel of the 4 training crops so far has the class tree"
    assert warning(seen, last=True) is None, "told once"


def test_the_last_step_warns_without_an_epoch():
    seen = SeenLabels(CLASSES, samples=100)
    seen.add(labels(255))
    assert warning(seen) is None
    assert "every pixel of the 2 training crops so far is ignored" in warning(seen, last=True)


def test_one_class_alone_is_told_at_the_first_validation():
    seen = SeenLabels(CLASSES, samples=100)
    seen.add(labels(0, 1))
    assert warning(seen, validating=True) is None, "tree may come"
    seen = SeenLabels(CLASSES, samples=100)
    seen.add(labels(0, 255))
    assert "the 2 training crops so far has the classes road, tree: only the value 0" in warning(seen, validating=True)


def test_nothing_is_said_of_complete_labels():
    seen = SeenLabels(CLASSES, samples=2)
    for _ in range(3):
        seen.add(labels(0, 1, 2, 255))
        assert warning(seen) is None
    assert seen.counts.tolist()[:3] == [6, 6, 6], "counting has stopped after the first"


def test_other_processes_labels_count(monkeypatch):
    others = torch.bincount(labels(1, 255).flatten(), minlength=256)
    monkeypatch.setattr(Ranks, "sum", lambda self, counts: counts + others)
    seen = SeenLabels(CLASSES, samples=4)
    seen.add(labels(0, 255))
    two = Ranks(0, 2, torch.device("cpu"))
    assert (
        seen.warning(two, validating=False, last=False) == "no pixel of the 4 training crops so far has the class tree"
    )
