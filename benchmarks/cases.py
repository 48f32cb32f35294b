"""What an op is measured on: images, directions, layouts and types, as parameters of its test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
import torch

from benchmarks.shapes import DEVICE, DTYPE, INPUTS, LOGITS_INPUTS, MAIN, Input
from benchmarks.work import Estimate, Work

MOST = Work(int(2e9), int(3.5e11))
"""On a CPU, beyond the main input: PyTorch needs several times the bytes, and on two cores two seconds."""


class Case(NamedTuple):
    """One row's input."""

    given: Input
    backward: bool
    layout: str
    """Of our op; the others run in their best one."""
    dtype: torch.dtype
    work: Work
    logits: bool
    """Whether the number of classes matters."""

    @property
    def main(self) -> bool:
        """Whether it is what everything runs on, and what torch.compile is measured on."""
        return self.given == MAIN and self.layout == "channels_last" and self.dtype == DTYPE

    def __str__(self) -> str:
        classes = f"-{self.given.classes}" if self.logits else ""
        direction = "forward+backward" if self.backward else "forward"
        return f"{self.given}{classes}-{direction}-{self.layout}-{str(self.dtype).removeprefix('torch.')}"


def cases(
    work: Estimate,
    *,
    backward: Sequence[bool] = (False, True),
    logits: bool = False,
    inputs: Sequence[Input] | None = None,
    layouts: bool = True,
    half: bool = True,
) -> pytest.MarkDecorator:
    """Parameters of a test: the main case quick, other inputs, layouts and types `full`, and none that takes too long.

    Args:
        work: of the op, for one value of this many bytes.
        backward: the directions to measure; other layouts and types in the last of them only.
        logits: whether the op sees logits, whose classes matter.
        inputs: those to measure, all by default.
        layouts: whether to measure the op with NCHW maps as well.
        half: whether to measure it in bfloat16 on the CPU as well.
    """
    inputs = inputs or (LOGITS_INPUTS if logits else INPUTS)

    def all_cases() -> Iterator[Case]:
        for direction in backward:
            settings = [(given, "channels_last", DTYPE) for given in inputs]
            if direction == backward[-1]:
                settings += [(MAIN, "nchw", DTYPE)] if layouts else []
                settings += [(MAIN, "channels_last", torch.bfloat16)] if half and DEVICE == "cpu" else []
            for given, layout, dtype in settings:
                yield Case(given, direction, layout, dtype, work(given, direction, dtype.itemsize), logits)

    kept = [case for case in all_cases() if case.given == MAIN or _is_affordable(case.work)]
    marked = [pytest.param(case, marks=[] if case.main else pytest.mark.full, id=str(case)) for case in kept]
    return pytest.mark.parametrize("case", marked)


def _is_affordable(work: Work) -> bool:
    return DEVICE == "cuda" or (work.bytes <= MOST.bytes and work.flops <= MOST.flops)
