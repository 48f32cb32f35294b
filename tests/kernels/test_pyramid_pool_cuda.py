"""The CUDA C++ kernels of pyramid pooling, compiled for the CPU (cuda_on_host.h), against the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from psp_fast.ops import reference
from psp_fast.ops.pyramid_pool import pyramid_pool
from tests.kernels.on_host import emulated, needs_compiler, run_ops_on
from tests.ops.checks import LAYOUTS, random

BINS = (1, 2, 3, 6)
SIDES = ((1, 1), (1, 9), (9, 1), (7, 5), (31, 17), (60, 60))
MODES = ("avg", "max")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SUMS = 2e-6  # error of a sum in float32, relative to the sum of sizes
EVERY_BLOCK = 2**32 - 1

pytestmark = [needs_compiler, pytest.mark.usefixtures("poison_empty")]
every_mode = pytest.mark.parametrize("mode", MODES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


module = emulated("pyramid_pool_on_host")


@pytest.fixture(autouse=True)
def on_host(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the op on the emulated device."""
    run_ops_on(module, monkeypatch)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    yield
    module.set_grid(EVERY_BLOCK)


def check(x: Tensor, bins: Sequence[int], mode: str) -> list[Tensor]:
    """Every value, place and gradient of the op at x, none further from the truth than its type's rounding."""
    x = x.detach().requires_grad_()
    truth = x.detach().double().requires_grad_()
    outputs, exact = pyramid_pool(x, bins, mode), reference.pyramid_pool(truth, bins, mode)
    dy = [torch.empty_like(y).copy_(random(*y.shape, seed=level + 1)) for level, y in enumerate(outputs)]
    (dx,) = torch.autograd.grad(outputs, x, dy)
    (dx_exact,) = torch.autograd.grad(exact, truth, [g.double() for g in dy], retain_graph=True)
    (dx_sizes,) = torch.autograd.grad(exact, truth, [g.double().abs() for g in dy])
    sizes = reference.pyramid_pool(truth.detach().abs(), bins, mode)
    layout = LAYOUTS["channels_last" if x.stride(1) == 1 and not x.is_contiguous() and x.shape[1] > 1 else "nchw"]
    for y, want, size in zip((*outputs, dx), (*exact, dx_exact), (*sizes, dx_sizes), strict=True):
        assert y.dtype == x.dtype and y.is_contiguous(memory_format=layout)
        assert_close(y, want, size)
    if mode == "max":
        _, places = torch.ops.psp_fast.pyramid_pool(x.detach(), bins, mode)
        for level, (b, y) in enumerate(zip(bins, outputs, strict=True)):
            want, indices = F.adaptive_max_pool2d(truth.detach(), b, return_indices=True)
            assert torch.equal(y.double(), want) and torch.equal(places[level].long(), indices)
    return [y.detach() for y in (*outputs, dx)]


def assert_close(got: Tensor, want: Tensor, sizes: Tensor) -> None:
    """Element by element; sizes are the sums of the absolute values of what was added up."""
    kind = torch.finfo(got.dtype)
    error = (got.detach().double() - want.detach()).abs()
    allowed = (kind.eps + SUMS) * sizes + kind.smallest_normal * kind.eps
    assert got.shape == want.shape and (error <= allowed).all(), (error / allowed).max().item()


@every_layout
@every_dtype
@every_mode
def test_matches_reference(mode: str, dtype: torch.dtype, layout: str) -> None:
    for height, width in SIDES:
        for n, c in ((1, 8), (3, 1)):
            check(random(n, c, height, width, dtype=dtype, layout=layout), BINS, mode)


# More channels than a block takes, one by one and in packs of 16 bytes.
@every_layout
@every_dtype
@every_mode
def test_channel_counts(mode: str, dtype: torch.dtype, layout: str) -> None:
    for c in (33, 264):
        check(random(2, c, 3, 4, dtype=dtype, layout=layout), (1, 2), mode)


