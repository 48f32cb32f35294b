"""The inputs that PSPNet meets in practice, and how many of them a benchmark runs on this machine."""

from __future__ import annotations

from typing import NamedTuple

import torch

BINS = (1, 2, 3, 6)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


class Input(NamedTuple):
    """Images of a data set, as its recipes crop them."""

    batch: int
    height: int
    width: int
    classes: int

    @property
    def map(self) -> tuple[int, int]:
        """Height and width of the backbone's output."""
        return (self.height - 1) // 8 + 1, (self.width - 1) // 8 + 1

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"


ADE20K, VOC, CITYSCAPES, CITYSCAPES_MMSEG = (473, 473, 150), (473, 473, 21), (713, 713, 19), (512, 1024, 19)
MAIN = Input(1 if DEVICE == "cpu" else 16, *ADE20K)
"""The input that everything runs on."""
MORE = (
    [Input(1, *CITYSCAPES), Input(1, *CITYSCAPES_MMSEG), Input(2, *VOC)]
    if DEVICE == "cpu"
    else [Input(1, *ADE20K), Input(2, *CITYSCAPES), Input(16, *CITYSCAPES_MMSEG), Input(16, *VOC)]
)
INPUTS = [MAIN, *MORE]
