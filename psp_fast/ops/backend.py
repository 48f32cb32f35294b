"""Which implementation of an op runs: a kernel of psp_fast where one exists for the tensor, else the reference.

An op joins with one `register` call per kernel, best first, and asks `choose` for each tensor.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import torch  # first, so that _native finds torch's OpenMP in the process
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import (
    _get_current_dispatch_mode,
    _get_current_dispatch_mode_stack,
    is_traceable_wrapper_subclass,
)

from psp_fast.errors import ConfigError, PspFastError

OPS = (
    "pyramid_pool",
    "conv1x1_bn_relu",
    "sync_batch_norm_relu",
    "upsample_concat",
    "pyramid_conv3x3",
    "upsample_cross_entropy",
    "upsample_argmax",
    "conv3x3",
)
DEVICES = ("cpu", "cuda")
SETTINGS = ("auto", "triton", "reference")


class Kernel(NamedTuple):
    """A kernel of an op on one kind of device."""

    name: str
    """"csrc/cpu", "csrc/cuda", "triton", or what PyTorch calls the library that does the work."""
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


def _wrong_cpu(module: ModuleType | None) -> str | None:
    """What is wrong with the environment variable PSP_FAST_CPU, None where nothing is."""
    try:
        if module is not None:
            module.cpu_capability()
    except ValueError as error:
        return str(error)
    return None


_native, _native_error = _load()
_cpu_error = _wrong_cpu(_native)
_kernels: dict[tuple[str, str], list[Kernel]] = {}
_HALF_IN_ONEDNN = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
_DEFAULT = os.environ.get("PSP_FAST_OPS") or "auto"


class _Thread(threading.local):
    """What `use` has set in this thread. Not a context variable, because torch.compile cannot read one."""

    def __init__(self) -> None:
        self.setting = _DEFAULT


_thread = _Thread()


def native() -> ModuleType:
    """The compiled module psp_fast._native.

    Raises:
        PspFastError: it cannot be loaded, with the cause.
        ConfigError: PSP_FAST_CPU names CPU kernels that this machine or build does not have.
    """
    if _native is None:
        raise PspFastError(
            f"psp_fast._native cannot be loaded ({_native_error}): build it with `pip install -e .` in the source "
            "tree, or run the slower reference with PSP_FAST_OPS=reference"
        )
    if _cpu_error is not None:
        raise ConfigError(_cpu_error)
    return _native


def register(op: str, device: str, kernel: Kernel) -> None:
    """Let `op` run `kernel` for tensors on `device` ("cpu" or "cuda") where no kernel registered before it can."""
    _kernels.setdefault((op, device), []).append(kernel)


@contextmanager
def use(setting: str) -> Iterator[None]:
    """Within the context every op of this thread runs its reference, or its best kernel ("auto", the default).

    "triton" runs Triton kernels only, also where a C++ one is better; CPU tensors then need Triton's interpreter
    (TRITON_INTERPRET=1 before psp_fast is imported), which is for testing. The environment variable PSP_FAST_OPS sets
    the default of a whole process.

    Contexts may be nested. Other threads keep their own setting, and a new thread starts with the default, also one
    that is started within the context. The backward of an op uses the setting of its forward, in whatever thread it
    runs. Forward passes that torch.utils.checkpoint repeats use the setting of the thread that repeats them: on CUDA
    a thread of autograd, which has the default.
    """
    before, _thread.setting = _thread.setting, _checked(setting)
    try:
        yield
    finally:
        _thread.setting = before


def current_setting() -> str:
    """What `use` has set in this thread, or the process's default."""
    return _checked(_thread.setting)


def _checked(setting: str) -> str:
    if setting not in SETTINGS:
        raise ConfigError(f"ops: the setting (PSP_FAST_OPS) must be one of {', '.join(SETTINGS)}, not {setting!r}")
    return setting


def choose(op: str, x: Tensor, dtype: torch.dtype | None = None) -> str:
    """Name of the kernel that `op` runs for x, or "reference"; raises PspFastError where a kernel cannot be loaded.

    dtype stands for x's type where x will be converted first.
    """
    setting = current_setting()
    if setting == "reference" or needs_plain_ops(x):
        return "reference"
    device = "cuda" if setting == "triton" else x.device.type
    for kernel in _kernels.get((op, device), ()):
        wanted = setting == "auto" or kernel.name == "triton"
        if wanted and (dtype or x.dtype) in kernel.dtypes and kernel.missing() is None:
            return kernel.name
    return "reference"


