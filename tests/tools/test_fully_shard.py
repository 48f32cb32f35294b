"""Weights shared out among processes by fully_shard, DistributedDataParallel, and nn.DataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from psp_fast import PSPNet
from tests.models.modules import batch
from tests.processes import run_ranks
from tests.tools.checks import assert_same, images, network, predict


def _convolutions(model: PSPNet) -> Iterable[nn.Module]:
    return (m for m in model.modules() if isinstance(m, nn.Conv2d))


def _blocks(model: PSPNet) -> Iterable[nn.Module]:
    return (block for i in range(1, 5) for block in model.get_submodule(f"layer{i}"))


SHARDS: dict[str, Callable[[PSPNet], Iterable[nn.Module]]] = {
    "convolutions": _convolutions,
    "blocks": _blocks,
    "ppm": lambda model: [model.ppm],
    "cls": lambda model: [model.cls],
    "root": lambda model: [model],
    "blocks and root": lambda model: [*_blocks(model), model],
}


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Loss of a step on the same images in every process, and what the network predicts and weighs after it."""
    x, labels = batch()
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    _, main, aux = model.train()(x, labels)
    (main + 0.4 * aux).backward()
    optimiser.step()
    with torch.no_grad():
        logits = model.eval()(images(torch.float64))
    whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}
    return {"main": main.detach(), "logits": logits, **{name: p.detach() for name, p in whole.items()}}


def _check_shards(rank: int, world: int) -> None:
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    for layers, kinds in ((50, SHARDS), (18, ("convolutions", "root"))):
        plain = network(layers)
        before, want = predict(plain), _trained(plain)
        for kind in kinds:
            model = network(layers)
            for module in SHARDS[kind](model):
                fully_shard(module, mesh=mesh)
            assert any(isinstance(p, DTensor) for p in model.parameters()), kind
            assert_same({"labels": model.eval().predict(images(torch.float64))}, {"labels": before["labels"]}, 0.0)
            assert_same(_trained(model), want, 1e-7)
            after = predict(plain)["labels"]
            assert_same({"labels": model.predict(images(torch.float64))}, {"labels": after}, 0.0)
    wrapped = nn.parallel.DistributedDataParallel(network(18), find_unused_parameters=True)
    found = _trained(wrapped)
    assert_same({name.removeprefix("module."): value for name, value in found.items()}, _trained(network(18)), 1e-7)
    alone = nn.parallel.DistributedDataParallel(network(18), find_unused_parameters=True).train()
    alone(images(torch.float64)).sum().backward()  # without labels, so that aux has no part in it
    assert alone.module.aux[0].weight.grad is None or not alone.module.aux[0].weight.grad.any()
    assert alone.module.cls[0].weight.grad.any()


def test_networks_in_shards_train_and_predict_as_whole_ones() -> None:
    run_ranks(_check_shards, 2)


@pytest.mark.parametrize("layers", [18, 50])
def test_data_parallel_on_the_cpu(layers: int) -> None:
    found = _trained(nn.DataParallel(network(layers)))
    assert_same({name.removeprefix("module."): value for name, value in found.items()}, _trained(network(layers)), 1e-9)
