"""The rule of test_modules.py in code that torch.compile has traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad

from tests.models.modules import batch, make, module_by_module
from tests.ops.checks import relative_error


@pytest.mark.parametrize("layers", [18, 50])
@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_compiled_transforms_are_those_of_the_modules(layers: int, transform: str) -> None:
    block = make(layers).eval().layer1[1]
    parameters = {name: p.detach() for name, p in block.named_parameters()}
    x = torch.randn(1, 8 if layers == 18 else 32, 5, 7, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(block, parameters, (x,)).square().sum()

    def tangent(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"tangent": torch.func.jvp(loss, (parameters,), (parameters,))[1]}

    run = tangent if transform == "jvp" else torch.func.grad(loss)
    with module_by_module():
        want = run(parameters)
    torch.testing.assert_close(torch.compile(run, backend="aot_eager", fullgraph=True)(parameters), want)
    assert all(value.any() for value in want.values())


def test_compiled_code_has_ops_outside_of_transforms_alone() -> None:
    block, x, found = make(50).float().eval().layer1[1], torch.randn(1, 32, 33, 33), list[str]()

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(block, backend=aot_autograd(fw_compiler=backend), fullgraph=True)
    with torch.no_grad():
        compiled(x)
    assert any("batch_norm" in name for name in found) and any("psp_fast" in name for name in found)
    found.clear()
    torch.compile(torch.func.grad(lambda x: block(x).sum()), backend=aot_autograd(fw_compiler=backend))(x)
    assert found and not any("psp_fast" in name for name in found)


def test_forward_derivatives_of_a_network_that_is_compiled_already() -> None:
    block, x = make(50).eval().layer1[1], torch.randn(1, 32, 9, 9, dtype=torch.float64)
    compiled = torch.compile(block, backend="aot_eager")

    def tangent(run: Callable[[Tensor], Tensor]) -> Tensor:
        with forward_ad.dual_level(), torch.no_grad():
            return forward_ad.unpack_dual(run(forward_ad.make_dual(x, x))).tangent

    with torch.no_grad():
        compiled(x)
    torch.testing.assert_close(tangent(compiled), tangent(block))


@pytest.mark.parametrize(
    "name", ["relu.forward", "conv2.forward", "conv2._conv_forward", "bn1.forward", "downsample.forward"]
)
def test_a_method_replaced_after_compilation_is_called(name: str) -> None:
    block, x = make(50).eval().layer1[0], torch.randn(1, 16, 9, 9, dtype=torch.float64)
    compiled = torch.compile(block, backend="eager")
    module, method = block.get_submodule(name.split(".")[0]), name.split(".")[1]
    plain = getattr(module, method)
    with torch.no_grad():
        before = compiled(x)
        setattr(module, method, lambda *args: 1.25 * plain(*args))
        torch.testing.assert_close(compiled(x), block(x))
        assert relative_error(before, block(x)) > 1e-3


@pytest.mark.parametrize("name", ["conv1", "bn1", "relu", "downsample", "downsample.0"])
def test_a_hook_added_after_compilation_is_called_where_pytorch_guards_hooks(name: str) -> None:
    block, x = make(50).eval().layer1[0], torch.randn(1, 16, 9, 9, dtype=torch.float64)
    with torch.no_grad(), torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        compiled = torch.compile(block, backend="eager")
        before = compiled(x)
        block.get_submodule(name).register_forward_hook(lambda _, __, y: 1.25 * y)
        torch.testing.assert_close(compiled(x), block(x))
    assert relative_error(before, block(x)) > 1e-3


@pytest.mark.parametrize("name", ["layer2.0.conv1", "layer2.0.bn2", "layer3.1.relu", "ppm.features.1", "cls.0", "ppm"])
def test_a_module_compiled_by_itself_is_called(name: str) -> None:
    model, seen = make(50).eval(), []
    module = model.get_submodule(name)

    def compiled(*args: Any) -> Any:  # what module.compile() leaves there
        seen.append(name)
        return module._call_impl(*args)

    module._compiled_call_impl = compiled
    with torch.no_grad():
        model(batch()[0])
    assert name in seen
