"""The CUDA C++ kernels of batch norm, compiled for the CPU (cuda_on_host.h), against the reference in float64."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from psp_fast.kernels import sync_batch_norm_relu_cuda as kernels
from psp_fast.ops import backend, reference
from tests.ops.checks import LAYOUTS, TOLERANCE, random, relative_error

NAME = "sync_batch_norm_relu_on_host"
HERE = Path(__file__).parent
HEADERS = ("cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h", "cooperative_groups.h")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS, MOMENTUM = 1e-3, 0.3
# Sizes that packs of 16 bytes divide, and others: a row, one place, more channels than a tile, several groups.
SHAPES = ((2, 24, 5, 8), (3, 5, 13, 17), (1, 1, 1, 1), (7, 3, 1, 1), (1, 8, 1, 40), (5, 264, 2, 4), (2, 7, 40, 36))
COMPILER = next((path for path in map(shutil.which, ("g++", "c++")) if path), None)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    folder = tmp_path_factory.mktemp(NAME)
    for header in HEADERS:
        (folder / header).write_text('#include "cuda_on_host.h"\n')
    library = folder / f"{NAME}.so"
    torch_headers = Path(torch.__file__).parent / "include"  # pybind11's are among them
    folders = (HERE, folder, HERE.parents[1] / "csrc", torch_headers, sysconfig.get_path("include"))
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror", "-Wno-unknown-pragmas")
    includes = [f"-I{path}" for path in folders]
    subprocess.run([str(COMPILER), *flags, *includes, str(HERE / f"{NAME}.cpp"), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(autouse=True)
def on_host(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Launch on the emulated device: 3 multiprocessors, 48 KB of shared memory."""
    monkeypatch.setattr(backend, "native", lambda: module)
    monkeypatch.setattr(kernels, "_stream", lambda x: 0)
    yield
    use_device(module)


def use_device(module: ModuleType, multiprocessors: int = 3, shared_memory: int = 48 << 10) -> None:
    module.set_device(multiprocessors, shared_memory)
    kernels._plan.cache_clear()


class Case:
    """One call's arguments, and what reference and autograd make of them in float64 and in the map's own type."""

    def __init__(
        self, x: Tensor, *, affine: bool = True, residual: bool = True, relu: bool = True, training: bool = True
    ) -> None:
        n, c = x.shape[:2]
        self.x, self.relu, self.training = x, relu, training
        self.weight, self.bias = (random(c, seed=1), random(c, seed=2)) if affine else (None, None)
        self.residual = torch.empty_like(x).copy_(random(*x.shape, seed=3)) if residual else None
        self.dy = torch.empty_like(x).copy_(random(*x.shape, seed=4) - 0.5)
        self.running = (random(c, seed=5), random(c, seed=6).abs() + 0.1)
        self.exact = self._run(torch.float64)
        self.plain = self.exact if x.dtype == torch.float32 else self._run(x.dtype)

    def _run(self, dtype: torch.dtype) -> dict[str, Tensor]:
        leaf = {
            name: None if t is None else t.detach().to(dtype if t.dim() == 4 else max_type(dtype)).requires_grad_()
            for name, t in (("x", self.x), ("residual", self.residual), ("weight", self.weight), ("bias", self.bias))
        }
        running = [t.to(max_type(dtype), copy=True) for t in self.running]
        y = reference.sync_batch_norm_relu(
            leaf["x"],
            leaf["weight"],
            leaf["bias"],
            *running,
            training=self.training,
            momentum=MOMENTUM,
            eps=EPS,
            residual=leaf["residual"],
            relu=self.relu,
        )
        inputs = {name: t for name, t in leaf.items() if t is not None}
        grads = torch.autograd.grad(y, list(inputs.values()), self.dy.to(dtype))
        results = {f"d{name}": grad for name, grad in zip(inputs, grads, strict=True)}
        return {"y": y.detach(), "running_mean": running[0], "running_var": running[1], **results}

    def check(self, **got: Tensor) -> None:
        for name, value in got.items():
            want = self.exact[name]
            assert value.shape == want.shape
            if value.dtype == torch.float32 and self.x.dtype != torch.float32:
                limit = 2e-2  # of what one process of the reference rounds to a half type in between
            elif value.dtype == torch.float32:
                limit = TOLERANCE[torch.float32]
            else:
                factor = 2 if name == "y" else 3
                limit = factor * relative_error(self.plain[name], want) + torch.finfo(value.dtype).eps / 100
            assert relative_error(value, want) <= limit, (name, relative_error(value, want), limit)


def max_type(dtype: torch.dtype) -> torch.dtype:
    """The type of parameters and statistics beside maps of this type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_two_reads(case: Case) -> None:
    """statistics, apply, backward_sums and backward_input, put together as the op does."""
    x = case.x
    count = x.numel() // x.shape[1]
    if case.training:
        mean, m2 = kernels.statistics(x)
        exact = x.double()
        assert relative_error(mean, exact.mean((0, 2, 3))) <= 1e-6
        assert relative_error(m2 + 1e-3, exact.var((0, 2, 3), correction=0) * count + 1e-3) <= 1e-6
        invstd = (m2 / count + EPS).rsqrt()
    else:
        mean, invstd = case.running[0], (case.running[1] + EPS).rsqrt()
    affine = (mean, invstd, case.weight, case.bias)
    y = kernels.apply(x, *affine, case.residual, case.relu)
    assert y.stride() == x.stride()
    sums = kernels.backward_sums(case.dy, x, y, *affine, case.relu)
    means = sums / count if case.training else None
    dx, g = kernels.backward_input(case.dy, x, y, *affine, means, case.relu, case.residual is not None)
    check_gradients(case, y, sums, dx, g)
    if case.residual is None:
        assert torch.equal(kernels.backward_sums(case.dy, x, None, *affine, case.relu), sums)
        again, _ = kernels.backward_input(case.dy, x, None, *affine, means, case.relu, False)
        assert torch.equal(again, dx)


def check_gradients(case: Case, y: Tensor, sums: Tensor, dx: Tensor, g: Tensor) -> None:
    got = {"y": y, "dx": dx}
    if case.weight is not None:
        got.update(dbias=sums[0], dweight=sums[1])
    if case.residual is not None:
        got["dresidual"] = g
    case.check(**got)


def check_one_process(case: Case) -> None:
    """forward and backward: from one read where the emulated device has room."""
    running = [t.clone() for t in case.running]
    y, mean, invstd = kernels.forward(
        case.x, case.weight, case.bias, *running, MOMENTUM, EPS, case.residual, case.relu
    )
    case.check(running_mean=running[0], running_var=running[1])
    affine = (mean, invstd, case.weight, case.bias)
    results = kernels.backward(case.dy, case.x, y, *affine, case.relu, case.residual is not None)
    check_gradients(case, y, *results)


def one_read(x: Tensor) -> Any:
    return kernels._plan_of(x).one_read


@pytest.mark.usefixtures("poison_empty")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    x = random(*shape, dtype=dtype, layout=layout)
    training = x.numel() > shape[1]
    case = Case(x, training=training)
    check_two_reads(case)
    if training:
        check_one_process(case)