@every_layout
@every_mode
@pytest.mark.parametrize("bins", [(1,), (9,), (6, 1), (7, 5, 3), (30,), tuple(range(1, 12)), (1,) * 17], ids=str)
def test_other_bins(bins: tuple[int, ...], mode: str, layout: str) -> None:
    """Cells beyond the map's sides, any order, and more levels than a launch takes."""
    for dtype, (height, width) in zip(DTYPES, ((7, 5), (1, 1), (13, 17)), strict=True):
        check(random(2, 3, height, width, dtype=dtype, layout=layout), bins, mode)


@every_layout
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@every_mode
def test_views(mode: str, dtype: torch.dtype, layout: str) -> None:
    whole = random(3, 20, 7, 6, dtype=dtype, layout=layout)
    views = (
        whole[:, :16],  # packs fit, but for the strides of float16
        whole[:, 1:17],  # packs of no type fit: their address is one element off
        whole[:, 2:7],
        whole[:, :, 1:5, 2:6],
        whole[:, :, ::2, ::3],
        whole[:, :1].expand(3, 4, 7, 6),
        whole[:, :, :1].expand(3, 20, 4, 6),
        whole.transpose(1, 3),
    )
    for view in views:
        check(view, (1, 2, 3), mode)


# Fewer blocks than tasks: each takes several, one after another.
@every_layout
@every_dtype
@every_mode
def test_small_grids(mode: str, dtype: torch.dtype, layout: str, module: ModuleType) -> None:
    for c in (5, 16):
        x = random(2, c, 5, 7, dtype=dtype, layout=layout)
        module.set_grid(EVERY_BLOCK)
        want = check(x, BINS, mode)
        module.set_grid(3)
        assert all(map(torch.equal, check(x, BINS, mode), want))


@every_layout
@every_mode
def test_nan_and_infinity(mode: str, layout: str) -> None:
    x = random(1, 6, 13, 17)
    x[0, 0, 3, 4] = x[0, 0, 3, 9] = x[0, 0, 8, 2] = torch.nan
    x[0, 1, 5, 5] = torch.inf
    x[0, 2, 0, 0], x[0, 2, -1, -1] = torch.inf, -torch.inf
    x[0, 3] = -torch.inf
    x[0, 4] = torch.nan
    results = []
    for op in (pyramid_pool, reference.pyramid_pool):
        leaf = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
        outputs = op(leaf, BINS, mode)
        dy = [random(*y.shape, seed=1) for y in outputs]
        results.append((*outputs, *torch.autograd.grad(outputs, leaf, dy)))
    torch.testing.assert_close(*results, equal_nan=True)


@every_layout
@every_dtype
def test_maximum_is_the_first_of_equals(dtype: torch.dtype, layout: str) -> None:
    check(random(2, 20, 13, 17, dtype=dtype, layout=layout).mul(2).round(), BINS, "max")


@every_layout
@every_mode
def test_empty_batch(mode: str, layout: str) -> None:
    x = random(0, 5, 13, 17, layout=layout).requires_grad_()
    outputs = pyramid_pool(x, BINS, mode)
    assert [tuple(y.shape) for y in outputs] == [(0, 5, b, b) for b in BINS]
    (dx,) = torch.autograd.grad(outputs, x, [torch.ones_like(y) for y in outputs])
    assert dx.shape == x.shape


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 14), st.integers(1, 14)),
    step=st.integers(1, 3),
    order=st.permutations(range(4)),
    dtype=st.sampled_from(DTYPES),
    bins=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    mode=st.sampled_from(MODES),
    blocks=st.sampled_from((2, EVERY_BLOCK)),
)
def test_any_map(
    shape: tuple[int, ...],
    step: int,
    order: list[int],
    dtype: torch.dtype,
    bins: list[int],
    mode: str,
    blocks: int,
    module: ModuleType,
) -> None:
    module.set_grid(blocks)
    check(random(*shape, dtype=dtype).permute(order)[:, :, ::step, ::step], bins, mode)
