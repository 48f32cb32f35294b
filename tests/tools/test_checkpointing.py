"""Activations computed again in backward, and submodules that are compiled by themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from tests.tools.checks import assert_same, both_ways, network, predict, train


class Checkpointed(nn.Module):
    def __init__(self, content: nn.Module, **options: Any) -> None:
        super().__init__()
        self.content, self.options = content, options

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.content, x, **self.options)


def _save_convolutions(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    convolution = op is torch.ops.aten.convolution.default
    return CheckpointPolicy.MUST_SAVE if convolution else CheckpointPolicy.PREFER_RECOMPUTE


KINDS: dict[str, dict[str, Any]] = {
    "reentrant": {"use_reentrant": True},
    "without_reentry": {"use_reentrant": False},
    "whole": {"use_reentrant": False, "early_stop": False},
    "selective": {
        "use_reentrant": False,
        "context_fn": partial(create_selective_checkpoint_contexts, _save_convolutions),
    },
}
NAMES = {
    "stages": ("layer1", "layer2", "layer3", "layer4"),
    "blocks": ("layer3.0", "layer3.1"),
    "heads": ("ppm", "cls"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layers", "which"), [(18, "stages"), (50, "blocks"), (50, "heads")])
def test_a_step_with_checkpoints_is_the_step(layers: int, kind: str, which: str) -> None:
    def run() -> dict[str, Tensor]:
        model = network(layers)
        for name in NAMES[which]:
            model.set_submodule(name, Checkpointed(model.get_submodule(name), **KINDS[kind]))
        found = train(model)
        # Computing again updates statistics again; where it stops early, how many of them is PyTorch's matter and ours.
        # A selective checkpoint's policy names PyTorch's ops, and the modules run.
        return {name: value for name, value in found.items() if kind != "without_reentry" or "running" not in name}

    got, want = both_ways(run)
    assert_same(got, want, 1e-7)
    assert_same({"main": got["main"]}, {"main": train(network(layers))["main"]}, 1e-7)


@pytest.mark.parametrize("name", ["layer4.1", "cls"])
def test_a_compiled_submodule_runs(name: str) -> None:
    runs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return lambda *args: (runs.append(name), graph(*args))[1]

    model, plain = network(18), network(18)
    model.get_submodule(name).compile(backend=backend)
    assert_same(predict(model), predict(plain), 1e-9)
    assert runs
