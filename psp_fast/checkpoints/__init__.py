"""Checkpoints: written atomically, read strictly, in psp_fast's and other projects' layouts."""

from psp_fast.checkpoints.loading import load_checkpoint, load_pretrained, load_weights
from psp_fast.checkpoints.reading import read_checkpoint
from psp_fast.checkpoints.saving import save_checkpoint
from psp_fast.checkpoints.values import check_weights
from psp_fast.checkpoints.weights import Paths, Weights, read_weights

__all__ = [
    "Paths",
    "Weights",
    "check_weights",
    "load_checkpoint",
    "load_pretrained",
    "load_weights",
    "read_checkpoint",
    "read_weights",
    "save_checkpoint",
]
