"""conv3x3 of the backbone, by Winograd's algorithm on the CPU; FLOPs are those of the direct convolution."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.shapes import DTYPE, Input
from benchmarks.suite import BACKWARD, INPUT, Suite, Work
from psp_fast.ops.conv3x3 import conv3x3


@BACKWARD
@INPUT
@pytest.mark.parametrize(("channels", "dilation"), [(256, 2), pytest.param(512, 4, marks=pytest.mark.full)])
def test_conv3x3(
    benchmark: BenchmarkFixture, suite: Suite, given: Input, channels: int, dilation: int, backward: bool
) -> None:
    x, weight = torch.randn(given.batch, channels, *given.map), torch.randn(channels, channels, 3, 3) / 48
    pixels, passes = given.batch * given.map[0] * given.map[1], 3 if backward else 1
    work = Work(passes * 2 * x.numel() * DTYPE.itemsize, passes * 2 * pixels * weight.numel())
    suite.op(benchmark, "conv3x3", given, [x, weight, dilation], work, backward=backward, ours=conv3x3)
