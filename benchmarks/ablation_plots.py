"""Pictures of the ablation in miniature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.ablation_rows import (
    BASELINE,
    CONTEXTUAL,
    PAPER_1,
    PAPER_2,
    PAPER_SCALES,
    PSPNET,
    SEVERAL_SCALES,
    TABLE_1,
    class_iou,
    summary,
)
from psp_fast.data import write_png
from psp_fast.engine.plots import examples, write_figure
from psp_fast.engine.run import load_trained
from psp_fast.engine.samples import build_dataset

Runs = Mapping[str, Sequence[dict[str, Any]]]

_SHOWN = {BASELINE: "#9aa0a6", "B1 AVE DR": "#7fb3e6", PSPNET: "#1f5fa8"}
_OURS, _PAPERS = "#1f5fa8", "#d98032"


def beside_the_paper(runs: Runs, path: Path) -> None:
    """Mean IoU of every row, here with each seed, and in the paper; a pair of axes for each table."""
    tables = (
        ("Table 1: the pyramid", list(TABLE_1), PAPER_1),
        ("Table 2: auxiliary loss, no pyramid", list(PAPER_2), PAPER_2),
        ("several scales, mirrored (MS)", [*SEVERAL_SCALES, *SEVERAL_SCALES.values()], PAPER_SCALES),
    )
    figure = Figure(figsize=(11, 9), layout="constrained")
    heights = [len(rows) + 1 for _, rows, _ in tables]
    grid = figure.subplots(3, 2, sharey="row", gridspec_kw={"height_ratios": heights})
    for (here, there), (title, rows, paper) in zip(grid, tables, strict=True):
        _dots(here, {name: [100 * run["miou"] for run in runs[name]] for name in rows}, _OURS)
        _dots(there, {name: [paper[name][0]] if name in paper else [] for name in rows}, _PAPERS)
        here.set_title(f"{title}: here, mean and each seed", loc="left", fontsize=10)
        there.set_title("the paper, ResNet50 on ADE20K", loc="left", fontsize=10)
    for axis in grid[-1]:
        axis.set_xlabel("mean IoU, %")
    write_figure(path, figure)


def _dots(axis: Axes, rows: Mapping[str, Sequence[float]], colour: str) -> None:
    for place, values in enumerate(rows.values()):
        if values:
            axis.plot(np.mean(values), place, "o", color=colour, markersize=8)
            axis.plot(values, [place] * len(values), "|", color=colour, markersize=12, alpha=0.6)
        else:
            axis.text(
                0.02, place, "not in the paper", transform=axis.get_yaxis_transform(), va="center", color="#777777"
            )
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def classes(runs: Runs, path: Path) -> None:
    """Bars of each class's IoU for three rows; contextual classes first."""
    values = {name: class_iou(runs[name]) for name in _SHOWN}
    order = sorted(values[BASELINE], key=lambda name: name not in CONTEXTUAL)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(order))
    for i, (name, colour) in enumerate(_SHOWN.items()):
        label = f"{name}: mIoU {summary(runs[name])['miou']:.1f} %"
        heights = [100 * values[name][c] for c in order]
        axis.bar(places + 0.27 * (i - 1), heights, 0.27, label=label, color=colour)
    axis.axvline(len(CONTEXTUAL) - 0.5, ymax=0.9, color="#444444", linewidth=0.8, linestyle=":")
    axis.text(len(CONTEXTUAL) - 0.6, 99, "context decides", ha="right", va="top")
    axis.text(len(CONTEXTUAL) - 0.4, 99, "pixels tell", ha="left", va="top")
    axis.set_xticks(places, order, rotation=45, ha="right")
    axis.set(ylabel="IoU, %", ylim=(0, 112), title=f"scenes, mean of {len(runs[PSPNET])} seeds, the same budget")
    axis.legend(frameon=False, loc="upper left", ncols=3)
    axis.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure)


def draw_examples(checkpoints: Mapping[str, Path], path: Path) -> None:
    """Image, truth, and what each trained network sees, by its title."""
    device = torch.device("cpu")
    trained = {title: load_trained(checkpoint, device) for title, checkpoint in checkpoints.items()}
    config = next(iter(trained.values())).config
    models = {title: t.model for title, t in trained.items()}
    write_png(path, examples(models, build_dataset(config.data, "val"), config, device))
