"""The registered ops called by themselves: what their kernels cannot take is refused, and nothing crashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from psp_fast import ops
from psp_fast.ops.conv3x3 import conv3x3
from tests.ops.checks import random

_registered = torch.ops.psp_fast


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


X, LEVEL, WEIGHT, VECTOR = ones(2, 3, 5, 4), ones(2, 2, 2, 2), ones(6, 5, 3, 3), ones(3)
TARGET, LSE, ONE = ones(2, 9, 7, dtype=torch.int64), ones(2, 9, 7), ones()
MASK = ones(6, 3, dtype=torch.int16)

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "pool, shape": (lambda: _registered.pyramid_pool(X[0], [1], "avg"), r"x must be \(N, C, H, W\)"),
    "pool, bin": (lambda: _registered.pyramid_pool(X, [-1], "avg"), "bins must be positive"),
    "pool, mode": (lambda: _registered.pyramid_pool(X, [1], "sum"), "mode must be"),
    "pool, oblong gradient": (
        lambda: _registered.pyramid_pool_backward([ones(2, 3, 1, 2)], [], 5, 4, False),
        r"grads\[0\] must be \(N, C, b, b\)",
    ),
    "pool, gradient of fewer channels": (
        lambda: _registered.pyramid_pool_backward([ones(2, 3, 2, 2), ones(2, 1, 1, 1)], [], 5, 4, False),
        r"grads\[1\] must be \(2, 3, 1, 1\)",
    ),
    "pool, indices of other type": (
        lambda: _registered.pyramid_pool_backward([ones(2, 3, 2, 2)], [ones(2, 3, 2, 2)], 5, 4, False),
        r"indices\[0\] must have torch.int32",
    ),
    "pool, indices outside": (
        lambda: _registered.pyramid_pool_backward(
            [ones(2, 3, 2, 2)], [ones(2, 3, 2, 2, dtype=torch.int32) * 20], 5, 4, False
        ),
        r"indices\[0\] must be 0 to 19, not 20 to 20",
    ),
    "pool, no pixels": (
        lambda: _registered.pyramid_pool_backward([ones(2, 3, 2, 2)], [], 0, 4, False),
        "height and width must be",
    ),
    "concat, type": (lambda: _registered.upsample_concat(X, [LEVEL.double()], True), "must have torch.float32"),
    "concat, device": (lambda: _registered.upsample_concat(X, [LEVEL.to("meta")], True), "must be on x's device"),
    "concat, channels": (
        lambda: _registered.upsample_concat_backward(X, 2, [2, 2, 2], True),
        "add up to the 3 channels of dy",
    ),
    "concat, sizes": (lambda: _registered.upsample_concat_backward(X, 1, [2, 2], True), "channels and sizes"),
    "concat, negative side": (lambda: _registered.upsample_concat_backward(X, 1, [2, -2, 2], True), "at least 1"),
    "pyramid, channels": (
        lambda: _registered.pyramid_conv3x3(X, [LEVEL], WEIGHT[:, 1:], True, False),
        r"weight must be \(O, 5, 3, 3\)",
    ),
    "pyramid, type": (
        lambda: _registered.pyramid_conv3x3(X, [LEVEL], WEIGHT.double(), True, False),
        "not torch.float64",
    ),
    "pyramid, gradient": (
        lambda: _registered.pyramid_conv3x3_backward(X, X, [LEVEL], WEIGHT, True, [True] * 3),
        r"dy must be \(2, 6, 5, 4\)",
    ),
    "pyramid, mask": (
        lambda: _registered.pyramid_conv3x3_backward(ones(2, 6, 5, 4), X, [LEVEL], WEIGHT, True, [True]),
        "mask must have three values",
    ),
    "argmax, shape": (lambda: _registered.upsample_argmax(X[0], [9, 7], True), "logits must be"),
    "argmax, size": (lambda: _registered.upsample_argmax(X, [9, -7], True), "size must be at least"),
    "loss, batch": (
        lambda: _registered.upsample_cross_entropy(X, TARGET[:1], None, 255, 0.0, True, "mean"),
        "N = 2 as in logits",
    ),
    "loss, type": (
        lambda: _registered.upsample_cross_entropy(X, TARGET.int(), None, 255, 0.0, True, "mean"),
        "of uint8 or int64",
    ),
    "loss, weight": (
        lambda: _registered.upsample_cross_entropy(X, TARGET, VECTOR[1:], 255, 0.0, True, "mean"),
        r"weight must be \(3,\)",
    ),
    "loss, lse": (
        lambda: _registered.upsample_cross_entropy_backward(ONE, X, TARGET, None, LSE[:1], ONE, 255, 0.0, True),
        r"lse must be \(2, 9, 7\)",
    ),
    "loss, divisor": (
        lambda: _registered.upsample_cross_entropy_backward(ONE, X, TARGET, None, LSE, ONE.double(), 255, 0.0, True),
        "divisor must have torch.float32",
    ),
    "loss, gradient": (
        lambda: _registered.upsample_cross_entropy_backward(VECTOR, X, TARGET, None, LSE, ONE, 255, 0.0, True),
        r"grad must be \(2, 9, 7\)",
    ),
    "conv3x3, type": (
        lambda: _registered.conv3x3(X.double(), ones(6, 3, 3, 3).double(), 1, None, None, False),
        "CPU kernels take float32",
    ),
    "conv3x3, scale alone": (
        lambda: _registered.conv3x3(X, ones(6, 3, 3, 3), 1, ones(6), None, False),
        "both scale and shift",
    ),
    "conv3x3, scale on another device": (
        lambda: _registered.conv3x3(X, ones(6, 3, 3, 3), 1, ones(6).to("meta"), ones(6), False),
        "scale must be on cpu",
    ),
    "conv3x3, no channels": (
        lambda: _registered.conv3x3(X[:, :0], ones(6, 0, 3, 3), 1, None, None, False),
        "at least one channel",
    ),
    "conv3x3, gradient": (
        lambda: _registered.conv3x3_backward(X, X, ones(6, 3, 3, 3), 1, [True, True]),
        r"dy must be \(2, 6, 5, 4\)",
    ),
    "batch norm, shape": (lambda: _registered.batch_norm_statistics(X[0]), r"x must be float \(N, C, H, W\)"),
    "batch norm, weight": (
        lambda: _registered.batch_norm_apply(X, VECTOR, VECTOR, ones(2, 3), None, None, True),
        "weight of shape",
    ),
    "batch norm, means": (
        lambda: _registered.batch_norm_backward_input(X, X, None, VECTOR, VECTOR, None, None, VECTOR, True, False),
        "means of shape",
    ),
    "batch norm, gradient": (
        lambda: _registered.batch_norm_backward(X[:1], X, None, VECTOR, VECTOR, None, None, True, False),
        "dy of shape",
    ),
    "batch norm, mask": (
        lambda: _registered.batch_norm_backward(X, X, MASK[:2], VECTOR, VECTOR, None, None, True, False),
        "mask of shape",
    ),
    "batch norm, device": (
        lambda: _registered.batch_norm_backward_sums(X, X, None, VECTOR, VECTOR.to("meta"), None, None, True),
        "all tensors must be on x's device, cpu, not on meta",
    ),
    "batch norm, running statistics of another type": (
        lambda: _registered.batch_norm_forward(X, None, None, None, VECTOR.double(), VECTOR, 0.1, 1e-5, True),
        "running_mean must be contiguous, of torch.float32",
    ),
    "batch norm, one running statistic": (
        lambda: _registered.batch_norm_forward(X, None, None, None, VECTOR, None, 0.1, 1e-5, True),
        "both running_mean and running_var",
    ),
    "pointwise, weight": (lambda: _registered.pointwise_statistics([X], [ones(4, 2)]), r"must be \(4, 3\)"),
    "pointwise, maps": (lambda: _registered.pointwise_statistics([X, X[:1]], [ones(4, 3)] * 2), r"xs\[1\] must be"),
    "pointwise, scale": (lambda: _registered.pointwise_statistics([X], [ones(4, 3)], VECTOR), "all of scale, shift"),
    "pointwise, input": (lambda: _registered.pointwise_input_gradient(X, ones(4, 2)), r"weight must be \(3, 2\)"),
    "pointwise, gradient": (lambda: _registered.pointwise_weight_gradient(X[:1], X), "dz must be"),
    "pointwise, deviation": (
        lambda: _registered.pointwise_normalised_gradient(X, ones(3, 3), X, VECTOR, VECTOR, VECTOR, ones(2)),
        r"invstd must be \(3,\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def huge(channels: int) -> Tensor:
    """An empty batch with a side that no table can have."""
    return torch.empty(0, channels, 2**56, 1, requires_grad=True)


EMPTY: dict[str, Callable[[], Tensor]] = {
    "pyramid_pool": lambda: ops.pyramid_pool(torch.empty(0, 3, 2**30, 1, requires_grad=True))[0],
    "upsample_concat": lambda: ops.upsample_concat(huge(3), [torch.empty(0, 2, 2, 2)]),
    "pyramid_conv3x3": lambda: ops.pyramid_conv3x3(huge(16), [torch.empty(0, 2, 2, 2)], ones(20, 18, 3, 3)),
    "upsample_cross_entropy": lambda: ops.upsample_cross_entropy(
        torch.empty(0, 3, 2, 2, requires_grad=True), torch.empty(0, 2**56, 1, dtype=torch.uint8)
    ),
    "sync_batch_norm_relu": lambda: ops.sync_batch_norm_relu(huge(3), None, None, None, None, training=True),
}


@pytest.mark.parametrize("op", EMPTY)
def test_empty_batch_of_huge_maps(op: str) -> None:
    y = EMPTY[op]()
    assert y.numel() == 0 or y.item() == 0
    y.sum().backward()


def test_empty_label_map_of_a_huge_size() -> None:
    assert ops.upsample_argmax(torch.empty(0, 3, 2, 2), (2**56, 1)).shape == (0, 2**56, 1)


def test_dilation_beyond_any_map() -> None:
    """All taps but the middle one lie outside, and the places of tiles do not overflow."""
    x, weight = random(1, 16, 9, 7), random(16, 16, 3, 3)
    want = torch.nn.functional.conv2d(x, weight[:, :, 1:2, 1:2])
    for dilation in (9, 2**30, 2**40):
        torch.testing.assert_close(
            _registered.conv3x3(x, weight, dilation, None, None, False), want, rtol=1e-4, atol=1e-4
        )


def test_gradients_of_an_empty_batch() -> None:
    x, weight = torch.empty(0, 16, 9, 9), ones(16, 16, 3, 3)
    dx, dweight = _registered.conv3x3_backward(x, x, weight, 1, [True, True])
    assert dx.shape == x.shape and not dweight.any()


def test_views_with_the_negative_bit() -> None:
    """A lazily negated view's memory holds the opposite of its values."""
    x, weight = random(1, 16, 12, 12), random(16, 16, 3, 3)
    view = torch._neg_view(x)
    assert view.is_neg()
    assert torch.equal(conv3x3(view, weight), conv3x3(-x, weight))
    assert torch.equal(ops.pyramid_pool(view)[1], ops.pyramid_pool(-x)[1])
    norm = (None, None, None, None)
    assert torch.equal(
        ops.sync_batch_norm_relu(view, *norm, training=True), ops.sync_batch_norm_relu(-x, *norm, training=True)
    )


def test_recomputed_by_checkpoint() -> None:
    x, level, weight = random(2, 16, 12, 12), random(2, 4, 2, 2), random(16, 20, 3, 3)

    def block(x: Tensor, level: Tensor, weight: Tensor) -> Tensor:
        y = ops.sync_batch_norm_relu(x, None, None, None, None, training=True)
        y = ops.pyramid_conv3x3(conv3x3(y, weight[:, :16]), [level], weight)
        return ops.upsample_cross_entropy(y, torch.zeros(2, 20, 20, dtype=torch.int64))

    def gradients(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in (x, level, weight)]
        return torch.autograd.grad(run(*leaves), leaves)

    want = gradients(block)
    for reentrant in (False, True):
        got = [None, None, None]
        leaves = [t.clone().requires_grad_() for t in (x, level, weight)]
        torch.utils.checkpoint.checkpoint(block, *leaves, use_reentrant=reentrant).backward()
        got = [leaf.grad for leaf in leaves]
        for ours, exact in zip(got, want, strict=True):
            assert ours is not None and torch.equal(ours, exact)
