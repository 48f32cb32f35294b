"""Honest timing on a noisy machine: interleaved rounds, medians, and the spread of the ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

_FLUSHED = 256 << 20  # bytes that fill any GPU's L2 cache


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


def compare(
    implementations: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    rounds: int = 5,
    warm: Mapping[str, float] | None = None,
) -> Comparison:
    """Time the first implementation against the others for about `seconds` in all, at least `rounds` rounds.

    Every round runs each of them once, in turn; short ones several times, so that a turn takes 10 ms. Where there is a
    GPU, times are between events on it, and its L2 cache is flushed before each run. `warm` are the seconds of a run of
    each where all have run before.
    """
    warm = warm or {name: once(run) for name, run in implementations.items()}
    repeats = {name: max(1, round(0.01 / warm[name])) for name in implementations}
    times: dict[str, list[float]] = {name: [] for name in implementations}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < rounds:
        for name, run in implementations.items():
            times[name].append(_mean(run, repeats[name]))
    return summary(times)


def summary(times: Mapping[str, Sequence[float]]) -> Comparison:
    """The comparison of the first implementation's times with the others', a time of each from every round."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    first, *others = times
    best = min(others, key=medians.__getitem__)
    ratios = [b / a for a, b in zip(times[first], times[best], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Comparison(medians, best, middle, low, high)


def once(run: Callable[[], object]) -> float:
    """Seconds of a warm run."""
    run()
    return least(run, 1)


def least(run: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of so many runs."""
    return min(_mean(run, 1) for _ in range(times))


def _mean(run: Callable[[], object], repeats: int) -> float:
    if torch.cuda.is_available():
        return statistics.mean(_on_gpu(run) for _ in range(repeats))
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _on_gpu(run: Callable[[], object]) -> float:
    torch.empty(_FLUSHED, dtype=torch.int8, device="cuda").zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
