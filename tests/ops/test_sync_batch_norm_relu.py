"""sync_batch_norm_relu against plain PyTorch: values, gradients, options, layouts, types, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psp_fast.ops import backend, reference
from psp_fast.ops.sync_batch_norm_relu import sync_batch_norm_relu
from tests.ops.checks import LAYOUTS, assert_matches, outputs_and_gradients, random
from tests.ops.sync_batch_norm_relu import DTYPES, SHAPES, assert_op_matches, vectors

CAPABILITIES = ["baseline", "avx2", "avx512"]
pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_reference(capability: str, dtype: torch.dtype, layout: str) -> None:
    for shape in SHAPES:
        x, residual = random(*shape, dtype=dtype, layout=layout), random(*shape, dtype=dtype, layout=layout, seed=1)
        assert_op_matches(x, residual)
        assert_op_matches(x, None, relu=False)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_every_option(implementation: str, training: bool, relu: bool, affine: bool, with_residual: bool) -> None:
    for layout in LAYOUTS:
        x = random(2, 5, 4, 7, layout=layout)
        residual = random(2, 5, 4, 7, layout=layout, seed=1) if with_residual else None
        assert_op_matches(x, residual, training=training, relu=relu, affine=affine)


def test_optional_arguments_one_by_one() -> None:
    x, residual = random(2, 5, 4, 7), random(2, 5, 4, 7, seed=1)
    weight, bias, _, _ = vectors(5)
    for parameters in ((weight, None), (None, bias)):
        assert_matches(
            lambda x, weight, bias: sync_batch_norm_relu(x, weight, bias, None, None, training=True),
            lambda x, weight, bias: reference.sync_batch_norm_relu(x, weight, bias, None, None, training=True),
            x,
            *parameters,
        )
    assert_op_matches(x, residual, tracked=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_inputs(dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        whole, other = random(3, 10, 12, 14, dtype=dtype, layout=layout), random(3, 10, 12, 14, dtype=dtype, seed=1)
        for part in (
            (slice(None), slice(2, 7)),
            (slice(None), slice(None), slice(3, 9), slice(5, 12)),
            (slice(None), slice(None), slice(None, None, 2), slice(None, None, 3)),
            (slice(1, 2),),
            (slice(None), slice(0, 1)),
        ):
            assert_op_matches(whole[part], other[part])
        assert_op_matches(whole.transpose(1, 3), other.transpose(1, 3))
        assert_op_matches(whole[:, :, :, :1].expand(3, 10, 12, 5), other[:, :1, :, :5].expand(3, 10, 12, 5))


def test_residual_of_another_type() -> None:
    for dtype, other in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        x, residual = random(2, 5, 4, 7, dtype=dtype), random(2, 5, 4, 7, seed=1, dtype=other).requires_grad_()
        y = sync_batch_norm_relu(x, None, None, None, None, training=True, residual=residual)
        want = reference.sync_batch_norm_relu(x, None, None, None, None, training=True, residual=residual.detach())
        assert y.dtype == dtype
        torch.testing.assert_close(y, want, rtol=2e-2, atol=2e-2)
        (dr,) = torch.autograd.grad(y, residual, torch.ones_like(y))
        assert dr.dtype == other and torch.equal(dr.bool(), y > 0)


def test_memory_format_is_kept(implementation: str) -> None:
    for layout, memory_format in LAYOUTS.items():
        x, residual = (random(2, 8, 6, 6, layout=layout, seed=i).requires_grad_() for i in range(2))
        y = sync_batch_norm_relu(x, None, None, None, None, training=True, residual=residual)
        gradients = torch.autograd.grad(y, (x, residual), random(2, 8, 6, 6))
        assert all(t.is_contiguous(memory_format=memory_format) for t in (y, *gradients))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("momentum", [1.0, 0.1])
def test_running_statistics_of_small_values(implementation: str, layout: str, momentum: float) -> None:
    """A variance far below the one before keeps its digits."""
    x = 1e-3 * random(2, 5, 9, 7, layout=layout)
    running = [torch.zeros(5), torch.ones(5)]
    sync_batch_norm_relu(x, None, None, *running, training=True, momentum=momentum)
    var, mean = torch.var_mean(x.double(), (0, 2, 3))
    torch.testing.assert_close(running[0].double(), momentum * mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(running[1].double(), 1 - momentum + momentum * var, rtol=1e-5, atol=0)


def test_updates_of_running_statistics_are_counted(implementation: str) -> None:
    running = [torch.zeros(5), torch.ones(5)]
    before = [t._version for t in running]
    sync_batch_norm_relu(random(2, 5, 4, 7), None, None, *running, training=True)
    assert all(t._version > version for t, version in zip(running, before, strict=True))


def test_backward_finds_what_a_frozen_layer_used() -> None:
    """Though its running statistics have changed since."""
    weight, bias, mean, var = vectors(5)
    found = []
    for change in (0.0, 3.0):
        x = random(2, 5, 4, 7).requires_grad_()
        running = [mean.clone(), var.clone()]
        y = sync_batch_norm_relu(x, weight.requires_grad_(), bias, *running, training=False)
        running[0].add_(change)
        found.append(torch.autograd.grad(y.square().sum(), (x, weight)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "channels"), [(torch.float32, 80), (torch.float32, 81), (torch.bfloat16, 144)])
def test_large_maps(capability: str, dtype: torch.dtype, channels: int, layout: str) -> None:
    """Those that are written past the caches, where vectors are aligned: never those of rows of 81 channels."""
    x = random(2, channels, 121, 125, dtype=dtype, layout=layout)
    assert_op_matches(x, x * 0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_of_a_mean_far_from_zero(implementation: str, layout: str) -> None:
    shape = (2, 3, 70, 71) if implementation == "csrc/cpu" else (2, 3, 9, 71)
    x = random(*shape, layout=layout) + torch.tensor([1e4, -3e3, 0]).view(1, -1, 1, 1)
    mean, deviations = torch.ops.psp_fast.batch_norm_statistics(x)
    var, exact = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(deviations.double() * x.shape[1] / x.numel(), var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_of_a_map_in_two_parts(implementation: str, layout: str) -> None:
    """Each part is far from the other, compared to how its own values differ."""
    x = 1e-3 * random(1, 3, *((64, 66) if implementation == "csrc/cpu" else (17, 24)), layout=layout)
    x[:, :, :7] += 100
    mean, deviations = torch.ops.psp_fast.batch_norm_statistics(x)
    var, exact = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact, rtol=0, atol=2e-5)
    torch.testing.assert_close(deviations.double() * 3 / x.numel(), var, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy, which warns
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity(implementation: str, layout: str) -> None:
    x, residual = random(2, 6, 5, 7), random(2, 6, 5, 7, seed=1)
    x[0, 0, 3, 4] = torch.nan
    x[1, 1, 2, 2] = torch.inf
    x[1, 2, 4, 6] = -torch.inf
    residual[0, 3, 1, 1], residual[0, 4, 0, 0], residual[1, 4, 0, 1] = torch.nan, torch.inf, -torch.inf
    results = []
    for op in (sync_batch_norm_relu, reference.sync_batch_norm_relu):
        leaves = [t.clone().contiguous(memory_format=LAYOUTS[layout]).requires_grad_() for t in (x, residual)]
        running = [torch.zeros(6), torch.ones(6)]
        y = op(leaves[0], None, None, *running, training=True, residual=leaves[1])
        results.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y)), *running])
    for ours, want in zip(*results, strict=True):
        torch.testing.assert_close(ours, want, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_do_not_depend_on_threads(layout: str) -> None:
    x, residual = (random(2, 67, 60, 61, layout=layout, seed=i) for i in range(2))
    results = []
    for threads in (2, 1, 2):
        torch.set_num_threads(threads)
        running = [torch.zeros(67), torch.ones(67)]
        results.append(
            [
                *outputs_and_gradients(
                    lambda x, residual, running=running: sync_batch_norm_relu(
                        x, None, None, *running, training=True, residual=residual
                    ),
                    [x.requires_grad_(), residual.requires_grad_()],
                    x.dtype,
                ),
                *running,
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(0, 5, 13, 17), (2, 5, 0, 3)])
def test_empty_maps(implementation: str, shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    weight, bias = torch.ones(shape[1], requires_grad=True), torch.zeros(shape[1], requires_grad=True)
    running = [torch.full(shape[1:2], 3.0), torch.full(shape[1:2], 2.0)]
    y = sync_batch_norm_relu(x, weight, bias, *running, training=True, residual=x)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == shape
    assert weight.grad is not None and bias.grad is not None and not weight.grad.any() and not bias.grad.any()
    assert (running[0] == 3).all() and (running[1] == 2).all() and all(t._version == 0 for t in running)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_that_are_not_wanted(implementation: str, training: bool) -> None:
    weight, bias, mean, var = vectors(5)
    given = {"x": random(2, 5, 4, 7), "residual": random(2, 5, 4, 7, seed=1), "weight": weight, "bias": bias}
    everything = None
    for wanted in (list(given), *([name] for name in given)):
        tensors = {name: t.clone().requires_grad_(name in wanted) for name, t in given.items()}
        y = sync_batch_norm_relu(running_mean=mean.clone(), running_var=var.clone(), training=training, **tensors)
        gradients = dict(
            zip(wanted, torch.autograd.grad(y, [tensors[n] for n in wanted], torch.ones_like(y)), strict=True)
        )
        everything = everything or gradients
        for name in wanted:
            torch.testing.assert_close(gradients[name], everything[name], rtol=1e-5, atol=1e-5)
        assert not sync_batch_norm_relu(
            **{n: t.detach() for n, t in tensors.items()},
            running_mean=mean.clone(),
            running_var=var.clone(),
            training=training,
        ).requires_grad


def test_types_without_a_kernel_run_the_reference() -> None:
    x = random(2, 4, 5, 7, dtype=torch.float16)
    y = sync_batch_norm_relu(x, None, None, None, None, training=True)
    assert torch.equal(y, reference.sync_batch_norm_relu(x, None, None, None, None, training=True))
    with pytest.raises(TypeError, match=r"no CPU kernel for torch\.float16"):
        torch.ops.psp_fast.batch_norm_statistics(x)


def test_double_backward_is_refused() -> None:
    x = random(2, 3, 4, 5).requires_grad_()
    y = sync_batch_norm_relu(x, None, None, None, None, training=True)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        dx.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("needs_triton")
def test_triton_matches_reference(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, layout: str) -> None:
    """Several blocks of channels, several tiles a chunk, one chunk, and one more than are merged at once."""
    from psp_fast.kernels import sync_batch_norm_relu as kernels

    shapes = [(5, (1, 3, 23, 31)), (5, (1, 67, 5, 7))] if layout == "channels_last" else [(2, (2, 1, 33, 35))]
    for programs, shape in [(1024, (33, 2, 4, 8)), (1024, (1, 3, 5, 6)), *shapes]:
        monkeypatch.setattr(kernels, "_PROGRAMS", programs)
        x, residual = (random(*shape, dtype=dtype, layout=layout, seed=i) for i in range(2))
        with backend.use("triton"):
            assert backend.choose("sync_batch_norm_relu", x) == "triton"
            assert_op_matches(x, residual)


def test_autocast_keeps_the_type() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            x = random(2, 3, 4, 5, dtype=dtype)
            assert sync_batch_norm_relu(x, *vectors(3), training=True).dtype == dtype


X = torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": [[1.0]]}, TypeError, "sync_batch_norm_relu: x must be a tensor, not list"),
        ({"x": torch.zeros(2, 3, 4)}, ValueError, r"x must be \(N, C, H, W\), not \(2, 3, 4\)"),
        ({"x": X.long()}, TypeError, "x must have a float type, not torch.int64"),
        ({"weight": torch.zeros(4)}, ValueError, r"weight must have one value for each of x's 3 channels, not \(4,\)"),
        ({"bias": torch.zeros(3, dtype=torch.int32)}, TypeError, "bias must have a float type, not torch.int32"),
        ({"running_mean": 3.0}, TypeError, "running_mean must be a tensor, not float"),
        ({"running_var": torch.zeros(1, 3)}, ValueError, r"running_var .* not \(1, 3\)"),
        ({"running_var": None}, ValueError, "give both running_mean and running_var, or neither"),
        ({"running_mean": None, "running_var": None, "training": False}, ValueError, "needed where training is false"),
        ({"residual": torch.zeros(1, 3, 4, 5)}, ValueError, r"x's shape, \(2, 3, 4, 5\), not \(1, 3, 4, 5\)"),
        ({"weight": torch.zeros(3, device="meta")}, ValueError, "weight must be on x's device, cpu, not on meta"),
        ({"eps": 0}, ValueError, "eps must be above 0, not 0"),
        ({"x": torch.zeros(1, 3, 1, 1)}, ValueError, r"more than one value per channel, not x of shape \(1, 3, 1, 1\)"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    weight, bias, mean, var = vectors(3)
    arguments = {"x": X, "weight": weight, "bias": bias, "running_mean": mean, "running_var": var, "training": True}
    with pytest.raises(error, match=message):
        sync_batch_norm_relu(**{**arguments, **changed})


def test_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(reference, "sync_batch_norm_relu", lambda x, *rest, **options: calls.append(options) or x)
    sync_batch_norm_relu(X, None, None, None, None, training=True, momentum=0.7)
    assert calls == []
    with backend.use("reference"):
        sync_batch_norm_relu(X, None, None, None, None, training=True, momentum=0.7)
    assert calls[0]["momentum"] == 0.7 and calls[0]["training"]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(2, 9), st.integers(3, 9)),
    dtype=st.sampled_from(DTYPES),
    order=st.permutations(range(4)),
    steps=st.tuples(*[st.integers(1, 2)] * 4),
    options=st.fixed_dictionaries({n: st.booleans() for n in ("training", "relu", "affine", "tracked")}),
    with_residual=st.booleans(),
)
def test_any_shape_and_strides(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    order: list[int],
    steps: tuple[int, ...],
    options: dict[str, bool],
    with_residual: bool,
) -> None:
    options["tracked"] |= not options["training"]
    sizes = [shape[k] * steps[k] for k in order]
    back = [order.index(k) for k in range(4)]
    x, residual = (
        random(*sizes, dtype=dtype, seed=i).permute(back)[tuple(slice(None, None, s) for s in steps)] for i in range(2)
    )
    assert x.shape == shape
    assert_op_matches(x, residual if with_residual else None, **options)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_matches_reference(dtype: torch.dtype, layout: str) -> None:
    for shape in [*SHAPES, (4, 256, 60, 60), (2, 2048, 30, 30)]:
        x, residual = (random(*shape, dtype=dtype, layout=layout, seed=i).cuda() for i in range(2))
        for relu in (True, False):
            for training in (True, False):
                assert_op_matches(x, residual, relu=relu, training=training)
        assert_op_matches(x, None)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gpu_is_deterministic_and_uses_the_current_stream(layout: str) -> None:
    x = random(2, 67, 64, 64, layout=layout).cuda().requires_grad_()
    stream = torch.cuda.Stream()
    results = []
    for _ in range(2):
        with torch.cuda.stream(stream):
            y = sync_batch_norm_relu(x * 1, None, None, None, None, training=True)
            results.append([y, *torch.autograd.grad(y, x, torch.ones_like(y))])
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
