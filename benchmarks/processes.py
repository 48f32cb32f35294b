"""Batch norm over several processes: gloo on a CPU, NCCL where there are GPUs."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from benchmarks.calls import Call, Op, assert_same, call_of
from benchmarks.normalisation import CHANNELS, arguments, layer
from benchmarks.result_files import OURS, Row
from benchmarks.shapes import DEVICE, DTYPE, MAIN, Input
from benchmarks.timing import Comparison, summary
from psp_fast import ops
from psp_fast.ops import reference

WORLDS = [2, 4] if DEVICE == "cpu" else [world for world in (2, 4, 8) if world <= torch.cuda.device_count()]
"""Numbers of processes, each with one CPU thread or GPU."""
GIVEN = Input(max(1, MAIN.batch // 8), *MAIN[1:])
"""The images of each process."""
ROUNDS, REPEATS = 21, 5


def row(world: int) -> Row:
    """What is measured."""
    return {
        "op": "sync_batch_norm_relu",
        "processes": world,
        "input": str(GIVEN._replace(batch=world * GIVEN.batch)),
        "channels": CHANNELS,
        "classes": None,
        "layout": "channels_last",
        "device": DEVICE,
        "dtype": str(DTYPE).removeprefix("torch."),
    }


def measure(world: int) -> Comparison:
    """Forward and backward of all processes, from one barrier to the next; raises where a process's numbers differ."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (world, folder), nprocs=world)
        return summary(json.loads((Path(folder) / "times.json").read_text(encoding="utf-8")))


def _process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    if DEVICE == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        times = _measured(_calls(rank))
        if rank == 0:
            (Path(folder) / "times.json").write_text(json.dumps(times))
    finally:
        dist.destroy_process_group()


def _calls(rank: int) -> dict[str, Call]:
    """Ours, and what PyTorch has: nn.SyncBatchNorm, which refuses CPU tensors, or there the reference over gloo."""
    torch.manual_seed(rank)
    given = [t.to(DEVICE, DTYPE if t.dim() == 4 else None) for t in arguments(GIVEN, CHANNELS)]
    for parameter in given[1:3]:
        dist.broadcast(parameter, 0)
    group = dist.group.WORLD
    theirs = _torch_layer() if DEVICE == "cuda" else layer(reference.sync_batch_norm_relu, group)
    name = "torch.nn.SyncBatchNorm" if DEVICE == "cuda" else "reference over gloo"
    pairs = {OURS: layer(ops.sync_batch_norm_relu, group), name: theirs}
    calls = {key: call_of(op, given, "channels_last", backward=True) for key, op in pairs.items()}
    assert_same(calls[OURS](), calls[name]())
    return calls


def _torch_layer() -> Op:
    module = nn.SyncBatchNorm(CHANNELS).to(DEVICE)

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        y = torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))
        return (y + residual).relu_()

    return call


def _measured(calls: dict[str, Call]) -> dict[str, list[float]]:
    """Seconds of a run in each round; all processes run the same rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            _wait()
            start = time.perf_counter()
            for _ in range(REPEATS):
                call()
            _wait()
            times[name].append((time.perf_counter() - start) / REPEATS)
    return times


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    dist.barrier()
