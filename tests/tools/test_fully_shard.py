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
from tests.tools.checks import assert_same, images, network


def _convolutions(model: PSPNet) -> Iterable[nn.Module]:
    return (m for m in model.modules() if isinstance(m, nn.Conv2d))


def _blocks(model: PSPNet) -> Iterable[nn.Module]:
    return (block for i in range(1, 5) for block in model.get_submodule(f"layer{i}"))


SHARDS: dict[str, Callable[[PSPNet], Iterable[nn.Module]]] = {
    "convolutions": _convolutions,
    "blocks and root": lambda model: [*_blocks(model), model],
    "ppm and cls": lambda model: [model.ppm, model.cls],
    "root": lambda model: [model],
}


def _steps(model: nn.Module) -> dict[str, Tensor]:
    """What a network predicts, its loss on images that all processes share, and logits and weights after a step."""
    x, labels = batch()
    optimiser = torch.optim.SGD(model.parameters(), 0.05)  # after a call the parameters may be other tensors
    found = {"labels": model.eval().predict(x)} if isinstance(model, PSPNet) else {}
    _, found["main"], aux = model.train()(x, labels)
    (found["main"] + 0.4 * aux).backward()
    optimiser.step()
    with torch.no_grad():
        found["logits"] = model.eval()(x)
    for name, p in model.named_parameters():
        found[name.removeprefix("module.")] = p.full_tensor() if isinstance(p, DTensor) else p
    return {name: value.detach() for name, value in found.items()}


def _check_shards(rank: int, world: int) -> None:
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    want = _steps(network(50))
    for kind, parts in SHARDS.items():
        model = network(50)
        for module in parts(model):
            fully_shard(module, mesh=mesh)
        assert any(isinstance(p, DTensor) for p in model.parameters()), kind
        assert_same(_steps(model), want, 1e-7)


def _check_replicas(rank: int, world: int) -> None:
    want = _steps(network(18))
    del want["labels"]  # that is the network's, not its wrapper's
    assert_same(_steps(nn.parallel.DistributedDataParallel(network(18), find_unused_parameters=True)), want, 1e-7)
    model = nn.parallel.DistributedDataParallel(network(18), find_unused_parameters=True)
    model(images(torch.float64)).sum().backward()  # without labels the auxiliary head has no part
    assert model.module.cls[0].weight.grad.any()
    assert model.module.aux[0].weight.grad is None


def _check_all(rank: int, world: int) -> None:
    _check_shards(rank, world)
    _check_replicas(rank, world)


def test_networks_on_two_processes_train_and_predict_as_one() -> None:
    run_ranks(_check_all, 2)


@pytest.mark.parametrize("layers", [18, 50])
def test_data_parallel_on_the_cpu(layers: int) -> None:
    want = _steps(network(layers))
    del want["labels"]
    assert_same(_steps(nn.DataParallel(network(layers))), want, 1e-9)
