"""Averages of weights: torch.optim.swa_utils, torch_ema, and averages swapped in through `.data`."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from psp_fast import PSPNet
from tests.models.modules import batch
from tests.tools.checks import assert_same, both_ways, images, network, predict, state_of, train


def _step(model: PSPNet) -> None:
    train(model)
    torch.optim.SGD(model.parameters(), 0.05).step()


def _network_of(state: dict[str, Tensor]) -> PSPNet:
    model = network(18)
    model.load_state_dict(state)
    return model


def test_averaged_model_with_its_buffers() -> None:
    model = network(18)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    averaged.update_parameters(model)  # the first update copies
    want = state_of(model)
    predict(averaged)
    for _ in range(2):
        _step(model)
        averaged.update_parameters(model)
        for name, value in model.state_dict().items():
            want[name] = torch.lerp(want[name].double(), value.double(), 0.1).to(value.dtype)
    assert_same(predict(averaged.module), predict(_network_of(want)), 1e-12)
    assert (predict(averaged)["logits"] - predict(model)["logits"]).abs().max() > 1e-3


def test_update_bn_measures_the_averages_statistics() -> None:
    def run() -> dict[str, Tensor]:
        model = network(18)
        averaged = AveragedModel(model)
        for _ in range(2):
            _step(model)
            averaged.update_parameters(model)
        x = images(torch.float64)
        update_bn([(x, batch()[1]), (x.flip(3), batch()[1]), (2 * x, batch()[1])], averaged)
        return {**dict(averaged.named_buffers()), **predict(averaged)}

    got, want = both_ways(run)
    assert_same(got, want, 1e-7)
    assert got["module.layer4.1.bn2.num_batches_tracked"] == 3


def test_an_average_swapped_in_through_data() -> None:
    model = network(50).float()
    before = predict(model)
    average = [0.9 * p.detach() for p in model.parameters()]

    def swap() -> None:
        for p, other in zip(model.parameters(), average, strict=True):
            kept = p.data.clone()
            p.data.copy_(other)
            other.copy_(kept)

    swap()
    fresh = network(50).float()
    fresh.load_state_dict(state_of(model))
    assert_same(predict(model), predict(fresh), 0.0)
    assert (predict(model)["logits"] - before["logits"]).abs().max() > 0.01
    swap()
    assert_same(predict(model), before, 0.0)


def test_torch_ema(torch_ema: ModuleType) -> None:
    model = network(18)
    ema = torch_ema.ExponentialMovingAverage(model.parameters(), decay=0.5, use_num_updates=False)
    want = state_of(model)
    for _ in range(2):
        _step(model)
        ema.update()
        for name, p in model.named_parameters():
            want[name] = (want[name] + p.detach()) / 2
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    trained = predict(model)
    with ema.average_parameters():
        got = predict(model)
    assert_same(got, predict(_network_of({**want, **statistics})), 1e-12)
    assert (got["logits"] - trained["logits"]).abs().max() > 1e-3
    assert_same(predict(model), trained, 0.0)
