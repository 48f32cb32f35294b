"""upsample_cross_entropy of the logits: logits and labels are read, in backward again, and the gradient is written."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.shapes import DTYPE, Input
from benchmarks.suite import BACKWARD, INPUT, Suite, Work


@BACKWARD
@INPUT
def test_upsample_cross_entropy(benchmark: BenchmarkFixture, suite: Suite, given: Input, backward: bool) -> None:
    logits = torch.randn(given.batch, given.classes, *given.map)
    labels = torch.randint(0, given.classes, (given.batch, given.height, given.width))
    read, labelled = logits.numel() * DTYPE.itemsize, labels.nbytes
    work = Work(3 * read + 2 * labelled if backward else read + labelled)
    suite.op(benchmark, "upsample_cross_entropy", given, [logits, labels], work, backward=backward)
