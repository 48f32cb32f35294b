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

    @property
    def cells(self) -> int:
        """Pixels of the backbone's output, in all images."""
        return self.batch * self.map[0] * self.map[1]

    @property
    def pixels(self) -> int:
        """Of all images."""
        return self.batch * self.height * self.width

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"


ADE20K, VOC, CITYSCAPES, CITYSCAPES_MMSEG = (473, 473, 150), (473, 473, 21), (713, 713, 19), (512, 1024, 19)
TRAINING = Input(16, *ADE20K)
"""What the paper's recipe for ADE20K trains on."""
MAIN = TRAINING if DEVICE == "cuda" else Input(1, *ADE20K)
"""The input that everything runs on."""
TRAINED = Input(2, 241, 241, 150) if DEVICE == "cpu" else TRAINING
"""The input of a measured training step."""
INPUTS = (
    [MAIN, Input(2, *VOC), Input(16, *VOC), Input(1, *CITYSCAPES), Input(1, *CITYSCAPES_MMSEG)]
    if DEVICE == "cpu"
    else [MAIN, Input(1, *ADE20K), Input(2, *VOC), Input(2, *CITYSCAPES), Input(16, *CITYSCAPES_MMSEG)]
)
"""The inputs of an op on the backbone's maps, all of different sizes."""
LOGITS_INPUTS = [*INPUTS, Input(1 if DEVICE == "cpu" else 16, *VOC)]
"""The inputs of an op on logits; with the last one the main input has a second number of classes."""
INNER_INPUTS = [MAIN, Input(1 if DEVICE == "cpu" else 2, *CITYSCAPES)]
"""The inputs of what the backbone calls, beyond the seven ops."""
