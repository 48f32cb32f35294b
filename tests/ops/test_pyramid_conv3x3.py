"""pyramid_conv3x3 against the convolution of the concatenation: values, gradients, memory, and its life in PyTorch."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psp_fast.ops import backend, reference
from psp_fast.ops.pyramid_conv3x3 import pyramid_conv3x3, pyramid_conv3x3_statistics
from tests.ops.checks import LAYOUTS, TOLERANCE, assert_matches, outputs_and_gradients, random, relative_error

SQUARE = ((4, 1, 1), (3, 2, 2), (7, 3, 3), (5, 6, 6))
ODD = ((5, 1, 4), (1, 3, 2), (37, 7, 5))
SIDES = [(1, 1), (1, 9), (9, 1), (2, 5), (13, 17), (60, 60), (64, 64), (90, 90)]
# For what also runs in Triton's slow interpreter.
TINY = ((2, 1, 2), (3, 2, 1))
TINY_SIDES = [(1, 1), (5, 3)]

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_inputs(
    n: int,
    channels: int,
    height: int,
    width: int,
    outputs: int,
    sizes: Sequence[tuple[int, int, int]] = SQUARE,
    dtype: torch.dtype = torch.float32,
    layout: str = "nchw",
) -> list[Tensor]:
    """x, weight and the levels."""
    levels = [random(n, *size, dtype=dtype, layout=layout, seed=i + 1) for i, size in enumerate(sizes)]
    weight = random(outputs, channels + sum(c for c, _, _ in sizes), 3, 3, dtype=dtype, layout=layout)
    return [random(n, channels, height, width, dtype=dtype, layout=layout), weight, *levels]


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def with_levels(op: Callable[..., Tensor], align_corners: bool = True) -> Callable[..., Tensor]:
    """op as a function of x, weight and each level."""
    return lambda x, weight, *levels: op(x, levels, weight, align_corners)


def check(inputs: Sequence[Tensor], align_corners: bool = True) -> None:
    ours, truth = with_levels(pyramid_conv3x3, align_corners), with_levels(reference.pyramid_conv3x3, align_corners)
    assert_matches(ours, truth, *inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_matches_reference(capability: str, dtype: torch.dtype, align_corners: bool, layout: str) -> None:
    for i, (height, width) in enumerate(SIDES if dtype == torch.float32 else SIDES[:5]):
        check(make_inputs(2, 3, height, width, 5, (ODD, SQUARE)[i % 2], dtype, layout), align_corners)


@pytest.mark.parametrize("channels", [1, 16, 67])
def test_channel_counts(capability: str, channels: int) -> None:
    for layout in LAYOUTS:
        sizes = ((channels, 2, 2), (channels + 1, 3, 3), (channels + 30, 1, 1))
        check(make_inputs(3, channels, 7, 11, channels, sizes, layout=layout))
        check(make_inputs(1, 2, 5, 4, channels + 15, sizes, torch.float64, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("align_corners", [True, False])
def test_matches_reference_on_every_implementation(implementation: str, align_corners: bool, layout: str) -> None:
    for height, width in TINY_SIDES:
        check(make_inputs(2, 3, height, width, 5, TINY, layout=layout), align_corners)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(implementation: str, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        check(make_inputs(2, 3, 5, 3, 6, TINY, dtype, layout))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_do_not_depend_on_layout(capability: str, dtype: torch.dtype) -> None:
    """The tests against the reference have gradients in NCHW, whatever the layout of the output."""
    inputs = leaves(make_inputs(2, 3, 7, 5, 21, dtype=dtype))
    y = with_levels(pyramid_conv3x3)(*inputs)
    dy = random(*y.shape, dtype=dtype, layout="channels_last", seed=9)
    want = torch.autograd.grad(y, inputs, dy.contiguous(), retain_graph=True)
    got = torch.autograd.grad(y, inputs, dy)
    tolerance = {"rtol": 0.02, "atol": 0.5} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(got, want, **tolerance)


def test_no_levels(implementation: str) -> None:
    check(make_inputs(2, 3, 4, 5, 6, ()))


def test_strided_inputs(implementation: str) -> None:
    for layout in LAYOUTS:
        whole, cells = random(2, 10, 6, 4, layout=layout), random(2, 9, 2, 2, layout=layout, seed=3)
        weights = random(8, 40, 5, 4, layout=layout)
        views = [
            whole[:, 2:7, :3],
            whole[:, :, ::2, ::3],
            whole[:1].expand(2, 10, 6, 4),
            whole[:, :, :, :1].expand(2, 10, 6, 7),
            whole.transpose(2, 3)[:, :, :, :5],
        ]
        for view in views[:1] if implementation == "triton" else views:
            levels = [cells[:, 1:4], cells[:1].transpose(2, 3).expand(2, 9, 2, 2), cells.transpose(1, 2)[:, :, ::2, :1]]
            weight = weights[1:6, : view.shape[1] + 14, 1:4, :3]
            check([view, weight.transpose(2, 3), *levels])


def test_strided_gradients(implementation: str) -> None:
    """A gradient that is expanded, sliced or transposed, as sums and indexing make them."""
    losses = [lambda y: y.sum(), lambda y: y[:, 2:5, 1:].square().sum(), lambda y: y.transpose(2, 3).sin().sum()]
    for layout, loss in itertools.product(LAYOUTS, losses):
        inputs = leaves(make_inputs(2, 3, 4, 3, 6, TINY[:1], layout=layout))
        got = torch.autograd.grad(loss(with_levels(pyramid_conv3x3)(*inputs)), inputs)
        want = torch.autograd.grad(loss(with_levels(reference.pyramid_conv3x3)(*inputs)), inputs)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_memory_format_is_kept(implementation: str) -> None:
    for layout, memory_format in LAYOUTS.items():
        inputs = leaves(make_inputs(2, 8, 5, 3, 4, TINY, layout=layout))
        y, dx, dweight, *_ = outputs_and_gradients(with_levels(pyramid_conv3x3), inputs, torch.float32)
        assert all(t.is_contiguous(memory_format=memory_format) for t in (y, dx, dweight))


def check_statistics(inputs: Sequence[Tensor]) -> None:
    x, weight, *levels = leaves(inputs)
    x.data += 100  # deviations must not come from a difference of large numbers
    out, statistics = pyramid_conv3x3_statistics(x, levels, weight)
    assert torch.equal(out, pyramid_conv3x3(x, levels, weight))
    assert not statistics.requires_grad and statistics.dtype == torch.float32
    exact = out.detach().double()
    mean = exact.mean((0, 2, 3))
    assert relative_error(statistics[0], mean) < TOLERANCE[torch.float32]
    deviations = (exact - mean.view(-1, 1, 1)).square().sum((0, 2, 3))
    assert relative_error(statistics[1], deviations) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics(capability: str, layout: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        check_statistics(make_inputs(3, 3, 7, 10, 21, dtype=dtype, layout=layout))


def test_statistics_on_every_implementation(implementation: str) -> None:
    check_statistics(make_inputs(2, 3, 2, 18, 5, TINY[:1], layout="channels_last"))  # more than one tile a row
    check_statistics(make_inputs(1, 3, 66, 1, 17, TINY[:1]))  # more tiles than are merged at a time


def test_statistics_of_the_reference() -> None:
    x, weight, *levels = make_inputs(2, 3, 7, 5, 6)
    out, statistics = pyramid_conv3x3_statistics(x, levels, weight)
    with backend.use("reference"):
        want = pyramid_conv3x3_statistics(x, levels, weight)
    torch.testing.assert_close((out, statistics), want)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in Triton's interpreter
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity(implementation: str, layout: str) -> None:
    inputs = make_inputs(1, 3, 13, 12, 4, ((2, 1, 1), (3, 5, 5)), layout=layout)
    inputs[0][0, 0, 3, 4] = inputs[3][0, 1, 0, 1] = torch.nan
    inputs[3][0, 2, 4, 4] = torch.inf
    inputs = leaves(inputs)
    truth = leaves([t.double() for t in inputs])
    for align_corners in (True, False):
        y = with_levels(pyramid_conv3x3, align_corners)(*inputs)
        want = with_levels(reference.pyramid_conv3x3, align_corners)(*truth)
        assert y.isfinite().any()
        torch.testing.assert_close(y, want.float(), equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_in_a_level_of_the_same_size(implementation: str, layout: str) -> None:
    inputs = make_inputs(1, 3, 9, 7, 4, ((2, 9, 7), (3, 2, 7)), layout=layout)
    inputs[2][0, 1, 2, 2] = inputs[3][0, 2, 1, 5] = torch.nan
    for align_corners in (True, False):
        y = with_levels(pyramid_conv3x3, align_corners)(*inputs)
        want = with_levels(reference.pyramid_conv3x3, align_corners)(*[t.double() for t in inputs])
        assert y.isfinite().any()
        torch.testing.assert_close(y, want.float(), equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_in_the_gradient(implementation: str) -> None:
    for layout in LAYOUTS:
        inputs = leaves(make_inputs(1, 3, 7, 6, 4, ((2, 1, 1), (3, 3, 3)), layout=layout))
        truth = leaves([t.double() for t in inputs])
        dy = random(1, 4, 7, 6, layout=layout, seed=9)
        dy[0, 1, 5, 4] = torch.nan
        got = torch.autograd.grad(with_levels(pyramid_conv3x3)(*inputs), inputs, dy)
        want = torch.autograd.grad(with_levels(reference.pyramid_conv3x3)(*truth), truth, dy.double())
        for ours, exact in zip(got, want, strict=True):
            torch.testing.assert_close(ours, exact.float(), equal_nan=True, rtol=1e-4, atol=1e-4)


def test_results_do_not_depend_on_threads() -> None:
    for layout in LAYOUTS:
        x, weight, *levels = leaves(make_inputs(2, 3, 17, 19, 67, layout=layout))

        def results(inputs: Sequence[Tensor] = (weight, *levels), x: Tensor = x) -> list[Tensor]:
            out, statistics = pyramid_conv3x3_statistics(x.detach(), inputs[1:], inputs[0])
            return [statistics, *torch.autograd.grad(out.sin().sum(), inputs[1:])]

        two = results()
        torch.set_num_threads(1)
        one = results()
        torch.set_num_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_empty_batch(implementation: str) -> None:
    inputs = leaves([torch.zeros(0, 3, 7, 5), torch.ones(6, 22, 3, 3), *(torch.zeros(0, *size) for size in SQUARE)])
    y = with_levels(pyramid_conv3x3)(*inputs)
    assert y.shape == (0, 6, 7, 5)
    gradients = torch.autograd.grad(y.sum(), inputs)
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert torch.equal(gradients[1], torch.zeros_like(inputs[1]))
    assert torch.equal(pyramid_conv3x3_statistics(inputs[0], inputs[2:], inputs[1])[1], torch.zeros(2, 6))


@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (0, 1), (1, 2)])
def test_only_wanted_gradients_are_computed(implementation: str, wanted: tuple[int, ...]) -> None:
    inputs = make_inputs(1, 3, 5, 3, 4, TINY)
    chosen = [inputs[i].requires_grad_() for i in wanted]
    got = torch.autograd.grad(with_levels(pyramid_conv3x3)(*inputs).square().sum(), chosen)
    want = torch.autograd.grad(with_levels(reference.pyramid_conv3x3)(*inputs).square().sum(), chosen)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def allocations(run: Callable[[], object]) -> list[int]:
    """Bytes of the tensors that run allocates, the largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    return sorted((event.self_cpu_memory_usage for event in profile.events()), reverse=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_upsampled_map_is_ever_allocated(layout: str) -> None:
    """Nor the concatenation: nothing larger than the output."""
    inputs = leaves(make_inputs(1, 8, 64, 64, 16, ((64, 1, 1), (64, 6, 6)), layout=layout))
    x, weight, *levels = inputs
    upsampled = 4 * 128 * 64 * 64
    output = 4 * 16 * 64 * 64
    with torch.no_grad():
        forward = allocations(lambda: pyramid_conv3x3(x, levels, weight))[0]
        assert allocations(lambda: reference.pyramid_conv3x3(x, levels, weight))[0] >= upsampled
    assert forward <= output + 4096
    dy = random(1, 16, 64, 64, layout=layout)
    both = allocations(lambda: torch.autograd.grad(pyramid_conv3x3(x, levels, weight), inputs, dy))[0]
    assert both <= output + 4096


def test_nan_in_a_tile() -> None:
    """With channels enough for Winograd's algorithm: NaN at least wherever the reference has it, and not everywhere."""
    inputs = make_inputs(1, 32, 24, 24, 32, TINY)
    inputs[0][0, 3, 9, 10] = torch.nan
    got, want = (with_levels(op)(*inputs).isnan() for op in (pyramid_conv3x3, reference.pyramid_conv3x3))
    assert want.any() and bool((got | ~want).all()) and got.sum() <= 32 * 8 * 8


@pytest.mark.parametrize("channels", [8, 32])  # PyTorch's convolution of x, and Winograd's
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_is_not_copied(layout: str, channels: int) -> None:
    inputs = leaves(make_inputs(1, channels, 16, 16, 64, ((128, 1, 1), (128, 6, 6)), layout=layout))
    x, weight, *levels = inputs
    share = 4 * 64 * 256 * 9  # of the weight, for the levels
    with torch.no_grad():
        assert allocations(lambda: pyramid_conv3x3(x, levels, weight))[0] < share / 2
    dy = random(1, 64, 16, 16, layout=layout)
    sizes = allocations(lambda: torch.autograd.grad(pyramid_conv3x3(x, levels, weight), inputs, dy))
    assert sizes[0] >= share and sizes[1] < share / 2  # the weight's gradient, and nothing like it


def test_peak_memory_of_a_process() -> None:
    """What the kernels allocate themselves shows in the process's resident memory."""
    before, after = run_alone(
        "x, levels = torch.randn(1, 8, 128, 128), [torch.randn(1, 512, b, b) for b in (1, 2, 3, 6)]\n"
        "weight = torch.randn(8, 2056, 3, 3)\n"
        "inputs = [t.requires_grad_() for t in (x, weight, *levels)]\n"
        "step = lambda x: torch.autograd.grad(pyramid_conv3x3(x, levels, weight).sum(), inputs[1:])\n"
        "step(x[:, :, :16, :16])\n"
        "print(peak())\n"
        "step(x)\n"
        "print(peak())\n"
    )
    upsampled = 4 * 2048 * 128 * 128
    assert after - before < upsampled / 4


def run_alone(code: str) -> list[int]:
    """The whole numbers that code prints in a process of its own; it may call peak(), bytes of resident memory."""
    head = (
        "import resource, torch\nfrom psp_fast.ops import pyramid_conv3x3\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
    )
    done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast(implementation: str, half: torch.dtype) -> None:
    """The result has autocast's type; gradients have their inputs' types and are as near the truth as PyTorch's."""
    inputs = make_inputs(2, 3, 5, 3, 6, TINY)
    inputs[3] = inputs[3].to(half)
    inputs = leaves(inputs)
    truth = leaves([t.double() for t in inputs])
    dy = random(2, 6, 5, 3, seed=9).to(half)
    results = []
    for op in (pyramid_conv3x3, reference.pyramid_conv3x3):
        with torch.autocast("cpu", dtype=half):
            y = with_levels(op)(*inputs)
        assert y.dtype == half
        results.append([y, *torch.autograd.grad(y, inputs, dy)])
        assert [g.dtype for g in results[-1][1:]] == [t.dtype for t in inputs]
    y = with_levels(reference.pyramid_conv3x3)(*truth)
    for ours, plain, exact in zip(*results, [y, *torch.autograd.grad(y, truth, dy.double())], strict=True):
        assert relative_error(ours, exact) <= 2 * relative_error(plain, exact) + torch.finfo(half).eps / 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_autocast_with_weights_of_another_type(dtype: torch.dtype) -> None:
    """A half weight, and a double one, which PyTorch's conv2d refuses; gradients in the weight's type."""
    x, weight, *levels = make_inputs(2, 3, 5, 3, 6, TINY)
    weight = weight.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = pyramid_conv3x3(x, levels, weight)
        want = reference.pyramid_conv3x3(x, levels, weight.bfloat16())
    assert ours.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(ours, want, rtol=0.05, atol=0.05)
    (gradient,) = torch.autograd.grad(ours.float().sum(), weight)
    assert gradient.dtype == dtype


def test_types_without_a_kernel_run_the_reference() -> None:
    x, weight, *levels = make_inputs(1, 3, 7, 5, 4, dtype=torch.float16)
    assert torch.equal(pyramid_conv3x3(x, levels, weight), reference.pyramid_conv3x3(x, levels, weight))


def test_double_backward_is_refused() -> None:
    inputs = leaves(make_inputs(1, 2, 6, 6, 3))
    y = with_levels(pyramid_conv3x3)(*inputs)
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        gradient.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str) -> None:
    x, weight, *levels = make_inputs(2, 5, 9, 7, 4, layout=layout)
    torch.library.opcheck(torch.ops.psp_fast.pyramid_conv3x3, (x, levels, weight, True, True))
    dy = random(2, 4, 9, 7, layout=layout)
    for mask in ([True, True, True], [False, True, False]):
        torch.library.opcheck(torch.ops.psp_fast.pyramid_conv3x3_backward, (dy, x, levels, weight, False, mask))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    compiled = torch.compile(pyramid_conv3x3_statistics, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for layout in LAYOUTS:
        inputs = leaves(make_inputs(2, 5, 9, 7, 4, layout=layout))
        x, weight, *levels = inputs
        got, want = (op(x, levels, weight) for op in (compiled, pyramid_conv3x3_statistics))
        torch.testing.assert_close(got, want)
        dy = random(2, 4, 9, 7, layout=layout)
        torch.testing.assert_close(*(torch.autograd.grad(y, inputs, dy) for y, _ in (got, want)))


def test_compile_with_inductor() -> None:
    inputs = leaves(make_inputs(2, 8, 12, 12, 5))
    op = with_levels(pyramid_conv3x3)
    got = outputs_and_gradients(torch.compile(op, fullgraph=True), inputs, torch.float32)
    torch.testing.assert_close(got, outputs_and_gradients(op, inputs, torch.float32))


def test_export() -> None:
    class Convolution(torch.nn.Module):
        def forward(self, x: Tensor, levels: list[Tensor], weight: Tensor) -> Tensor:
            return pyramid_conv3x3(x, levels, weight)

    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"x": {0: batch}, "levels": [{0: batch} for _ in SQUARE], "weight": None}
    x, weight, *levels = make_inputs(2, 5, 9, 7, 4)
    program = torch.export.export(Convolution(), (x, levels, weight), dynamic_shapes=shapes)
    assert "psp_fast" not in str(program.graph)  # plain ops, for other runtimes
    x, weight, *levels = make_inputs(3, 5, 9, 7, 4)
    torch.testing.assert_close(program.module()(x, levels, weight), pyramid_conv3x3(x, levels, weight))


