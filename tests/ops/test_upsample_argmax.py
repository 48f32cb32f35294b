"""upsample_argmax against interpolation and torch.argmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psp_fast.errors import PspFastError
from psp_fast.ops import backend, reference
from psp_fast.ops.upsample_argmax import upsample_argmax
from tests.ops.checks import LAYOUTS, random
from tests.ops.upsampling import BATCHES, FEW_SIZES, SIZES, assert_classes, logits_with_nan_and_infinity, strided_logits

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
align = pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])


def check(x: Tensor, size: tuple[int, int], align_corners: bool) -> None:
    assert_classes(upsample_argmax(x, size, align_corners), x, size, align_corners)


@align
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_matches_reference(capability: str, dtype: torch.dtype, layout: str, align_corners: bool) -> None:
    for i, ((h, w), size) in enumerate(SIZES):
        n, c = BATCHES[i % 3]
        check(random(n, c, h, w, dtype=dtype, layout=layout), size, align_corners)
    check(random(1, 150, 30, 40, dtype=dtype, layout=layout), (59, 313), align_corners)


@align
@pytest.mark.parametrize(("dtype", "layout"), [(torch.float32, "nchw"), (torch.bfloat16, "channels_last")])
def test_implementations(implementation: str, dtype: torch.dtype, layout: str, align_corners: bool) -> None:
    for (h, w), size in FEW_SIZES:
        check(random(2, 5, h, w, dtype=dtype, layout=layout), size, align_corners)
    check(random(1, 67, 2, 3, dtype=dtype, layout=layout), (17, 33), align_corners)


@pytest.mark.parametrize("classes", [255, 256, 257, 1000])
def test_label_type_follows_the_number_of_classes(implementation: str, classes: int) -> None:
    x = random(1, classes, 2, 2)
    x[0, classes - 1, 1] = 100
    check(x, (9, 13), True)
    assert upsample_argmax(x, (9, 13))[0, 8, 5] == classes - 1


def test_label_type_can_be_chosen() -> None:
    x = random(1, 4, 5, 6)
    with backend.use("reference"):
        want = upsample_argmax(x, (9, 7), dtype=torch.int64)
    for dtype in (torch.int64, torch.uint8):
        got = upsample_argmax(x, (9, 7), dtype=dtype)
        assert got.dtype == dtype and torch.equal(got.long(), want)
    assert want.dtype == torch.int64
    with pytest.raises(ValueError, match=r"dtype must be torch.int64, or torch.uint8 .* not torch.int32 for 4 classes"):
        upsample_argmax(x, (9, 7), dtype=torch.int32)
    with pytest.raises(ValueError, match=r"not torch\.uint8 for 257 classes"):
        upsample_argmax(random(1, 257, 2, 2), (3, 3), dtype=torch.uint8)


@pytest.mark.parametrize("setting", ["auto", "reference"])
def test_sizes_of_every_type(setting: str) -> None:
    x = random(1, 4, 5, 6)
    pairs = [[9, 7], torch.Size([9, 7]), np.array([9, 7]), (np.int32(9), np.uint8(7)), torch.tensor([[9, 7]])[0]]
    with backend.use(setting):
        want = upsample_argmax(x, (9, 7))
        for size in pairs:
            assert torch.equal(upsample_argmax(x, size), want)  # type: ignore[arg-type]
        for side in (9, np.int64(9), torch.tensor(9)):
            assert torch.equal(upsample_argmax(x, side), upsample_argmax(x, (9, 9)))


def test_first_of_equal_logits(capability: str) -> None:
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(0, 2, (2, 1, 9, 9), generator=generator).float()
    x = few.expand(2, 40, 9, 9) * (torch.arange(40) % 3 == 1).view(1, -1, 1, 1)  # many classes alike
    assert torch.equal(upsample_argmax(x, (33, 65)), reference.upsample_argmax(x, (33, 65)))
    assert not upsample_argmax(torch.zeros(1, 300, 2, 2), (9, 9)).any()
    assert not upsample_argmax(torch.full((1, 30, 1, 1), -torch.inf), (1, 1)).any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
def test_ties_and_nan_on_every_implementation(implementation: str) -> None:
    for x in (random(1, 4, 2, 3).round().repeat(1, 20, 1, 1), logits_with_nan_and_infinity()):
        size = (2 * x.shape[2] - 1, 4 * x.shape[3] - 3)
        assert torch.equal(upsample_argmax(x, size), reference.upsample_argmax(x, size))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity(capability: str, layout: str) -> None:
    x = logits_with_nan_and_infinity().contiguous(memory_format=LAYOUTS[layout])
    for size in ((3, 5), (5, 9), (9, 17), (17, 65)):
        assert torch.equal(upsample_argmax(x, size), reference.upsample_argmax(x, size))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_inputs(implementation: str, layout: str) -> None:
    for x in strided_logits(layout):
        check(x, (19, 10), True)


def test_tall_and_wide_maps() -> None:
    for (h, w), size in (((40, 3), (700, 5)), ((3, 40), (5, 1100)), ((2, 2), (600, 3)), ((300, 2), (7, 3))):
        check(random(2, 6, h, w), size, False)


def test_results_do_not_depend_on_threads() -> None:
    x = random(2, 21, 60, 60)
    two = upsample_argmax(x, (333, 473))
    torch.set_num_threads(1)
    assert torch.equal(two, upsample_argmax(x, (333, 473)))


def test_empty_batch(implementation: str) -> None:
    assert upsample_argmax(torch.zeros(0, 5, 3, 4), (7, 9)).shape == (0, 7, 9)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_inputs(data: st.DataObject) -> None:
    side = st.integers(1, 40)
    n, c = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 40))
    x = random(
        n,
        c,
        data.draw(side),
        data.draw(side),
        dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])),
        layout=data.draw(st.sampled_from(list(LAYOUTS))),
    )
    step = data.draw(st.integers(1, 3))
    check(
        x[:, :, ::step, step - 1 :][:, data.draw(st.integers(0, c - 1)) :] if x.shape[3] >= step else x,
        (data.draw(side), data.draw(st.integers(1, 300))),
        data.draw(st.booleans()),
    )


def test_types_without_a_kernel_run_the_reference() -> None:
    x = random(1, 4, 5, 6, dtype=torch.float16)
    assert torch.equal(upsample_argmax(x, (9, 9)), reference.upsample_argmax(x, (9, 9)))


def test_logits_in_training() -> None:
    labels = upsample_argmax(random(1, 4, 5, 6).requires_grad_(), (9, 9))
    assert not labels.requires_grad


def test_autocast_changes_nothing() -> None:
    x = random(1, 4, 5, 6)
    want = upsample_argmax(x, (9, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(upsample_argmax(x, (9, 9)), want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str) -> None:
    x = random(2, 5, 6, 7, layout=layout)
    torch.library.opcheck(torch.ops.psp_fast.upsample_argmax, (x, (13, 17), True))


@pytest.mark.parametrize("options", [{"backend": "aot_eager"}, {"backend": "aot_eager", "dynamic": True}, {}])
def test_compile(options: dict) -> None:
    compiled = torch.compile(lambda x: upsample_argmax(x * 2, (13, 17)), fullgraph=True, **options)
    for layout in LAYOUTS:
        x = random(2, 5, 6, 7, layout=layout)
        assert torch.equal(compiled(x), upsample_argmax(x, (13, 17)))


def test_export() -> None:
    class Predict(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return upsample_argmax(x, (13, 17))

    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Predict(), (random(2, 5, 6, 7),), dynamic_shapes={"x": {0: batch}})
    assert "psp_fast" not in str(program.graph)  # plain ops, for other runtimes
    x = random(4, 5, 6, 7)
    torch.testing.assert_close(program.module()(x), upsample_argmax(x, (13, 17)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]], (2, 2)), TypeError, "upsample_argmax: logits must be a tensor, not list"),
        ((torch.zeros(1, 2, 3, 3, dtype=torch.int32), (2, 2)), TypeError, "float type, not torch.int32"),
        ((torch.zeros(2, 3, 3), (2, 2)), ValueError, r"\(N, C, h, w\) with C, h and w at least 1, not \(2, 3, 3\)"),
        ((torch.zeros(1, 0, 3, 3), (2, 2)), ValueError, r"not \(1, 0, 3, 3\)"),
        ((torch.zeros(1, 2, 3, 0), (2, 2)), ValueError, r"not \(1, 2, 3, 0\)"),
        ((torch.zeros(1, 2, 3, 3), 0), ValueError, r"size must be one or two positive whole numbers \(H, W\), not 0"),
        ((torch.zeros(1, 2, 3, 3), 2.0), ValueError, r"size must be one or two .*, not 2.0"),
        ((torch.zeros(1, 2, 3, 3), (2, True)), ValueError, r"size .*not \(2, True\)"),
        ((torch.zeros(1, 2, 3, 3), "22"), ValueError, r"size .*not '22'"),
        ((torch.zeros(1, 2, 3, 3), torch.ones(2)), ValueError, r"size .*not tensor"),
        ((torch.zeros(1, 2, 3, 3), (2,)), ValueError, r"size .*not \(2,\)"),
        ((torch.zeros(1, 2, 3, 3), (2, 0)), ValueError, r"size .*not \(2, 0\)"),
        ((torch.zeros(1, 2, 3, 3), (2, 2.5)), ValueError, r"size .*not \(2, 2.5\)"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        upsample_argmax(*arguments)


def test_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(1, 2, 3, 3)
    calls = []
    monkeypatch.setattr(reference, "upsample_argmax", lambda *arguments, dtype: calls.append(arguments))
    upsample_argmax(x, (5, 5))
    assert not calls
    with backend.use("reference"):
        upsample_argmax(x, (5, 5), False)
    assert calls == [(x, (5, 5), False)]


def test_missing_module_is_an_error_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_native", None)
    with pytest.raises(PspFastError, match="cannot be loaded"):
        upsample_argmax(random(1, 2, 3, 3), (5, 5))


@pytest.mark.gpu
@needs_gpu
@align
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_matches_reference(dtype: torch.dtype, layout: str, align_corners: bool) -> None:
    for (h, w), size in SIZES:
        for n, c in ((1, 1), (2, 5), (1, 300)):
            check(random(n, c, h, w, dtype=dtype, layout=layout).cuda(), size, align_corners)
    check(random(1, 150, 60, 60, dtype=dtype, layout=layout).cuda(), (473, 473), align_corners)
    broken = logits_with_nan_and_infinity()
    assert torch.equal(upsample_argmax(broken.cuda(), (9, 17)).cpu(), reference.upsample_argmax(broken, (9, 17)))
