"""Peak memory of a piece of work: what the system saw, or a GPU's allocator. On the CPU Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

STATUS = Path("/proc/self/status")
"""Where Linux tells of this process's memory."""
_Result = TypeVar("_Result")


def measure(work: Callable[[], object]) -> int:
    """Bytes by which this process's memory grew, at its highest, while `work` ran."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts from here
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def measure_in_process(module: str, *arguments: str) -> int:
    """What `python -m module arguments`, which prints the result of `measure`, prints last."""
    # Large blocks go back to the system when freed, so that the highest mark shows what was in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def with_peak(work: Callable[[], _Result]) -> tuple[_Result, int | None]:
    """What warm `work` returns, and the bytes it needed besides what was there; None where no system tells."""
    found: list[_Result] = []
    if torch.cuda.is_available():
        return _with_peak_on_gpu(work)
    if not STATUS.exists():
        return work(), None
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed must not hide what is needed
    peak = measure(lambda: found.append(work()))
    return found[0], peak


def _with_peak_on_gpu(work: Callable[[], _Result]) -> tuple[_Result, int]:
    """`with_peak` by PyTorch's allocator of CUDA memory."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = work()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - before


def _status(name: str) -> int:
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {name}")
