"""What the ops that upsample logits share: checks, types, layouts."""

from __future__ import annotations

import pytest
import torch

from psp_fast.ops.upsampling import accumulator, check_logits, dense, label_dtype, memory_format
from tests.ops.checks import LAYOUTS, random


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        ([1.0], TypeError, "an_op: logits must be a tensor, not list"),
        (torch.zeros(1, 2, 3, 3).long(), TypeError, "an_op: logits must have a float type, not torch.int64"),
        (torch.zeros(2, 3, 3), ValueError, r"with C, h and w at least 1, not \(2, 3, 3\)"),
        (torch.zeros(1, 0, 3, 3), ValueError, r"with C, h and w at least 1, not \(1, 0, 3, 3\)"),
    ],
)
def test_bad_logits(logits: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_logits("an_op", logits)  # type: ignore[arg-type]
    check_logits("an_op", torch.zeros(0, 1, 1, 1))


def test_types() -> None:
    assert (label_dtype(256), label_dtype(257)) == (torch.uint8, torch.int64)
    assert accumulator(random(1, dtype=torch.bfloat16)) == torch.float32
    assert accumulator(random(1, dtype=torch.float64)) == torch.float64


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_keeps_the_layout(layout: str) -> None:
    whole = random(2, 6, 5, 4, layout=layout)
    assert dense(whole) is whole
    part = whole[:, 1:4, 1:, 1:]
    assert memory_format(part) == LAYOUTS[layout]
    assert torch.equal(dense(part), part) and dense(part).is_contiguous(memory_format=LAYOUTS[layout])
