"""accelerate's hooks, which replace `forward` of single modules."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psp_fast import PSPNet
from tests.tools.checks import assert_same, check, images, network, predict


def test_a_hook_on_every_module_has_its_effect(accelerate: ModuleType) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Larger(ModelHook):
        def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
            return 1.1 * output

    def change(model: PSPNet) -> PSPNet:
        for name, module in model.named_modules():
            if name.startswith(("layer", "ppm.features.", "cls", "aux")):
                add_hook_to_module(module, Larger())
        return model

    check(change, layers=50)


@pytest.mark.parametrize("layers", [18, 50])
def test_weights_that_are_loaded_for_each_call(accelerate: ModuleType, layers: int) -> None:
    from accelerate import cpu_offload

    model: Any = network(layers).eval().requires_grad_(False)
    want = {"logits": predict(model)["logits"]}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    offloaded = cpu_offload(model, execution_device="cpu", state_dict=weights)
    assert offloaded.layer1[0].conv1.weight.is_meta
    assert_same({"logits": offloaded(images(torch.float64))}, want, 1e-12)
