"""What is timed and compared: an op with its arguments in a layout, forward or with all gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
Call = Callable[[], Any]
Op = Callable[..., Any]


def call_of(op: Op, arguments: list[Any], layout: str, backward: bool) -> Call:
    """op(*arguments), 4-dimensional tensors in a layout; with the gradients of all float arguments where `backward`."""
    leaves: list[Tensor] = []

    def prepared(value: Any) -> Any:
        if isinstance(value, list):
            return [prepared(v) for v in value]
        if not isinstance(value, Tensor):
            return value
        value = value.detach().clone()
        if value.dim() == 4:
            value = value.contiguous(memory_format=LAYOUTS[layout])
        if backward and value.is_floating_point():
            leaves.append(value.requires_grad_())
        return value

    given = [prepared(value) for value in arguments]
    if not backward:

        def forward() -> Any:
            with torch.no_grad():
                return op(*given)

        return forward
    outputs = flat(op(*given))
    generator = torch.Generator().manual_seed(1)
    dy = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
    dy = [g.contiguous(memory_format=LAYOUTS[layout]) if g.dim() == 4 else g for g in dy]

    def both() -> list[Tensor]:
        outputs = flat(op(*given))
        return [*outputs, *torch.autograd.grad(outputs, leaves, dy)]

    return both


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def assert_same(ours: Any, other: Any, tolerance: float | None = None, wrong: float = 1e-4) -> None:
    """Floats within the relative `tolerance`, by default the rounding of their type; label maps but for a share."""
    for a, b in zip(flat(ours), flat(other), strict=True):
        if a.is_floating_point():
            error = ((a - b).double().norm() / b.double().norm()).item()
            assert error <= (tolerance or TOLERANCE[a.dtype]), f"relative difference {error:.1e}"
        else:
            share = (a != b).double().mean().item()
            assert share <= wrong, f"{share:.1e} of the labels differ"
