"""Whether an exported file computes what the network does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ERROR, _PIXELS = 1e-5, 1e-4


@dataclass(frozen=True)
class Agreement:
    """How far an exported file's output is from the network's, on a random image.

    Args:
        size: height and width of the image.
        error: norm of the logits' difference over the norm of the logits; None where the file gives labels.
        differing: pixels with another label.
    """

    size: tuple[int, int]
    error: float | None
    differing: int

    @property
    def holds(self) -> bool:
        """Relative error at most 1e-5, the same label on at least 99.99 % of the pixels, or on all but one."""
        pixels = self.size[0] * self.size[1]
        return (self.error is None or self.error <= _ERROR) and self.differing <= max(_PIXELS * pixels, 1)

    def __str__(self) -> str:
        share = 100 * (1 - self.differing / (self.size[0] * self.size[1]))
        logits = "" if self.error is None else f"relative error of the logits {self.error:.1e}, "
        return f"{self.size[0]} x {self.size[1]} pixels: {logits}the same label on {share:.3f} % of the pixels"


def compare(found: Tensor, expected: Tensor, size: tuple[int, int]) -> Agreement:
    """The agreement of two outputs for an image of `size`: both logits (1, C, h, w) or both labels (1, h, w)."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return Agreement(size, None, size[0] * size[1])
    if expected.ndim == 3:
        return Agreement(size, None, int((found != expected).sum()))
    error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    return Agreement(size, float(error), int((found.argmax(1) != expected.argmax(1)).sum()))
