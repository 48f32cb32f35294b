"""The paper's measures, from a confusion matrix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psp_fast.files import write_text

_CHUNK = 1 << 22  # pixels counted at once, whose pairs need 8 bytes each


def confusion_matrix(target: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64 pixel counts, rows the true class, columns the predicted, without ignored pixels."""
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=target.device)
    for truth, found in zip(target.flatten().split(_CHUNK), prediction.flatten().split(_CHUNK), strict=True):
        valid = truth < classes
        pairs = truth[valid].long() * classes + found[valid].long()
        counts += torch.bincount(pairs, minlength=classes * classes)
    return counts.view(classes, classes)


def mean_iou(confusion: Tensor) -> float:
    """Mean IoU over the classes in labels or predictions, from counts (C, C); NaN where there are none."""
    hit = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - hit
    return float((hit / union)[union > 0].mean())


@dataclass(frozen=True)
class Metrics:
    """Means over classes and pixels, as fractions of 1; `score` is the challenge's mean of mIoU and pixel accuracy."""

    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    score: float
    class_iou: list[float]
    class_accuracy: list[float]
    classes: list[str]

    @classmethod
    def from_confusion(cls, confusion: Tensor, classes: Sequence[str], absent: str) -> Metrics:
        """Measures of a confusion matrix.

        Args:
            confusion: (C, C) pixel counts.
            classes: names.
            absent: a class in neither labels nor predictions counts 0 ("zero", semseg) or not at all ("skip", mmseg).
        """
        counts = confusion.double().cpu().numpy()
        hit, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        iou = _ratio(hit, truth + predicted - hit)
        accuracy = _ratio(hit, truth)
        if absent == "zero":
            iou, accuracy = np.nan_to_num(iou), np.nan_to_num(accuracy)
        miou, pixel_accuracy = _mean(iou), float(hit.sum() / max(counts.sum(), 1))
        score = (miou + pixel_accuracy) / 2
        return cls(miou, _mean(accuracy), pixel_accuracy, score, iou.tolist(), accuracy.tolist(), list(classes))

    def headline(self) -> str:
        """The two numbers of the paper's tables."""
        over = self.over()
        told = f" over {over}" if over else ""
        return f"mIoU {100 * self.miou:.2f} %{told}, pixel accuracy {100 * self.pixel_accuracy:.2f} %"

    def over(self) -> str:
        """How many classes the mean IoU is over, as "1 of 2 classes"; nothing if it is all of them."""
        counted = _counted(self.class_iou)
        return "" if counted == len(self.classes) else f"{counted} of {len(self.classes)} classes"

    def table(self) -> str:
        """Per-class and mean measures in per cent, for a terminal."""
        width = max(len(name) for name in [*self.classes, "pixel accuracy"])
        rows = [f"{'class':{width}}  {'IoU':>6}  {'accuracy':>8}"]
        for name, iou, accuracy in zip(self.classes, self.class_iou, self.class_accuracy, strict=True):
            rows.append(f"{name:{width}}  {_percent(iou):>6}  {_percent(accuracy):>8}")
        rows.append(f"{'mean':{width}}  {_percent(self.miou):>6}  {_percent(self.mean_accuracy):>8}{self._note()}")
        rows.append(f"{'pixel accuracy':{width}}  {_percent(self.pixel_accuracy):>6}")
        rows.append(f"{'score':{width}}  {_percent(self.score):>6}   (mean of mIoU and pixel accuracy)")
        return "\n".join(rows)

    def _note(self) -> str:
        """What the table says of means over fewer classes than there are."""
        ious, accuracies, all_classes = _counted(self.class_iou), _counted(self.class_accuracy), len(self.classes)
        if ious == accuracies:
            return f"   (over {ious} of {all_classes} classes)" if ious < all_classes else ""
        return f"   (IoU over {ious} and accuracy over {accuracies} of {all_classes} classes)"

    def save(self, path: Path) -> None:
        """Write the measures as JSON (fractions of 1; null for an absent class)."""
        per_class = {
            name: {"iou": _number(iou), "accuracy": _number(accuracy)}
            for name, iou, accuracy in zip(self.classes, self.class_iou, self.class_accuracy, strict=True)
        }
        content = {
            "miou": self.miou,
            "mean_accuracy": self.mean_accuracy,
            "pixel_accuracy": self.pixel_accuracy,
            "score": self.score,
            "classes": per_class,
        }
        write_text(path, json.dumps(content, indent=2) + "\n")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def _counted(values: Sequence[float]) -> int:
    """How many values a mean is over."""
    return int(np.isfinite(values).sum())


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
