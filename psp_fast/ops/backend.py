"""Which implementation of an op runs: a kernel of psp_fast where one exists for the tensor, else the reference.

A next op joins with one `register` call per device and asks `uses_kernel` for each tensor.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import torch  # first, so that _native finds torch's OpenMP in the process
from torch import Tensor

from psp_fast.errors import ConfigError, PspFastError

OPS = (
    "pyramid_pool",
    "conv1x1_bn_relu",
    "sync_batch_norm_relu",
    "upsample_concat",
    "pyramid_conv3x3",
    "upsample_cross_entropy",
    "upsample_argmax",
)
DEVICES = ("cpu", "cuda")
SETTINGS = ("auto", "reference")


class Kernel(NamedTuple):
    """A kernel of an op on one kind of device."""

    name: str
    dtypes: tuple[torch.dtype, ...]
    missing: Callable[[], str | None]
    """Why this build has no such kernel, None when it has; raises where the build itself is broken."""


class Row(NamedTuple):
    """What one op would run on one kind of device, and why."""

    op: str
    device: str
    implementation: str
    reason: str


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("psp_fast._native"), ""
    except ImportError as error:
        return None, str(error)


_native, _native_error = _load()
_kernels: dict[tuple[str, str], Kernel] = {}
_setting = os.environ.get("PSP_FAST_OPS") or "auto"


def native() -> ModuleType:
    """The compiled module psp_fast._native; raises PspFastError with the cause where it cannot be loaded."""
    if _native is None:
        raise PspFastError(
            f"psp_fast._native cannot be loaded ({_native_error}): build it with `pip install -e .` in the source "
            "tree, or run the slower reference with PSP_FAST_OPS=reference"
        )
    return _native


def register(op: str, device: str, kernel: Kernel) -> None:
    """Let `op` run `kernel` for tensors on `device` ("cpu" or "cuda")."""
    _kernels[op, device] = kernel


@contextmanager
def use(setting: str) -> Iterator[None]:
    """Within the context every op of the process runs its reference ("reference"), or its best ("auto", the default).

    The environment variable PSP_FAST_OPS sets the same for a whole process.
    """
    global _setting
    before, _setting = _setting, _checked(setting)
    try:
        yield
    finally:
        _setting = before


def _checked(setting: str) -> str:
    if setting not in SETTINGS:
        raise ConfigError(f"ops: the setting (PSP_FAST_OPS) must be one of {', '.join(SETTINGS)}, not {setting!r}")
    return setting


def uses_kernel(op: str, x: Tensor) -> bool:
    """Whether `op` runs a kernel, not its reference, for x; raises PspFastError where that kernel cannot be loaded."""
    kernel = _kernels.get((op, x.device.type))
    if _checked(_setting) == "reference" or kernel is None or x.dtype not in kernel.dtypes:
        return False
    return kernel.missing() is None


def explain() -> list[Row]:
    """For every op and kind of device, which implementation would run here and why."""
    return [Row(op, device, *_choice(op, device)) for op in OPS for device in DEVICES]


def _choice(op: str, device: str) -> tuple[str, str]:
    kernel = _kernels.get((op, device))
    if _setting == "reference":
        return "reference", "set by PSP_FAST_OPS or ops.use"
    if kernel is None:
        return "reference", "no kernel of its own yet: plain PyTorch"
    try:
        missing = kernel.missing()
    except PspFastError as error:
        return "error", str(error)
    if missing:
        return "reference", missing
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in kernel.dtypes)
    return kernel.name, f"for {names}; other types run the reference"


def missing_native() -> str | None:
    """`Kernel.missing` of the CPU kernels: every build has them."""
    native()
    return None


def missing_cuda() -> str | None:
    """`Kernel.missing` of the CUDA C++ kernels."""
    info = native().build_info()
    return None if info["cuda"] else f"built without CUDA kernels: {info['cuda_reason']}"
