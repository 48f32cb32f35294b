"""Which classes are taken for which, from a confusion matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Confusion(NamedTuple):
    """Pixels of one class that were given another; the classes are ids, share is of the true class's pixels."""

    truth: int
    found: int
    share: float
    pixels: int


def row_shares(counts: np.ndarray) -> np.ndarray:
    """(C, C) counts, rows the truth -> (C, C) float64 shares of each row; NaN where the truth lacks the class."""
    totals = counts.sum(1, keepdims=True)
    return np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)


def worst_confusions(counts: np.ndarray, most: int) -> list[Confusion]:
    """The `most` pairs of a true and another predicted class with the largest shares, largest first."""
    wrong = np.where(np.eye(len(counts), dtype=np.bool_), 0, counts)
    shares = np.where(wrong > 0, row_shares(counts), 0)
    found = []
    for place in np.argsort(-shares, axis=None, kind="stable")[:most]:
        truth, predicted = divmod(int(place), len(counts))
        if wrong[truth, predicted]:
            found.append(Confusion(truth, predicted, float(shares[truth, predicted]), int(wrong[truth, predicted])))
    return found


def most_confused(counts: np.ndarray, most: int) -> list[int]:
    """`most` classes, by id: those of the worst confusions, then those with the most pixels."""
    order = [index for pair in worst_confusions(counts, counts.size) for index in (pair.truth, pair.found)]
    order += np.argsort(-counts.sum(1), kind="stable").tolist()
    return sorted(list(dict.fromkeys(order))[:most])
