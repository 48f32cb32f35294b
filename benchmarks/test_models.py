"""PSPNet from images to label map, and a training step: against eager, compiled and other runtimes' networks."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.calls import LAYOUTS, Call
from benchmarks.memory import STATUS
from benchmarks.network_memory import peaks
from benchmarks.networks import Step, missing_runtimes, other_runtimes, predict, predict_compiled
from benchmarks.shapes import DEVICE, MAIN, TRAINED
from benchmarks.suite import Suite

OTHER_DEPTHS = [pytest.param(layers, marks=pytest.mark.full) for layers in (18, 101)]


@pytest.mark.parametrize("layers", [50, *OTHER_DEPTHS])
def test_predict(benchmark: BenchmarkFixture, suite: Suite, layers: int) -> None:
    """On a CPU torch.compile at the first two depths only, for its time."""

    def others(layout: str) -> dict[str, Call]:
        if suite.quick:
            return {}
        calls: dict[str, Call] = {}
        if DEVICE == "cpu":
            for line in missing_runtimes():
                suite.say(line)
            calls |= other_runtimes(layers, MAIN)
        if layers != 101 or DEVICE == "cuda":
            suite.say(f"PSPNet{layers} predict: torch.compile is compiling")
            calls["torch.compile"] = predict_compiled(layers, MAIN, layout)
        return calls

    eager = {layout: predict(layers, MAIN, "reference", layout) for layout in LAYOUTS}
    weighed = peaks("predict", layers) if weighs(suite, layers) else None
    suite.model(benchmark, f"PSPNet{layers} predict", MAIN, predict(layers, MAIN), eager, others, peaks=weighed)


@pytest.mark.full
@pytest.mark.skipif(DEVICE == "cuda", reason="bfloat16 is the type of every row on a GPU")
def test_predict_in_bfloat16(benchmark: BenchmarkFixture, suite: Suite) -> None:
    """Labels that rounding decides differ: at most 2 % of the pixels may."""
    half = torch.bfloat16
    eager = {layout: predict(50, MAIN, "reference", layout, dtype=half) for layout in LAYOUTS}
    ours = predict(50, MAIN, dtype=half)
    suite.model(benchmark, "PSPNet50 predict", MAIN, ours, eager, lambda layout: {}, dtype=half, wrong=0.02)


OTHER_STEPS = [(18, False)] if DEVICE == "cpu" else [(18, False), (50, True), (101, False), (101, True)]
STEPS = [(50, False), *(pytest.param(*step, marks=pytest.mark.full) for step in OTHER_STEPS)]


@pytest.mark.parametrize(("layers", "recompute"), STEPS)
def test_training_step(benchmark: BenchmarkFixture, suite: Suite, layers: int, recompute: bool) -> None:
    """torch.compile, which takes a minute to compile a step on a CPU, at one depth only.

    Recomputing on a CPU is measured by benchmarks.cpu_table.
    """

    def others(layout: str) -> dict[str, Call]:
        if suite.quick or recompute or layers != 50:
            return {}
        suite.say(f"PSPNet{layers} training step: torch.compile is compiling")
        return {"torch.compile": Step(layers, TRAINED, "reference", layout, compiled=True)}

    eager: dict[str, Call] = {layout: Step(layers, TRAINED, "reference", layout) for layout in LAYOUTS}
    ours = Step(layers, TRAINED, "auto", "nchw", recompute)
    name = f"PSPNet{layers} training step{', recompute' if recompute else ''}"
    tolerance = 1e-3 if DEVICE == "cpu" else 2e-2
    weighed = peaks("step", layers) if weighs(suite, layers) else None
    suite.model(benchmark, name, TRAINED, ours, eager, others, peaks=weighed, tolerance=tolerance)


def weighs(suite: Suite, layers: int) -> bool:
    """Whether memory is measured in processes of its own: at one depth, for their time; else by a look at a run."""
    return DEVICE == "cpu" and layers == 50 and not suite.quick and STATUS.exists()
