"""What the tests of sync_batch_norm_relu share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from psp_fast.ops import reference
from psp_fast.ops.sync_batch_norm_relu import sync_batch_norm_relu
from tests.ops.checks import assert_matches

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SHAPES = [(2, 1, 1, 1), (1, 3, 1, 9), (3, 5, 9, 1), (2, 67, 2, 5), (3, 5, 13, 17), (1, 130, 13, 17), (1, 2, 64, 65)]


def vectors(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight, bias, running_mean, running_var, none of them like another."""
    steps = torch.arange(channels, dtype=dtype) / channels
    return 0.5 + steps, 0.3 - steps, steps * 2 - 1, 1.5 - steps


def assert_op_matches(
    x: Tensor,
    residual: Tensor | None,
    *,
    training: bool = True,
    relu: bool = True,
    affine: bool = True,
    tracked: bool = True,
) -> None:
    """Outputs, gradients and running statistics at x against the reference (checks.assert_matches)."""
    parameter_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias, mean, var = (v.to(x.device) for v in vectors(x.shape[1], parameter_dtype))
    kept: dict[bool, list[Tensor]] = {}

    def call(op: Any, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        running = [v.to(torch.float64 if x.dtype == torch.float64 else v.dtype, copy=True) for v in (mean, var)]
        kept[op is sync_batch_norm_relu] = running
        given = running if tracked else [None, None]
        return op(x, weight, bias, *given, training=training, momentum=0.3, eps=1e-3, residual=residual, relu=relu)

    inputs = (x, residual, weight if affine else None, bias if affine else None)
    assert_matches(
        lambda *tensors: call(sync_batch_norm_relu, *tensors),
        lambda *tensors: call(reference.sync_batch_norm_relu, *tensors),
        *inputs,
    )
    if training and tracked:
        truth = [v.double() for v in (mean, var)]
        reference.sync_batch_norm_relu(x.double(), None, None, *truth, training=True, momentum=0.3)
        for ours, want in zip(kept[True], truth, strict=True):
            torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=1e-6)
