"""pyramid_conv3x3, the first convolution of the head: against that of the concatenation, with its FLOPs."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import work
from benchmarks.cases import Case, cases
from benchmarks.shapes import BINS
from benchmarks.suite import Suite


@cases(work.pyramid_conv3x3)
def test_pyramid_conv3x3(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    x = torch.randn(case.given.batch, work.CHANNELS, *case.given.map)
    levels = [torch.randn(case.given.batch, work.INNER, b, b) for b in BINS]
    weight = torch.randn(work.INNER, 2 * work.CHANNELS, 3, 3) / 192
    suite.op(benchmark, "pyramid_conv3x3", case, [x, levels, weight])
