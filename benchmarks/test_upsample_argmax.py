"""upsample_argmax of the logits to the label map: logits are read, a byte a pixel is written."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.shapes import DTYPE, Input
from benchmarks.suite import INPUT, Suite, Work


@INPUT
def test_upsample_argmax(benchmark: BenchmarkFixture, suite: Suite, given: Input) -> None:
    logits = torch.randn(given.batch, given.classes, *given.map)
    size = (given.height, given.width)
    work = Work(logits.numel() * DTYPE.itemsize + given.batch * given.height * given.width)
    suite.op(benchmark, "upsample_argmax", given, [logits, size], work, backward=False)
