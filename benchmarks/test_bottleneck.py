"""bottleneck, a residual block in training, against its convolutions, batch norms and ReLUs one by one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks import work
from benchmarks.cases import Case, cases
from benchmarks.shapes import DEVICE, INNER_INPUTS, MAIN
from benchmarks.suite import Suite
from psp_fast.ops import reference
from psp_fast.ops.block import BatchNorm
from psp_fast.ops.bottleneck import bottleneck

TOLERANCE = 1e-2 if DEVICE == "cpu" else 0.2
"""Rounding flips a few ReLUs; in bfloat16 more."""


@cases(work.bottleneck(256), backward=[True], inputs=INNER_INPUTS, layouts=False, half=False)
def test_of_the_third_stage(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    block(benchmark, suite, case, 256, 2)


@pytest.mark.full
@cases(work.bottleneck(512), backward=[True], inputs=[MAIN], layouts=False, half=False)
def test_of_the_last_stage(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    block(benchmark, suite, case, 512, 4)


def block(benchmark: BenchmarkFixture, suite: Suite, case: Case, channels: int, dilation: int) -> None:
    """A row for a block of so many inner channels, whose shortcut is its input."""

    def ours(x: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], shifts: Sequence[Tensor]) -> Tensor:
        norms = [
            BatchNorm(scale, shift, torch.zeros_like(scale), torch.ones_like(scale), True, 0.1, 1e-5, None)
            for scale, shift in zip(scales, shifts, strict=True)
        ]
        return bottleneck(x, weights, norms, stride=1, dilation=dilation)

    def plain(x: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], shifts: Sequence[Tensor]) -> Tensor:
        norms = [
            (scale, shift, torch.zeros_like(scale), torch.ones_like(scale))
            for scale, shift in zip(scales, shifts, strict=True)
        ]
        y = reference.conv1x1_bn_relu(x, weights[0], *norms[0], training=True)
        y = reference.sync_batch_norm_relu(reference.conv3x3(y, weights[1], dilation), *norms[1], training=True)
        return reference.conv1x1_bn_relu(y, weights[2], *norms[2], training=True, residual=x)

    shapes = [(channels, 4 * channels, 1, 1), (channels, channels, 3, 3), (4 * channels, channels, 1, 1)]
    weights = [torch.randn(shape) / shape[1:].numel() ** 0.5 for shape in map(torch.Size, shapes)]
    scales = [torch.ones(shape[0]) for shape in shapes]
    shifts = [torch.ones(shape[0]) for shape in shapes]
    x = torch.randn(case.given.batch, 4 * channels, *case.given.map)
    suite.op(benchmark, "bottleneck", case, [x, weights, scales, shifts], ours=ours, plain=plain, tolerance=TOLERANCE)
