"""conv1x1_bn_relu of a bottleneck's last convolution: folded for inference, with batch statistics in training."""

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


def layer(op: Op, training: bool) -> Op:
    """op as a function of its maps and weights; running statistics are its own."""

    def call(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        mean, var = torch.zeros_like(scale), torch.ones_like(scale)
        return op(x, weight, scale, shift, mean, var, training=training)

    return call


@INPUT
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_conv1x1_bn_relu(benchmark: BenchmarkFixture, suite: Suite, given: Input, training: bool) -> None:
    x, weight = torch.randn(given.batch, 512, *given.map), torch.randn(2048, 512, 1, 1) / 23
    outputs = given.batch * 2048 * given.map[0] * given.map[1]
    passes = 3 if training else 1
    work = Work(passes * (x.numel() + outputs) * DTYPE.itemsize, passes * 2 * 512 * outputs)
    suite.op(
        benchmark,
        "conv1x1_bn_relu",
        given,
        [x, weight, torch.ones(2048), torch.full((2048,), 4.0)],  # far from 0, where rounding would flip ReLUs
        work,
        backward=training,
        ours=layer(ops.conv1x1_bn_relu, training),
        plain=layer(reference.conv1x1_bn_relu, training),
    )
