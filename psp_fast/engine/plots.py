"""Pictures of a run: its curves, and what the model sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from psp_fast.configs import Config
from psp_fast.data import Dataset, write_png
from psp_fast.engine.inference import label_map
from psp_fast.models import PSPNet
from psp_fast.pictures import comparison

_EXAMPLES = 4


def pixels_of(figure: Figure) -> np.ndarray:
    """A figure as (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG."""
    write_png(path, pixels_of(figure))


def save_curves(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Draw the losses and the learning rate, and the validation measures, over the steps."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    loss_axis, measure_axis = figure.subplots(1, 2)
    for key, name in (("main_loss", "main"), ("aux_loss", "auxiliary")):
        loss_axis.plot(*_series(history, key), label=name, linewidth=1.2)
    loss_axis.set(xlabel="step", ylabel="cross entropy", title="training loss")
    loss_axis.set_ylim(bottom=0)
    for key, name in (("miou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
        measure_axis.plot(*_series(history, key), label=name, marker="o", markersize=4)
    measure_axis.set(xlabel="step", ylim=(0, 1), title="validation")
    for axis in (loss_axis, measure_axis):
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure)


def _series(history: Sequence[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    points = [(row["step"], row[key]) for row in history if key in row]
    return [step for step, _ in points], [value for _, value in points]


def examples(models: dict[str, PSPNet], dataset: Dataset, config: Config, device: torch.device) -> Image.Image:
    """Image, truth and each model's prediction for a few samples of the data set; the models are in eval mode."""
    rows = []
    for index in np.linspace(0, len(dataset) - 1, min(_EXAMPLES, len(dataset))).astype(int):
        image, label = dataset.load(int(index))
        pixels = torch.from_numpy(image).to(device)
        found = [
            label_map(model, pixels, config, name=dataset.name(int(index))).cpu().numpy() for model in models.values()
        ]
        rows.append([image, label, *found])
    return comparison(["image", "truth", *models], rows, dataset.classes, dataset.palette)
