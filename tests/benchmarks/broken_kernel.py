"""A pytest plugin: upsample_argmax is wrong by a little, as a kernel with an off-by-one at its border would be."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from psp_fast import ops

right = ops.upsample_argmax


def wrong(*arguments: Any) -> Tensor:
    """The label map, whose last row is that of the row above it."""
    labels = right(*arguments)
    labels[:, -1] = labels[:, -2]
    return labels


ops.upsample_argmax = wrong
