"""Which family an event of torch.profiler belongs to, and the time of each family: self time, so that shares add up.

On a CPU an event belongs to the first call above it, or itself, that says what is done: all below psp_fast::conv3x3 is
psp_fast::conv3x3, all below an optimizer's step is the optimizer. On a GPU a kernel belongs to the family of the call
that launched it, and was made by Triton, by csrc, by NVIDIA's libraries or by PyTorch, as its name tells.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.autograd import DeviceType

import psp_fast

CONVOLUTION_1X1, CONVOLUTION = "convolution 1x1", "convolution, other"
GLUE = "Python and autograd"
OTHER = "other"
UNKNOWN_CALL = "launched by no known call"
_FAMILIES = (  # of calls, the first that matches
    ("batch norm", r"\w*batch_norm\w*"),
    ("pooling, interpolation", r"\w*(pool|upsample|interpolate)\w*"),
    ("loss", r"\w*(cross_entropy|nll_loss|softmax|argmax)\w*"),
    ("matrix products", r"(mm|bmm|addmm|baddbmm|matmul|linear|einsum)"),
    ("copies, layout", r"(_?to|_to_copy|copy_|clone|contiguous|cat|stack|_foreach_copy_|item|_local_scalar_dense)"),
    ("memory", r"(new_)?(empty|zeros|ones|full|zero_|fill_|resize)\w*"),
    (
        "elementwise",
        r"_?(foreach_)?(add|addcmul|addcdiv|sub|rsub|mul|div|neg|relu|threshold|clamp|clip|\w*dropout|bernoulli|lerp|r?sqrt|square|pow|exp"
        r"|log|where|eq|ne|g[te]|l[te]|sum|mean|var|norm|abs|isfinite|bitwise\w*|logical\w*|masked_fill|reciprocal)_?"
        r"(_backward\w*)?",
    ),
)
_CONVOLUTION = re.compile(r"\w*conv(olution|\dd)\w*")
_MAKERS = (  # of kernels, the first that matches; before these, the names of Triton's kernels
    ("csrc kernels", r"psp_fast::"),
    ("Triton kernels", r"triton_"),
    ("copies between memories", r"Mem(cpy|set)"),
    ("PyTorch kernels: copies, layout", r"at::native.*(copy|CatArray|transpose)"),
    ("PyTorch kernels: others", r"at::|at_cuda|multi_tensor_apply"),
    (
        "cuDNN, cuBLAS",
        r"(?i)cudnn|cublas|cutlass|gemm|gemv|nvjet|xmma|splitk|sm\d+_|[dw]grad|fprop|convolve|winograd|nhwc|nchw",
    ),
)


class Family(NamedTuple):
    """One line of a table."""

    name: str
    seconds: float
    share: float
    """Of the time of all families."""
    calls: int


def call_times(events: Iterable[Any]) -> list[Family]:
    """The families of a profile of the CPU, longest first; a call inside one of the same family is not counted."""
    times: dict[str, list[float]] = {}
    for event in events:
        if event.device_type == DeviceType.CPU:
            family = family_of_call(event)
            first = event.cpu_parent is None or family_of_call(event.cpu_parent) != family
            _add(times, family, event.self_cpu_time_total, first)
    return _families(times)


def kernel_times(events: Sequence[Any]) -> list[Family]:
    """The families of a GPU's kernels by the calls that launched them, longest first."""
    launches = {e.id: e for e in events if e.device_type == DeviceType.CPU and re.match(r"cu[A-Z]|cuda[A-Z]", e.name)}
    times: dict[str, list[float]] = {}
    for kernel in _kernels(events):
        launch = launches.get(kernel.id)
        call = launch.cpu_parent if launch is not None else None
        _add(times, UNKNOWN_CALL if call is None else family_of_call(call), kernel.time_range.elapsed_us(), True)
    return _families(times)


def maker_times(events: Sequence[Any]) -> list[Family]:
    """The same kernels by who made them."""
    times: dict[str, list[float]] = {}
    for kernel in _kernels(events):
        _add(times, maker_of_kernel(kernel.name), kernel.time_range.elapsed_us(), True)
    return _families(times)


def family_of_call(event: Any) -> str:
    """The family of the outermost call around an event, or of itself, that has one."""
    chain = [event]
    while chain[-1].cpu_parent is not None:
        chain.append(chain[-1].cpu_parent)
    return next((family for e in reversed(chain) if (family := _own_family(e)) is not None), GLUE)


def maker_of_kernel(name: str) -> str:
    """Who made a kernel."""
    if name in _triton_kernels():
        return "Triton kernels"
    return next((maker for maker, pattern in _MAKERS if re.search(pattern, name)), OTHER)


def _own_family(event: Any) -> str | None:
    """What the event alone tells; None for what only calls others."""
    if event.name.startswith("Optimizer."):
        return "optimizer"
    operator = re.fullmatch(r"(\w+)::(\w+)", event.name)
    if operator is None:
        return None
    namespace, name = operator.groups()
    if namespace == "psp_fast":
        return event.name
    if _CONVOLUTION.fullmatch(name):
        return _convolution(event.input_shapes, backward="backward" in name)
    return next((family for family, pattern in _FAMILIES if re.fullmatch(pattern, name)), OTHER)


def _convolution(shapes: Sequence[Sequence[int]], backward: bool) -> str:
    """By the kernel's size; the weight comes after x, in backward after dy and x."""
    weight = shapes[2 if backward else 1] if len(shapes) > 2 else ()
    return CONVOLUTION_1X1 if list(weight[2:]) == [1, 1] else CONVOLUTION


@functools.cache
def _triton_kernels() -> frozenset[str]:
    """Names of psp_fast's Triton kernels, also where Triton is not installed."""
    folder = Path(psp_fast.__file__).parent / "kernels"
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")]
    functions = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return frozenset(f.name for f in functions if any("triton.jit" in ast.unparse(d) for d in f.decorator_list))


def _kernels(events: Iterable[Any]) -> list[Any]:
    return [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]


def _add(times: dict[str, list[float]], family: str, microseconds: float, call: bool) -> None:
    total = times.setdefault(family, [0.0, 0])
    total[0] += microseconds / 1e6
    total[1] += call


def _families(times: dict[str, list[float]]) -> list[Family]:
    whole = sum(seconds for seconds, _ in times.values())
    rows = [Family(name, seconds, seconds / whole if whole else 0.0, int(n)) for name, (seconds, n) in times.items()]
    return sorted(rows, key=lambda row: -row.seconds)
