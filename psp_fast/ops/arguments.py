"""Checks of arguments: whole numbers in whatever type callers have them, and tensors given to registered ops."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def whole_number(value: Any) -> Any:
    """The int that an int, a NumPy scalar or a tensor of one element holds; None for anything else."""
    if isinstance(value, int | torch.SymInt):
        return None if isinstance(value, bool) else value
    if isinstance(value, Sequence):  # torch.compile of torch 2.11 lets the question below fail
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # NumPy and PyTorch raise each of these for an array of several
        return None


def whole_numbers(values: Any) -> tuple[int, ...] | None:
    """The whole numbers of a list, tuple, torch.Size, array or tensor; None for anything else."""
    try:
        numbers = tuple(map(whole_number, values))
    except (TypeError, RuntimeError):  # not iterable
        return None
    return None if any(number is None for number in numbers) else numbers


def check_given(
    op: str, name: str, tensor: Tensor, like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None
) -> None:
    """Raise where a registered op was called with a tensor of another shape, device or type than its kernel reads.

    dtype None stands for any float type.
    """
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must be {tuple(shape)}, not {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device}, not on {tensor.device}")
    if not tensor.is_floating_point() if dtype is None else tensor.dtype != dtype:
        raise TypeError(f"{op}: {name} must have {dtype or 'a float type'}, not {tensor.dtype}")
