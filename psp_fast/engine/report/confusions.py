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
    """At most `most` classes, by id: those of the worst confusions."""
    chosen: list[int] = []
    for pair in worst_confusions(counts, counts.size):
        new = [index for index in (pair.truth, pair.found) if index not in chosen]
        if len(chosen) + len(new) > most:
            break
        chosen += new
    return sorted(chosen)
