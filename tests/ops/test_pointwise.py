"""1x1 convolutions with statistics: values, gradients, groups, and how the ops behave inside PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from psp_fast.kernels import conv1x1_bn_relu as kernels
from psp_fast.ops import backend, reference
from psp_fast.ops.conv1x1_bn_relu import conv1x1_bn_relu, conv1x1_bn_relu_levels
from psp_fast.ops.pointwise import convolve_with_statistics
from psp_fast.ops.sync_batch_norm_relu import batch_norm_relu_of_statistics
from tests.ops import checks
from tests.ops.checks import LAYOUTS, assert_matches, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # CPU tensors run in Triton's interpreter

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads", "triton")


@pytest.fixture
def triton(needs_triton: None) -> Iterator[None]:
    with backend.use("triton"):
        yield


def random(*shape: int, **kind: Any) -> Tensor:
    return checks.random(*shape, **kind).to(DEVICE)


def operands(
    n: int = 2, c: int = 13, o: int = 9, height: int = 3, width: int = 5, **kind: Any
) -> tuple[Tensor, Tensor]:
    dtype = kind.get("dtype", torch.float32)
    return random(n, c, height, width, **kind), random(o, c, 1, 1, dtype=dtype, seed=1)


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    ((z, _),) = convolve_with_statistics([x], [weight])
    return z


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_matches_conv2d(dtype: torch.dtype, layout: str) -> None:
    x, weight = operands(dtype=dtype, layout=layout)
    assert_matches(convolve, F.conv2d, x, weight)
    z = convolve(x, weight)
    assert z.is_contiguous(memory_format=LAYOUTS[layout])


def test_five_levels_are_two_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []
    launch = kernels.matmul_statistics
    monkeypatch.setattr(
        kernels, "matmul_statistics", lambda xs, *rest: (launched.append(len(xs)), launch(xs, *rest))[1]
    )
    xs = [random(2, 13, b, b, layout="channels_last").requires_grad_() for b in (1, 2, 3, 4, 1)]
    weights = [random(9, 13, 1, 1, seed=k).requires_grad_() for k in range(5)]
    results = convolve_with_statistics(xs, weights)
    assert launched == [4, 1]
    want = [F.conv2d(x, weight) for x, weight in zip(xs, weights, strict=True)]
    for (z, stats), exact in zip(results, want, strict=True):
        mean = exact.mean((0, 2, 3))
        deviations = (exact - mean.view(1, -1, 1, 1)).square().sum((0, 2, 3))
        assert relative_error(z, exact) <= 1e-5
        assert relative_error(stats, torch.stack([mean, deviations])) <= 1e-5
        assert not stats.requires_grad
    got = torch.autograd.grad(sum(z.square().sum() for z, _ in results), [*xs, *weights])
    exact = torch.autograd.grad(sum(z.square().sum() for z in want), [*xs, *weights])
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(got, exact, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm_of_the_statistics(layout: str) -> None:
    x, weight = operands(layout=layout)
    scale, shift = random(9, seed=2), random(9, seed=3)
    running = [[torch.zeros(9, device=DEVICE), torch.ones(9, device=DEVICE)] for _ in range(2)]

    def ours(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ((z, stats),) = convolve_with_statistics([x], [weight])
        options = {"momentum": 0.1, "eps": 1e-5, "residual": None, "relu": True, "process_group": None}
        return batch_norm_relu_of_statistics(z, stats, scale, shift, *running[0], **options)

    def plain(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        mean, var = (statistic.to(x.dtype) for statistic in running[1])
        y = reference.conv1x1_bn_relu(x, weight, scale, shift, mean, var, training=True)
        running[1] = [mean, var]
        return y

    assert_matches(ours, plain, x, weight, scale, shift)
    torch.testing.assert_close(running[0], [statistic.float() for statistic in running[1]])


def one_by_one(xs: list[Tensor], layers: list[dict[str, Any]]) -> list[Tensor]:
    return [conv1x1_bn_relu(x, **layer) for x, layer in zip(xs, layers, strict=True)]


@pytest.mark.parametrize("training", [True, False])
def test_levels_are_as_one_by_one(training: bool) -> None:
    xs = [random(2, 13, b, b, layout="channels_last") for b in (1, 2, 3)]
    found = []
    for run in (conv1x1_bn_relu_levels, one_by_one):
        layers = []
        for seed in range(3):
            var, scale, shift, mean = (random(9, seed=10 * seed + k) for k in range(4))
            layer = {"weight": random(9, 13, 1, 1, seed=seed), "bn_weight": scale, "bn_bias": shift}
            layer |= {"running_mean": mean, "running_var": var.square() + 1, "training": training}
            layers.append({**layer, "momentum": 0.1, "eps": 1e-5, "process_group": None})
        found.append([*run(xs, layers), *(y["running_mean"] for y in layers), *(y["running_var"] for y in layers)])
    torch.testing.assert_close(*found)


def test_autocast() -> None:
    x, weight = operands()
    with torch.autocast(DEVICE, dtype=torch.float16):
        z = convolve(x, weight.requires_grad_())
        assert z.dtype == torch.float16
        (dweight,) = torch.autograd.grad(z.float().sum(), weight)
    assert dweight.dtype == torch.float32


def test_empty_batch() -> None:
    x, weight = operands(n=0)
    z = convolve(x.requires_grad_(), weight.requires_grad_())
    dx, dweight = torch.autograd.grad(z.sum(), (x, weight))
    assert z.shape == (0, 9, 3, 5) and dx.shape == x.shape and not dweight.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str) -> None:
    x, weight = operands(layout=layout)
    matrix = weight.flatten(1)
    small = random(2, 13, 1, 1)
    torch.library.opcheck(torch.ops.psp_fast.pointwise_statistics, ([x], [matrix]))
    torch.library.opcheck(torch.ops.psp_fast.pointwise_statistics, ([x, small], [matrix, matrix]))
    factors = [random(13, seed=seed) for seed in range(2, 6)]  # scale, shift, mean, invstd
    torch.library.opcheck(torch.ops.psp_fast.pointwise_statistics, ([x], [matrix], *factors[:2]))
    dz = convolve(x, weight)
    torch.library.opcheck(torch.ops.psp_fast.pointwise_input_gradient, (dz, matrix))
    torch.library.opcheck(torch.ops.psp_fast.pointwise_weight_gradient, (dz, x))
    torch.library.opcheck(torch.ops.psp_fast.pointwise_weight_gradient, (dz, x, *factors[:2]))
    torch.library.opcheck(torch.ops.psp_fast.pointwise_normalised_gradient, (dz, matrix, x, *factors))


def test_compile() -> None:
    def loss(x: Tensor, weight: Tensor) -> Tensor:
        ((z, stats),) = convolve_with_statistics([x], [weight])
        return z.square().sum() + stats.sum()

    tensors = [t.requires_grad_() for t in operands(layout="channels_last")]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(*tensors), tensors) for f in (compiled, loss))
    torch.testing.assert_close(got, want)


def test_double_backward_is_refused() -> None:
    x, weight = operands()
    (dx,) = torch.autograd.grad(convolve(x.requires_grad_(), weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        dx.sum().backward()
