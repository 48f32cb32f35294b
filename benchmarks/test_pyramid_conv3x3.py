"""pyramid_conv3x3, the first of the head: against the convolution of the concatenation, with its FLOPs."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.shapes import BINS, DTYPE, MAIN, Input
from benchmarks.suite import BACKWARD, INPUT, Suite, Work


@BACKWARD
@INPUT
def test_pyramid_conv3x3(benchmark: BenchmarkFixture, suite: Suite, given: Input, backward: bool) -> None:
    if backward and given != MAIN and not torch.cuda.is_available():
        pytest.skip("a minute on a CPU, where one input is enough")
    x = torch.randn(given.batch, 2048, *given.map)
    levels = [torch.randn(given.batch, 512, b, b) for b in BINS]
    weight = torch.randn(512, 4096, 3, 3) / 192
    passes = 3 if backward else 1
    pixels = given.batch * given.map[0] * given.map[1]
    work = Work(passes * (x.numel() + weight.numel()) * DTYPE.itemsize, passes * 2 * pixels * weight.numel())
    suite.op(benchmark, "pyramid_conv3x3", given, [x, levels, weight], work, backward=backward)
