"""The ops under every hot path of PSPNet. `reference.<name>` is the same function in plain PyTorch."""

from psp_fast.ops import flops, reference
from psp_fast.ops.backend import explain, prefers_channels_last, use
from psp_fast.ops.conv1x1_bn_relu import conv1x1_bn_relu
from psp_fast.ops.conv3x3 import conv3x3
from psp_fast.ops.pyramid_conv3x3 import pyramid_conv3x3
from psp_fast.ops.pyramid_pool import pyramid_pool
from psp_fast.ops.sync_batch_norm_relu import sync_batch_norm_relu
from psp_fast.ops.upsample_argmax import upsample_argmax
from psp_fast.ops.upsample_concat import upsample_concat
from psp_fast.ops.upsample_cross_entropy import upsample_cross_entropy, upsample_cross_entropy_argmax

flops.register()

__all__ = [
    "conv1x1_bn_relu",
    "conv3x3",
    "explain",
    "prefers_channels_last",
    "pyramid_conv3x3",
    "pyramid_pool",
    "reference",
    "sync_batch_norm_relu",
    "upsample_argmax",
    "upsample_concat",
    "upsample_cross_entropy",
    "upsample_cross_entropy_argmax",
    "use",
]
