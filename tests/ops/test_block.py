"""What ops of several layers share: a layer's factors, and convolutions with their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from psp_fast.ops.block import Layers, convolve, convolve_backward
from tests.ops.checks import random, relative_error

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")


@pytest.mark.parametrize(("side", "stride", "dilation"), [(1, 1, 1), (1, 2, 1), (3, 1, 2), (3, 2, 2), (7, 2, 1)])
def test_convolution_and_its_gradients(side: int, stride: int, dilation: int) -> None:
    x = random(2, 5, 11, 14, dtype=torch.float64).requires_grad_()
    weight = random(6, 5, side, side, dtype=torch.float64, seed=1).requires_grad_()
    y = F.conv2d(x, weight, None, stride, dilation * (side // 2), dilation)
    dy = random(*y.shape, dtype=torch.float64, seed=2)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy)
    got = convolve_backward(dy, x.detach(), weight.detach(), stride, dilation)
    assert relative_error(convolve(x.detach(), weight.detach(), stride, dilation), y) <= 1e-12
    assert relative_error(got[0], dx) <= 1e-12 and relative_error(got[1], dweight) <= 1e-12
    assert convolve_backward(dy, x.detach(), weight.detach(), stride, dilation, need_dx=False)[0] is None


def test_factors_are_the_normalisation() -> None:
    z, weight, bias = (random(*shape, dtype=torch.float64) for shape in ((2, 5, 7, 6), (5,), (5,)))
    layer = Layers([weight, bias, None, None], [1e-3], [None]).add(z)
    scale, shift = (v.view(1, -1, 1, 1) for v in layer.factors())
    want = F.batch_norm(z, None, None, weight, bias, True, 0.1, 1e-3)
    assert relative_error(scale * z + shift, want) <= 1e-12
    assert relative_error(layer.apply(z, relu=False), want) <= 1e-12
