"""conv1x1_bn_relu's Triton kernels: values in the interpreter, and compiled for GPUs that this machine may not have."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from psp_fast.kernels import conv1x1_bn_relu as kernels
from psp_fast.kernels.conv1x1_bn_relu import CONFIGS, Config
from tests.kernels.ahead_of_time import ARCHITECTURES, assert_fit
from tests.kernels.interpreter import correct_bfloat16
from tests.ops import checks
from tests.ops.checks import LAYOUTS, relative_error

FLAGS = {  # those that psp_fast.ops launches a kernel with, the last with all that it can do
    "multiply_with_statistics": (
        {"GROUPED": False, "PROLOGUE": False, "RELU": False},
        {"GROUPED": True, "PROLOGUE": False, "RELU": False},
        {"GROUPED": False, "PROLOGUE": True, "RELU": True},
    ),
    "multiply_with_affine": tuple(
        {"RESIDUAL": residual, "RELU": relu} for residual in (False, True) for relu in (False, True)
    ),
    "multiply_back": ({"NORMALISED": False, "RELU": False}, {"NORMALISED": True, "RELU": True}),
    "multiply_over_pixels": ({"PROLOGUE": False, "RELU": False}, {"PROLOGUE": True, "RELU": True}),
}
SIZES = [(2, 13, 21, 3, 9), (1, 1, 1, 1, 1), (1, 130, 67, 1, 5), (3, 5, 70, 1, 1)]
"""(N, C, O, H, W)"""
FACTORS = ("parts", "stats", "scale", "shift", "mean", "invstd", "bias")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}  # half precisions: half a step
HALVES = (torch.float16, torch.bfloat16)
TYPES = {4: ("fp32",), 2: ("fp16", "bf16")}
"""By bytes an element, as in CONFIGS."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # CPU tensors run in the interpreter

pytestmark = pytest.mark.usefixtures("poison_empty", "bfloat16")


