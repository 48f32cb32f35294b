"""sync_batch_norm_relu with a residual in training, of one process, and with backward of several."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import processes, work
from benchmarks.cases import Case, cases
from benchmarks.normalisation import CHANNELS, arguments, layer
from benchmarks.shapes import MAIN
from benchmarks.suite import Suite
from psp_fast import ops
from psp_fast.ops import reference


@cases(work.sync_batch_norm_relu(CHANNELS))
def test_sync_batch_norm_relu(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    batch_norm(benchmark, suite, case, CHANNELS)


@pytest.mark.full
@cases(work.sync_batch_norm_relu(work.CHANNELS), backward=[True], inputs=[MAIN], half=False)
def test_of_the_last_map(benchmark: BenchmarkFixture, suite: Suite, case: Case) -> None:
    batch_norm(benchmark, suite, case, work.CHANNELS)


def batch_norm(benchmark: BenchmarkFixture, suite: Suite, case: Case, channels: int) -> None:
    """A row for so many channels."""
    suite.op(
        benchmark,
        "sync_batch_norm_relu",
        case,
        arguments(case.given, channels),
        ours=layer(ops.sync_batch_norm_relu),
        plain=layer(reference.sync_batch_norm_relu),
    )


@pytest.mark.full
@pytest.mark.parametrize("world", processes.WORLDS)
def test_of_several_processes(benchmark: BenchmarkFixture, suite: Suite, world: int) -> None:
    """Each with an image; pytest-benchmark's own time is that of the whole, with starting the processes."""
    found = benchmark.pedantic(processes.measure, (world,), rounds=1)
    suite.keep({**processes.row(world), "backward": True}, found)
    benchmark.extra_info.update(suite.rows[-1])
