"""pyramid_pool against adaptive pooling: values, gradients, layouts, types, and how it behaves inside PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from psp_fast.errors import ConfigError, PspFastError
from psp_fast.ops import backend, reference
from psp_fast.ops.pyramid_pool import pyramid_pool

BINS = (1, 2, 3, 6)
SIDES = [(1, 1), (1, 9), (9, 1), (2, 5), (13, 17), (64, 64), (60, 60), (90, 90)]
MODES = ["avg", "max"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-14}

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")
in_the_interpreter = pytest.mark.usefixtures("interpreter")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def interpreter(needs_triton: None) -> None:
    """Skip a test of Triton's interpreter where there is a GPU, which runs the kernels themselves."""
    if torch.cuda.is_available():
        pytest.skip("CPU tensors run in Triton's interpreter")


@pytest.fixture(params=["auto", "triton"])
def setting(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on a GPU with the kernels that users get, and with Triton's."""
    with backend.use(request.param):
        yield request.param


def sized(implementation: str, usual: tuple[int, ...], small: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of a map, or the small one for Triton: its interpreter takes 10 ms a program."""
    return small if implementation == "triton" else usual


def make_map(*shape: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) + 0.5).to(dtype).contiguous(memory_format=layout)


def gradients(outputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(outputs))
    return [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]


def relative_error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of the truth, all levels together."""
    a = torch.cat([t.detach().double().flatten().cpu() for t in got])
    b = torch.cat([t.detach().double().flatten().cpu() for t in want])
    return ((a - b).norm() / b.norm().clamp_min(1e-300)).item()


def assert_matches(x: Tensor, bins: Sequence[int], mode: str) -> None:
    """Values and gradient at x against the reference in float64; bf16 and fp16 also against PyTorch's own error."""
    x = x.detach().requires_grad_()
    truth = x.detach().double().requires_grad_()
    outputs, expected = pyramid_pool(x, bins, mode), reference.pyramid_pool(truth, bins, mode)
    dy = gradients(outputs)
    (dx,) = torch.autograd.grad(outputs, x, dy)
    (dx_expected,) = torch.autograd.grad(expected, truth, [g.double() for g in dy])
    assert [y.shape for y in outputs] == [y.shape for y in expected]
    assert all(y.dtype == x.dtype for y in (*outputs, dx))
    if x.dtype in TOLERANCE:
        assert relative_error(outputs, expected) <= TOLERANCE[x.dtype]
        assert relative_error([dx], [dx_expected]) <= TOLERANCE[x.dtype]
    else:
        plain = x.detach().requires_grad_()
        plain_outputs = reference.pyramid_pool(plain, bins, mode)
        (plain_dx,) = torch.autograd.grad(plain_outputs, plain, dy)
        floor = torch.finfo(x.dtype).eps / 100  # where PyTorch happens to be exact
        assert relative_error(outputs, expected) <= 2 * relative_error(plain_outputs, expected) + floor
        assert relative_error([dx], [dx_expected]) <= 3 * relative_error([plain_dx], [dx_expected]) + floor


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_matches_reference(capability: str, dtype: torch.dtype, mode: str, layout: torch.memory_format) -> None:
    for height, width in SIDES if dtype == torch.float32 else SIDES[:6]:
        for n, c in ((1, 1), (3, 5), (1, 67)):
            assert_matches(make_map(n, c, height, width, dtype=dtype, layout=layout), BINS, mode)


@in_the_interpreter
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_matches_reference(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, mode: str, layout: torch.memory_format
) -> None:
    from tests.kernels.interpreter import correct_bfloat16

    correct_bfloat16(monkeypatch)
    with backend.use("triton"):
        channels = 130 if layout is torch.channels_last else 5  # more than a tile
        for n, c, height, width in ((1, 1, 1, 1), (2, 3, 3, 4), (1, channels, 1, 3)):
            assert_matches(make_map(n, c, height, width, dtype=dtype, layout=layout), (1, 2, 3), mode)


@in_the_interpreter
@pytest.mark.parametrize("mode", MODES)
def test_triton_tiles_are_shorter_than_windows(mode: str) -> None:
    with backend.use("triton"):
        for layout in LAYOUTS:
            assert_matches(make_map(1, 3, 13, 23, layout=layout), (1, 2), mode)
            assert_matches(make_map(1, 3, 7, 7, layout=layout), (1, 6), mode)  # 49 rectangles of one window


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [16, 33, 2049])
def test_channel_counts(channels: int, mode: str) -> None:
    for layout in LAYOUTS:
        assert_matches(make_map(2, channels, 7, 11, layout=layout), BINS, mode)


@pytest.mark.parametrize("bins", [(1,), (6, 1), (4, 4), (7, 5, 3), (30,), tuple(range(1, 12))])
@pytest.mark.parametrize("mode", MODES)
def test_other_bins(bins: tuple[int, ...], mode: str) -> None:
    for layout in LAYOUTS:
        assert_matches(make_map(2, 5, 13, 17, layout=layout), bins, mode)


@in_the_interpreter
@pytest.mark.parametrize("bins", [(3,), (4, 1, 4), (2, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_triton_takes_any_bins(bins: tuple[int, ...], mode: str) -> None:
    with backend.use("triton"):
        assert_matches(make_map(1, 2, 3, 5, layout=torch.channels_last), bins, mode)


@pytest.mark.parametrize("mode", MODES)
def test_strided_inputs(implementation: str, mode: str) -> None:
    bins = (2,) if implementation == "triton" else BINS
    for layout in LAYOUTS[:1] if implementation == "triton" else LAYOUTS:
        whole = make_map(3, 10, 20, 24, layout=layout)
        whole = whole[:2, :5, :4, :6] if implementation == "triton" else whole
        n, c, height, width = whole.shape
        views = [
            whole[:, 2:7],
            whole[:, :, 3:16, 5:22],
            whole[:, :, ::2, ::3],
            whole[1:2],
            whole[:, :1].expand(n, 4, height, width),
            whole[:1].expand(4, c, height, width),
            whole[:, :, :1].expand(n, c, 6, width),
            whole[:, :, :, :1].expand(n, c, height, 7),
            whole.transpose(1, 3),
            whole.transpose(2, 3),
            whole[:, :, :, :1],
        ]
        for view in views:
            assert_matches(view, bins, mode)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 14), st.integers(1, 14)),
    step=st.integers(1, 3),
    order=st.permutations(range(4)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    bins=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    mode=st.sampled_from(MODES),
)
def test_random_maps(
    shape: tuple[int, ...], step: int, order: list[int], dtype: torch.dtype, bins: list[int], mode: str
) -> None:
    assert_matches(make_map(*shape, dtype=dtype).permute(order)[:, :, ::step, ::step], bins, mode)


@pytest.mark.parametrize("mode", MODES)
def test_memory_format_is_kept(implementation: str, mode: str) -> None:
    for layout in LAYOUTS:
        x = make_map(*sized(implementation, (2, 8, 12, 12), (1, 2, 3, 3)), layout=layout).requires_grad_()
        outputs = pyramid_pool(x, BINS, mode)
        (dx,) = torch.autograd.grad(outputs, x, gradients(outputs))
        assert all(y.is_contiguous(memory_format=layout) for y in (*outputs, dx))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "channels_last"])
