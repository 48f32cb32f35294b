"""upsample_concat of the map and its pyramid: the map is read and all of the result written; backward reverses it."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.shapes import BINS, DTYPE, Input
from benchmarks.suite import BACKWARD, INPUT, Suite, Work


@BACKWARD
@INPUT
def test_upsample_concat(benchmark: BenchmarkFixture, suite: Suite, given: Input, backward: bool) -> None:
    x = torch.randn(given.batch, 2048, *given.map)
    levels = [torch.randn(given.batch, 512, b, b) for b in BINS]
    moved = 3 * x.numel() * DTYPE.itemsize * (2 if backward else 1)
    suite.op(benchmark, "upsample_concat", given, [x, levels], Work(moved), backward=backward)
