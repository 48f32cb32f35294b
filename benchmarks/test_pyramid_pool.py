"""pyramid_pool of the backbone's last map to all levels."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import work
from benchmarks.cases import Case, cases
from benchmarks.shapes import BINS
from benchmarks.suite import Suite


@cases(work.pyramid_pool)
def test_pyramid_pool(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    x = torch.randn(case.given.batch, work.CHANNELS, *case.given.map)
    suite.op(benchmark, "pyramid_pool", case, [x, BINS])
