"""What each op cannot do without, forward or forward and backward together: bytes and FLOPs, on paper.

Every function takes the images, whether backward runs as well, and the bytes of a value of the maps. A map that is
needed twice, forward and backward, counts twice; batch statistics are taken to be gathered where the map is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.shapes import Input

CHANNELS, INNER = 2048, 512
"""Of the backbone's last map, and of its last blocks' inner maps and of each level of the pyramid."""


class Work(NamedTuple):
    """What an op cannot do without."""

    bytes: int
    """Read from and written to memory, each once."""
    flops: int = 0
    """Multiplications and additions of a direct computation; 0 where memory alone decides."""


Estimate = Callable[[Input, bool, int], Work]


def pyramid_pool(given: Input, backward: bool, size: int) -> Work:
    """The map is read, in backward its gradient written."""
    return Work(CHANNELS * given.cells * size * (2 if backward else 1))


def upsample_concat(given: Input, backward: bool, size: int) -> Work:
    """The map is read and all of the result, twice as large, written; backward reverses it."""
    return Work(3 * CHANNELS * given.cells * size * (2 if backward else 1))


def pyramid_conv3x3(given: Input, backward: bool, size: int) -> Work:
    """The convolution of the concatenation."""
    weights = INNER * 2 * CHANNELS * 9
    passes = 3 if backward else 1
    return Work(
        passes * ((CHANNELS + INNER) * given.cells + weights) * size,
        passes * 2 * given.cells * weights,
    )


def conv1x1_bn_relu(given: Input, backward: bool, size: int) -> Work:
    """From the inner channels to all, as in a block's last convolution."""
    passes = 3 if backward else 1
    return Work(
        passes * (INNER + CHANNELS) * given.cells * size,
        passes * 2 * INNER * CHANNELS * given.cells,
    )


def sync_batch_norm_relu(channels: int) -> Estimate:
    """Forward reads x and the residual and writes y, backward reads dy and x and writes two gradients.

    Where ReLU was active is a bit a value, written forward and read backward.
    """

    def estimate(given: Input, backward: bool, size: int) -> Work:
        values = channels * given.cells
        return Work(7 * values * size + 2 * values // 8 if backward else 3 * values * size)

    return estimate


def upsample_cross_entropy(given: Input, backward: bool, size: int) -> Work:
    """Logits and labels of 8 bytes are read, in backward again, and the gradient is written."""
    logits, labels = given.classes * given.cells * size, 8 * given.pixels
    return Work(3 * logits + 2 * labels if backward else logits + labels)


def upsample_argmax(given: Input, backward: bool, size: int) -> Work:
    """Logits are read, a byte a pixel is written."""
    return Work(given.classes * given.cells * size + given.pixels)


def conv3x3(channels: int) -> Estimate:
    """From channels to as many."""

    def estimate(given: Input, backward: bool, size: int) -> Work:
        passes = 3 if backward else 1
        return Work(passes * 2 * channels * given.cells * size, passes * 18 * channels**2 * given.cells)

    return estimate


def bottleneck(channels: int) -> Estimate:
    """With `channels` inner ones: x and y, the inner maps that are kept, and in backward all of that and dy and dx."""

    def estimate(given: Input, backward: bool, size: int) -> Work:
        outer, inner = 4 * channels * given.cells * size, channels * given.cells * size
        passes = 3 if backward else 1
        moved = 2 * outer + (2 * inner + 3 * outer + 2 * inner if backward else 0)
        return Work(moved, passes * 2 * 17 * channels**2 * given.cells)

    return estimate


def stem(given: Input, backward: bool, size: int) -> Work:
    """3 to 64 to 64 to 128 channels at half the size, then pooled: images, results, and the kept maps."""
    half = given.batch * ((given.height + 1) // 2) * ((given.width + 1) // 2)
    pooled, kept = half // 4 * 128, half * (64 + 64 + 128)
    first, others = 18 * half * 3 * 64, 18 * half * (64 * 64 + 64 * 128)
    if not backward:
        return Work((3 * given.pixels + pooled) * size, first + others)
    return Work((6 * given.pixels + 2 * pooled + 2 * kept) * size, 2 * first + 3 * others)


OPS: dict[str, Estimate] = {
    "pyramid_pool": pyramid_pool,
    "upsample_concat": upsample_concat,
    "pyramid_conv3x3": pyramid_conv3x3,
    "conv1x1_bn_relu": conv1x1_bn_relu,
    "sync_batch_norm_relu": sync_batch_norm_relu(CHANNELS),
    "upsample_cross_entropy": upsample_cross_entropy,
    "upsample_argmax": upsample_argmax,
    "conv3x3": conv3x3(INNER),
    "bottleneck": bottleneck(INNER),
    "stem": stem,
}
"""By op, at the shapes of the last stage of PSPNet50 and deeper."""