@pytest.fixture
def bfloat16(needs_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    correct_bfloat16(monkeypatch)


def random(*shape: int, **kind: Any) -> Tensor:
    return checks.random(*shape, **kind).to(DEVICE)


class Case:
    """A map x and what a training step has of its convolution's other operands."""

    def __init__(self, n: int, c: int, o: int, height: int, width: int, dtype: torch.dtype, layout: str) -> None:
        self.x = random(n, c, height, width, dtype=dtype, layout=layout)
        self.dz = random(n, o, height, width, dtype=dtype, layout=layout, seed=1)
        self.residual = random(n, o, height, width, dtype=dtype, seed=2)
        self.weight = random(o, c, dtype=dtype, seed=3)
        self.factor, self.bias = random(o, seed=9), random(o, seed=4)
        self.scale, self.shift, self.mean, self.invstd = (random(c, seed=seed) for seed in (5, 6, 7, 8))
        self.tolerance = TOLERANCE[dtype]

    def before(self, relu: bool = True) -> kernels.Normalisation:
        return kernels.Normalisation(self.x, self.scale, self.shift, self.mean, self.invstd, relu)

    def normalised(self) -> Tensor:
        """relu(x * scale + shift), in float64 as rounded to x's type."""
        y = (self.x.float() * along(self.scale) + along(self.shift)).relu()
        return y.to(self.x.dtype).double()

    def close(self, got: Tensor, want: Tensor) -> bool:
        return got.shape == want.shape and relative_error(got, want) <= self.tolerance


def along(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("nchw,oc->nohw", x.double(), weight.double())


def statistics(z: Tensor) -> Tensor:
    values = z.double().transpose(0, 1).flatten(1)
    mean = values.mean(1)
    return torch.stack([mean, (values - mean[:, None]).square().sum(1)])


def check_statistics(case: Case) -> None:
    (z,), (stats,) = kernels.matmul_statistics([case.x], [case.weight])
    assert case.close(z, product(case.x, case.weight))
    assert relative_error(stats, statistics(z)) <= 1e-5
    (z,), (stats,) = kernels.matmul_statistics([case.x], [case.weight], case.scale, case.shift, relu=True)
    assert case.close(z, product(case.normalised(), case.weight))
    assert relative_error(stats, statistics(z)) <= 1e-5
    assert z.stride() == case.dz.stride() and z.dtype == case.x.dtype


def check_affine(case: Case) -> None:
    y = kernels.matmul_affine_relu(case.x, case.weight, case.factor, case.bias, case.residual)
    plain = product(case.x, case.weight) * along(case.factor) + along(case.bias)
    assert case.close(y, (plain + case.residual).relu())
    assert case.close(kernels.matmul_affine_relu(case.x, case.weight, case.factor, case.bias, relu=False), plain)


def check_input_gradient(case: Case) -> None:
    dx, none = kernels.matmul_input_gradient(case.dz, case.weight)
    want = product(case.dz, case.weight.t())
    assert none is None and case.close(dx, want)
    g, sums = kernels.matmul_input_gradient(case.dz, case.weight, case.before())
    assert case.close(g, want * (case.x.double() * along(case.scale) + along(case.shift) > 0))
    normal = (case.x.double() - along(case.mean)) * along(case.invstd)
    exact = torch.stack([(g * factor).double().sum((0, 2, 3)) for factor in (torch.ones_like(normal), normal)])
    assert sums is not None and relative_error(sums, exact) <= 1e-5
    assert torch.equal(kernels.matmul_input_gradient(case.dz, case.weight, case.before(relu=False))[0], dx)


def check_weight_gradient(case: Case) -> None:
    dw = kernels.matmul_weight_gradient(case.dz, case.x)
    assert case.close(dw, torch.einsum("nohw,nchw->oc", case.dz.double(), case.x.double()))
    dw = kernels.matmul_weight_gradient(case.dz, case.x, case.scale, case.shift, relu=True)
    assert case.close(dw, torch.einsum("nohw,nchw->oc", case.dz.double(), case.normalised()))


CHECKS = (check_statistics, check_affine, check_input_gradient, check_weight_gradient)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("sizes", "dtype"), [*((s, torch.float32) for s in SIZES), *((SIZES[0], t) for t in HALVES)])
def test_products(sizes: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    for check in CHECKS:
        check(Case(*sizes, dtype, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", CONFIGS)
def test_every_config(monkeypatch: pytest.MonkeyPatch, size: int, layout: str) -> None:
    dtype = torch.float32 if size == 4 else torch.float16
    for config in CONFIGS[size]:
        monkeypatch.setitem(CONFIGS, size, (config,) * 2)
        case = Case(1, config.inner + 1, config.columns + 1, 3, config.rows // 2, dtype, layout)  # over a tile each way
        for check in CHECKS:
            check(case)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_parts(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    monkeypatch.setattr(kernels, "SPLIT_PIXELS", 1)
    for check in (check_statistics, check_input_gradient, check_weight_gradient):
        check(Case(2, 3, 4, 14, 20, torch.float32, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_of_a_large_mean_are_accurate(layout: str) -> None:
    x = random(2, 3, 14, 20, layout=layout)
    x[:, 0] += 1000
    (z,), (stats,) = kernels.matmul_statistics([x], [torch.eye(3, device=DEVICE)])
    exact = statistics(z)
    assert relative_error(stats[0], exact[0]) <= 1e-6
    for channel in range(3):
        assert relative_error(stats[1, channel], exact[1, channel]) <= 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (2, 5)])
def test_a_group_is_as_its_members(bins: tuple[int, ...], layout: str) -> None:
    xs = [random(3, 20, b, b, layout=layout, seed=b) for b in bins]
    weights = [random(17, 20, seed=k) for k in range(len(bins))]
    zs, stats = kernels.matmul_statistics(xs, weights)
    for x, weight, z, stat in zip(xs, weights, zs, stats, strict=True):
        assert relative_error(z, product(x, weight)) <= 1e-5
        assert relative_error(stat, statistics(z)) <= 1e-5
        assert z.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batch(layout: str) -> None:
    case = Case(0, 5, 7, 3, 4, torch.float32, layout)
    zs, stats = kernels.matmul_statistics([case.x, case.x], [case.weight, case.weight])
    assert [z.shape for z in zs] == [(0, 7, 3, 4)] * 2
    assert not any(stat.any() for stat in stats)
    assert kernels.matmul_affine_relu(case.x, case.weight, case.factor, case.bias).shape == (0, 7, 3, 4)
    dx, sums = kernels.matmul_input_gradient(case.dz, case.weight, case.before())
    assert dx.shape == case.x.shape and sums is not None and not sums.any()
    assert not kernels.matmul_weight_gradient(case.dz, case.x).any()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's, in the interpreter
def test_nan_and_infinity_pass() -> None:
    x = random(1, 2, 1, 4)
    x[0, 0, 0, 0], x[0, 0, 0, 1], x[0, 0, 0, 2] = torch.nan, torch.inf, -torch.inf
    weight = torch.tensor([[1.0, 0.0]], device=DEVICE)
    one, zero = torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE)
    want = torch.tensor([torch.nan, torch.inf, 0.0, x[0, 0, 0, 3].relu()], device=DEVICE).view(1, 1, 1, 4)
    y = kernels.matmul_affine_relu(x, weight, one[:1], zero[:1])
    torch.testing.assert_close(y, want, equal_nan=True)
    (z,), _ = kernels.matmul_statistics([x], [weight], one, zero, relu=True)
    torch.testing.assert_close(z, want, equal_nan=True)


def test_sliced_and_expanded_maps() -> None:
    whole = random(2, 12, 8, 9, layout="channels_last")
    weight = random(6, 5)
    for view in (whole[:, 2:7], whole[:, :5, ::2, 1:], whole[:, :1].expand(2, 5, 8, 9), whole[:, :5].transpose(2, 3)):
        (z,), _ = kernels.matmul_statistics([view], [weight])
        assert relative_error(z, product(view, weight)) <= 1e-5


def request(kernel: str, dtype: str, arch: int, flags: dict[str, Any], config: Config | None = None) -> dict[str, Any]:
    """As `resources` takes it, for aligned tensors with many channels and pixels; a group's have few."""
    constexprs = dict(flags)
    if config is not None:
        constexprs |= {"ROWS": config.rows, "COLUMNS": config.columns, "INNER": config.inner}
    if flags.get("CHANNELS_LAST") and "images" in inspect.signature(getattr(kernels, kernel).fn).parameters:
        constexprs["images"] = 1  # Triton makes a constant of every 1
    signature = {}
    numbers = ("pixels", "images", "channels", "outputs", "columns", "steps", "count", "a_part")
    for name in inspect.signature(getattr(kernels, kernel).fn).parameters:
        if name in constexprs:
            signature[name] = "constexpr"
        elif name.rstrip("0123") in numbers:
            signature[name] = "i32"
        else:
            signature[name] = "*fp32" if name in FACTORS else f"*{dtype}"
    divisible = ("channels", "outputs") if flags.get("GROUPED") else ("pixels", "channels", "outputs")
    return {
        "module": kernels.__name__,
        "kernel": kernel,
        "signature": signature,
        "constexprs": constexprs,
        "arch": arch,
        "num_warps": config.warps if config else 4,
        "num_stages": config.stages if config else 3,
        "aligned": [name for name, kind in signature.items() if kind[0] == "*" or name.rstrip("0123") in divisible],
    }


def launches(arch: int, size: int) -> list[dict[str, Any]]:
    """Requests for what psp_fast.ops launches on elements of so many bytes: every kernel, flag and layout.

    With all that a kernel can do, channels_last, in every configuration. Else configurations go by turns, and so do the
    half precisions: over the three architectures each comes in every configuration, and in both half precisions.
    """
    requests = []
    turn = ARCHITECTURES.index(arch)
    for kernel, all_flags in FLAGS.items():
        configs = CONFIGS[size][:2] if kernel == "multiply_over_pixels" else CONFIGS[size]  # as _weight_config
        for flags, channels_last in itertools.product(all_flags, (True, False)):
            turn += 1
            every = flags is all_flags[-1] and channels_last
            for config in configs if every else configs[turn % len(configs) :][:1]:
                dtype = TYPES[size][turn % len(TYPES[size])]
                requests.append(request(kernel, dtype, arch, {**flags, "CHANNELS_LAST": channels_last}, config))
    merge = {"PARTS": kernels.MERGE_PARTS, "COLUMNS": kernels.MERGE_COLUMNS}
    for grouped, config in itertools.product((False, True), CONFIGS[4] if size == 4 else ()):  # the same rows for both
        flags = {**merge, "GROUPED": grouped, "ROWS": config.rows}
        requests.append(request("merge_statistics", "fp32", arch, flags))
    return requests + [request("sum_parts", dtype, arch, merge) for dtype in TYPES[size]]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("size", TYPES)
def test_every_launch_compiles_without_spills(arch: int, size: int) -> None:
    assert_fit(launches(arch, size))
