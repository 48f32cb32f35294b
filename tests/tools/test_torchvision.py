"""Features of inner layers by torchvision: traced by torch.fx, and by IntermediateLayerGetter."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psp_fast import PSPNet
from tests.tools.checks import assert_same, images, network

NODES = ("layer0", "layer1.0.relu", "layer2", "layer3.1.conv2", "layer4", "ppm", "cls.2", "cls.4")


def _kept_by_hooks(model: PSPNet, x: Tensor) -> dict[str, Tensor]:
    """Results of the first call of every one of NODES: a block calls its ReLU several times."""
    found: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: Any, result: Tensor) -> None:
        found.setdefault(names[module], result.clone())

    names = {model.get_submodule(name): name for name in NODES}
    handles = [module.register_forward_hook(keep) for module in names]
    model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_create_feature_extractor(torchvision: ModuleType, training: bool) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    want = _kept_by_hooks(network(50).train(training), images(torch.float64))
    extractor = create_feature_extractor(network(50), return_nodes=list(NODES)).train(training)
    assert_same(extractor(images(torch.float64)), want, 1e-9)


def test_intermediate_layer_getter(torchvision: ModuleType) -> None:
    from torchvision.models._utils import IntermediateLayerGetter

    model = network(50).eval()
    want = _kept_by_hooks(model, images(torch.float64))
    getter = IntermediateLayerGetter(model, {"layer2": "low", "layer4": "high"})
    got = getter(images(torch.float64))
    assert_same(got, {"low": want["layer2"], "high": want["layer4"]}, 1e-9)
