"""What the pyramid gives over a dilated FCN with the same budget, on the built-in scenes (the paper's Table 1).

    python -m benchmarks.ablation

trains the scenes recipe for every row below with 3 seeds, one after the other (a killed call goes on where it was), and
writes docs/results/scenes_ablation.json, a plot of the IoU of every class, and a picture of what both networks see.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.records import record
from psp_fast.cli import main as psp_fast
from psp_fast.configs import config_parser, config_to_yaml, parse_config, recipe_file
from psp_fast.data import write_png
from psp_fast.data.scenes import CONTEXTUAL_PAIRS
from psp_fast.engine.plots import examples, write_figure
from psp_fast.engine.run import load_trained
from psp_fast.engine.samples import build_dataset
from psp_fast.errors import PspFastError
from psp_fast.files import write_text

ROWS = {
    "FCN baseline": ["--model.use_ppm=false"],
    "B1": ["--model.bins=[1]"],
    "B1236": ["--model.bins=[1,2,3,6]"],
}
CONTEXTUAL = {name for pair in CONTEXTUAL_PAIRS for name in pair}
_COLOURS = ("#9aa0a6", "#7fb3e6", "#1f5fa8")


def train(folder: Path, options: Sequence[str], seed: int) -> dict[str, Any]:
    """The record of one run, trained unless its folder already holds just this run."""
    wanted = [f"--out={folder}", f"--train.seed={seed}", *options]
    if (folder / "config.yaml").exists():
        config = parse_config(config_parser("ablation", "", ""), ["--config", str(recipe_file("scenes")), *wanted])
        if (folder / "config.yaml").read_text() != config_to_yaml(config):
            raise PspFastError(f"{folder} holds a run with another configuration: remove it, or choose another --runs")
        code = psp_fast(["train", "--resume", str(folder)])
    else:
        code = psp_fast(["train", "scenes", *wanted])
    if code:
        raise PspFastError(f"the run in {folder} failed: see above")
    return record(folder)


def run_all(folder: Path, seeds: int) -> dict[str, Any]:
    """Measures of every row and seed; all seeds of a row see the same scenes."""
    records = {
        name: [train(folder / f"{name.split()[0]}-{seed}", options, seed) for seed in range(seeds)]
        for name, options in ROWS.items()
    }
    environments = [run["environment"] for rows in records.values() for run in rows]
    if any(other != environments[0] for other in environments):
        raise PspFastError(f"the runs in {folder} are of different commits, versions or machines: remove them")
    runs = {
        name: [{**run["metrics"], "seconds": run["history"][-1]["seconds"]} for run in rows]
        for name, rows in records.items()
    }
    return {"environment": environments[0], "config": records["B1236"][0]["config"], "runs": runs}


def class_iou(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean IoU of each class over the seeds."""
    names = runs[0]["classes"]
    return {name: float(np.mean([run["classes"][name]["iou"] for run in runs])) for name in names}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation over the seeds, in per cent."""
    miou = [100 * run["miou"] for run in runs]
    per_class = class_iou(runs)
    contextual = [value for name, value in per_class.items() if name in CONTEXTUAL]
    plain = [value for name, value in per_class.items() if name not in CONTEXTUAL]
    return {
        "miou": float(np.mean(miou)),
        "spread": float(np.std(miou, ddof=1)) if len(miou) > 1 else 0.0,
        "pixel_accuracy": 100 * float(np.mean([run["pixel_accuracy"] for run in runs])),
        "contextual": 100 * float(np.mean(contextual)),
        "plain": 100 * float(np.mean(plain)),
        "seconds": float(np.mean([run["seconds"] for run in runs])),
    }


def plot(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Bars of each class's IoU, a row of the ablation each; contextual classes first."""
    values = {name: class_iou(rows) for name, rows in runs.items()}
    order = sorted(next(iter(values.values())), key=lambda name: name not in CONTEXTUAL)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(order))
    for i, (name, per_class) in enumerate(values.items()):
        label = f"{name}: mIoU {summary(runs[name])['miou']:.1f} %"
        heights = [100 * per_class[c] for c in order]
        axis.bar(places + 0.27 * (i - 1), heights, 0.27, label=label, color=_COLOURS[i])
    axis.axvline(len(CONTEXTUAL) - 0.5, ymax=0.9, color="#444444", linewidth=0.8, linestyle=":")
    axis.text(len(CONTEXTUAL) - 0.6, 99, "context decides", ha="right", va="top")
    axis.text(len(CONTEXTUAL) - 0.4, 99, "pixels tell", ha="left", va="top")
    axis.set_xticks(places, order, rotation=45, ha="right")
    axis.set(ylabel="IoU, %", ylim=(0, 112), title=f"scenes, mean of {len(runs['B1236'])} seeds, the same budget")
    axis.legend(frameon=False, loc="upper left", ncols=3)
    axis.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure)


def draw_examples(folder: Path, path: Path) -> None:
    """Image, truth, and what the first seed's FCN and PSPNet see."""
    device = torch.device("cpu")
    trained = {
        title: load_trained(folder / f"{name}-0" / "last.pth", device)
        for title, name in (("FCN", "FCN"), ("PSPNet", "B1236"))
    }
    config = trained["PSPNet"].config
    models = {title: t.model for title, t in trained.items()}
    write_png(path, examples(models, build_dataset(config.data, "val"), config, device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the results")
    arguments = parser.parse_args()
    results = run_all(arguments.runs, arguments.seeds)
    write_text(arguments.out / "scenes_ablation.json", json.dumps(results, indent=1) + "\n")
    plot(results["runs"], arguments.out / "scenes_ablation.png")
    draw_examples(arguments.runs, arguments.out / "scenes_examples.png")
    for name, rows in results["runs"].items():
        row = summary(rows)
        print(
            f"{name:13} mIoU {row['miou']:.2f} +- {row['spread']:.2f} %, "
            f"contextual {row['contextual']:.2f} %, plain {row['plain']:.2f} %"
        )


if __name__ == "__main__":
    main()
