"""upsample_argmax of the logits to the label map."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import work
from benchmarks.cases import Case, cases
from benchmarks.suite import Suite


@cases(work.upsample_argmax, backward=[False], logits=True)
def test_upsample_argmax(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    logits = torch.randn(case.given.batch, case.given.classes, *case.given.map)
    suite.op(benchmark, "upsample_argmax", case, [logits, (case.given.height, case.given.width)])