def test_nan_and_infinity(capability: str, mode: str, layout: torch.memory_format) -> None:
    assert_handles_nan_and_infinity(make_map(1, 6, 13, 17), mode, layout)


@in_the_interpreter
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "channels_last"])
def test_triton_nan_and_infinity(mode: str, layout: torch.memory_format) -> None:
    with backend.use("triton"):
        assert_handles_nan_and_infinity(make_map(1, 6, 9, 11), mode, layout, (1, 2))


def assert_handles_nan_and_infinity(
    x: Tensor, mode: str, layout: torch.memory_format, bins: Sequence[int] = BINS
) -> None:
    x[0, 0, 3, 4] = x[0, 0, 3, 9] = x[0, 0, 8, 2] = torch.nan
    x[0, 1, 5, 5] = torch.inf
    x[0, 2, 0, 0], x[0, 2, -1, -1] = torch.inf, -torch.inf
    x[0, 3] = -torch.inf
    x[0, 4] = torch.nan
    x = x.contiguous(memory_format=layout).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    outputs, expected = pyramid_pool(x, bins, mode), reference.pyramid_pool(plain, bins, mode)
    for y, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(y, want, equal_nan=True)
    dy = gradients(outputs)
    torch.testing.assert_close(
        torch.autograd.grad(outputs, x, dy), torch.autograd.grad(expected, plain, dy), equal_nan=True
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "channels_last"])
def test_max_gradient_goes_to_the_first_of_equals(capability: str, layout: torch.memory_format) -> None:
    assert_picks_the_first_of_equals(make_map(2, 20, 13, 17, layout=layout), BINS)


@in_the_interpreter
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "channels_last"])
def test_triton_max_gradient_goes_to_the_first_of_equals(layout: torch.memory_format) -> None:
    with backend.use("triton"):
        assert_picks_the_first_of_equals(make_map(1, 20, 11, 11, layout=layout), (1, 2))


def assert_picks_the_first_of_equals(x: Tensor, bins: Sequence[int]) -> None:
    x = x.mul(2).round().requires_grad_()  # many equal values
    plain = x.detach().clone().requires_grad_()
    outputs, expected = pyramid_pool(x, bins, "max"), reference.pyramid_pool(plain, bins, "max")
    dy = [torch.ones_like(y) for y in outputs]  # sums of ones are exact
    assert torch.equal(torch.autograd.grad(outputs, x, dy)[0], torch.autograd.grad(expected, plain, dy)[0])


