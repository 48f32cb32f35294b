"""conv1x1_bn_relu against its reference: training, frozen, without a gradient; layouts, types, and inside PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psp_fast.ops import backend, reference
from psp_fast.ops import conv1x1_bn_relu as op
from tests.ops.checks import LAYOUTS, assert_matches, random, relative_error

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")

# (N, C, O, H, W)
SHAPES = [(6, 3, 5, 1, 1), (1, 67, 33, 1, 9), (2, 40, 70, 13, 17), (3, 16, 130, 7, 8)]
SMALL = [(6, 3, 5, 1, 1), (1, 67, 33, 1, 9), (2, 20, 18, 5, 7)]  # for the interpreter


def operands(n: int, c: int, o: int, height: int, width: int, **kind: Any) -> list[Tensor]:
    """x, weight, bn_weight, bn_bias, residual."""
    dtype = kind.get("dtype", torch.float32)
    return [
        random(n, c, height, width, **kind),
        random(o, c, 1, 1, dtype=dtype, seed=1) / c**0.5,
        random(o, dtype=dtype, seed=2),
        random(o, dtype=dtype, seed=3),
        random(n, o, height, width, seed=4, **kind),
    ]


def statistics(o: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return random(o, dtype=dtype, seed=5), random(o, dtype=dtype, seed=6).square() + 0.1


def run(op: Callable[..., Tensor], training: bool, relu: bool = True) -> Callable[..., Tensor]:
    """op as a function of its tensors, with running statistics of its own."""

    def call(x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None) -> Tensor:
        mean, var = statistics(weight.shape[0], weight.dtype)
        return op(x, weight, scale, shift, mean, var, training=training, residual=residual, relu=relu)

    return call


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_matches_reference(implementation: str, training: bool, layout: str) -> None:
    for shape in SMALL if implementation == "triton" else SHAPES:
        *tensors, residual = operands(*shape, layout=layout)
        for extra in (residual, None):
            relu = extra is not None
            assert_matches(run(op, training, relu), run(reference.conv1x1_bn_relu, training, relu), *tensors, extra)


@pytest.mark.parametrize("training", [True, False])
def test_half_precision(implementation: str, training: bool) -> None:
    tensors = operands(2, 40, 24, 13, 17, dtype=torch.bfloat16, layout="channels_last")
    assert_matches(run(op, training), run(reference.conv1x1_bn_relu, training), *tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_gradient(implementation: str, layout: str) -> None:
    for shape in SMALL if implementation == "triton" else SHAPES:
        *tensors, residual = operands(*shape, layout=layout)
        for extra in (residual, None):
            for relu in (True, False):
                with torch.no_grad():
                    y = run(op, False, relu)(*tensors, extra)
                double = [None if t is None else t.double() for t in (*tensors, extra)]
                want = run(reference.conv1x1_bn_relu, False, relu)(*double)
                assert relative_error(y, want) <= 1e-5
                assert y.is_contiguous(memory_format=LAYOUTS[layout])


def _through_numpy(tensor: Tensor) -> None:
    tensor.detach().numpy()[...] *= 1.5


def _through_data(tensor: Tensor) -> None:
    tensor.data.mul_(1.5)


def _new_data(tensor: Tensor) -> None:
    tensor.data = 1.5 * tensor.data


def _through_vector(tensor: Tensor) -> None:
    torch.nn.utils.vector_to_parameters(1.5 * tensor.detach().flatten(), [tensor])


@pytest.mark.parametrize("change", [_through_numpy, _through_data, _new_data, _through_vector])
@torch.no_grad()
def test_changes_that_pytorch_does_not_count_are_seen(implementation: str, change: Callable[[Tensor], None]) -> None:
    x, *parameters, _ = operands(2, 16, 24, 9, 8)
    given = [torch.nn.Parameter(tensor) for tensor in (*parameters, *statistics(24))]
    for tensor in given:
        op(x, *given, training=False)
        change(tensor)
        torch.testing.assert_close(op(x, *given, training=False), reference.conv1x1_bn_relu(x, *given, training=False))


@pytest.mark.parametrize("affine", [(True, False), (False, True), (False, False)])
@torch.no_grad()
def test_without_a_scale_or_a_shift(implementation: str, affine: tuple[bool, bool]) -> None:
    x, weight, *both, _ = operands(2, 16, 24, 9, 8)
    vectors = [vector if there else None for vector, there in zip(both, affine, strict=True)]
    given = (x, weight, *vectors, *statistics(24))
    torch.testing.assert_close(op(*given, training=False), reference.conv1x1_bn_relu(*given, training=False))


def test_running_statistics(implementation: str) -> None:
    x, weight, scale, shift, _ = operands(2, 16, 24, 9, 8)
    found = []
    for function in (op, reference.conv1x1_bn_relu):
        mean, var = statistics(24)
        function(x, weight, scale, shift, mean, var, training=True, momentum=0.3)
        found.append((mean, var))
    torch.testing.assert_close(found[0], found[1])


def test_without_affine_or_running_statistics(implementation: str) -> None:
    x, weight, *_ = operands(2, 16, 24, 9, 8)
    y = op(x, weight, None, None, None, None, training=True)
    torch.testing.assert_close(y, reference.conv1x1_bn_relu(x, weight, None, None, None, None, training=True))


def test_strided_inputs(implementation: str) -> None:
    for layout in LAYOUTS:
        whole, residual = random(3, 20, 12, 14, layout=layout), random(3, 9, 12, 14, layout=layout)
        weight, scale, shift = random(9, 16, 1, 1, seed=1) / 4, random(9, seed=2), random(9, seed=3)
        for cut in ((slice(None), slice(None)), (slice(2, 9), slice(1, 8)), (slice(0, 12, 2), slice(0, 14, 3))):
            x, extra = whole[:, 2:18, cut[0], cut[1]], residual[:, :, cut[0], cut[1]]
            assert_matches(run(op, True), run(reference.conv1x1_bn_relu, True), x, weight, scale, shift, extra)
            with torch.no_grad():
                y = run(op, False)(x, weight, scale, shift, extra)
                torch.testing.assert_close(y, run(reference.conv1x1_bn_relu, False)(x, weight, scale, shift, extra))


def test_autocast() -> None:
    tensors = operands(2, 16, 24, 9, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for training in (True, False):
            y = run(op, training)(*tensors)
            assert y.dtype == torch.bfloat16
            want = run(reference.conv1x1_bn_relu, training)(*tensors)
            torch.testing.assert_close(y, want, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("training", [True, False])
def test_compile(training: bool) -> None:
    tensors = [t.requires_grad_() for t in operands(2, 16, 24, 9, 8)]
    kept, plain = statistics(24), statistics(24)

    def call(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, residual: Tensor, running: Any) -> Tensor:
        return op(x, weight, scale, shift, *running, training=training, residual=residual)

    y = torch.compile(call, fullgraph=True, backend="aot_eager")(*tensors, kept)
    want = call(*tensors, plain)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(kept, plain)
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), tensors), torch.autograd.grad(want.square().sum(), tensors)
    )


def test_export() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            _, *self.parts, _ = operands(2, 16, 24, 9, 8)
            for name, part in zip("abc", self.parts, strict=True):
                self.register_buffer(name, part)
            for name, part in zip("mv", statistics(24), strict=True):
                self.register_buffer(name, part)

        def forward(self, x: Tensor) -> Tensor:
            return op(x, self.a, self.b, self.c, self.m, self.v, training=False)

    x = random(2, 16, 9, 8)
    with torch.no_grad():
        program = torch.export.export(Layer(), (x,))
        torch.testing.assert_close(program.module()(x), Layer()(x))


def test_double_backward_is_refused() -> None:
    x, *rest = operands(2, 16, 24, 9, 8)
    (dx,) = torch.autograd.grad(run(op, True)(x.requires_grad_(), *rest).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        dx.sum().backward()


@pytest.mark.parametrize(
    ("x", "weight", "error", "message"),
    [
        (3, torch.zeros(1, 1, 1, 1), TypeError, "conv1x1_bn_relu: x must be a tensor, not int"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(4, 2, 1, 1).long(), TypeError, "weight must have a float type"),
        (torch.zeros(2, 3, 3), torch.zeros(4, 2, 1, 1), ValueError, r"x must be \(N, C, H, W\), not \(2, 3, 3\)"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(4, 3, 1, 1), ValueError, r"weight must be \(O, 2, 1, 1\).*\(4, 3, 1, 1"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(4, 2, 3, 3), ValueError, r"weight must be \(O, 2, 1, 1\)"),
    ],
)
def test_bad_arguments(x: Any, weight: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        op(x, weight, None, None, None, None, training=True)
    with torch.no_grad(), pytest.raises(error, match=message):
        op(x, weight, None, None, torch.zeros(4), torch.ones(4), training=False)


@pytest.mark.filterwarnings("ignore:invalid value")  # of NumPy, in the interpreter
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_pass_without_a_gradient(implementation: str, dtype: torch.dtype, relu: bool) -> None:
    tensors = operands(2, 20, 18, 5, 7, dtype=dtype, layout="channels_last")
    tensors[0][0, 3, 2, 2], tensors[0][1, 5, 4, 4] = float("nan"), float("inf")
    for extra in (tensors[4], None):
        with torch.no_grad():
            y = run(op, False, relu)(*tensors[:4], extra)
            want = run(reference.conv1x1_bn_relu, False, relu)(*tensors[:4], extra)
        assert y.isnan().any() and torch.equal(y.isnan(), want.isnan()) and torch.equal(y.isinf(), want.isinf())


def test_types_and_numbers_are_checked_by_name() -> None:
    x, weight, *_ = operands(2, 16, 24, 9, 8)
    mean, var = statistics(24)
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (TypeError, "conv1x1_bn_relu: weight must have x's type, torch.float32", {"weight": weight.double()}),
        (ValueError, "conv1x1_bn_relu: eps must be above 0, not -5", {"eps": -5}),
        (ValueError, "conv1x1_bn_relu: running_mean and running_var are needed", {"mean": None, "var": None}),
        (ValueError, "conv1x1_bn_relu: give both running_mean and running_var", {"mean": None}),
    ]
    for error, message, changes in wrong:
        given = {"weight": weight, "mean": mean, "var": var, "eps": 1e-5} | changes
        with torch.no_grad(), pytest.raises(error, match=message):
            op(x, given["weight"], None, None, given["mean"], given["var"], training=False, eps=given["eps"])


def test_a_slice_keeps_its_layout_and_meta_its_shape() -> None:
    *tensors, residual = operands(2, 16, 24, 9, 13)
    cut = [tensors[0][..., :9], *tensors[1:], residual[..., :9]]
    with torch.no_grad():
        y, want = run(op, False)(*cut), run(reference.conv1x1_bn_relu, False)(*cut)
        assert y.stride() == want.stride()
        given = [t.to("meta") for t in (*tensors[:4], *statistics(24))]
        assert op(*given, training=False).shape == (2, 24, 9, 13)


def test_empty_batch() -> None:
    tensors = operands(0, 16, 24, 9, 8)
    with torch.no_grad():
        assert run(op, False)(*tensors).shape == (0, 24, 9, 8)


def test_arguments_are_checked_without_a_gradient() -> None:
    x, weight, *_ = operands(2, 16, 24, 9, 8)
    with torch.no_grad(), pytest.raises(ValueError, match=r"residual must .*\(2, 24, 9, 8\), not \(2, 24, 9, 7\)"):
        run(op, False)(x, weight, None, None, torch.zeros(2, 24, 9, 7))
    with torch.no_grad(), pytest.raises(ValueError, match=r"running_mean must have one value .* 24 outputs"):
        op(x, weight, None, None, torch.zeros(3), torch.ones(3), training=False)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12),
    st.sampled_from(sorted(LAYOUTS)), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.booleans(),
)  # fmt: skip
def test_any_shape(
    n: int, c: int, o: int, height: int, width: int, layout: str, dtype: torch.dtype, gradient: bool
) -> None:
    tensors = operands(n, c, o, height, width, layout=layout, dtype=dtype)
    if not gradient:
        with torch.no_grad():
            y = run(op, False)(*tensors)
        want = run(reference.conv1x1_bn_relu, False)(*(t.double() for t in tensors))
        assert relative_error(y, want) <= (1e-5 if dtype != torch.bfloat16 else 2e-2)
    elif n * height * width > 8:  # a few values a channel: variances near 0, which no type resolves
        assert_matches(run(op, True), run(reference.conv1x1_bn_relu, True), *tensors)


def test_reference_can_be_forced() -> None:
    tensors = operands(2, 16, 24, 9, 8)
    with backend.use("reference"), torch.no_grad():
        assert torch.equal(run(op, False)(*tensors), run(reference.conv1x1_bn_relu, False)(*tensors))
