"""psp_fast: PSPNet for training and inference, with its hot paths on custom kernels."""

from psp_fast import nn, ops
from psp_fast.checkpoints import load_checkpoint
from psp_fast.models import PSPNet

__version__ = "0.1.0"
__all__ = ["PSPNet", "load_checkpoint", "nn", "ops"]
