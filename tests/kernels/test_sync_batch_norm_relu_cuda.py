"""The CUDA C++ kernels of batch norm, compiled for the CPU (cuda_on_host.h), against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from psp_fast.kernels import sync_batch_norm_relu_cuda as kernels
from psp_fast.ops import reference, sync_batch_norm_relu
from tests.kernels.on_host import emulated, needs_compiler, run_ops_on
from tests.ops.checks import LAYOUTS, TOLERANCE, random, relative_error

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS, MOMENTUM = 1e-3, 0.3
# Sizes that packs of 16 bytes divide, and others: a row, one place, more channels than a tile, several groups.
SHAPES = ((2, 24, 5, 8), (3, 5, 13, 17), (1, 1, 1, 1), (7, 3, 1, 1), (1, 8, 1, 40), (5, 140, 2, 4), (2, 7, 40, 36))
OPS = torch.ops.psp_fast

pytestmark = needs_compiler


module = emulated("sync_batch_norm_relu_on_host")


@pytest.fixture(autouse=True)
def on_host(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the op on the emulated device: 3 multiprocessors, 48 KB of shared memory."""
    run_ops_on(module, monkeypatch)
    monkeypatch.setattr(kernels, "_stream", lambda x: 0)
    yield
    use_device(module)


def use_device(module: ModuleType, multiprocessors: int = 3, shared_memory: int = 48 << 10) -> None:
    module.set_device(multiprocessors, shared_memory)
    kernels._plan.cache_clear()


