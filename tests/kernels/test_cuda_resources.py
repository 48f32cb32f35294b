"""Every CUDA C++ kernel compiled for GPUs that need not be here: what it needs of them, as ptxas reports it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
ARCHITECTURES = ("80", "90a")
MAX_REGISTERS = 128  # a multiprocessor's, for 512 threads
MAX_SHARED = 48 << 10  # of static shared memory, on every GPU
NVCC = shutil.which("nvcc")
REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<arch>\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@pytest.mark.skipif(NVCC is None, reason="needs nvcc, which is not on PATH")
@pytest.mark.parametrize("source", sorted((CSRC / "cuda").glob("*.cu")), ids=lambda path: path.stem)
def test_no_kernel_spills(source: Path, tmp_path: Path) -> None:
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    output = ["-c", str(source), "-o", str(tmp_path / "object.o")]
    command = [str(NVCC), "-std=c++17", "-O3", f"-I{CSRC}", *targets, "--threads=0", "-Xptxas=-v", *output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reports = [match.groupdict() for match in REPORT.finditer(done.stderr)]
    assert len(reports) == done.stderr.count("Compiling entry function")
    assert {report["arch"] for report in reports} == set(ARCHITECTURES)
    for report in reports:
        shared = re.search(r"(\d+) bytes smem", report["rest"])
        assert int(report["stack"]) == int(report["stores"]) == int(report["loads"]) == 0, report
        assert int(report["registers"]) <= MAX_REGISTERS, report
        assert shared is None or int(shared[1]) <= MAX_SHARED, report
