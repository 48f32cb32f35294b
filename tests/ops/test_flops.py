"""The flop counter sees as many operations in the ops as in their references."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from psp_fast import ops
from tests.ops.checks import random

_TARGET = torch.zeros(2, 16, 16, dtype=torch.int64)


def _frozen_1x1(x: Tensor, residual: Tensor | None = None) -> Tensor:
    mean, var = torch.zeros(16), torch.ones(16)
    return ops.conv1x1_bn_relu(x, random(16, 16, 1, 1), None, None, mean, var, training=False, residual=residual)


def _trained_1x1(x: Tensor) -> Tensor:
    return ops.conv1x1_bn_relu(x, random(8, 16, 1, 1).requires_grad_(), None, None, None, None, training=True)


def _pyramid(x: Tensor, *needs: bool) -> Tensor:
    level, weight = random(2, 4, 2, 2), random(16, 20, 3, 3)
    x, level, weight = (t.requires_grad_(need) for t, need in zip((x.detach(), level, weight), needs, strict=True))
    return ops.pyramid_conv3x3(x, [level], weight)


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "conv3x3": lambda x: ops.conv3x3(x, random(24, 16, 3, 3).requires_grad_()),
    "conv3x3, weight alone": lambda x: ops.conv3x3(x.detach(), random(24, 16, 3, 3).requires_grad_()),
    "conv3x3, dilated": lambda x: ops.conv3x3(x, random(24, 16, 3, 3), 2),
    "pyramid_conv3x3": lambda x: _pyramid(x, True, True, True),
    "pyramid_conv3x3, levels alone": lambda x: _pyramid(x, False, False, True),
    "pyramid_conv3x3, weight alone": lambda x: _pyramid(x, False, True, False),
    "conv1x1_bn_relu": _trained_1x1,
    "conv1x1_bn_relu, frozen": lambda x: _frozen_1x1(x.detach()).requires_grad_(),
    "conv1x1_bn_relu, frozen, residual": lambda x: _frozen_1x1(x.detach(), random(2, 16, 16, 16)).requires_grad_(),
    "pyramid_pool": lambda x: ops.pyramid_pool(x, (2,))[0],
    "upsample_concat": lambda x: ops.upsample_concat(x, [random(2, 4, 2, 2)]),
    "upsample_cross_entropy": lambda x: ops.upsample_cross_entropy(x, _TARGET),
    "sync_batch_norm_relu": lambda x: ops.sync_batch_norm_relu(x, None, None, None, None, training=True),
}


def flops(function: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """Of forward, and of forward and backward."""
    x = random(2, 16, 16, 16).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        y = function(x)
        forward = counter.get_total_flops()
        y.sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("case", CASES)
def test_as_many_as_the_reference(case: str) -> None:
    with ops.use("reference"):
        want = flops(CASES[case])
    assert flops(CASES[case]) == want
    assert ("conv" in case) == (want[0] > 0)


@pytest.mark.usefixtures("needs_triton")
def test_as_many_in_triton() -> None:
    with ops.use("reference"):
        want = flops(_trained_1x1)
    with ops.use("triton"):
        assert flops(_trained_1x1) == want


@pytest.mark.usefixtures("needs_triton")
def test_products_that_normalise() -> None:
    """The pointwise ops of `bottleneck` in Triton, which no public op calls."""
    dz, x = random(2, 8, 4, 4), random(2, 16, 4, 4)
    vectors = [torch.ones(16) for _ in range(4)]
    registered = torch.ops.psp_fast
    for call in (
        lambda: registered.pointwise_statistics([x], [random(8, 16)], *vectors[:2]),
        lambda: registered.pointwise_input_gradient(dz, random(8, 16)),
        lambda: registered.pointwise_normalised_gradient(dz, random(8, 16), x, *vectors),
        lambda: registered.pointwise_weight_gradient(dz, x, *vectors[:2]),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == 2 * 32 * 8 * 16


@pytest.mark.parametrize("first", ["psp_fast", "torch.utils.flop_counter"])
def test_in_either_order_of_import(first: str) -> None:
    """And psp_fast alone loads neither the counter nor triton, which the counter does."""
    program = (
        f"import sys, torch, {first}\n"
        f"assert {first!r} != 'psp_fast' or not {{'torch.utils.flop_counter', 'triton'}} & set(sys.modules)\n"
        "import psp_fast\n"
        "from torch.utils.flop_counter import flop_registry\n"
        "assert torch.ops.psp_fast.conv3x3 in flop_registry\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
