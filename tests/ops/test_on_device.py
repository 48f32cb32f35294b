"""How every op behaves on a device: in a CUDA graph, without waiting, on any stream, on another than the current one.

One table has the ops with their tensors. Its values are checked on the CPU, in every implementation that runs there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from psp_fast import ops
from tests.ops.checks import random, relative_error

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

CLASSES, IGNORED = 19, 255
RUNNING = ("running_mean", "running_var")
CONSTANT = ("target", "class_weight", *RUNNING)
"""What has no gradient in any op."""
Tensors = dict[str, Tensor]


class Case(NamedTuple):
    """An op as a function of named tensors, with their shapes."""

    call: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    gradients: bool = True
    """Whether to ask for those of all tensors but the constant ones."""

    def tensors(self, seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensors:
        """Fresh ones; the same values for a seed, whatever the device and type."""
        made = {}
        for i, (name, shape) in enumerate(self.shapes.items()):
            values = random(*shape, seed=10 * seed + i) / prod(shape[1:] if name == "weight" else ()) ** 0.5
            if name == "target":
                values = (values.abs() * 10).byte() % CLASSES
                values[:, 2:4] = IGNORED
            elif name in ("class_weight", "running_var"):
                values = values.square() + 0.1
            values = values.to(device, dtype if values.is_floating_point() else values.dtype)
            made[name] = values.requires_grad_(self.gradients and name not in CONSTANT)
        return made

    def run(self, tensors: Tensors) -> list[Tensor]:
        """Outputs, gradients where there are any, and running statistics; the host copies and reads nothing."""
        result = self.call(**tensors)
        outputs = [result] if isinstance(result, Tensor) else list(result)
        leaves = [tensor for tensor in tensors.values() if tensor.requires_grad]
        gradients = torch.autograd.grad(outputs, leaves, [y.detach().cos() for y in outputs]) if leaves else ()
        return [*(y.detach() for y in outputs), *gradients, *(tensors[name] for name in RUNNING if name in tensors)]


def conv1x1(training: bool) -> Callable[..., Tensor]:
    return lambda x, weight, scale, shift, residual, running_mean, running_var: ops.conv1x1_bn_relu(
        x, weight, scale, shift, running_mean, running_var, training=training, residual=residual
    )


def batch_norm(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor, **running: Tensor) -> Tensor:
    return ops.sync_batch_norm_relu(x, scale, shift, training=True, momentum=0.3, residual=residual, **running)


def cross_entropy(logits: Tensor, target: Tensor, class_weight: Tensor) -> Tensor:
    return ops.upsample_cross_entropy(
        logits, target, weight=class_weight, ignore_index=IGNORED, label_smoothing=0.1, reduction="mean"
    )


def vectors(channels: int, *names: str) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys((*names, *RUNNING), (channels,))


MAP = (2, 20, 9, 13)
SMALL = (1, 5, 5, 7)
"""For the pools, which Triton's interpreter takes its time for."""
CONV1X1 = {"x": MAP, "weight": (18, 20, 1, 1), "residual": (2, 18, 9, 13), **vectors(18, "scale", "shift")}
LEVELS = {"level1": (2, 5, 1, 1), "level2": (2, 3, 2, 2), "level3": (2, 5, 3, 3)}
LOGITS = (2, CLASSES, 5, 7)
CASES = {
    "pyramid_pool": Case(lambda x: ops.pyramid_pool(x, (1, 2, 3)), {"x": SMALL}),
    "pyramid_pool_max": Case(lambda x: ops.pyramid_pool(x, (1, 2, 3), "max"), {"x": SMALL}),
    "conv1x1_bn_relu": Case(conv1x1(True), CONV1X1),
    "conv1x1_bn_relu_frozen": Case(conv1x1(False), CONV1X1),
    "conv1x1_bn_relu_inference": Case(conv1x1(False), CONV1X1, gradients=False),
    "sync_batch_norm_relu": Case(batch_norm, {"x": MAP, "residual": MAP, **vectors(20, "scale", "shift")}),
    "upsample_concat": Case(lambda x, **levels: ops.upsample_concat(x, [*levels.values()]), {"x": MAP, **LEVELS}),
    "pyramid_conv3x3": Case(
        lambda x, weight, **levels: ops.pyramid_conv3x3(x, [*levels.values()], weight),
        {"x": MAP, "weight": (18, 33, 3, 3), **LEVELS},
    ),
    "upsample_cross_entropy": Case(
        cross_entropy, {"logits": LOGITS, "target": (2, 33, 49), "class_weight": (CLASSES,)}
    ),
    "upsample_argmax": Case(lambda logits: ops.upsample_argmax(logits, (33, 49)), {"logits": LOGITS}, gradients=False),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def refill(tensors: Tensors, values: Tensors) -> None:
    """Give the tensors these values, in the memory that they have."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    """On whatever devices they are; cuDNN's convolutions may sum in another order."""
    torch.testing.assert_close([t.cpu() for t in got], [t.cpu() for t in want], rtol=1e-5, atol=1e-5)


@pytest.fixture(params=["auto", "triton"])
def setting(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test on the best kernels, and on Triton's where C++ ones are better."""
    with ops.use(request.param):
        yield


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Raise where the host would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_every_op_is_in_the_table() -> None:
    used = {name for case in CASES for name in ops.backend.OPS if case.startswith(name)}
    assert used == {*ops.backend.OPS} - {"conv3x3"}  # which has kernels for the CPU alone


@every_case
def test_matches_reference_before_and_after_a_change_of_values(implementation: str, case: Case) -> None:
    tensors = case.tensors(0)
    for seed in (0, 1):
        refill(tensors, case.tensors(seed))
        got, before = case.run(tensors), case.tensors(seed)
        with ops.use("reference"):
            want = case.run(case.tensors(seed, dtype=torch.float64))
        for ours, exact in zip(got, want, strict=True):
            assert ours.shape == exact.shape and relative_error(ours, exact) <= 1e-5
        unchanged = case in (CASES["conv1x1_bn_relu_frozen"], CASES["conv1x1_bn_relu_inference"])
        assert all(torch.equal(tensors[name], before[name]) == unchanged for name in RUNNING if name in tensors)


@pytest.mark.gpu
@needs_gpu
@every_case
def test_gpu_graph_replays_on_new_values(setting: None, case: Case) -> None:
    tensors, stream = case.tensors(0, "cuda"), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, and makes the tables that no capture may copy from the host
            case.run(tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = case.run(tensors)
    for seed in (1, 2):
        refill(tensors, case.tensors(seed))
        graph.replay()
        assert_same(results, case.run(case.tensors(seed, "cuda")))
    graph.replay()  # with the running statistics that the last one left
    again = case.tensors(2, "cuda")
    case.run(again)
    assert_same(results, case.run(again))


@pytest.mark.gpu
@needs_gpu
@every_case
def test_gpu_never_waits(setting: None, case: Case) -> None:
    tensors, values = (case.tensors(seed, "cuda") for seed in (0, 1))
    case.run(tensors)  # compiles, and copies tables to the device
    torch.cuda.synchronize()
    with waiting_is_an_error():
        case.run(tensors)
        refill(tensors, values)
        results = case.run(tensors)
    assert_same(results, case.run(case.tensors(1, "cuda")))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["conv1x1_bn_relu", "conv1x1_bn_relu_inference", "upsample_argmax"])
def test_gpu_is_deterministic(name: str) -> None:
    """The other ops have such tests of their own; a frozen layer's convolution is cuDNN's."""
    first, second = (CASES[name].run(CASES[name].tensors(0, "cuda")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
@needs_gpu
@every_case
def test_gpu_uses_the_current_stream(setting: None, case: Case) -> None:
    values, tensors, stream = case.tensors(0, "cuda"), case.tensors(1, "cuda"), torch.cuda.Stream()
    want = case.run(case.tensors(0, "cuda"))  # compiles too
    case.run(tensors)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # cycles: what runs on another stream reads the values before
        refill(tensors, values)
        results = case.run(tensors)
    torch.cuda.synchronize()
    assert_same(results, want)


@pytest.mark.gpu
@needs_two_gpus
@every_case
def test_gpu_may_be_another_than_the_current_one(setting: None, case: Case) -> None:
    with torch.cuda.device(0):
        want = case.run(case.tensors(0, "cuda:0"))
        got = case.run(case.tensors(0, "cuda:1"))
        assert torch.cuda.current_device() == 0
    assert all(tensor.device == torch.device("cuda:1") for tensor in got)
    assert_same(got, want)
