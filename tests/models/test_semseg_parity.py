"""psp_fast.PSPNet against the numbers of semseg's own PSPNet (semseg_numbers.py), with the same weights and batch."""

import json

import numpy as np
import pytest
import torch

from psp_fast import PSPNet
from tests.models import semseg_numbers
from tests.models.semseg_numbers import joined, relative_error

FLOAT64, FLOAT32 = 1e-10, 1e-5  # largest relative error
NUMBERS = json.loads(semseg_numbers.NUMBERS.read_text())


@pytest.mark.parametrize("layers", [50, 101, 152])
def test_state_dict_has_semsegs_keys_and_shapes(layers):
    model = PSPNet(layers=layers, classes=semseg_numbers.CLASSES, pretrained=False)
    assert semseg_numbers.structure(model) == NUMBERS["structure"][str(layers)]


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def measured(request):
    model = PSPNet(layers=50, classes=semseg_numbers.CLASSES, dropout=0.0, pretrained=False)
    semseg_numbers.fill(model)
    tolerance = FLOAT64 if request.param == torch.float64 else FLOAT32
    return semseg_numbers.measure(model, request.param), tolerance


def test_eval_logits(measured):
    ours, tolerance = measured
    theirs = NUMBERS["pspnet50"]
    assert ours["logits_shape"] == theirs["logits_shape"]
    assert relative_error(ours["logits"], theirs["logits"]) <= tolerance


def test_training_losses_and_argmax(measured):
    ours, tolerance = measured
    theirs = NUMBERS["pspnet50"]
    assert relative_error(ours["losses"], theirs["losses"]) <= tolerance
    assert np.mean(np.array(ours["argmax"]) == theirs["argmax"]) >= 0.999


def test_running_statistics(measured):
    ours, tolerance = measured
    theirs = NUMBERS["pspnet50"]["running"]
    assert ours["running"].keys() == theirs.keys()
    assert relative_error(joined(ours["running"]), joined(theirs)) <= tolerance


def test_gradients(measured):
    ours, tolerance = measured
    theirs = NUMBERS["pspnet50"]["gradients"]
    assert ours["gradients"].keys() == theirs.keys()
    if tolerance == FLOAT32:  # semseg's own float32 gradients are no closer to its float64 ones
        assert relative_error(joined(ours["gradients"]), joined(theirs)) <= 2 * NUMBERS["float32_gradient_error"]
        return
    for name in theirs:
        assert relative_error(ours["gradients"][name], theirs[name]) <= tolerance, name
