"""The suite's gate: what computes wrong numbers has no speed; what is right has a whole row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import suite as suites
from benchmarks.cases import Case
from benchmarks.memory import STATUS
from benchmarks.result_files import identity
from benchmarks.shapes import DEVICE, MAIN, Input
from benchmarks.suite import Ceilings, Suite
from benchmarks.work import Work
from psp_fast.ops import reference

ROOT = Path(__file__).parents[2]
CASE = Case(Input(1, 17, 17, 4), True, "channels_last", torch.float32, Work(1000, 10**6), False)


class Benchmark:
    """What of pytest-benchmark's fixture a row needs."""

    def __init__(self) -> None:
        self.group = ""
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, call: Callable[[], object], **options: int) -> None:
        call()


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.setattr(suites, "measure_ceilings", lambda dtype: Ceilings(1e10, 1e11))
    monkeypatch.setattr(suites, "DEVICE", "cpu")
    return Suite(seconds=0, quick=True, say=lambda line: None)


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    return reference.conv3x3(x, weight)


class WrongGradient(torch.autograd.Function):
    """x, whose gradient is 0.1 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        return 1.001 * dy


def run(suite: Suite, ours: Callable[..., Any]) -> None:
    given = [torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3)]
    suite.op(Benchmark(), "conv3x3", CASE, given, ours=ours, plain=convolve)  # type: ignore[arg-type]


def test_right_numbers_make_a_row(suite: Suite) -> None:
    run(suite, convolve)
    (row,) = suite.rows
    assert identity(row)[:2] == ("conv3x3", None) and row["classes"] is None and row["channels"] == 3
    assert set(row["seconds"]) == {"psp_fast", row["compared_with"]} and row["compared_with"].startswith("eager ")
    low, high = row["quartiles"]
    assert low <= row["ratio"] <= high
    assert row["floor"] == 1e-5 and row["share_of_ceiling"] == pytest.approx(1e-5 / row["seconds"]["psp_fast"])


@pytest.mark.parametrize(
    "ours",
    [
        pytest.param(lambda x, weight: convolve(x, weight) * 1.0001, id="output"),
        pytest.param(lambda x, weight: convolve(WrongGradient.apply(x), weight), id="gradient"),
    ],
)
def test_wrong_numbers_make_none(suite: Suite, ours: Callable[..., Any]) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"differs from eager nchw: relative difference 1\.0e-0[34]"):
        run(suite, ours)
    assert suite.rows == []


def test_numbers_that_become_wrong_make_none(suite: Suite) -> None:
    """What was timed is looked at as well: here a training step that stops learning."""
    steps = {"psp_fast": 0, "eager": 0}

    def step(name: str, stops: int) -> Callable[[], Tensor]:
        def call() -> Tensor:
            steps[name] += 1
            return torch.tensor(1.0 / min(steps[name], stops))

        return call

    with pytest.raises(pytest.fail.Exception, match="differs"):
        suite.row(Benchmark(), dict(_WHAT), step("psp_fast", 8), {"nchw": step("eager", 10**9)})  # type: ignore[arg-type]
    assert suite.rows == []


_WHAT = {"model": "PSPNet", "input": "1x17x17", "classes": 4, "device": "cpu", "dtype": "float32"}


def test_a_broken_kernel_reports_no_speed(tmp_path: Path) -> None:
    """The real suite with a kernel that is wrong in 0.2 % of the pixels; the op beside it has its row."""
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.benchmarks.broken_kernel"]
    command += ["benchmarks/test_upsample_argmax.py", "benchmarks/test_pyramid_pool.py", "-k", "forward-"]
    command += ["--benchmark-only", "--quick", "--results", str(results)]
    # As if started alone: side by side with others, pytest-benchmark measures nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert f"upsample_argmax, forward, {MAIN}, 150 classes: wrong numbers, no speed" in done.stdout
    assert [row["op"] for row in json.loads(results.read_text())["rows"]] == ["pyramid_pool"]


_PREDICTION = """
import torch
from benchmarks import network_memory
from benchmarks.shapes import Input

torch.set_num_threads(2)
network_memory.MAIN = Input(1, 217, 217, 150)
print(network_memory.of_prediction(18, "reference", "nchw"))
"""


@pytest.mark.skipif(not STATUS.exists() or DEVICE == "cuda", reason="needs Linux, and the network on the CPU")
def test_memory_of_a_prediction() -> None:
    """At least the input of the head, at most some times all maps of its size."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", _PREDICTION]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert 4 * 1024 * 28 * 28 <= int(done.stdout) < 60 * 4 * 1024 * 28 * 28
