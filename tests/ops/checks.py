"""What the tests of every op share: inputs, comparison with the reference in float64, implementations and layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def random(*shape: int, dtype: torch.dtype = torch.float32, layout: str = "nchw", seed: int = 0) -> Tensor:
    """Normal numbers around 0.5 that depend on shape and seed alone."""
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    values = (torch.randn(shape, generator=generator) + 0.5).to(dtype)
    return values.contiguous(memory_format=LAYOUTS[layout]) if len(shape) == 4 else values


def relative_error(got: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    return ((got - want).norm() / want.norm().clamp_min(1e-300)).item()


def outputs_and_gradients(op: Callable[..., Any], inputs: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """op's outputs for inputs (leaves of one graph), then the gradient of every float input, for a fixed random dy.

    dy has the layout of the output, as in a network of one layout.
    """
    result = op(*inputs)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    leaves = [x for x in inputs if x is not None and x.requires_grad]
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(y.shape, generator=generator).to(dtype) for y in outputs]
    dy = [torch.empty_like(y).copy_(value) for y, value in zip(outputs, values, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, dy)]


def assert_matches(op: Callable[..., Any], reference: Callable[..., Any], *inputs: Tensor | None) -> None:
    """Outputs and gradients of op(*inputs) against the reference in float64 (docs/design.md, "numbers are checked").

    fp32 and fp64: relative error within TOLERANCE. Half precisions: at most 2x (gradients 3x) the error of the
    reference in the same type. Every float input gets a gradient; None stays None.
    """
    leaf = [None if x is None else x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    truth = [x if x is None or not x.is_floating_point() else x.detach().double().requires_grad_() for x in leaf]
    dtype = next(x.dtype for x in leaf if x is not None)
    got = outputs_and_gradients(op, leaf, dtype)
    want = outputs_and_gradients(reference, truth, dtype)
    half = dtype not in TOLERANCE
    plain = outputs_and_gradients(reference, leaf, dtype) if half else got
    count = len(got) - sum(x is not None and x.requires_grad for x in leaf)
    for i, (ours, exact, eager) in enumerate(zip(got, want, plain, strict=True)):
        assert ours.shape == exact.shape
        what = f"output {i}" if i < count else f"gradient {i - count}"
        if half:
            limit = (2 if i < count else 3) * relative_error(eager, exact) + torch.finfo(dtype).eps / 100
        else:
            limit = TOLERANCE[dtype]
        error = relative_error(ours, exact)
        assert error <= limit, f"{what}: relative error {error:.2e}, allowed {limit:.2e}"
