"""A row of the suite: an op against eager PyTorch, torch.compile of the same, and the floor of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from benchmarks.calls import LAYOUTS, TOLERANCE, Call, Op, assert_same, call_of, flat
from benchmarks.cases import Case
from benchmarks.memory import with_peak
from benchmarks.result_files import OURS, Row, milliseconds, spread, title
from benchmarks.shapes import DEVICE, DTYPE, Input
from benchmarks.timing import Comparison, compare, least, once
from benchmarks.work import Work
from psp_fast import ops
from psp_fast.ops import reference

SHORT = 0.05
"""Seconds below which one run does not tell how long a run takes."""
Peaks = Callable[[str], dict[str, int]]


class Ceilings(NamedTuple):
    """What the machine does, measured in the same run."""

    bytes_per_second: float
    flops_per_second: float

    def floor(self, work: Work) -> float:
        """Seconds that the work takes at least, where no algorithm saves FLOPs."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)


def measure_ceilings(dtype: torch.dtype, seconds: float = 0.5) -> Ceilings:
    """Copying large tensors, and multiplying large matrices of a type."""
    source = torch.ones((1 << 28) if DEVICE == "cuda" else (1 << 25), device=DEVICE)
    target = torch.empty_like(source)
    copy = _least(lambda: target.copy_(source), seconds)
    side = 8192 if DEVICE == "cuda" else 2048
    a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
    return Ceilings(2 * source.nbytes / copy, 2 * side**3 / _least(lambda: a @ b, seconds))


def _least(run: Call, seconds: float) -> float:
    end, shortest = time.perf_counter() + seconds, once(run)
    while time.perf_counter() < end:
        shortest = min(shortest, least(run, 1))
    return shortest


class Trial(NamedTuple):
    """The first runs of an implementation."""

    result: list[Tensor]
    seconds: float
    peak: int | None


def tried(call: Call) -> Trial:
    """Run an implementation with a look at its memory and the clock; the first run is cold and tells nothing."""
    call()
    result, seconds, peak = _watched(call)
    if seconds < SHORT:
        seconds = least(call, 5)
    return Trial(_copies(result), seconds, peak)


def _watched(call: Call) -> tuple[Any, float, int | None]:
    start = time.perf_counter()
    result, peak = with_peak(call)
    return result, time.perf_counter() - start, peak


def _copies(result: Any) -> list[Tensor]:
    """Tensors of their own on a GPU, where a CUDA graph overwrites its outputs."""
    return [tensor.clone() if DEVICE == "cuda" else tensor for tensor in flat(result)]


