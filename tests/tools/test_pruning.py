"""torch.nn.utils.prune, and torch-pruning, which removes channels."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from psp_fast import PSPNet
from tests.tools.checks import LAYERS, assert_same, both_ways, check, images, network, predict, train

PRUNINGS: dict[str, Callable[[nn.Module], Any]] = {
    "random_unstructured": lambda module: prune.random_unstructured(module, "weight", 0.4),
    "l1_unstructured": lambda module: prune.l1_unstructured(module, "weight", 0.4),
    "ln_structured": lambda module: prune.ln_structured(module, "weight", 0.4, n=2, dim=0),
    "twice": lambda module: prune.l1_unstructured(prune.random_unstructured(module, "weight", 0.3), "weight", 0.3),
}


@pytest.mark.parametrize("kind", PRUNINGS)
def test_masks_hold_in_every_layer(kind: str) -> None:
    def change(model: PSPNet) -> PSPNet:
        for name in LAYERS:
            PRUNINGS[kind](model.get_submodule(name))
        return model

    check(change)


def test_pruned_weights_are_the_masked_ones_before_and_after_remove() -> None:
    model, masked = network(18), network(18)
    for name in LAYERS:
        layer = model.get_submodule(name)
        prune.l1_unstructured(layer, "weight", 0.4)
        masked.get_submodule(name).weight.data.mul_(layer.weight_mask)
    want = predict(masked)
    assert_same(predict(model), want, 1e-12)
    train(model)
    for name in LAYERS:
        layer = model.get_submodule(name)
        assert layer.weight_orig.grad[layer.weight_mask == 0].eq(0).all()
        prune.remove(layer, "weight")
        masked.get_submodule(name).weight.data.copy_(layer.weight)
    masked.load_state_dict(model.state_dict())
    assert_same(predict(model), predict(masked), 1e-12)


def test_global_pruning() -> None:
    def change(model: PSPNet) -> PSPNet:
        layers = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d)]
        prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=0.3)
        return model

    check(change)


def test_torch_pruning_removes_channels(torch_pruning: ModuleType) -> None:
    def run() -> dict[str, Tensor]:
        model = network(50).eval()
        importance = torch_pruning.importance.MagnitudeImportance(p=2)
        options = {"importance": importance, "pruning_ratio": 0.25, "ignored_layers": [model.cls[4]]}
        torch_pruning.pruner.MagnitudePruner(model, images(torch.float64), **options).step()
        convolutions = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        pruned = {name for name, m in convolutions if m.weight.shape != shapes[name]}
        assert pruned == {name for name in shapes if not name.startswith("aux")}  # that runs in training alone
        return predict(model)

    shapes = {name: m.weight.shape for name, m in network(50).named_modules() if isinstance(m, nn.Conv2d)}
    assert_same(*both_ways(run), 1e-7)
