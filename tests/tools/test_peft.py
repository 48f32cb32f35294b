"""LoRA by PEFT on convolutions of every kind."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

from psp_fast import PSPNet
from tests.tools.checks import assert_same, check, network, predict, train

TARGETS = (
    r"layer[12]\.\d+\.conv2",  # PEFT leaves out the dilation of the others
    r"layer\d\.\d+\.conv3",
    r"layer\d\.\d+\.downsample\.0",
    r"ppm\.features\.\d\.1",
    r"(layer[12].*conv\d|.*features\.\d\.1|cls\.0|.*downsample\.0)",
)


def _adapted(peft: ModuleType, model: PSPNet, target: str) -> nn.Module:
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=target, init_lora_weights=False)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("target", TARGETS)
def test_adapters_have_their_effect(peft: ModuleType, target: str) -> None:
    check(lambda model: _adapted(peft, model, target), layers=50)


def test_a_step_trains_the_adapters_alone(peft: ModuleType) -> None:
    model = _adapted(peft, network(18), TARGETS[-1])
    before = predict(model)["logits"]
    train(model)
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in name for name in trained)
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert (predict(model)["logits"] - before).abs().max() > 1e-3


def test_adapters_merge_and_switch_off(peft: ModuleType) -> None:
    model = _adapted(peft, network(50), TARGETS[-1])
    adapted = predict(model)
    plain = predict(network(50))
    with model.disable_adapter():
        assert_same(predict(model), {"logits": plain["logits"]}, 1e-12)
    assert_same(predict(model), adapted, 0.0)
    merged = model.merge_and_unload()
    assert type(merged) is PSPNet
    got = predict(merged)
    assert_same({"logits": got["logits"]}, adapted, 1e-9)
    assert (got["labels"] != plain["labels"]).any()
    model = _adapted(peft, network(50), TARGETS[-1])
    assert_same(predict(model.unload()), plain, 0.0)
