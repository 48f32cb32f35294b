"""conv3x3 against conv2d: values, gradients, layouts, and how it behaves inside PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psp_fast.ops import backend, reference, use
from psp_fast.ops.conv3x3 import conv3x3, conv3x3_affine_relu, uses_winograd
from tests.ops.checks import LAYOUTS, assert_matches, random, relative_error

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")

# (N, C, O, H, W, dilation): odd sides, channels that fill no vector or panel, several chunks of tiles and channels.
CASES = [
    (1, 16, 16, 4, 4, 1),
    (2, 67, 33, 13, 17, 1),
    (1, 40, 70, 30, 26, 2),
    (2, 20, 130, 33, 28, 4),
    (1, 300, 24, 21, 20, 1),
    (3, 18, 17, 64, 60, 1),
    (1, 17, 16, 7, 90, 1),
]


def operands(n: int, c: int, o: int, height: int, width: int, layout: str = "nchw") -> tuple[Tensor, Tensor]:
    return random(n, c, height, width, layout=layout), random(o, c, 3, 3, seed=1) / (9 * c) ** 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matches_reference(capability: str, layout: str) -> None:
    for *sizes, dilation in CASES:
        x, weight = operands(*sizes, layout=layout)
        assert uses_winograd(x, weight, dilation)
        assert_matches(
            lambda x, w, d=dilation: conv3x3(x, w, d), lambda x, w, d=dilation: reference.conv3x3(x, w, d), x, weight
        )


def test_many_channels_stay_accurate() -> None:
    x, weight = operands(1, 2048, 64, 12, 12, layout="channels_last")
    assert_matches(conv3x3, reference.conv3x3, x.relu(), weight)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_affine_relu(layout: str) -> None:
    for *sizes, dilation in CASES:
        x, weight = operands(*sizes, layout=layout)
        scale, shift = random(sizes[2], seed=2), random(sizes[2], seed=3)
        for relu in (False, True):
            y = conv3x3_affine_relu(x, weight, dilation, scale, shift, relu)
            want = reference.conv3x3(x.double(), weight.double(), dilation)
            want = want * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)
            assert relative_error(y, want.relu() if relu else want) <= 1e-5
            with use("reference"):
                assert relative_error(conv3x3_affine_relu(x, weight, dilation, scale, shift, relu), y) <= 1e-5


def test_strided_inputs() -> None:
    for layout in LAYOUTS:
        whole, weight = random(2, 40, 30, 28, layout=layout), random(20, 60, 3, 3, layout=layout, seed=1)
        for x in (whole[:, 4:36], whole[:, :, 3:27, 2:26], whole[:, :, ::2, ::2], whole[:1].expand(3, 40, 30, 28)):
            part = weight[:, 7 : 7 + x.shape[1]]  # the head's weight is sliced like this
            assert_matches(conv3x3, reference.conv3x3, x, part)
        assert_matches(conv3x3, reference.conv3x3, whole.transpose(2, 3), weight[:, :40].transpose(2, 3))


def test_memory_format_is_kept() -> None:
    for layout, memory_format in LAYOUTS.items():
        x, weight = operands(2, 20, 24, 12, 16, layout=layout)
        x.requires_grad_()
        y = conv3x3(x, weight)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert y.is_contiguous(memory_format=memory_format) and dx.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_a_number_stays_in_sight(value: float) -> None:
    """Winograd's tiles spread it over the 4x4 pixels of a tile; no pixel that must have it may miss it."""
    x, weight = operands(1, 16, 16, 12, 12)
    x[0, 3, 5, 6] = value
    want = reference.conv3x3(x, weight)
    y = conv3x3_affine_relu(x, weight, 1, torch.ones(16), torch.zeros(16), relu=False)
    assert not y[~want.isfinite()].isfinite().any()
    far = torch.ones_like(want, dtype=torch.bool)
    far[:, :, 4:8, 4:8] = far[:, :, 4:8, 8:] = far[:, :, :4, 4:8] = far[:, :, 8:, 4:8] = False
    assert y[far & want.isfinite()].isfinite().all()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_default_type_does_not_matter(default: torch.dtype) -> None:
    x, weight = random(2, 24, 13, 18).requires_grad_(), random(20, 24, 3, 3).requires_grad_()
    assert uses_winograd(x, weight, 1)
    torch.set_default_dtype(default)
    try:
        y = conv3x3(x, weight)
        gradients = torch.autograd.grad(y.square().sum(), [x, weight])
    finally:
        torch.set_default_dtype(torch.float32)
    want = reference.conv3x3(x, weight)
    assert y.dtype == torch.float32 and relative_error(y, want) <= 1e-5
    for got, exact in zip(gradients, torch.autograd.grad(want.square().sum(), [x, weight]), strict=True):
        assert relative_error(got, exact) <= 1e-5


