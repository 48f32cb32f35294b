"""pyramid_pool of the head's map (1 x 2048 x 60 x 60, float32), against the reference in plain PyTorch.

At least the map must be read (29.5 MB), and in the backward written once more.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from psp_fast.ops import reference
from psp_fast.ops.pyramid_pool import pyramid_pool

SHAPE = (1, 2048, 60, 60)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
IMPLEMENTATIONS = {"psp_fast": pyramid_pool, "eager": reference.pyramid_pool}
Pool = Callable[[Tensor], tuple[Tensor, ...]]


def forward_and_backward(pool: Pool, x: Tensor, dy: list[Tensor]) -> list[Tensor]:
    """The levels and the gradient of x."""
    outputs = pool(x)
    return [*outputs, *torch.autograd.grad(outputs, x, dy)]


def assert_right(pool: Pool, x: Tensor, dy: list[Tensor]) -> None:
    """Numbers within 1e-5 of the reference in float64, before any speed is reported."""
    truth = x.detach().double().requires_grad_()
    expected = forward_and_backward(reference.pyramid_pool, truth, [g.double() for g in dy])
    for got, want in zip(forward_and_backward(pool, x, dy), expected, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_pyramid_pool(benchmark: BenchmarkFixture, implementation: str, layout: str, backward: bool) -> None:
    pool = IMPLEMENTATIONS[implementation]
    x = torch.randn(SHAPE).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    dy = [torch.randn_like(y) for y in pool(x)]
    assert_right(pool, x, dy)
    benchmark.group = (
        f"pyramid_pool {'forward+backward' if backward else 'forward'} {'x'.join(map(str, SHAPE))} float32"
    )
    benchmark.extra_info.update(
        op="pyramid_pool",
        implementation=implementation,
        device="cpu",
        dtype="float32",
        layout=layout,
        shape=SHAPE,
        threads=torch.get_num_threads(),
        least_bytes=x.nbytes * (2 if backward else 1),
    )
    if backward:
        benchmark(forward_and_backward, pool, x, dy)
    else:
        with torch.no_grad():
            benchmark(pool, x)
