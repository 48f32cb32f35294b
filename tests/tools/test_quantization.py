"""torch.ao.quantization: fake quantisation in training, and integers in a part of the network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx

from psp_fast import PSPNet
from tests.tools.checks import assert_same, both_ways, images, network, predict, train

ENGINE = "x86"
TOLERANCE = 0.02
"""Of values whose last bits decide to which integer others are rounded."""


@pytest.fixture(autouse=True)
def _engine() -> Iterator[None]:
    if ENGINE not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this build has no quantised kernels of {ENGINE}")
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, ENGINE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
    torch.backends.quantized.engine = before


class Images(nn.Module):
    """Images alone: a graph of the network in training could ask for labels."""

    def __init__(self, content: nn.Module) -> None:
        super().__init__()
        self.content = content

    def forward(self, x: Tensor) -> Tensor:
        return self.content(x)


def _prepared(layers: int) -> PSPNet:
    model = network(layers).float().train()
    model.qconfig = quantization.get_default_qat_qconfig(ENGINE)
    return quantization.prepare_qat(model)


def test_every_convolution_is_quantised_in_training() -> None:
    def run() -> dict[str, Tensor]:
        model = _prepared(50)
        return {**train(model), **predict(model)}

    got, want = both_ways(run)
    assert_same(got, want, TOLERANCE)
    ranges = {
        name: value for name, value in got.items() if name.endswith("weight_fake_quant.activation_post_process.min_val")
    }
    convolutions = {name for name, m in network(50).named_modules() if isinstance(m, nn.Conv2d)}
    assert {name.split(".weight_fake_quant")[0] for name in ranges} == convolutions
    assert all(value.isfinite().all() for value in ranges.values())
    plain = predict(network(50).float())["logits"]
    assert (got["logits"] - plain).norm() > 0.01 * plain.norm()


def test_the_quantisation_of_each_convolution_has_its_effect() -> None:
    model = _prepared(18)
    train(model)
    model.apply(quantization.disable_observer)
    want = predict(model)["logits"]
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not name.startswith("aux"):
            observer = module.weight_fake_quant.activation_post_process
            observer.min_val.mul_(300)  # then all weights become 0
            observer.max_val.mul_(300)
            assert (predict(model)["logits"] - want).norm() > 1e-3 * want.norm(), name
            observer.min_val.div_(300)
            observer.max_val.div_(300)


@pytest.mark.parametrize("name", ["layer0", "cls"])
def test_a_part_in_integers(name: str) -> None:
    """Sums with a shortcut have no kernel in integers: PyTorch's eager mode cannot take the blocks."""

    def run() -> dict[str, Tensor]:
        model = network(18).float().eval()
        part = quantization.QuantWrapper(model.get_submodule(name))
        part.qconfig = quantization.get_default_qconfig(ENGINE)
        model.set_submodule(name, part)
        quantization.prepare(part, inplace=True)
        predict(model)
        quantization.convert(part, inplace=True)
        kinds = [type(m) for m in part.modules()]
        assert nn.Conv2d not in kinds and torch.ao.nn.quantized.Conv2d in kinds
        with torch.no_grad():
            return {"logits": model(images())}

    got, want = both_ways(run)
    assert_same(got, want, TOLERANCE)
    plain = predict(network(18).float())["logits"]
    assert 1e-4 < (got["logits"] - plain).norm() / plain.norm() < 0.2


@pytest.mark.parametrize(("layers", "training"), [(50, False), (18, True)], ids=["prepare_fx", "prepare_qat_fx"])
def test_the_whole_network_by_graph(layers: int, training: bool) -> None:
    def run() -> dict[str, Tensor]:
        model: Any = Images(network(layers).float()).train(training)
        if training:
            mapping = quantization.get_default_qat_qconfig_mapping(ENGINE)
            model = quantize_fx.prepare_qat_fx(model, mapping, (images(),))
        else:
            mapping = quantization.get_default_qconfig_mapping(ENGINE)
            model = quantize_fx.prepare_fx(model, mapping, (images(),))
        prepared = model(images()).detach()
        model = quantize_fx.convert_fx(model.eval())
        with torch.no_grad():
            return {"prepared": prepared, "converted": model(images())}

    got, want = both_ways(run)
    assert_same(got, want, 0.05)  # observers of the same values stand elsewhere in the graphs
    if not training:
        plain = predict(network(layers).float())["logits"]
        assert (got["prepared"] - plain).norm() <= 1e-4 * plain.norm()
        assert 1e-3 < (got["converted"] - plain).norm() / plain.norm() < 0.5