def is_exporting() -> bool:
    """Whether torch.export traces this; torch.compiler.is_exporting is also true in code that torch 2.11 compiles."""
    return torch.compiler._is_exporting_flag


def needs_plain_ops(x: Tensor) -> bool:
    """Whether x is traced, exported, transformed or watched by what only knows PyTorch's own ops.

    That is torch.jit.trace, torch.export and ONNX's exporters, the transforms of torch.func, forward-mode automatic
    differentiation, tensors that wrap others, such as DTensor, and dispatch modes of other packages.
    """
    transformed = _is_transformed() or forward_ad._current_level >= 0
    if torch.compiler.is_compiling():
        return transformed or is_exporting()
    return (
        transformed
        or torch.jit.is_tracing()
        or _has_other_dispatch_mode()
        or (type(x) is not Tensor and is_traceable_wrapper_subclass(x))
    )


def _is_transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


# As torch.compiler.assume_constant_result does, which would load torch._dynamo, and with it triton, at import. It
# holds: torch.compile enters a transform while it traces the code within, and traces again within others.
_is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _has_other_dispatch_mode() -> bool:
    """Whether a dispatch mode is on that takes ops by the names of PyTorch's, as selective checkpoints' policies do.

    One of another package that knows psp_fast's ops says so by an attribute knows_psp_fast that is true.
    """
    if not torch._C._len_torch_dispatch_stack():
        return False
    modes = [mode for mode in _get_current_dispatch_mode_stack() if not getattr(mode, "knows_psp_fast", False)]
    names = [type(mode).__module__ for mode in modes]
    return any(name == "torch.utils.checkpoint" or name.partition(".")[0] != "torch" for name in names)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which x's convolutions run: x's own, or autocast's."""
    autocast = autocasts(x) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if autocast else x.dtype


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for x's device; PyTorch's own question raises for "meta"."""
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def runs_triton(op: str, x: Tensor) -> bool:
    """Whether an op whose only CUDA kernels are Triton's runs them on x.

    On CUDA tensors always: backward may come within `use("reference")` when forward did not.
    """
    return x.is_cuda or choose(op, x) == "triton"


def unobserved(*tensors: Tensor | None) -> bool:
    """Whether nothing traces, counts or transforms ops on these, so that a kernel may be called without the dispatcher.

    For a custom op that is Python calling C++ calling Python: once a large map has emptied the caches of code, a tenth
    of a millisecond.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
        and _get_current_function_mode() is None
        and not torch.autograd._profiler_enabled()
        and all(map(_is_plain, tensors))
    )


def _is_plain(tensor: Tensor | None) -> bool:
    """Whether the tensor's memory holds its values, as the dispatcher would have seen to."""
    return tensor is None or (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and torch._C._has_storage(tensor)
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
    )


def prefers_channels_last(x: Tensor) -> bool:
    """Whether a network on x's device and type runs faster on channels_last maps: as oneDNN and the CPU kernels do."""
    half = x.dtype == torch.bfloat16 and _HALF_IN_ONEDNN and choose("sync_batch_norm_relu", x) == "csrc/cpu"
    return half or choose("conv3x3", x) != "reference"


def explain() -> list[Row]:
    """For every op and kind of device, which implementation would run here and why."""
    return [Row(op, device, *_choice(op, device)) for op in OPS for device in DEVICES]


def _choice(op: str, device: str) -> tuple[str, str]:
    setting = current_setting()
    if setting == "reference":
        return "reference", "set by PSP_FAST_OPS or ops.use"
    reasons: list[str] = []
    for kernel in _kernels.get((op, device), ()):
        if setting == "triton" and kernel.name != "triton":
            continue
        try:
            missing = kernel.missing()
        except PspFastError as error:
            return "error", str(error)
        if missing is None:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in kernel.dtypes)
            return kernel.name, "; ".join([*reasons, f"for {names}; other types run the reference"])
        reasons.append(f"no {kernel.name}: {missing}")
    return "reference", "; ".join(reasons) or "plain PyTorch"


def missing_native() -> str | None:
    """`Kernel.missing` of the CPU kernels: every build has them."""
    native()
    return None


def missing_cuda() -> str | None:
    """`Kernel.missing` of the CUDA C++ kernels."""
    info = native().build_info()
    return None if info["cuda"] else f"built without CUDA kernels: {info['cuda_reason']}"


def missing_triton() -> str | None:
    """`Kernel.missing` of the Triton kernels."""
    return None if importlib.util.find_spec("triton") else "the package triton is not installed"
