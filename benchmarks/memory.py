"""Peak memory of a piece of work, in a process of its own: what the system saw, not what an allocator says. Linux."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


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


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
