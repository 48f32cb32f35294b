"""Checkpoints: written atomically, read strictly, in psp_fast's and other projects' layouts."""

from psp_fast.checkpoints.loading import load_checkpoint, read_checkpoint
from psp_fast.checkpoints.saving import save_checkpoint

__all__ = ["load_checkpoint", "read_checkpoint", "save_checkpoint"]
