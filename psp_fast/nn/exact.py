"""The rule by which an op may stand for modules (docs/design.md, "When an op stands for modules").

A fused path runs only if nobody could tell that the modules were not called: `may_fuse` says that nothing watches or
transforms the computation, `is_exactly` that a module does what its class does and nothing else.
"""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as module_hooks
from torch.overrides import _get_current_function_mode_stack, _len_torch_function_stack
from torch.utils._device import DeviceContext

from psp_fast.ops.backend import needs_plain_ops

_Kind = TypeVar("_Kind", bound=nn.Module)

_TENSORS = (Tensor, nn.Parameter, FakeTensor)
_PARAMETERS, _STATISTICS = ("weight", "bias"), ("running_mean", "running_var")
_METHODS = ("forward", "_conv_forward", "_call_impl", "_wrapped_call_impl")
"""What tools replace on single modules."""
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


def _called() -> tuple[Any, ...]:
    """The functions that calls of modules come down to."""
    return (
        nn.Module.__call__,
        nn.Module._call_impl,
        nn.Conv2d._conv_forward,
        F.conv2d,
        F.batch_norm,
        F.relu,
        F.max_pool2d,
        F.adaptive_avg_pool2d,
        F.adaptive_max_pool2d,
        F.interpolate,
        F.cross_entropy,
    )


_CALLED = _called()
"""As PyTorch defines them: counters of operations replace these."""


def remember(kind: type[nn.Module]) -> type[nn.Module]:
    """Decorate a class of our own, so that `is_exactly` knows its forward as it is here."""
    _FORWARDS[kind] = kind.forward
    return kind


def may_fuse(x: Any) -> bool:
    """Whether ops may run in place of modules on x: nothing traces, counts, hooks or transforms the computation."""
    if _has_global_hooks() or _is_patched() or not isinstance(x, Tensor) or not x.is_floating_point():
        return False
    if torch.compiler.is_compiling():
        return not needs_plain_ops(x)
    return (
        type(x) in _TENSORS
        and x.layout is torch.strided
        and not needs_plain_ops(x)
        and (not _len_torch_function_stack() or all(map(_is_default, _get_current_function_mode_stack())))
    )


def _is_patched() -> bool:
    """Whether somebody has replaced what calls of modules come down to."""
    return _called() != _CALLED


# Not traced by torch.compile: it is asked once, when the code is compiled.
_is_patched._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_default(mode: Any) -> bool:
    """Whether a function mode is that of a default device, which changes no computation."""
    return isinstance(mode, DeviceContext)


def is_exactly(module: nn.Module, *kinds: type[_Kind]) -> TypeGuard[_Kind]:
    """Whether calling module does what one of these classes does, on plain tensors, and nothing else."""
    kind = type(module)
    if kind not in kinds or not calls_forward(module) or _FORWARDS.get(kind, kind.forward) is not kind.forward:
        return False
    if torch.compiler.is_compiling():
        statistics = [getattr(module, name, None) for name in _STATISTICS]
        return all(_is_plain(getattr(module, name, None)) for name in _PARAMETERS) and all(map(_is_buffer, statistics))
    stores = _stores(module)
    return all(_is_plain(store[name]) for store in stores for name in _PARAMETERS if name in store) and all(
        _is_buffer(store[name]) for store in stores for name in _STATISTICS if name in store
    )


def calls_forward(module: nn.Module) -> bool:
    """Whether calling module is calling the forward of its class."""
    if not is_unhooked(module):
        return False
    if torch.compiler.is_compiling():
        return not _has_own_methods(module)
    kind, own = type(module), module.__dict__
    known = kind.__call__ is _CALLED[0] and kind._call_impl is _CALLED[1]
    return known and not any(name in own for name in _METHODS)


def _has_own_methods(module: nn.Module) -> bool:
    """Whether a method of module alone has been replaced; in code that torch.compile guards."""
    if _code(module.forward) is not _code(type(module).forward):
        return True
    return isinstance(module, nn.Conv2d) and _code(module._conv_forward) is not _code(nn.Conv2d._conv_forward)


def _code(function: Any) -> Any:
    return getattr(function, "__code__", None)


def _stores(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module keeps its tensors: replicas of nn.DataParallel as plain attributes."""
    return module._parameters, module._buffers, module.__dict__


def is_unhooked(module: nn.Module) -> bool:
    """Whether no hook sees a call of module, and no code of its own runs in the call's place."""
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


def _is_buffer(value: Any) -> bool:
    """Whether value is plain and wants no gradient, which PyTorch's batch norm refuses to give a statistic."""
    return _is_plain(value) and (value is None or not value.requires_grad)
