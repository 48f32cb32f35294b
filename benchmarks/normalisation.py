"""Batch norm with a residual in training, as it is measured on one process and on several."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.calls import Op
from benchmarks.shapes import Input

CHANNELS = 256


def layer(op: Op, group: dist.ProcessGroup | None = None) -> Op:
    """op as a function of its maps and parameters, in training; running statistics are its own."""

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        mean, var = torch.zeros_like(weight), torch.ones_like(weight)
        return op(x, weight, bias, mean, var, training=True, residual=residual, process_group=group)

    return call


def arguments(given: Input, channels: int) -> list[Tensor]:
    """x, weight, bias and residual."""
    x, residual = (torch.randn(given.batch, channels, *given.map) for _ in range(2))
    return [x, torch.rand(channels) + 0.5, torch.full((channels,), 4.0), residual]  # far from 0, where ReLUs would flip
