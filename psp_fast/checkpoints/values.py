"""What the tensors of a file must be before they become weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from psp_fast.errors import CheckpointError

_COUNTER = "num_batches_tracked"


def check_arrays(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise CheckpointError for the first tensor that is no plain array, or of fewer numbers than its shape says."""
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise CheckpointError(f"{path}: {key} is not a plain array: {value.dtype}, {value.layout}, {value.device}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path} is damaged: {key} has not the numbers of its shape, {tuple(value.shape)}")


def check_weights(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise CheckpointError for the first tensor that no network computes with: batch norm's counters are integers.

    The others are finite floating-point numbers, also as float32, and variances are not negative.
    """
    check_arrays(state, path)
    for key, value in state.items():
        if key.endswith(_COUNTER):
            continue
        if not value.is_floating_point():
            raise CheckpointError(f"{path}: {key} holds {value.dtype}, not floating-point numbers")
        if value.numel() == 0:
            continue
        low, high = map(float, value.float().aminmax())
        if not (abs(low) < torch.inf and abs(high) < torch.inf):  # NaN is not
            raise CheckpointError(f"{path}: {key} has numbers that are not finite: the training that made it diverged")
        if low < 0 and key.endswith("running_var"):
            raise CheckpointError(f"{path} is damaged: {key} has a negative variance, {low}")
