"""torch.jit.trace and freeze, and torch.fx.symbolic_trace."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from psp_fast import PSPNet
from tests.tools.checks import assert_same, images, network

SIZES = ((25, 33), (33, 41), (16, 24))


def _network() -> tuple[PSPNet, list[Tensor], dict[str, Tensor]]:
    """A network in evaluation, images of several sizes, and its logits for them."""
    model = network(50).float().eval().requires_grad_(False)
    xs = [torch.randn(1, 3, *size) for size in SIZES]
    return model, xs, {str(x.shape): model(x) for x in xs}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_network_takes_other_sizes_before_and_after_saving() -> None:
    model, xs, want = _network()
    traced = torch.jit.trace(model, xs[0])
    assert_same({str(x.shape): traced(x) for x in xs}, want, 1e-4)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert_same({str(x.shape): loaded(x) for x in xs}, want, 1e-4)
    frozen = torch.jit.freeze(loaded)
    assert_same({str(x.shape): frozen(x) for x in xs}, want, 1e-4)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("layers", [18, 50])
def test_a_symbolic_trace_is_the_network(layers: int, training: bool) -> None:
    model = network(layers).train(training)
    graph = torch.fx.symbolic_trace(network(layers).train(training))
    # A weight that is read beside its module stays in the graph, and tools that change the module fail on it.
    assert not [node for node in graph.graph.nodes if node.op == "get_attr"]
    for x in (images(torch.float64), images(torch.float64)[:, :, :17]):
        assert_same({"logits": graph(x)}, {"logits": model(x)}, 1e-9)
    buffers = dict(graph.named_buffers())  # the trace of a network in evaluation has no auxiliary head
    assert_same(buffers, {name: value for name, value in model.named_buffers() if name in buffers}, 1e-9)
    assert len(buffers) > 50
