"""Grad-CAM, guided backpropagation and statistics of activations, by hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psp_fast import PSPNet
from tests.tools.checks import assert_same, both_ways, images, network


def _grad_cam(model: PSPNet, layer: str, full_hook: bool) -> dict[str, Tensor]:
    kept: dict[str, Any] = {}

    def forward_hook(module: nn.Module, args: Any, result: Tensor) -> None:
        kept["activation"] = result.detach()
        if not full_hook:
            result.register_hook(lambda gradient: kept.update(gradient=gradient.clone()))

    def backward_hook(module: nn.Module, gradients: Any, outputs: Any) -> None:
        kept["gradient"] = outputs[0].clone()

    module = model.get_submodule(layer)
    handles = [module.register_forward_hook(forward_hook)]
    if full_hook:
        handles.append(module.register_full_backward_hook(backward_hook))
    model.eval()(images(torch.float64))[:, 1].sum().backward()
    for handle in handles:
        handle.remove()
    weights = kept["gradient"].mean((2, 3), keepdim=True)
    return {**kept, "map": F.relu((weights * kept["activation"]).sum(1))}


@pytest.mark.parametrize("full_hook", [False, True], ids=["tensor_hook", "full_backward_hook"])
@pytest.mark.parametrize("layer", ["layer4", "layer4.1", "layer4.1.bn2", "ppm", "ppm.features.2", "cls.0", "cls.2"])
def test_grad_cam(layer: str, full_hook: bool) -> None:
    got, want = both_ways(lambda: _grad_cam(network(18), layer, full_hook))
    assert_same(got, want, 1e-9)
    assert want["gradient"].norm() > 0


@pytest.mark.parametrize("layers", [18, 50])
def test_guided_backpropagation(layers: int) -> None:
    def run(guided: bool = True) -> dict[str, Tensor]:
        model = network(layers).eval()
        for module in model.modules():
            if guided and isinstance(module, nn.ReLU):
                module.register_full_backward_hook(lambda m, gradients, outputs: (gradients[0].clamp(min=0),))
        x = images(torch.float64).requires_grad_()
        model(x)[:, 1].sum().backward()
        assert x.grad is not None
        return {"saliency": x.grad}

    got, want = both_ways(run)
    assert_same(got, want, 1e-9)
    plain = run(guided=False)["saliency"]
    assert (want["saliency"] - plain).norm() > 0.1 * plain.norm()


def test_statistics_of_every_activation() -> None:
    def run() -> dict[str, Tensor]:
        model = network(50)
        names = {module: name for name, module in model.named_modules()}
        found: dict[str, Tensor] = {}

        def hook(module: nn.Module, args: Any, result: Any) -> None:
            if isinstance(result, Tensor):
                key = f"{len(found)} {names[module]}"  # a block calls its ReLU several times
                found[key] = torch.stack([result.mean(), result.std(), (result == 0).double().mean()])

        handle = nn.modules.module.register_module_forward_hook(hook)
        try:
            with torch.no_grad():
                model.eval()(images(torch.float64))
        finally:
            handle.remove()
        return found

    got, want = both_ways(run)
    assert len(want) > 150
    assert_same(got, want, 1e-9)
