"""upsample_cross_entropy of the logits against full-resolution labels."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import work
from benchmarks.cases import Case, cases
from benchmarks.suite import Suite


@cases(work.upsample_cross_entropy, logits=True)
def test_upsample_cross_entropy(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    given = case.given
    logits = torch.randn(given.batch, given.classes, *given.map)
    labels = torch.randint(0, given.classes, (given.batch, given.height, given.width))
    suite.op(benchmark, "upsample_cross_entropy", case, [logits, labels])