class Case:
    """One call's arguments, and what the reference makes of them in float64 and in the map's own type."""

    def __init__(
        self, x: Tensor, *, affine: bool = True, residual: bool = True, relu: bool = True, training: bool = True
    ) -> None:
        c = x.shape[1]
        self.x, self.relu, self.training = x, relu, training
        self.weight, self.bias = (random(c, seed=1), random(c, seed=2)) if affine else (None, None)
        self.residual = torch.empty_like(x).copy_(random(*x.shape, seed=3)) if residual else None
        self.dy = torch.empty_like(x).copy_(random(*x.shape, seed=4) - 0.5)
        self.running = (random(c, seed=5), random(c, seed=6).abs() + 0.1)
        self.exact = self.run(reference.sync_batch_norm_relu, torch.float64)
        self.plain = self.exact if x.dtype == torch.float32 else self.run(reference.sync_batch_norm_relu, x.dtype)

    def run(self, op: Callable[..., Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """y, gradients and running statistics of op on maps of this type."""
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        leaf = {
            name: t if t is None else t.detach().to(dtype if t.dim() == 4 else kept).requires_grad_()
            for name, t in (("x", self.x), ("residual", self.residual), ("weight", self.weight), ("bias", self.bias))
        }
        mean, var = (t.to(kept, copy=True) for t in self.running)
        options = {"training": self.training, "momentum": MOMENTUM, "eps": EPS, "relu": self.relu}
        y = op(leaf["x"], leaf["weight"], leaf["bias"], mean, var, residual=leaf["residual"], **options)
        inputs = {name: t for name, t in leaf.items() if t is not None}
        grads = torch.autograd.grad(y, list(inputs.values()), self.dy.to(dtype))
        results = {f"d{name}": grad for name, grad in zip(inputs, grads, strict=True)}
        return {"y": y.detach(), "running_mean": mean, "running_var": var, **results}

    def check(self, **got: Tensor) -> None:
        for name, value in got.items():
            want = self.exact[name]
            assert value.shape == want.shape
            if value.dtype == torch.float32:
                limit = TOLERANCE[torch.float32]
            else:
                factor = 2 if name == "y" else 3
                limit = factor * relative_error(self.plain[name], want) + torch.finfo(value.dtype).eps / 100
            assert relative_error(value, want) <= limit, (name, relative_error(value, want), limit)


def check_steps(case: Case) -> None:
    """The four ops that read a map each, put together as with a process group."""
    x = case.x
    count = x.numel() // x.shape[1]
    if case.training:
        mean, m2 = OPS.batch_norm_statistics(x)
        want = torch.stack((x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0) * count))
        torch.testing.assert_close(torch.stack((mean, m2)).double(), want, rtol=2e-6, atol=2e-6)
        invstd = (m2 / count + EPS).rsqrt()
    else:
        mean, invstd = case.running[0], (case.running[1] + EPS).rsqrt()
    affine = (mean, invstd, case.weight, case.bias)
    y = OPS.batch_norm_apply(x, *affine, case.residual, case.relu)
    assert y.stride() == x.stride()
    sums = OPS.batch_norm_backward_sums(case.dy, x, y, *affine, case.relu)
    means = sums / count if case.training else None
    dx, g = OPS.batch_norm_backward_input(case.dy, x, y, *affine, means, case.relu, case.residual is not None)
    parameters = {} if case.weight is None else {"dbias": sums[0], "dweight": sums[1]}
    case.check(y=y, dx=dx, **parameters, **({} if case.residual is None else {"dresidual": g}))
    if case.residual is None:
        assert torch.equal(OPS.batch_norm_backward_sums(case.dy, x, None, *affine, case.relu), sums)
        again, _ = OPS.batch_norm_backward_input(case.dy, x, None, *affine, means, case.relu, False)
        assert torch.equal(again, dx)


def check_op(case: Case) -> None:
    """The op itself, which reads a map once where the emulated device has room for it."""
    case.check(**case.run(sync_batch_norm_relu, case.x.dtype))


def one_read(x: Tensor) -> tuple[int, int]:
    """How many groups of channels follow each other forward and backward; 0 where x is read twice."""
    return kernels.plan_of(x, x.is_contiguous(memory_format=torch.channels_last)).one_read


@pytest.mark.usefixtures("poison_empty")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    x = random(*shape, dtype=dtype, layout=layout)
    training = x.numel() > shape[1]
    case = Case(x, training=training)
    check_steps(case)
    check_op(case)


@pytest.mark.parametrize("training", [True, False], ids=["batch", "constant"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_options(affine: bool, residual: bool, relu: bool, training: bool) -> None:
    x = random(2, 24, 5, 8, layout="channels_last")
    case = Case(x, affine=affine, residual=residual, relu=relu, training=training)
    check_steps(case)
    check_op(case)


# Multiprocessors and shared memory, and how many groups of channels then follow each other forward and backward.
@pytest.mark.usefixtures("poison_empty")
@pytest.mark.parametrize(
    ("device", "groups"),
    [
        ((4, 32 << 10), (1, 4)),
        ((4, 0), (2, 7)),
        ((10, 0), (1, 2)),  # backward: two tiles at a time, each shared by five blocks
        ((1, 200 << 10), (2, 4)),
        ((1, 0), (7, 0)),
    ],
)
def test_one_read_channels_last(device: tuple[int, int], groups: tuple[int, int], module: ModuleType) -> None:
    x = random(3, 200, 8, 25, dtype=torch.bfloat16, layout="channels_last")
    use_device(module, *device)
    assert one_read(x) == groups
    check_op(Case(x))


@pytest.mark.usefixtures("poison_empty")
@pytest.mark.parametrize(("device", "groups"), [((4, 32 << 10), (2, 5)), ((4, 0), (3, 0))])
def test_one_read_nchw(device: tuple[int, int], groups: tuple[int, int], module: ModuleType) -> None:
    x = random(3, 5, 80, 80)
    use_device(module, *device)
    assert one_read(x) == groups
    check_op(Case(x))


def test_maps_that_are_not_aligned_are_read_twice() -> None:
    aligned = random(2, 24, 5, 8)
    x = torch.empty(aligned.numel() + 1)[1:].view_as(aligned).copy_(aligned)
    forward = [OPS.batch_norm_forward(t, *[None] * 5, 0.0, EPS, True) for t in (x, aligned)]
    torch.testing.assert_close(*forward, rtol=1e-5, atol=1e-6)
    _, mean, invstd, mask = forward[0]
    assert mask.numel() == 0  # bits are the CPU kernels' own
    backward = [OPS.batch_norm_backward(aligned, t, None, mean, invstd, None, None, True, True) for t in (x, aligned)]
    torch.testing.assert_close(*backward, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views(layout: str) -> None:
    whole = random(4, 16, 20, 24, layout=layout)
    for x in (whole[:, 1:7], whole[:, :, 3:16, 5:22], whole.transpose(1, 3), whole[:, :1].expand(4, 4, 20, 24)):
        check_op(Case(x))


def test_statistics_of_a_large_mean() -> None:
    for layout in LAYOUTS:
        x = (random(4, 8, 40, 40, dtype=torch.float64, layout=layout) + 3000).float()
        want = x.double().var((0, 2, 3), correction=0) * 6400
        assert relative_error(OPS.batch_norm_statistics(x)[1], want) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_inf_stay_in_their_channel(layout: str) -> None:
    x = random(2, 8, 5, 8, layout=layout)
    x[0, 1, 2, 3], x[1, 4, 0, 0] = torch.nan, torch.inf
    case = Case(x, residual=False)
    got = case.run(sync_batch_norm_relu, x.dtype)
    for name in ("y", "dx"):
        torch.testing.assert_close(got[name].double(), case.exact[name], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_gradient_of_nan_passes_constant_statistics() -> None:
    x = torch.full((1, 8, 1, 4), torch.nan)
    dx, g = OPS.batch_norm_backward_input(torch.ones_like(x), x, x, *torch.ones(2, 8), None, None, None, True, True)
    assert torch.equal(dx, torch.ones_like(x)) and torch.equal(g, dx)


def test_empty_batch() -> None:
    for layout in LAYOUTS:
        x = random(0, 24, 5, 8, layout=layout)
        assert torch.equal(OPS.batch_norm_statistics(x), torch.zeros(2, 24))
        affine = (torch.zeros(24), torch.ones(24), None, None)
        assert torch.equal(OPS.batch_norm_backward_sums(x, x, x, *affine, True), torch.zeros(2, 24))
        assert OPS.batch_norm_apply(x, *affine, None, True).shape == x.shape
        assert OPS.batch_norm_backward_input(x, x, x, *affine, None, True, False)[0].shape == x.shape


def test_is_deterministic() -> None:
    case = Case(random(3, 264, 9, 11, layout="channels_last"))
    results = [case.run(sync_batch_norm_relu, case.x.dtype) for _ in range(2)]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_running_statistics_of_another_type() -> None:
    x = random(2, 24, 5, 8, layout="channels_last")
    running = [torch.zeros(24, dtype=torch.float64), torch.ones(24, dtype=torch.float64)]
    want = [t.clone() for t in running]
    y = sync_batch_norm_relu(x, None, None, *running, training=True)
    exact = reference.sync_batch_norm_relu(x.double(), None, None, *want, training=True)
    assert relative_error(y, exact) <= TOLERANCE[torch.float32]
    torch.testing.assert_close(running, want, rtol=1e-6, atol=1e-6)


def test_opcheck() -> None:
    x = random(2, 24, 5, 8, layout="channels_last")
    running = (torch.zeros(24), torch.ones(24))
    torch.library.opcheck(OPS.batch_norm_forward.default, (x, None, None, None, *running, MOMENTUM, EPS, True))
    torch.library.opcheck(OPS.batch_norm_forward.default, (x, None, None, x, None, None, MOMENTUM, EPS, True))


def test_compile() -> None:
    x = random(2, 24, 5, 8, layout="channels_last").requires_grad_()
    results = []
    for op in (sync_batch_norm_relu, torch.compile(sync_batch_norm_relu, fullgraph=True, backend="aot_eager")):
        mean, var = torch.zeros(24), torch.ones(24)
        y = op(x, None, None, mean, var, training=True)
        results.append((y, mean, var, *torch.autograd.grad(y.square().sum(), x)))
    torch.testing.assert_close(*results)


def test_too_many_values_are_refused(module: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 values a channel, not 2147483648"):
        module.BatchNormPlan("float32", True, (2**15, 4, 2**16))


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 4), st.sampled_from((1, 3, 8, 24, 72)), st.integers(2, 9), st.integers(5, 12)),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(list(LAYOUTS)),
    device=st.tuples(st.integers(1, 5), st.sampled_from((0, 8 << 10, 40 << 10))),
    options=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_map_on_any_device(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str,
    device: tuple[int, int],
    options: tuple[bool, bool, bool],
    module: ModuleType,
) -> None:
    use_device(module, *device)
    affine, residual, relu = options
    case = Case(random(*shape, dtype=dtype, layout=layout), affine=affine, residual=residual, relu=relu)
    check_steps(case)
    check_op(case)
