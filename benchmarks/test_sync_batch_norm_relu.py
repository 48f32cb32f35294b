"""sync_batch_norm_relu with a residual, forward and backward, of one process; and of 2 and 4 processes."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.calls import Op
from benchmarks.shapes import DTYPE, Input
from benchmarks.suite import INPUT, Suite, Work
from psp_fast import ops
from psp_fast.ops import reference


def layer(op: Op) -> Op:
    """op as a function of its maps and parameters, in training; running statistics are its own."""

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        mean, var = torch.zeros_like(weight), torch.ones_like(weight)
        return op(x, weight, bias, mean, var, training=True, residual=residual)

    return call


@INPUT
@pytest.mark.parametrize("layout", ["channels_last", "nchw"])
@pytest.mark.parametrize("channels", [256, pytest.param(2048, marks=pytest.mark.full)])
def test_sync_batch_norm_relu(
    benchmark: BenchmarkFixture, suite: Suite, given: Input, layout: str, channels: int
) -> None:
    """Forward reads x and the residual and writes y, backward reads dy, x and y and writes two gradients."""
    x, residual = (torch.randn(given.batch, channels, *given.map) for _ in range(2))
    weight, bias = torch.rand(channels) + 0.5, torch.full((channels,), 4.0)  # far from 0, where ReLUs would flip
    suite.op(
        benchmark,
        "sync_batch_norm_relu",
        given,
        [x, weight, bias, residual],
        Work(8 * x.numel() * DTYPE.itemsize),
        backward=True,
        layout=layout,
        ours=layer(ops.sync_batch_norm_relu),
        plain=layer(reference.sync_batch_norm_relu),
    )
