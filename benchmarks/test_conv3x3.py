"""conv3x3 of the backbone, by Winograd's algorithm on the CPU; FLOPs are those of the direct convolution."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import work
from benchmarks.cases import Case, cases
from benchmarks.shapes import INNER_INPUTS, MAIN
from benchmarks.suite import Suite


@cases(work.conv3x3(256), inputs=INNER_INPUTS, layouts=False, half=False)
def test_of_the_third_stage(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    convolution(benchmark, suite, case, 256, 2)


@pytest.mark.full
@cases(work.conv3x3(512), inputs=[MAIN], layouts=False, half=False)
def test_of_the_last_stage(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    convolution(benchmark, suite, case, 512, 4)


def convolution(benchmark: BenchmarkFixture, suite: Suite, case: Case, channels: int, dilation: int) -> None:
    """A row for a convolution from and to so many channels."""
    x = torch.randn(case.given.batch, channels, *case.given.map)
    weight = torch.randn(channels, channels, 3, 3) / 48
    suite.op(benchmark, "conv3x3", case, [x, weight, dilation])
