"""The ops under every hot path of PSPNet. `reference.<name>` is the same function in plain PyTorch."""

from psp_fast.ops import reference
from psp_fast.ops.backend import explain, use
from psp_fast.ops.pyramid_pool import pyramid_pool
from psp_fast.ops.reference import (
    conv1x1_bn_relu,
    pyramid_conv3x3,
    upsample_argmax,
    upsample_concat,
    upsample_cross_entropy,
)
from psp_fast.ops.sync_batch_norm_relu import sync_batch_norm_relu

__all__ = [
    "conv1x1_bn_relu",
    "explain",
    "pyramid_conv3x3",
    "pyramid_pool",
    "reference",
    "sync_batch_norm_relu",
    "upsample_argmax",
    "upsample_concat",
    "upsample_cross_entropy",
    "use",
]