def test_kernels_refuse_what_they_would_read_past() -> None:
    native, backward = torch.ops.psp_fast.conv3x3, torch.ops.psp_fast.conv3x3_backward
    x, weight, dy = random(2, 24, 13, 18), random(20, 24, 3, 3), random(2, 20, 13, 18)
    with pytest.raises(TypeError, match=r"float32, not x of torch.float64"):
        native(x.double(), weight.double(), 1, None, None, False)
    with pytest.raises(ValueError, match=r"weight must be \(O, 24, 3, 3\)"):
        native(x, weight[:, :20], 1, None, None, False)
    with pytest.raises(ValueError, match="scale must have one value for each of 20 outputs"):
        native(x, weight, 1, torch.ones(19), torch.ones(20), False)
    with pytest.raises(ValueError, match=r"dy must be \(2, 20, 13, 18\), not \(2, 19, 13, 18\)"):
        backward(dy[:, :19], x, weight, 1, [True, True])
    with pytest.raises(TypeError, match=r"dy must have torch\.float32, not torch\.float64"):
        backward(dy.double(), x, weight, 1, [True, True])


def test_small_or_other_convolutions_run_the_reference() -> None:
    for x, weight, dilation in (
        (random(1, 16, 5, 5), random(16, 16, 3, 3), 4),  # a tile for every pixel or two
        (random(1, 8, 16, 16), random(16, 8, 3, 3), 1),
        (random(1, 16, 16, 16, dtype=torch.float64), random(16, 16, 3, 3, dtype=torch.float64), 1),
        (random(0, 16, 16, 16), random(16, 16, 3, 3), 1),
    ):
        assert not uses_winograd(x, weight, dilation)
        assert torch.equal(conv3x3(x, weight, dilation), reference.conv3x3(x, weight, dilation))


def test_results_do_not_depend_on_threads() -> None:
    x, weight = operands(2, 67, 33, 40, 44, layout="channels_last")
    x.requires_grad_(), weight.requires_grad_()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = conv3x3(x, weight, 2)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, weight))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_autocast_runs_the_half_type() -> None:
    x, weight = operands(1, 16, 16, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv3x3(x, weight).dtype == torch.bfloat16


def test_double_backward_is_refused() -> None:
    x, weight = operands(1, 16, 16, 8, 8)
    (dx,) = torch.autograd.grad(conv3x3(x.requires_grad_(), weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        dx.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str) -> None:
    x, weight = operands(2, 20, 24, 13, 17, layout=layout)
    torch.library.opcheck(torch.ops.psp_fast.conv3x3, (x, weight, 2, None, None, False))
    torch.library.opcheck(torch.ops.psp_fast.conv3x3, (x, weight, 1, random(24), random(24), True))
    dy = random(2, 24, 13, 17, layout=layout)
    for mask in ([True, True], [False, True], [True, False]):
        torch.library.opcheck(torch.ops.psp_fast.conv3x3_backward, (dy, x, weight, 2, mask))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    compiled = torch.compile(lambda x, w: conv3x3(x.relu(), w, 2), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    x, weight = operands(2, 20, 24, 18, 22)
    x.requires_grad_(), weight.requires_grad_()
    y = compiled(x, weight)
    want = conv3x3(x.relu(), weight, 2)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), (x, weight)), torch.autograd.grad(want.square().sum(), (x, weight))
    )


@pytest.mark.parametrize(
    ("x", "weight", "dilation", "error", "message"),
    [
        ([1.0], torch.zeros(1, 1, 3, 3), 1, TypeError, "conv3x3: x must be a tensor, not list"),
        (torch.zeros(1, 2, 3, 3).long(), torch.zeros(1, 2, 3, 3), 1, TypeError, "x must have a float type"),
        (torch.zeros(2, 3, 3), torch.zeros(1, 2, 3, 3), 1, ValueError, r"x must be \(N, C, H, W\), not \(2, 3, 3\)"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3), 1, ValueError, r"weight must be \(O, 2, 3, 3\).*\(1, 3, 3"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), 0, ValueError, "dilation must be a whole .*, not 0"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), 1.5, ValueError, "dilation must be a whole .*, not 1.5"),
    ],
)
def test_bad_arguments(x: object, weight: Tensor, dilation: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        conv3x3(x, weight, dilation)  # type: ignore[arg-type]


def test_dilation_of_another_type() -> None:
    x, weight = operands(1, 16, 24, 9, 9)
    assert torch.equal(conv3x3(x, weight, np.int64(2)), conv3x3(x, weight, 2))


def test_affine_needs_a_value_for_each_output() -> None:
    x, weight = operands(1, 16, 24, 9, 9)
    for scale, shift, name in ((torch.ones(16), torch.ones(24), "scale"), (torch.ones(24), torch.ones(1), "shift")):
        with pytest.raises(ValueError, match=f"conv3x3: {name} must have one value for each of 24 outputs"):
            conv3x3_affine_relu(x, weight, 1, scale, shift, True)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(1, 2), st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 30),
    st.integers(1, 5), st.sampled_from(sorted(LAYOUTS)), st.integers(1, 2),
)  # fmt: skip
def test_any_shape(n: int, c: int, o: int, height: int, width: int, dilation: int, layout: str, step: int) -> None:
    x, weight = operands(n, c, o, height * step, width, layout=layout)
    assert_matches(
        lambda x, w: conv3x3(x, w, dilation), lambda x, w: reference.conv3x3(x, w, dilation), x[:, :, ::step], weight
    )


def test_reference_can_be_forced() -> None:
    x, weight = operands(1, 16, 16, 16, 16)
    with backend.use("reference"):
        assert torch.equal(conv3x3(x, weight), reference.conv3x3(x, weight))
    assert not torch.equal(conv3x3(x, weight), reference.conv3x3(x, weight))