def test_large_planes_stay_accurate() -> None:
    x = make_map(1, 2, 700, 900) + 100
    assert_matches(x, BINS, "avg")
    assert_matches(x.contiguous(memory_format=torch.channels_last), BINS, "avg")


def test_results_do_not_depend_on_threads() -> None:
    for layout in LAYOUTS:
        x = make_map(2, 67, 64, 64, layout=layout)
        two = pyramid_pool(x, BINS)
        torch.set_num_threads(1)
        one = pyramid_pool(x, BINS)
        torch.set_num_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_empty_batch(implementation: str, mode: str) -> None:
    x = torch.zeros(0, 5, 13, 17, requires_grad=True)
    outputs = pyramid_pool(x, BINS, mode)
    assert [tuple(y.shape) for y in outputs] == [(0, 5, b, b) for b in BINS]
    sum(y.sum() for y in outputs).backward()
    assert x.grad is not None and x.grad.shape == x.shape


def test_unused_levels_get_no_gradient() -> None:
    x = make_map(1, 3, 12, 12).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    pyramid_pool(x, BINS)[2].square().sum().backward()
    F.adaptive_avg_pool2d(plain, 3).square().sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)


def test_types_without_a_kernel_run_the_reference() -> None:
    x = make_map(2, 4, 13, 17, dtype=torch.float16)
    for y, want in zip(pyramid_pool(x), reference.pyramid_pool(x), strict=True):
        assert torch.equal(y, want)


def test_double_backward_is_refused() -> None:
    x = make_map(1, 2, 6, 6).requires_grad_()
    (dx,) = torch.autograd.grad(pyramid_pool(x)[1].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        dx.sum().backward()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "channels_last"])
def test_opcheck(mode: str, layout: torch.memory_format) -> None:
    x = make_map(2, 5, 13, 17, layout=layout)
    torch.library.opcheck(torch.ops.psp_fast.pyramid_pool, (x, BINS, mode))
    outputs, indices = torch.ops.psp_fast.pyramid_pool(x, BINS, mode)
    channels_last = layout is torch.channels_last
    torch.library.opcheck(torch.ops.psp_fast.pyramid_pool_backward, (outputs, indices, 13, 17, channels_last))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(mode: str, dynamic: bool) -> None:
    def loss(x: Tensor) -> Tensor:
        return sum((y.square().sum() for y in pyramid_pool(x.relu(), BINS, mode)), x.new_zeros(()))

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for layout in LAYOUTS:
        x = make_map(2, 5, 13, 17, layout=layout).requires_grad_()
        (dx,) = torch.autograd.grad(compiled(x), x)
        (want,) = torch.autograd.grad(loss(x), x)
        torch.testing.assert_close(dx, want)


def test_compile_with_inductor() -> None:
    compiled = torch.compile(pyramid_pool, fullgraph=True)
    for layout in LAYOUTS:
        x = make_map(2, 8, 12, 12, layout=layout).requires_grad_()
        outputs, expected = compiled(x), pyramid_pool(x)
        dy = gradients(expected)
        torch.testing.assert_close(outputs, expected)
        torch.testing.assert_close(torch.autograd.grad(outputs, x, dy), torch.autograd.grad(expected, x, dy))


def test_export() -> None:
    class Pool(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return pyramid_pool(x)

    x = make_map(2, 5, 13, 17)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Pool(), (x,), dynamic_shapes={"x": {0: batch}})
    assert "psp_fast" not in str(program.graph)  # plain ops, for other runtimes
    larger = make_map(4, 5, 13, 17)
    for y, want in zip(program.module()(larger), pyramid_pool(larger), strict=True):
        torch.testing.assert_close(y, want)


def test_autocast_keeps_the_type() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(y.dtype == torch.float32 for y in pyramid_pool(make_map(1, 3, 12, 12)))
        half = make_map(1, 3, 12, 12, dtype=torch.bfloat16)
        assert all(y.dtype == torch.bfloat16 for y in pyramid_pool(half))


