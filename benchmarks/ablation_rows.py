"""The rows of the ablation in miniature, the paper's numbers for them, and what the measures of several seeds say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np

from psp_fast.data.scenes import CONTEXTUAL_PAIRS

SHORT = ["--train.steps=100", "--train.validate_every=100", "--train.checkpoint_every=100", "--train.workers=0"]
BASELINE, PSPNET = "baseline", "B1236 AVE DR"
POOLED = {
    " ".join((bins, pool, *(["DR"] if reduced else []))): [
        f"--model.bins=[{', '.join(bins[1:])}]",
        f"--model.pool={'max' if pool == 'MAX' else 'avg'}",
        f"--model.dim_reduction={str(reduced).lower()}",
    ]
    for reduced, bins, pool in product((False, True), ("B1", "B1236"), ("MAX", "AVE"))
}
TABLE_1 = {BASELINE: ["--model.use_ppm=false"], **POOLED}
TABLE_2 = {
    ("no auxiliary loss" if weight == 0 else f"weight {weight}"): [
        "--model.use_ppm=false",
        f"--train.aux_weight={weight}",
    ]
    for weight in (0, 0.3, 0.6, 0.9)
}
ROWS = TABLE_1 | TABLE_2
MULTI_SCALE = ["--eval.scales=[0.5, 0.75, 1, 1.25, 1.5, 1.75]", "--eval.mirror=true"]
SEVERAL_SCALES = {BASELINE: f"{BASELINE} + MS", PSPNET: f"{PSPNET} + MS"}
DEFAULT_WEIGHT = "weight 0.4"
"""Table 2's name of Table 1's baseline, which is trained once."""

PAPER_1 = {
    BASELINE: (37.23, 78.01),
    "B1 MAX": (39.94, 79.46),
    "B1 AVE": (40.07, 79.52),
    "B1236 MAX": (40.18, 79.45),
    "B1236 AVE": (41.07, 79.97),
    "B1236 MAX DR": (40.87, 79.61),
    PSPNET: (41.68, 80.04),
}
"""Mean IoU and pixel accuracy of ResNet50 on ADE20K, in per cent; the paper leaves out B1 with DR."""
PAPER_2 = {
    "no auxiliary loss": (35.82, 77.07),
    "weight 0.3": (37.01, 77.87),
    DEFAULT_WEIGHT: (37.23, 78.01),
    "weight 0.6": (37.09, 77.84),
    "weight 0.9": (36.99, 77.87),
}
PAPER_SCALES = {PSPNET: (41.68, 80.04), SEVERAL_SCALES[PSPNET]: (42.78, 80.76)}
CONTEXTUAL = {name for pair in CONTEXTUAL_PAIRS for name in pair}


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
    }


class Comparison(NamedTuple):
    """Two rows of the paper: how far the second is above the first in mean IoU, in per cent, there and here."""

    first: str
    second: str
    paper: float
    here: float
    noise: float
    """Standard error of `here`, from the spread of the seeds."""

    @property
    def agrees(self) -> bool:
        """Whether the same row is ahead."""
        return self.paper * self.here > 0

    @property
    def clear(self) -> bool:
        """Whether the difference here is more than twice its standard error."""
        return abs(self.here) > 2 * self.noise


def comparisons(
    runs: Mapping[str, Sequence[dict[str, Any]]], paper: Mapping[str, tuple[float, float]]
) -> list[Comparison]:
    """Every pair of a table's rows, those that are furthest apart in the paper first."""
    found = []
    for first, second in combinations(paper, 2):
        a, b = summary(runs[first]), summary(runs[second])
        noise = math.sqrt(a["spread"] ** 2 / len(runs[first]) + b["spread"] ** 2 / len(runs[second]))
        found.append(Comparison(first, second, paper[second][0] - paper[first][0], b["miou"] - a["miou"], noise))
    return sorted(found, key=lambda pair: -abs(pair.paper))
