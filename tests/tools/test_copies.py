"""copy.deepcopy, pickle and torch.save of a whole network."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from psp_fast import PSPNet
from tests.models.modules import CLASSES
from tests.tools.checks import assert_same, network, predict, state_of, train


def _saved(model: PSPNet) -> PSPNet:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _pickled(model: PSPNet) -> PSPNet:
    return pickle.loads(pickle.dumps(model))


COPIES = [copy.deepcopy, _pickled, _saved]


@pytest.mark.parametrize("after", ["making", "predict", "train"])
@pytest.mark.parametrize("duplicate", COPIES)
def test_a_copy_answers_alike_and_has_weights_of_its_own(duplicate: Callable[[PSPNet], PSPNet], after: str) -> None:
    model = network(18).float()
    if after != "making":
        (predict if after == "predict" else train)(model)
    other = duplicate(model)
    assert other.training == model.training
    want = predict(model)
    assert_same(predict(other), want, 0.0)

    for p in other.parameters():
        p.data.mul_(0.9)
    assert_same(predict(model), want, 0.0)
    fresh = network(18).float()
    fresh.load_state_dict(state_of(other))
    assert_same(predict(other), predict(fresh), 0.0)
    assert (predict(other)["logits"] - want["logits"]).abs().max() > 0.01


@pytest.mark.parametrize("duplicate", COPIES)
def test_a_copy_keeps_class_weights_out_of_its_state(duplicate: Callable[[PSPNet], PSPNet]) -> None:
    plain = network(18)
    model = network(18)
    model.criterion = nn.CrossEntropyLoss(torch.linspace(0.5, 2, CLASSES).double(), ignore_index=255)
    other = duplicate(model)
    assert other.state_dict().keys() == plain.state_dict().keys()
    other.load_state_dict(plain.state_dict())
    assert_same(train(other), train(model), 0.0)
    assert train(other)["main"] != train(plain)["main"]
