"""What the tests of the ops that upsample logits share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.checks import random

SIZES = [  # (h, w), (H, W)
    ((1, 1), (1, 1)),
    ((1, 1), (5, 7)),
    ((7, 5), (1, 1)),
    ((1, 9), (17, 3)),
    ((9, 1), (3, 17)),
    ((13, 17), (13, 17)),
    ((13, 17), (30, 35)),
    ((9, 20), (9, 4)),
    ((20, 9), (7, 33)),
    ((2, 3), (90, 9)),
]


def assert_classes(labels: Tensor, logits: Tensor, size: Sequence[int], align_corners: bool) -> None:
    """labels against torch.argmax; where they differ, the two logits in float64 must be a rounding error apart."""
    full = F.interpolate(logits.detach().double(), tuple(size), mode="bilinear", align_corners=align_corners)
    assert labels.dtype == (torch.uint8 if logits.shape[1] <= 256 else torch.int64)
    assert labels.shape == (len(logits), *size)
    best, chosen = full.max(1).values, full.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    scale = full.abs().amax(1)
    assert ((best - chosen) <= 1e-5 * scale).all()


def strided_logits() -> list[Tensor]:
    """Sliced, expanded and transposed logits."""
    views = []
    for layout in ("nchw", "channels_last"):
        whole = random(3, 8, 9, 11, layout=layout)
        views += [
            whole[:, 2:7],
            whole[:, :, 1:7, 2:10],
            whole[:, :, ::2, ::3],
            whole[1:2],
            whole[:1].expand(4, 8, 9, 11),
            whole[:, :1].expand(3, 5, 9, 11),
            whole[:, :, :, :1].expand(3, 8, 9, 4),
            whole.transpose(1, 3),
            whole.transpose(2, 3),
        ]
    return views


def logits_with_nan_and_infinity() -> Tensor:
    """(1, 6, 5, 9), for powers of two: their weights are exact, and 0 * inf falls where PyTorch's does."""
    x = random(1, 6, 5, 9)
    x[0, 4, 1, 1] = x[0, 2, 1, 1] = x[0, 3, 4, 8] = torch.nan
    x[0, 1, 3, 3] = torch.inf
    x[0, 2, 0, 6], x[0, 5, 0, 6] = torch.inf, -torch.inf
    x[0, :, 4, 0] = -torch.inf
    x[0, 0, 2, 5] = -torch.inf
    return x
