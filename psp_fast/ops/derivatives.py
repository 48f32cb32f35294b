"""What the backward of every op needs: it refuses second derivatives, and runs the kernels that its forward ran."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from psp_fast.ops import backend

Gradients = tuple[Any, ...]
Backward = Callable[..., Gradients]


def first_order(op: str) -> Callable[[Backward], Backward]:
    """Decorate the backward of op's autograd.Function: using a derivative of its gradients raises RuntimeError.

    `torch.autograd.function.once_differentiable` looks at the incoming gradients alone, and drops in silence what the
    gradients owe to the saved tensors; this looks at both.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def checked(ctx: Any, *grads: Tensor) -> Gradients:
            if not torch.is_grad_enabled():  # without create_graph nothing can be derived
                return backward(ctx, *grads)
            if torch.compiler.is_compiling():  # compiled graphs refuse it themselves
                with torch.no_grad():
                    return backward(ctx, *grads)
            saved = ctx.saved_tensors  # before backward, which may let go of them
            causes = [t for t in (*saved, *grads) if isinstance(t, Tensor) and t.requires_grad]
            with torch.no_grad():
                results = backward(ctx, *grads)
            known = [t for t in results if isinstance(t, Tensor)]
            refusing = iter(_Refusal.apply(op, len(known), *known, *causes))
            return tuple(next(refusing) if isinstance(t, Tensor) else t for t in results)

        return checked

    return decorate


def as_forward(backward: Backward) -> Backward:
    """Decorate the backward of an autograd.Function: `ops.use` has in it what forward kept as `ctx.setting`.

    Autograd runs backward in threads of its own on CUDA, or after the caller has left `ops.use`.
    """

    @functools.wraps(backward)
    def set_as_forward(ctx: Any, *grads: Tensor) -> Gradients:
        if torch.compiler.is_compiling():  # compiled graphs may not change a setting; all kernels give the same values
            return backward(ctx, *grads)
        with backend.use(ctx.setting):
            return backward(ctx, *grads)

    return set_as_forward


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.op = op
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:  # type: ignore[override]
        raise RuntimeError(f"{ctx.op}: second derivatives are not available, use ops.reference for them")
