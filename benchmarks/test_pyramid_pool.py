"""pyramid_pool of the head's map: it must be read, and in backward its gradient be written."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.shapes import BINS, DTYPE, Input
from benchmarks.suite import BACKWARD, INPUT, Suite, Work


@BACKWARD
@INPUT
@pytest.mark.parametrize("layout", ["channels_last", pytest.param("nchw", marks=pytest.mark.full)])
def test_pyramid_pool(benchmark: BenchmarkFixture, suite: Suite, given: Input, backward: bool, layout: str) -> None:
    x = torch.randn(given.batch, 2048, *given.map)
    moved = x.numel() * DTYPE.itemsize * (2 if backward else 1)
    suite.op(benchmark, "pyramid_pool", given, [x, BINS], Work(moved), backward=backward, layout=layout)
