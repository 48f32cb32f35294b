"""Predictions: what PyTorch's operators move on paper, and that the committed page is what the script computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks import predictions, traffic
from benchmarks.predictions import GPUS, Needed
from benchmarks.work import Work
from psp_fast.ops import reference


def test_every_operator_reads_and_writes_once() -> None:
    def program(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.conv2d(x, weight).transpose(2, 3))  # a view moves nothing

    found = traffic.of_op(program, [(2, 8, 5, 5), (4, 8, 1, 1)], False, torch.bfloat16)
    x, weight, y = 2 * 8 * 25, 8 * 4, 2 * 4 * 25
    assert found == [("convolution", Work(2 * (x + weight + y), 2 * 8 * y)), ("relu", Work(2 * 2 * y))]


def test_backward_is_counted() -> None:
    forward, both = (
        traffic.of_op(reference.conv3x3, [(1, 4, 6, 6), (4, 4, 3, 3)], backward, torch.float32)
        for backward in (False, True)
    )
    assert [name for name, _ in both] == ["convolution", "convolution_backward"]
    assert both[:1] == forward and both[1][1].flops == 2 * forward[0][1].flops == 2 * 2 * 36 * 4 * 4 * 9


def test_the_slowest_resource_decides() -> None:
    gpu = GPUS[0]
    assert gpu.milliseconds(Needed(int(4.8e9))) == pytest.approx(1)
    assert gpu.milliseconds(Needed(int(4.8e9), int(2 * 989e9))) == pytest.approx(2)
    assert gpu.milliseconds(Needed(0, 0, int(67e9 * 3), int(4.18176e9))) == pytest.approx(3)


def test_committed_page_is_what_the_script_computes() -> None:
    """The numbers but for what another version of torch may count otherwise."""
    text = (Path(predictions.__file__).parents[1] / "docs" / "predictions.md").read_text()
    number = re.compile(r"\d+(?:\.\d+)?")
    computed = predictions.page()
    assert number.sub("", text) == number.sub("", computed), "run `python -m benchmarks.predictions`"
    pairs = [[float(value) for value in number.findall(page)] for page in (text, computed)]
    assert pairs[0] == pytest.approx(pairs[1], rel=0.05, abs=0.05)
