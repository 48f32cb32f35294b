"""Which classes the training labels have shown so far: a data set is too large to be read before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from psp_fast.data import IGNORE, missing_classes
from psp_fast.engine.distributed import Ranks


class SeenLabels:
    """Counts of the labels that this process was trained on.

    Args:
        classes: names.
        samples: in the training set.
    """

    def __init__(self, classes: Sequence[str], samples: int) -> None:
        self.classes, self.samples = classes, samples
        self.counts = torch.zeros(IGNORE + 1, dtype=torch.int64)
        self.crops, self.told = 0, False

    def add(self, labels: Tensor) -> None:
        """Count labels (n, h, w) int64 on the CPU; nothing is left to count once every class was seen."""
        self.crops += len(labels)
        if not self.counts[: len(self.classes)].all():
            self.counts += torch.bincount(labels.flatten(), minlength=IGNORE + 1)

    def warning(self, ranks: Ranks, last: bool) -> str | None:
        """Once an epoch was seen, or at the last chance: a sentence on classes that no pixel had; not twice.

        All processes have to call it.
        """
        if self.told or not (last or self.crops * ranks.world >= self.samples):
            return None
        self.told = True
        counts = ranks.sum(self.counts.to(ranks.device)).cpu()[: len(self.classes)]
        return missing_classes(counts.numpy(), self.classes, f"the {self.crops * ranks.world} training crops so far")