class Timed:
    """A call that keeps the result of its last run."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.result: Any = None

    def __call__(self) -> Any:
        self.result = None  # not two of them at a time
        self.result = self._call()
        return self.result


class Suite:
    """Measures rows, and keeps them for the results' file.

    Args:
        seconds: for each row, about.
        quick: leave torch.compile out, which takes long to compile, and other runtimes.
        say: prints a line.
    """

    def __init__(self, seconds: float, quick: bool, say: Callable[[str], None]) -> None:
        self.seconds, self.quick, self.say = seconds, quick, say
        self._start = time.perf_counter()
        self._ceilings: dict[torch.dtype, Ceilings] = {}
        self.rows: list[Row] = []

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def ceilings(self, dtype: torch.dtype = DTYPE) -> Ceilings:
        """Measured once for each type."""
        if dtype not in self._ceilings:
            self._ceilings[dtype] = measure_ceilings(dtype)
        return self._ceilings[dtype]

    def op(
        self,
        benchmark: BenchmarkFixture,
        name: str,
        case: Case,
        arguments: list[Any],
        *,
        ours: Op | None = None,
        plain: Op | None = None,
        channels: int | None = None,
        tolerance: float | None = None,
    ) -> None:
        """A row for psp_fast.ops.<name>, or `ours` against `plain`, at arguments made for the case's images."""
        given, backward = case.given, case.backward
        ours, plain = ours or getattr(ops, name), plain or getattr(reference, name)
        arguments = [_on_device(a, case.dtype) for a in arguments]

        def compiled(layout: str) -> dict[str, Call]:
            if self.quick or not case.main:
                return {}
            torch.compiler.reset()
            faster = torch.compile(plain, mode="max-autotune-no-cudagraphs" if DEVICE == "cuda" else None)
            return {"torch.compile": call_of(faster, arguments, layout, backward)}

        what = {"op": name, "input": str(given), "channels": channels or arguments[0].shape[1]}
        what |= {"classes": given.classes if case.logits else None, "layout": case.layout, "backward": backward}
        self.row(
            benchmark,
            {**what, **_setting(case.dtype)},
            call_of(ours, arguments, case.layout, backward),
            {layout: call_of(plain, arguments, layout, backward) for layout in LAYOUTS},
            compiled,
            work=case.work,
            tolerance=tolerance or TOLERANCE[case.dtype],  # also of fp32 gradients, which are sums over maps
        )

    def model(
        self,
        benchmark: BenchmarkFixture,
        name: str,
        given: Input,
        ours: Call,
        eager: dict[str, Call],
        others: Callable[[str], dict[str, Call]],
        *,
        peaks: Peaks | None = None,
        dtype: torch.dtype = DTYPE,
        tolerance: float | None = None,
        wrong: float = 1e-4,
    ) -> None:
        """A row for a network on images."""
        what = {"model": name, "input": str(given), "classes": given.classes, **_setting(dtype)}
        self.row(benchmark, what, ours, eager, others, peaks=peaks, tolerance=tolerance, wrong=wrong)
        self.rows[-1]["images_per_second"] = given.batch / self.rows[-1]["seconds"][OURS]

    def row(
        self,
        benchmark: BenchmarkFixture,
        what: Row,
        ours: Call,
        eager: dict[str, Call],
        others: Callable[[str], dict[str, Call]] = lambda layout: {},
        *,
        work: Work | None = None,
        peaks: Peaks | None = None,
        tolerance: float | None = None,
        wrong: float = 1e-4,
    ) -> None:
        """Check our numbers against each other implementation's, time them all in turn, and keep the result.

        Args:
            benchmark: the test's fixture.
            what: the row's identity.
            ours: the call to measure.
            eager: PyTorch's by layout, of which only the fastest is measured.
            others: the other implementations, made for that layout, torch.compile last: it may fail.
            work: the least that has to be done.
            peaks: measures the peak memory of ours and eager's by that layout, in place of a look at the first runs.
            tolerance: of the relative difference, in place of that of the type.
            wrong: the share of the labels that may differ.
        """
        truth = tried(ours)
        calls, warm = {OURS: Timed(ours)}, {OURS: truth.seconds}
        found_peaks = {OURS: truth.peak}

        def try_out(name: str, call: Call) -> None:
            trial = tried(call)
            self._check(what, name, (truth.result, trial.result), tolerance, wrong)
            calls[name], warm[name], found_peaks[name] = Timed(call), trial.seconds, trial.peak

        for layout, call in eager.items():
            try_out(f"eager {layout}", call)
        best = min(eager, key=lambda layout: warm[f"eager {layout}"])
        for layout in eager.keys() - {best}:
            del calls[f"eager {layout}"]
        eager.clear()  # the others' weights are not needed any more
        try:
            for name, call in others(best).items():
                try_out(name, call)
        except TorchDynamoException as error:
            self.say(f"{title(what)}: torch.compile is left out, it fails ({type(error).__name__})")
        found = compare(calls, seconds=self.seconds, rounds=3, warm=warm)
        for name, call in calls.items():  # what was timed; a training step's last loss depends on its gradients
            self._check(what, name, (calls[OURS].result, call.result), tolerance, wrong)
        shown = {name: peak for name in (OURS, f"eager {best}") if (peak := found_peaks[name]) is not None}
        self.keep(what, found, shown if peaks is None else peaks(best), work)
        benchmark.group = title(self.rows[-1])
        benchmark.extra_info.update(self.rows[-1])
        benchmark.pedantic(ours, rounds=3 if found.seconds[OURS] < SHORT else 1, warmup_rounds=0)

    def _check(self, what: Row, name: str, results: tuple[Any, Any], tolerance: float | None, wrong: float) -> None:
        """No speed for wrong numbers."""
        try:
            assert_same(*results, tolerance, wrong)
        except AssertionError as error:
            self.say(f"{title(what)}: wrong numbers, no speed")
            pytest.fail(f"{title(what)}: {OURS} differs from {name}: {error}", pytrace=False)

    def keep(self, what: Row, found: Comparison, peaks: dict[str, int] | None = None, work: Work | None = None) -> None:
        """Add a row to the results."""
        row = {**what, "seconds": found.seconds, "compared_with": found.best, "ratio": found.ratio}
        row["quartiles"] = [found.low, found.high]
        row |= {"peak_bytes": peaks} if peaks else {}
        if work is not None:
            floor = self.ceilings(getattr(torch, what["dtype"])).floor(work)
            row |= {"floor": floor, "bytes": work.bytes, "flops": work.flops}
            row["share_of_ceiling"] = floor / found.seconds[OURS]
        self.rows.append(row)
        times = ", ".join(f"{name} {milliseconds(seconds)} ms" for name, seconds in found.seconds.items())
        self.say(f"{self.elapsed():5.0f} s  {title(row)}: {times}; {spread(row)}")


def _setting(dtype: torch.dtype, device: str = DEVICE) -> Row:
    return {"device": device, "dtype": str(dtype).removeprefix("torch.")}


def _on_device(value: Any, dtype: torch.dtype) -> Any:
    """Tensors, also those in lists, on the device; maps and convolutions' weights in the row's type."""
    if isinstance(value, list):
        return [_on_device(v, dtype) for v in value]
    if not isinstance(value, Tensor):
        return value
    return value.to(DEVICE, dtype if value.is_floating_point() and value.dim() == 4 else None)
