"""Fixtures for every test."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import pytest
import torch
from packaging.version import Version

from psp_fast.ops import backend

# Without a GPU, Triton's interpreter runs the kernels on CPU tensors; it must be on before a kernel is defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Tests that run side by side (pytest -n), and the processes they start, leave each other their cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# The tests ask for fp32's accuracy, which cuDNN's convolutions of fp32 maps have without TF32 alone.
torch.backends.cudnn.allow_tf32 = False

_EMPTY = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty"))


@pytest.fixture
def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what psp_fast allocates uninitialised with NaN (integers: their largest): an unwritten output shows."""
    for owner, name in _EMPTY:
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        if sys._getframe(1).f_globals.get("__name__", "").startswith("psp_fast"):
            tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)
        return tensor

    return poisoned


@pytest.fixture(autouse=True)
def forget_compiled_code(request: pytest.FixtureRequest) -> None:
    """torch.compile keeps no more than a few versions of a function, of all tests in a process."""
    if "compil" in request.node.name and "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Run a test with two threads whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def capability(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on every instruction set that this CPU has."""
    native = backend.native()
    if request.param not in native.cpu_capabilities():
        pytest.skip(f"this CPU or build has no {request.param}")
    before = native.cpu_capability()
    native.set_cpu_capability(request.param)
    yield request.param
    native.set_cpu_capability(before)


@pytest.fixture
def needs_triton() -> None:
    """Skip a test of Triton kernels where they cannot run, and say why."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("the package triton is not installed")
    triton, numpy = (metadata.version(package) for package in ("triton", "numpy"))
    if not torch.cuda.is_available() and Version(triton) < Version("3.7.1") and Version(numpy) >= Version("2.4"):
        pytest.skip(f"the interpreter of triton {triton} fails with numpy {numpy}: install numpy<2.4")


@pytest.fixture(params=["csrc/cpu", "triton"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a test on the C++ kernels, and on the Triton kernels in the interpreter."""
    if request.param == "triton":
        request.getfixturevalue("needs_triton")
        from tests.kernels.interpreter import correct_bfloat16

        correct_bfloat16(monkeypatch)
    with backend.use("triton" if request.param == "triton" else "auto"):
        yield request.param
