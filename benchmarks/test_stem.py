"""stem, three convolutions and pooling in training, against the same one by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks import work
from benchmarks.cases import Case, cases
from benchmarks.shapes import DEVICE, INNER_INPUTS
from benchmarks.suite import Suite
from psp_fast.ops import reference
from psp_fast.ops.block import BatchNorm
from psp_fast.ops.stem import stem

STRIDES = (2, 1, 1)
TOLERANCE = 1e-2 if DEVICE == "cpu" else 0.5
"""Rounding flips a few ReLUs, and gives a few of the pooling's windows another maximum; in bfloat16 many."""


@cases(work.stem, backward=[True], inputs=INNER_INPUTS, layouts=False, half=False)
def test_stem(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    """The images need no gradient."""
    images = torch.randn(case.given.batch, 3, case.given.height, case.given.width, device=DEVICE, dtype=case.dtype)

    def ours(weights: Sequence[Tensor], scales: Sequence[Tensor], shifts: Sequence[Tensor]) -> Tensor:
        norms = [
            BatchNorm(scale, shift, torch.zeros_like(scale), torch.ones_like(scale), True, 0.1, 1e-5, None)
            for scale, shift in zip(scales, shifts, strict=True)
        ]
        return stem(images, weights, norms, STRIDES)

    def plain(weights: Sequence[Tensor], scales: Sequence[Tensor], shifts: Sequence[Tensor]) -> Tensor:
        y = images
        for weight, scale, shift, stride in zip(weights, scales, shifts, STRIDES, strict=True):
            z = F.conv2d(y, weight, stride=stride, padding=1)
            running = torch.zeros_like(scale), torch.ones_like(scale)
            y = reference.sync_batch_norm_relu(z, scale, shift, *running, training=True)
        return F.max_pool2d(y, 3, 2, 1)

    widths = (3, 64, 64, 128)
    weights = [torch.randn(o, i, 3, 3) / (9 * i) ** 0.5 for i, o in itertools.pairwise(widths)]
    scales, shifts = [torch.ones(o) for o in widths[1:]], [torch.ones(o) for o in widths[1:]]
    given = [weights, scales, shifts]
    suite.op(benchmark, "stem", case, given, ours=ours, plain=plain, channels=3, tolerance=TOLERANCE)
