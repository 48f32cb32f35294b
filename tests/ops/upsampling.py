"""What the tests of the ops that upsample logits share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.checks import random

SIZES = [  # (h, w), (H, W)
    ((1, 1), (5, 7)),
    ((1, 1), (1, 1)),
    ((7, 5), (1, 1)),
    ((1, 9), (17, 3)),
    ((9, 1), (3, 17)),
    ((13, 17), (13, 17)),
    ((13, 17), (30, 35)),
    ((9, 20), (9, 4)),
    ((20, 9), (7, 33)),
    ((2, 3), (90, 9)),
]


BATCHES = [(2, 5), (1, 67), (1, 1)]  # N and C, by turns
FEW_SIZES = [  # of few cells: Triton's interpreter takes its time for each
    ((1, 1), (11, 7)),
    ((2, 2), (2, 2)),
    ((2, 3), (5, 19)),
    ((3, 2), (2, 1)),
]


def assert_classes(labels: Tensor, logits: Tensor, size: Sequence[int], align_corners: bool) -> None:
    """labels against torch.argmax; where they differ, the two logits in float64 must be a rounding error apart."""
    full = F.interpolate(logits.detach().double(), tuple(size), mode="bilinear", align_corners=align_corners)
    assert labels.dtype == (torch.uint8 if logits.shape[1] <= 256 else torch.int64)
    assert labels.shape == (len(logits), *size)
    best, chosen = full.max(1).values, full.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    scale = full.abs().amax(1)
    assert ((best - chosen) <= 1e-5 * scale).all()


def strided_logits(layout: str) -> list[Tensor]:
    """Sliced, expanded and transposed logits, one image of few cells each."""
    whole = random(2, 6, 5, 4, layout=layout)
    return [
        whole[1:, 2:5, :2, 1:3],
        whole[:1, :, ::3, ::3],
        whole[1:, :1, 3:, 2:].expand(1, 5, 2, 2),
        whole[:1, :, :2, :1].expand(1, 6, 2, 3),
        whole[1:, :3, 1:3].transpose(1, 3),
        whole[1:, :, 1:3, 1:].transpose(2, 3),
    ]


def logits_with_nan_and_infinity() -> Tensor:
    """(1, 6, 3, 5), for powers of two: their weights are exact, and 0 * inf falls where PyTorch's does."""
    x = random(1, 6, 3, 5)
    x[0, 4, 0, 0] = x[0, 2, 0, 0] = x[0, 3, 2, 4] = torch.nan
    x[0, 1, 1, 2] = torch.inf
    x[0, 2, 0, 4], x[0, 5, 0, 4] = torch.inf, -torch.inf
    x[0, :, 2, 0] = -torch.inf
    x[0, 0, 1, 4] = -torch.inf
    return x
