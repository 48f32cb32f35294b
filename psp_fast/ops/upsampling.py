"""What the ops that upsample logits on the fly share."""

from __future__ import annotations

import torch
from torch import Tensor


def check_logits(op: str, logits: Tensor) -> None:
    """Raise where logits are no float (N, C, h, w) with at least one class and pixel."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"{op}: logits must be a tensor, not {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"{op}: logits must have a float type, not {logits.dtype}")
    if logits.dim() != 4 or min(logits.shape[1:]) < 1:
        raise ValueError(f"{op}: logits must be (N, C, h, w) with C, h and w at least 1, not {tuple(logits.shape)}")


def label_dtype(classes: int) -> torch.dtype:
    """The type of a label map."""
    return torch.uint8 if classes <= 256 else torch.int64


def accumulator(logits: Tensor) -> torch.dtype:
    """The type that losses are computed in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def memory_format(logits: Tensor) -> torch.memory_format:
    """channels_last where the channels lie side by side in memory, also in a slice."""
    side_by_side = not logits.is_contiguous() and logits.stride(1) == 1 and logits.shape[1] > 1
    return torch.channels_last if side_by_side else torch.contiguous_format


def dense(logits: Tensor) -> Tensor:
    """logits without gaps between their elements: themselves, or a copy."""
    return logits.contiguous(memory_format=memory_format(logits))
