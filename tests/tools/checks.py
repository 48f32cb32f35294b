"""What the tools' tests share: a network that a tool has changed answers as its modules do, called one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from psp_fast import PSPNet
from psp_fast.models.resnet import initialise
from tests.models.modules import batch, make, module_by_module
from tests.ops.checks import relative_error

_Result = TypeVar("_Result")

LAYERS = ("layer0.3", "layer2.0.conv2", "layer3.0.downsample.0", "layer4.1.conv1", "ppm.features.1.1", "cls.0", "aux.0")
"""A convolution of every kind in the network."""


def network(layers: int) -> PSPNet:
    """A narrowed network in float64, whose logits depend on the images by way of every layer."""
    model = make(layers)
    initialise(model)
    return model


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return batch()[0].to(dtype)


def predict(model: nn.Module) -> dict[str, Tensor]:
    """Logits, and the label map of a PSPNet, in evaluation; leaves the network in that mode."""
    x = images(next(model.parameters()).dtype)
    with torch.no_grad():
        found = {"logits": model.eval()(x)}
    return {**found, "labels": model.predict(x)} if isinstance(model, PSPNet) else found


def train(model: nn.Module) -> dict[str, Tensor]:
    """Losses, gradients and buffers of a step in training."""
    x, labels = batch()
    model.train().zero_grad()
    _, main, aux = model(x.to(next(model.parameters()).dtype), labels)
    (main + 0.4 * aux).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"main": main.detach(), "aux": aux.detach(), **gradients, **dict(model.named_buffers())}


def both_ways(run: Callable[[], _Result]) -> tuple[_Result, _Result]:
    """What run gives, and what it gives where every network calls its modules one by one."""
    found = []
    for context in (nullcontext(), module_by_module()):
        torch.manual_seed(1)
        with context:
            found.append(run())
    return found[0], found[1]


def assert_same(got: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float) -> None:
    """Relative errors of at most tolerance; of label maps, one pixel in 200."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        if name == "labels":
            assert (got[name] != value).float().mean() <= 0.005
        else:
            error = relative_error(got[name], value)
            assert error <= tolerance, f"{name}: relative error {error:.2e}"


def check(change: Callable[[PSPNet], nn.Module], layers: int = 18, *, has_effect: bool = True) -> None:
    """What change makes of a network predicts, in float32, and trains, in float64, as its modules do."""
    got, want = both_ways(lambda: predict(change(network(layers).float())))
    assert_same(got, want, 1e-4)
    if has_effect:
        assert relative_error(want["logits"], predict(network(layers).float())["logits"]) > 1e-3
    assert_same(*both_ways(lambda: train(change(network(layers)))), 1e-7)


def state_of(module: nn.Module) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