X, LEVELS, WEIGHT = torch.zeros(1, 2, 5, 5), [torch.zeros(1, 3, 2, 2)], torch.zeros(4, 5, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], LEVELS, WEIGHT), ValueError, r"pyramid_conv3x3: x must be \(N, C, H, W\).*not \(2, 5, 5\)"),
        ((X, LEVELS, None), TypeError, "weight must be a tensor, not NoneType"),
        ((X, LEVELS, WEIGHT.long()), TypeError, "weight must have a float type, not torch.int64"),
        ((X, LEVELS, WEIGHT.to("meta")), ValueError, "weight must be on x's device, cpu, not on meta"),
        ((X, LEVELS, WEIGHT[:, :4]), ValueError, r"weight must be \(O, 5, 3, 3\).*not \(4, 4, 3, 3\)"),
        ((X, LEVELS, WEIGHT[:0]), ValueError, r"not \(0, 5, 3, 3\)"),
        ((X, LEVELS, WEIGHT.double()), TypeError, "weight must have x's type, torch.float32, not torch.float64"),
        ((X.bfloat16(), LEVELS, WEIGHT.bfloat16()), TypeError, r"pyramid\[0\] must have x's type, torch.bfloat16"),
        ((X, [LEVELS[0].expand(2, 3, 2, 2)], WEIGHT), ValueError, r"pyramid\[0\] must have x's batch size, 1, not 2"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyramid_conv3x3(*arguments)


def test_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(reference, "pyramid_conv3x3", lambda x, *_: calls.append(x.shape))
    pyramid_conv3x3(X, LEVELS, WEIGHT)
    assert calls == []
    with backend.use("reference"):
        pyramid_conv3x3(X, LEVELS, WEIGHT)
    assert calls == [X.shape]


@st.composite
def random_inputs(draw: st.DrawFn) -> list[Tensor]:
    """x, weight and levels of random sizes, type and layout, each maybe a slice of a larger tensor."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))

    def tensor(n: int, c: int, h: int, w: int) -> Tensor:
        extra = draw(st.integers(0, 3))
        return random(n, c + extra, h, w + extra, dtype=dtype, layout=draw(st.sampled_from(sorted(LAYOUTS))))[
            :, :c, :, :w
        ]

    def side(most: int) -> int:
        return draw(st.integers(1, most))

    n = side(3)
    x, levels = tensor(n, side(9), side(20), side(20)), [tensor(n, side(9), side(7), side(7)) for _ in range(side(4))]
    return [x, tensor(side(20), x.shape[1] + sum(level.shape[1] for level in levels), 3, 3), *levels]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(random_inputs(), st.booleans())
def test_random_inputs(inputs: list[Tensor], align_corners: bool) -> None:
    check(inputs, align_corners)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_matches_reference(dtype: torch.dtype, layout: str) -> None:
    for height, width in SIDES:
        for sizes in (SQUARE, ODD):
            for align_corners in (True, False):
                inputs = make_inputs(2, 9, height, width, 70, sizes, dtype, layout)
                check([t.cuda() for t in inputs], align_corners)


@pytest.mark.gpu
@needs_gpu
def test_gpu_is_deterministic_and_uses_the_current_stream() -> None:
    inputs = [t.cuda().requires_grad_() for t in make_inputs(2, 9, 64, 64, 70)]
    results = []
    for _ in range(2):
        with torch.cuda.stream(torch.cuda.Stream()):
            out, statistics = pyramid_conv3x3_statistics(inputs[0], inputs[2:], inputs[1])
            results.append([statistics, *torch.autograd.grad(out.sin().sum(), inputs[2:])])
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
