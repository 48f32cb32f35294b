"""The rule by which an op may stand for modules (docs/design.md, "When an op stands for modules").

A fused path runs only if nobody could tell that the modules were not called: `may_fuse` says that nothing watches or
transforms the computation, `is_exactly` that a module does what its class does and nothing else.
"""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as module_hooks
from torch.overrides import _get_current_function_mode
from torch.utils._device import DeviceContext

from psp_fast.ops.backend import needs_plain_ops

_Kind = TypeVar("_Kind", bound=nn.Module)

_TENSORS = (Tensor, nn.Parameter, FakeTensor)
_VALUES = ("weight", "bias", "running_mean", "running_var")
_METHODS = frozenset({"forward", "_conv_forward"})
"""What tools replace on single modules."""
_CALL = nn.Module.__call__
_FORWARDS: dict[type[nn.Module], Any] = {
    kind: kind.forward
    for kind in (
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.SyncBatchNorm,
        nn.ReLU,
        nn.MaxPool2d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveMaxPool2d,
        nn.Sequential,
        nn.CrossEntropyLoss,
    )
}
"""As PyTorch defines them: tools also replace methods of whole classes."""
_CONV_FORWARD = nn.Conv2d._conv_forward
_FUNCTIONS = {
    name: getattr(nn.functional, name)
    for name in (
        "conv2d",
        "batch_norm",
        "relu",
        "max_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "interpolate",
        "cross_entropy",
    )
}
"""What the modules call, as PyTorch defines it: counters of operations replace these."""


def remember(kind: type[nn.Module]) -> type[nn.Module]:
    """Decorate a class of our own, so that `is_exactly` knows its forward as it is here."""
    _FORWARDS[kind] = kind.forward
    return kind


def may_fuse(x: Any) -> bool:
    """Whether ops may run in place of modules on x: nothing traces, counts, hooks or transforms the computation."""
    if _has_global_hooks():
        return False
    if torch.compiler.is_compiling():
        return not needs_plain_ops(x)
    return (
        type(x) in _TENSORS
        and not needs_plain_ops(x)
        and nn.Module.__call__ is _CALL
        and nn.Conv2d._conv_forward is _CONV_FORWARD
        and all(getattr(nn.functional, name) is function for name, function in _FUNCTIONS.items())
        and isinstance(_get_current_function_mode(), DeviceContext | None)
    )


def is_exactly(module: nn.Module, *kinds: type[_Kind]) -> TypeGuard[_Kind]:
    """Whether calling module does what one of these classes does, on plain tensors, and nothing else."""
    kind = type(module)
    return (
        kind in kinds
        and is_unhooked(module)
        and not any(name in module.__dict__ for name in _METHODS)
        and _FORWARDS.get(kind, kind.forward) is kind.forward
        and all(_is_plain(getattr(module, name, None)) for name in _VALUES)
    )


def is_unhooked(module: nn.Module) -> bool:
    """Whether calling module is calling its forward."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
    )


def _has_global_hooks() -> bool:
    return bool(
        module_hooks._global_forward_hooks
        or module_hooks._global_forward_pre_hooks
        or module_hooks._global_backward_hooks
        or module_hooks._global_backward_pre_hooks
    )


def _is_plain(value: Any) -> bool:
    """Whether value is missing or a tensor of PyTorch's own kind, whose memory holds its values."""
    return value is None or type(value) in _TENSORS
