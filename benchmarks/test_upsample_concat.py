"""upsample_concat of the backbone's last map and its pyramid."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import work
from benchmarks.cases import Case, cases
from benchmarks.shapes import BINS
from benchmarks.suite import Suite


@cases(work.upsample_concat)
def test_upsample_concat(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    x = torch.randn(case.given.batch, work.CHANNELS, *case.given.map)
    levels = [torch.randn(case.given.batch, work.INNER, b, b) for b in BINS]
    suite.op(benchmark, "upsample_concat", case, [x, levels])
