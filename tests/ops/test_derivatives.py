"""Second derivatives: refused wherever they would be used, in whatever way they depend on the inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from psp_fast import ops
from psp_fast.ops.conv3x3 import conv3x3
from psp_fast.ops.derivatives import first_order
from tests.ops.checks import random


class Square(torch.autograd.Function):
    """x * x; its gradient 2 x dy depends on x and on dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @first_order("square")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor]:
        return (2 * ctx.saved_tensors[0] * dy,)


def test_first_derivatives_are_unchanged() -> None:
    x = torch.tensor([3.0], requires_grad=True)
    Square.apply(x).backward()
    assert x.grad is not None and x.grad.item() == 6 and not x.grad.requires_grad


def test_an_unused_graph_of_the_gradient_is_no_error() -> None:
    x = torch.tensor([3.0], requires_grad=True)
    (dx,) = torch.autograd.grad(Square.apply(x).sum(), x, create_graph=True)
    assert dx.item() == 6


def test_refused_through_saved_tensors() -> None:
    """The incoming gradient is a constant: only what was saved depends on x."""
    x = torch.tensor([3.0], requires_grad=True)
    (dx,) = torch.autograd.grad(Square.apply(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"square: second derivatives are not available, use ops\.reference"):
        dx.sum().backward()


def test_refused_through_the_incoming_gradient() -> None:
    x = torch.tensor([3.0], requires_grad=True)
    dy = torch.tensor([1.0], requires_grad=True)
    (dx,) = torch.autograd.grad(Square.apply(x), x, dy, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        torch.autograd.grad(dx, dy)


def operands() -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Each op as a function of one tensor whose gradient depends on saved tensors, behind a linear tail."""
    levels = [random(1, 16, b, b, seed=b) for b in (1, 2)]
    weight = random(20, 64, 3, 3, seed=1)
    target = torch.randint(0, 5, (1, 16, 16), generator=torch.Generator().manual_seed(0))
    return {
        "pyramid_conv3x3": (lambda w: ops.pyramid_conv3x3(random(1, 32, 16, 16) * w.sum(), levels, w), weight),
        "conv3x3": (lambda w: conv3x3(random(1, 64, 16, 16) * w.sum(), w), weight),
        "sync_batch_norm_relu": (
            lambda x: ops.sync_batch_norm_relu(x, None, None, None, None, training=True),
            random(2, 3, 5, 5),
        ),
        "conv1x1_bn_relu": (
            lambda x: ops.conv1x1_bn_relu(x, random(4, 3, 1, 1), None, None, None, None, training=True),
            random(2, 3, 5, 5),
        ),
        "upsample_cross_entropy": (lambda x: ops.upsample_cross_entropy(x, target), random(1, 5, 4, 4)),
    }


@pytest.mark.parametrize("op", sorted(operands()))
@pytest.mark.parametrize("way", ["jvp", "dual numbers"])
def test_forward_derivatives_are_the_references(op: str, way: str) -> None:
    function, x = operands()[op]
    direction = random(*x.shape, seed=7)

    def tangent() -> Tensor:
        if way == "jvp":
            return torch.func.jvp(function, (x,), (direction,))[1]
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction))).tangent

    got = tangent()
    with ops.use("reference"):
        torch.testing.assert_close(got, tangent())
    assert got.any()


def test_forward_derivative_of_a_frozen_layer() -> None:
    mean, var, weight, x = torch.zeros(4), torch.ones(4), random(4, 3, 1, 1), random(2, 3, 5, 5)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        y = ops.conv1x1_bn_relu(dual, weight, None, None, mean, var, training=False, relu=False)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, y)


@pytest.mark.parametrize("op", sorted(operands()))
def test_refused_behind_a_linear_tail(op: str) -> None:
    """Nothing but the op makes the gradient depend on its input; once_differentiable would drop that in silence."""
    function, x = operands()[op]
    x = x.requires_grad_()
    (dx,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        dx.square().sum().backward()
