"""conv1x1_bn_relu of a bottleneck's last convolution: folded for inference, with batch statistics in training."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks import work
from benchmarks.calls import Op
from benchmarks.cases import Case, cases
from benchmarks.suite import Suite
from psp_fast import ops
from psp_fast.ops import reference


def layer(op: Op, training: bool) -> Op:
    """op as a function of its maps and weights; running statistics are its own."""

    def call(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        mean, var = torch.zeros_like(scale), torch.ones_like(scale)
        return op(x, weight, scale, shift, mean, var, training=training)

    return call


@cases(work.conv1x1_bn_relu, half=False)
def test_conv1x1_bn_relu(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    """Forward in inference; with backward in training."""
    outputs, inputs = work.CHANNELS, work.INNER
    x, weight = torch.randn(case.given.batch, inputs, *case.given.map), torch.randn(outputs, inputs, 1, 1) / 23
    suite.op(
        benchmark,
        "conv1x1_bn_relu",
        case,
        [x, weight, torch.ones(outputs), torch.full((outputs,), 4.0)],  # far from 0, where rounding would flip ReLUs
        ours=layer(ops.conv1x1_bn_relu, case.backward),
        plain=layer(reference.conv1x1_bn_relu, case.backward),
    )
