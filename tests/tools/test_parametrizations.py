"""weight_norm and spectral_norm, in torch.nn.utils.parametrizations and as they were before."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize

from psp_fast import PSPNet
from tests.tools.checks import LAYERS, assert_same, check, network, predict


def _halved_norm(module: nn.Module) -> None:
    """weight_norm leaves the weight as it is until its norm is changed."""
    parametrizations.weight_norm(module)
    module.parametrizations.weight.original0.data.mul_(0.5)


def _old_halved_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        utils.weight_norm(module)
    module.weight_g.data.mul_(0.5)


NORMS = {
    "weight_norm": _halved_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old_weight_norm": _old_halved_norm,
    "old_spectral_norm": utils.spectral_norm,
}


def _changed_by(norm: Callable[[nn.Module], object]) -> Callable[[PSPNet], PSPNet]:
    def change(model: PSPNet) -> PSPNet:
        for name in LAYERS:
            norm(model.get_submodule(name))
        return model

    return change


@pytest.mark.parametrize("kind", NORMS)
def test_normalised_weights_are_used(kind: str) -> None:
    check(_changed_by(NORMS[kind]), layers=50)


def test_a_removed_parametrisation_leaves_its_weight() -> None:
    model = _changed_by(_halved_norm)(network(18))
    want = predict(model)
    for name in LAYERS:
        parametrize.remove_parametrizations(model.get_submodule(name), "weight")
    assert_same(predict(model), want, 1e-12)
    halved = network(18)
    for name in LAYERS:
        halved.get_submodule(name).weight.data.mul_(0.5)
    assert_same(want, predict(halved), 1e-12)


def test_weights_computed_once_for_many_calls() -> None:
    model = _changed_by(_halved_norm)(network(18))
    want = predict(model)
    with parametrize.cached():
        predict(model)
        assert_same(predict(model), want, 0.0)
