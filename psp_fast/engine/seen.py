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
        """Count labels (n, h, w) int64 on the CPU, until every class was seen or a warning was given."""
        self.crops += len(labels)
        if not self.told and not self.counts[: len(self.classes)].all():
            self.counts += torch.bincount(labels.flatten(), minlength=IGNORE + 1)

    def warning(self, ranks: Ranks, *, validating: bool, last: bool) -> str | None:
        """A sentence on classes that no pixel had, once an epoch was seen or at the last chance; not twice.

        Where fewer than two classes were seen, a validation is late enough. All processes have to call it.
        """
        crops = self.crops * ranks.world
        if self.told or not (validating or last or crops >= self.samples):
            return None
        counts = ranks.sum(self.counts.to(ranks.device)).cpu()[: len(self.classes)]
        self.told = last or crops >= self.samples or int((counts > 0).sum()) < 2
        return (
            missing_classes(counts.numpy(), self.classes, f"the {crops} training crops so far") if self.told else None
        )
