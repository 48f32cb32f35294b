"""PSPNet from images to label map, and a training step: against eager, compiled and other runtimes' networks."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.calls import LAYOUTS, Call
from benchmarks.networks import Step, other_runtimes, predict, predict_compiled
from benchmarks.shapes import DEVICE, MAIN, Input
from benchmarks.suite import Suite
from benchmarks.timing import once

TRAINED = Input(2, 241, 241, 150) if DEVICE == "cpu" else MAIN
DEPTHS = [50, pytest.param(18, marks=pytest.mark.full), pytest.param(101, marks=pytest.mark.full)]


def fastest(calls: dict[str, Call]) -> str:
    """The peer's best setting; only that is measured."""
    return min(calls, key=lambda name: once(calls[name]))


@pytest.mark.parametrize("layers", DEPTHS)
def test_predict(benchmark: BenchmarkFixture, suite: Suite, layers: int) -> None:
    calls = {"psp_fast": predict(layers, MAIN)}
    eager = {f"eager {layout}": predict(layers, MAIN, "reference", layout) for layout in LAYOUTS}
    best = fastest(eager)
    calls[best] = eager[best]
    if not suite.quick:
        torch.compiler.reset()
        calls["torch.compile"] = predict_compiled(layers, MAIN, best.split()[1])
        if DEVICE == "cpu":
            runtimes, absent = other_runtimes(layers, MAIN)
            calls |= runtimes
            print(*absent, sep="\n")
    suite.model(benchmark, f"PSPNet{layers} predict", MAIN, calls)


@pytest.mark.parametrize(
    ("layers", "recompute"),
    [
        (50, False),
        pytest.param(50, True, marks=pytest.mark.full),
        pytest.param(18, False, marks=pytest.mark.full),
        *([] if DEVICE == "cpu" else [pytest.param(101, r, marks=pytest.mark.full) for r in (False, True)]),
    ],
)
def test_training_step(benchmark: BenchmarkFixture, suite: Suite, layers: int, recompute: bool) -> None:
    calls: dict[str, Call] = {"psp_fast": Step(layers, TRAINED, "auto", "nchw", recompute)}
    eager = {f"eager {layout}": Step(layers, TRAINED, "reference", layout) for layout in LAYOUTS}
    best = fastest(dict(eager))
    layout = best.split()[1]
    calls[best] = Step(layers, TRAINED, "reference", layout)  # as many steps as ours, none of them tried out
    if not suite.quick and not recompute:
        torch.compiler.reset()
        calls["torch.compile"] = Step(layers, TRAINED, "reference", layout, compiled=True)
    name = f"PSPNet{layers} training step{', recompute' if recompute else ''}"
    suite.model(benchmark, name, TRAINED, calls, tolerance=1e-3 if DEVICE == "cpu" else 2e-2)
