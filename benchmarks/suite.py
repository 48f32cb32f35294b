"""A row of the suite: an op against eager PyTorch, torch.compile of the same, and the floor of the machine."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.calls import LAYOUTS, Call, Op, assert_same, call_of, flat
from benchmarks.shapes import DEVICE, DTYPE, INPUTS, MAIN, Input
from benchmarks.timing import compare, once
from psp_fast import ops
from psp_fast.ops import reference

INPUT = pytest.mark.parametrize(
    "given", [pytest.param(given, marks=[] if given == MAIN else pytest.mark.full, id=str(given)) for given in INPUTS]
)
BACKWARD = pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])


class Work(NamedTuple):
    """What an op cannot do without, forward or forward and backward together."""

    bytes: int
    """Read from and written to memory, each once."""
    flops: int = 0
    """Multiplications and additions of a direct computation."""


class Ceilings(NamedTuple):
    """What the machine does, measured in the same run."""

    bytes_per_second: float
    flops_per_second: float

    def floor(self, work: Work) -> float:
        """Seconds that the work takes at least, where no algorithm saves FLOPs."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)


def measure_ceilings(seconds: float = 0.5) -> Ceilings:
    """Copying large tensors, and multiplying large matrices in the suite's type."""
    source = torch.ones((1 << 28) if DEVICE == "cuda" else (1 << 25), device=DEVICE)
    target = torch.empty_like(source)
    copy = _least(lambda: target.copy_(source), seconds)
    side = 8192 if DEVICE == "cuda" else 2048
    a, b = (torch.randn(side, side, device=DEVICE, dtype=DTYPE) for _ in range(2))
    return Ceilings(2 * source.nbytes / copy, 2 * side**3 / _least(lambda: a @ b, seconds))


def _least(run: Call, seconds: float) -> float:
    end, least = time.perf_counter() + seconds, once(run)
    while time.perf_counter() < end:
        least = min(least, once(run))
    return least


class Suite:
    """Measures rows, and keeps them for the results' file.

    Args:
        seconds: for each row, about.
        quick: leave torch.compile out, which takes long to compile.
    """

    def __init__(self, seconds: float, quick: bool) -> None:
        self.seconds, self.quick = seconds, quick
        self.ceilings = measure_ceilings()
        self.rows: list[dict[str, Any]] = []

    def op(
        self,
        benchmark: BenchmarkFixture,
        name: str,
        given: Input,
        arguments: list[Any],
        work: Work,
        *,
        backward: bool,
        layout: str = "channels_last",
        ours: Op | None = None,
        plain: Op | None = None,
    ) -> None:
        """A row for psp_fast.ops.<name>, or `ours` against `plain`, at arguments made for `given`."""
        ours = ours or getattr(ops, name)
        plain = plain or getattr(reference, name)
        arguments = [_on_device(a) for a in arguments]
        eager = {f"eager {other}": call_of(plain, arguments, other, backward) for other in LAYOUTS}
        best = min(eager, key=lambda key: once(eager[key]))  # its best setting, and only that, is measured
        calls: dict[str, Call] = {"psp_fast": call_of(ours, arguments, layout, backward), best: eager[best]}
        if given == MAIN and not self.quick:
            torch.compiler.reset()
            compiled = torch.compile(plain, mode="max-autotune-no-cudagraphs" if DEVICE == "cuda" else None)
            calls["torch.compile"] = call_of(compiled, arguments, best.split()[1], backward)
        self.row(
            benchmark,
            calls,
            {
                "op": name,
                "input": str(given),
                "channels": arguments[0].shape[1],
                "classes": given.classes,
                "layout": layout,
                "backward": backward,
            },
            work,
        )

    def model(
        self,
        benchmark: BenchmarkFixture,
        name: str,
        given: Input,
        calls: dict[str, Call],
        tolerance: float | None = None,
    ) -> None:
        """A row for a network on `given`; the first call is ours."""
        what = {"model": name, "input": str(given), "classes": given.classes}
        self.row(benchmark, calls, what, tolerance=tolerance)
        ours = self.rows[-1]["seconds"]["psp_fast"]
        self.rows[-1]["images_per_second"] = given.batch / ours

    def row(
        self,
        benchmark: BenchmarkFixture,
        calls: dict[str, Call],
        what: dict[str, Any],
        work: Work | None = None,
        tolerance: float | None = None,
    ) -> None:
        """Check the first call's numbers against each other call's, time them in turn, and keep the result."""
        first, *others = calls
        results = {name: flat(call()) for name, call in calls.items()}
        for name in others:
            try:
                assert_same(results[first], results[name], tolerance)
            except AssertionError as error:  # no speed for wrong numbers
                pytest.fail(f"{what}: {first} differs from {name}: {error}", pytrace=False)
        peaks = {name: _peak(call) for name, call in calls.items()} if DEVICE == "cuda" else {}
        found = compare(calls, seconds=self.seconds, rounds=3)
        row = {**what, "device": DEVICE, "dtype": str(DTYPE).removeprefix("torch."), "seconds": found.seconds}
        row |= {"compared_with": found.best, "ratio": found.ratio, "quartiles": [found.low, found.high]}
        row |= {"peak_bytes": peaks} if peaks else {}
        if work is not None:
            floor = self.ceilings.floor(work)
            row |= {"floor": floor, "bytes": work.bytes, "flops": work.flops}
            row["share_of_ceiling"] = floor / found.seconds[first]
        self.rows.append(row)
        benchmark.group = " ".join(str(value) for value in what.values())
        benchmark.extra_info.update(row)
        benchmark.pedantic(calls[first], rounds=3, warmup_rounds=0)


def _on_device(value: Any) -> Any:
    """Tensors, also those in lists, on the device; floats in the suite's type."""
    if isinstance(value, list):
        return [_on_device(v) for v in value]
    if not isinstance(value, Tensor):
        return value
    return value.to(DEVICE, DTYPE if value.is_floating_point() and value.dim() == 4 else None)


def _peak(call: Call) -> int:
    """Bytes that a call needs besides what is there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
