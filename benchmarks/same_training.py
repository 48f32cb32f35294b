"""Whether training with the kernels is training with plain PyTorch: loss curves and final mIoU on the built-in scenes.

    python -m benchmarks.same_training

trains the scenes recipe with the kernels, with their references (PSP_FAST_OPS=reference), and once with the
references in the other memory format, NCHW: rounding alone makes losses drift apart, and the last run shows how far.
A killed call goes on where it was. Writes docs/results/same_training.json and a plot of the curves.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.trainings import same_environment, train
from psp_fast.engine.plots import write_figure
from psp_fast.files import write_text

FIRST = 50
"""Steps in which the curves are compared."""
KERNELS, REFERENCE, ROUNDING = "kernels", "reference", "reference, NCHW"
LOGGED = ["--train.log_every=1"]


def losses(run: dict[str, Any]) -> np.ndarray:
    """The main loss of every step."""
    return np.array([entry["main_loss"] for entry in run["history"] if "main_loss" in entry])


def run_all(folder: Path, seeds: int) -> dict[str, list[dict[str, Any]]]:
    """The runs of every seed with kernels and references; of the first seed with the other rounding."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, setting in ((KERNELS, "auto"), (REFERENCE, "reference")):
        variables = {"PSP_FAST_OPS": setting}
        runs[name] = [train(folder / f"{name}-{seed}", LOGGED, seed, variables) for seed in range(seeds)]
    nchw = [*LOGGED, "--train.channels_last=false"]
    runs[ROUNDING] = [train(folder / "rounding-0", nchw, 0, {"PSP_FAST_OPS": "reference"})]
    same_environment([run for rows in runs.values() for run in rows], folder)
    return runs


def compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The largest difference of two losses of one step so far, and the final mIoU of every run in per cent."""
    first = {name: losses(rows[0])[:FIRST] for name, rows in runs.items()}
    drift = {
        name: np.maximum.accumulate(np.abs(first[name] - first[REFERENCE]) / first[REFERENCE]).tolist()
        for name in (KERNELS, ROUNDING)
    }
    miou = {name: [100 * run["metrics"]["miou"] for run in runs[name]] for name in (KERNELS, REFERENCE)}
    return {"drift": drift, "miou": miou}


def plot(runs: dict[str, list[dict[str, Any]]], found: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 4), layout="constrained")
    curves, drifts = figure.subplots(1, 2)
    for name, colour, width in ((REFERENCE, "#9aa0a6", 4.0), (KERNELS, "#1f5fa8", 1.2)):
        values = losses(runs[name][0])
        curves.plot(np.arange(1, len(values) + 1), values, label=name, color=colour, linewidth=width)
    curves.set(xlabel="step", ylabel="main loss", title="the same seed")
    for name, colour in ((KERNELS, "#1f5fa8"), (ROUNDING, "#d98032")):
        steps = np.arange(1, FIRST + 1)
        drifts.semilogy(steps, np.maximum(found["drift"][name], 1e-9), label=f"{name} against reference", color=colour)
    drifts.set(xlabel="step", ylabel="largest relative difference so far", title="how far rounding drives losses apart")
    for axis in (curves, drifts):
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/same_training"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the results")
    arguments = parser.parse_args()
    runs = run_all(arguments.runs, arguments.seeds)
    found = compare(runs)
    content = {"environment": runs[KERNELS][0]["environment"], "config": runs[KERNELS][0]["config"], **found}
    write_text(arguments.out / "same_training.json", json.dumps(content, indent=1) + "\n")
    plot(runs, found, arguments.out / "same_training.png")
    ours, rounding = (found["drift"][name][-1] for name in (KERNELS, ROUNDING))
    print(f"loss, first {FIRST} steps: at most {ours:.1e} from the reference; rounding alone {rounding:.1e}")
    for name, values in found["miou"].items():
        print(f"{name:9} mIoU {' '.join(f'{v:.2f}' for v in values)} %")
    spread = np.std(found["miou"][REFERENCE], ddof=1) if arguments.seeds > 1 else np.inf
    same = abs(np.mean(found["miou"][KERNELS]) - np.mean(found["miou"][REFERENCE])) <= 2 * spread
    return 0 if ours <= 10 * rounding and same else 1


if __name__ == "__main__":
    sys.exit(main())