def test_bins_of_every_type() -> None:
    x = make_map(1, 2, 7, 5)
    for bins in (np.array([1, 3]), (np.int64(1), 3), torch.tensor([1, 3]), torch.Size([1, 3])):
        for got, want in zip(pyramid_pool(x, bins), pyramid_pool(x, (1, 3)), strict=True):  # type: ignore[arg-type]
            assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(3, 4, 5),), ValueError, r"pyramid_pool: x must be \(N, C, H, W\).*\(3, 4, 5\)"),
        ((torch.zeros(1, 2, 0, 5),), ValueError, r"H and W at least 1, not \(1, 2, 0, 5\)"),
        ((torch.zeros(1, 2, 3, 3, dtype=torch.int64),), TypeError, "float type, not torch.int64"),
        (([[1.0]],), TypeError, "x must be a tensor, not list"),
        ((torch.zeros(1, 2, 3, 3), ()), ValueError, r"bins must be positive whole numbers, at least one, not \(\)"),
        ((torch.zeros(1, 2, 3, 3), (1, 0)), ValueError, r"bins .*not \(1, 0\)"),
        ((torch.zeros(1, 2, 3, 3), (1.5,)), ValueError, r"bins .*not \(1.5,\)"),
        ((torch.zeros(1, 2, 3, 3), 3), ValueError, "bins .*not 3"),
        ((torch.zeros(1, 2, 3, 3), (1,), "mean"), ValueError, "mode must be 'avg' or 'max', not 'mean'"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyramid_pool(*arguments)


def test_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(reference, "pyramid_pool", lambda x, bins, mode: calls.append(bins) or ())
    x = make_map(1, 2, 6, 6)
    pyramid_pool(x)
    assert calls == []
    with backend.use("reference"):
        pyramid_pool(x)
        assert {row.implementation for row in backend.explain()} == {"reference"}
    assert calls == [BINS]
    pyramid_pool(x)
    assert calls == [BINS]
    with pytest.raises(ConfigError, match="auto, triton, reference, not 'fast'"), backend.use("fast"):
        pass


def test_forcing_the_reference_reaches_compiled_code() -> None:
    compiled = torch.compile(lambda x: pyramid_pool(x, (2,))[0], backend="eager", fullgraph=True)
    x = make_map(1, 2, 6, 6)
    want = compiled(x)
    with backend.use("reference"), torch.no_grad():
        assert torch.equal(compiled(x), F.adaptive_avg_pool2d(x, 2))
    torch.testing.assert_close(compiled(x), want, rtol=0, atol=0)


def test_missing_module_is_an_error_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_native", None)
    monkeypatch.setattr(backend, "_native_error", "no such file")
    x = make_map(1, 2, 6, 6)
    with pytest.raises(PspFastError, match=r"cannot be loaded \(no such file\): build it with `pip install -e .`"):
        pyramid_pool(x)
    with backend.use("reference"):
        pyramid_pool(x)
    row = next(row for row in backend.explain() if (row.op, row.device) == ("pyramid_pool", "cpu"))
    assert row.implementation == "error" and "no such file" in row.reason


def test_explain_names_every_op_once_a_device() -> None:
    rows = backend.explain()
    assert [(row.op, row.device) for row in rows] == [(op, device) for op in backend.OPS for device in backend.DEVICES]
    chosen = {(row.op, row.device): row for row in rows}
    assert chosen["pyramid_pool", "cpu"].implementation == "csrc/cpu"
    assert all(row.reason for row in rows)
    with backend.use("triton"):
        wanted = "reference" if backend.missing_triton() else "triton"
        assert next(row for row in backend.explain() if row.device == "cuda").implementation == wanted


@pytest.mark.usefixtures("needs_triton")
def test_a_backward_outside_the_forwards_setting_runs() -> None:
    x = make_map(1, 2, 3, 3).requires_grad_()
    for setting in ("triton", "auto"):
        with backend.use(setting):
            y = pyramid_pool(x, (2,))[0]
        with backend.use("reference"):
            (dx,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(dx.sum(), torch.tensor(8.0))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_matches_reference(setting: str, dtype: torch.dtype, mode: str, layout: torch.memory_format) -> None:
    for height, width in SIDES:
        for n, c in ((1, 1), (3, 5), (2, 67), (1, 256)):
            assert_matches(make_map(n, c, height, width, dtype=dtype, layout=layout).cuda(), BINS, mode)
    whole = make_map(3, 16, 20, 24, dtype=dtype, layout=layout).cuda()
    for view in (whole[:, 1:7], whole[:, :, 3:16, 5:22], whole.transpose(1, 3), whole[:, :1].expand(3, 4, 20, 24)):
        assert_matches(view, BINS, mode)
    assert_matches(whole, tuple(range(1, 12)), mode)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("mode", MODES)
def test_gpu_is_deterministic_and_uses_the_current_stream(setting: str, mode: str) -> None:
    x = make_map(2, 67, 64, 64).cuda().requires_grad_()
    stream = torch.cuda.Stream()
    results = []
    for _ in range(2):
        with torch.cuda.stream(stream):
            outputs = pyramid_pool(x * 1, BINS, mode)
            results.append([*outputs, *torch.autograd.grad(outputs, x, [torch.ones_like(y) for y in outputs])])
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
