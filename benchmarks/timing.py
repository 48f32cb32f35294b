"""Honest timing on a noisy machine: interleaved rounds, medians, and the spread of the ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Comparison(NamedTuple):
    """Seconds of each implementation, and how often the first fits into the fastest of the others."""

    seconds: dict[str, float]
    """Median over the rounds."""
    best: str
    """The fastest of the others."""
    ratio: float
    """Median over the rounds of best / first, both taken in the same round."""
    low: float
    """First quartile of that ratio."""
    high: float
    """Third quartile."""


def compare(implementations: Mapping[str, Callable[[], object]], *, seconds: float) -> Comparison:
    """Time the first implementation against the others for about `seconds` in all, at least 5 rounds.

    Every round runs each of them once, in turn; short ones several times, so that a turn takes 10 ms.
    """
    repeats = {name: max(1, round(0.01 / _once(run))) for name, run in implementations.items()}
    rounds: dict[str, list[float]] = {name: [] for name in implementations}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(rounds.values()))) < 5:
        for name, run in implementations.items():
            rounds[name].append(_mean(run, repeats[name]))
    medians = {name: statistics.median(times) for name, times in rounds.items()}
    first, *others = implementations
    best = min(others, key=medians.__getitem__)
    ratios = [b / a for a, b in zip(rounds[first], rounds[best], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Comparison(medians, best, middle, low, high)


def _once(run: Callable[[], object]) -> float:
    """Seconds of a warm run."""
    run()
    return _mean(run, 1)


def _mean(run: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats
