"""Networks: plain nn.Modules over `psp_fast.ops`."""

from psp_fast.models.pspnet import PSPNet

__all__ = ["PSPNet"]
