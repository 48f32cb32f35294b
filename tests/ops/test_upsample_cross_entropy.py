"""upsample_cross_entropy against interpolation and torch's cross entropy: values, gradients, memory, labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psp_fast.errors import PspFastError
from psp_fast.ops import backend, reference
from psp_fast.ops.upsample_argmax import upsample_argmax
from psp_fast.ops.upsample_cross_entropy import upsample_cross_entropy, upsample_cross_entropy_argmax
from tests.ops.checks import LAYOUTS, assert_matches, random
from tests.ops.upsampling import BATCHES, FEW_SIZES, SIZES, assert_classes, logits_with_nan_and_infinity, strided_logits

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
align = pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])


def make_labels(n: int, size: tuple[int, int], classes: int, *, ignore_index: int = 255, seed: int = 0) -> Tensor:
    """Class ids, one pixel in five ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n, *size), generator=generator)
    return labels.where(torch.rand(labels.shape, generator=generator) > 0.2, ignore_index)


def class_weight(classes: int) -> Tensor:
    return torch.rand(classes, generator=torch.Generator().manual_seed(classes)) + 0.1


def check(x: Tensor, target: Tensor, **options: Any) -> None:
    """Loss and gradient against the reference in float64, and the argmax of the same pass."""

    labels = []

    def fused(logits: Tensor) -> Tensor:
        loss, argmax = upsample_cross_entropy_argmax(logits, target, **options)
        labels.append(argmax)
        return loss

    assert_matches(fused, lambda logits: reference.upsample_cross_entropy(logits, target, **options), x)
    assert_classes(labels[0], x, target.shape[1:], options.get("align_corners", True))


OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weight": {"weight": class_weight(5)},
    "smoothing": {"label_smoothing": 0.1},
    "all": {"weight": class_weight(5), "label_smoothing": 0.3, "reduction": "none"},
    "uniform": {"weight": class_weight(5), "label_smoothing": 1.0},
}


@align
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_matches_reference(capability: str, dtype: torch.dtype, layout: str, align_corners: bool) -> None:
    for i, ((h, w), size) in enumerate(SIZES):
        n, c = BATCHES[i % 3]
        x = random(n, c, h, w, dtype=dtype, layout=layout)
        check(x, make_labels(n, size, c), align_corners=align_corners)
    x = random(1, 150, 20, 40, dtype=dtype, layout=layout)
    check(x, make_labels(1, (41, 313), 150), align_corners=align_corners)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(implementation: str, options: dict[str, Any]) -> None:
    for dtype in (torch.float32, torch.float64):
        check(random(2, 5, 2, 2, dtype=dtype), make_labels(2, (11, 13), 5), **options)


@align
@pytest.mark.parametrize(("dtype", "layout"), [(torch.float32, "channels_last"), (torch.bfloat16, "nchw")])
def test_implementations(implementation: str, dtype: torch.dtype, layout: str, align_corners: bool) -> None:
    for (h, w), size in FEW_SIZES:
        x = random(2, 5, h, w, dtype=dtype, layout=layout)
        check(x, make_labels(2, size, 5), align_corners=align_corners)


def test_loss_is_the_same_with_and_without_argmax(implementation: str) -> None:
    x, target = random(1, 5, 2, 2), make_labels(1, (9, 9), 5)
    loss, argmax = upsample_cross_entropy_argmax(x, target)
    assert torch.equal(loss, upsample_cross_entropy(x, target))
    assert torch.equal(argmax, upsample_argmax(x, (9, 9)))


@pytest.mark.parametrize("classes", [2, 33, 256, 257])
def test_class_counts(implementation: str, classes: int) -> None:
    weight = class_weight(classes)
    labels = make_labels(1, (9, 17), classes, ignore_index=-1)
    check(random(1, classes, 2, 2), labels, weight=weight, label_smoothing=0.2, ignore_index=-1)


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 3, 255, 256, 1 << 40])
def test_any_ignore_index(implementation: str, ignore_index: int) -> None:
    x = random(1, 5, 2, 2)
    check(x, make_labels(1, (9, 9), 5, ignore_index=ignore_index), ignore_index=ignore_index)
    narrow = make_labels(1, (9, 9), 5, ignore_index=ignore_index if 0 <= ignore_index < 256 else 4)
    check(x, narrow.to(torch.uint8), ignore_index=ignore_index)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_pixels_ignored(implementation: str, reduction: str) -> None:
    x = random(1, 5, 2, 2).requires_grad_()
    target = torch.full((1, 9, 9), 255, dtype=torch.uint8)
    loss = upsample_cross_entropy(x, target, weight=class_weight(5), label_smoothing=0.1, reduction=reduction)
    (dx,) = torch.autograd.grad(loss.sum(), x)
    assert not loss.any() and not dx.any()


def test_weights_of_zero(implementation: str) -> None:
    weight = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0])
    check(random(1, 5, 2, 2), make_labels(1, (9, 9), 5), weight=weight)
    check(random(1, 5, 2, 2), torch.zeros(1, 9, 9, dtype=torch.uint8), weight=weight)


def test_large_and_far_apart_logits(implementation: str) -> None:
    x = 60 * random(1, 5, 2, 2)
    check(x, make_labels(1, (9, 17), 5), reduction="none")
    far = 1e4 * random(1, 5, 2, 2)  # all but one exponential are 0
    loss = upsample_cross_entropy(far, make_labels(1, (9, 17), 5))
    torch.testing.assert_close(loss, reference.upsample_cross_entropy(far, make_labels(1, (9, 17), 5)))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity(implementation: str, layout: str) -> None:
    x = logits_with_nan_and_infinity().contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    target = make_labels(1, (9, 9), 6)
    loss, argmax = upsample_cross_entropy_argmax(x, target, reduction="none")
    want = reference.upsample_cross_entropy(x, target, reduction="none")
    torch.testing.assert_close(loss, want, equal_nan=True)
    assert torch.equal(argmax, reference.upsample_argmax(x, (9, 9)))
    got, expected = (torch.autograd.grad(y.sum(), x)[0] for y in (loss, want))
    torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_inputs(implementation: str, layout: str) -> None:
    for x in strided_logits(layout):
        check(x, make_labels(1, (17, 11), x.shape[1]))


def test_strided_labels_and_weight(implementation: str) -> None:
    x = random(2, 5, 2, 2)
    target = make_labels(2, (26, 18), 5)
    for view in (target[:, ::2, ::3], target.transpose(1, 2), target[:1].expand(2, 26, 18)):
        check(x, view)
    check(x, target, weight=class_weight(10)[::2])


def test_memory_format_is_kept(implementation: str) -> None:
    for layout in LAYOUTS.values():
        x = random(2, 5, 2, 2).contiguous(memory_format=layout).requires_grad_()
        (dx,) = torch.autograd.grad(upsample_cross_entropy(x, make_labels(2, (9, 9), 5)), x)
        assert dx.is_contiguous(memory_format=layout)


def test_tall_and_wide_maps() -> None:
    for (h, w), size in (((40, 3), (700, 5)), ((3, 40), (5, 1100)), ((2, 2), (600, 3)), ((300, 2), (7, 3))):
        check(random(2, 6, h, w), make_labels(2, size, 6), align_corners=False)


def test_upstream_gradients(implementation: str) -> None:
    x = random(2, 5, 2, 2).requires_grad_()
    target = make_labels(2, (9, 11), 5)
    for reduction, factor in (("mean", torch.tensor(-3.0)), ("none", random(2, 9, 11)), ("none", torch.tensor(2.0))):
        got, want = (
            torch.autograd.grad((op(x, target, reduction=reduction) * factor).sum(), x)[0]
            for op in (upsample_cross_entropy, reference.upsample_cross_entropy)
        )
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_results_do_not_depend_on_threads(reduction: str) -> None:
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        for layout in LAYOUTS:
            x = random(2, 70, 40, 30, layout=layout).requires_grad_()
            target = make_labels(2, (155, 300), 70)
            loss = upsample_cross_entropy(x, target, reduction=reduction)
            results.append((loss.detach(), *torch.autograd.grad(loss.sum(), x)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def peak_memory(run: Callable[[], object]) -> int:
    """The most bytes of tensors held at a time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("layout", LAYOUTS)
def test_peak_memory_is_a_twentieth_of_the_references(layout: str) -> None:
    x = random(1, 150, 30, 30, layout=layout).requires_grad_()
    target = make_labels(1, (233, 233), 150)

    def extra(op: Callable[..., Tensor]) -> int:
        return peak_memory(lambda: torch.autograd.grad(op(x, target, label_smoothing=0.1), x))

    assert 0 < 20 * extra(upsample_cross_entropy) <= extra(reference.upsample_cross_entropy)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_inputs(data: st.DataObject) -> None:
    side = st.integers(1, 40)
    n, c = data.draw(st.integers(0, 3)), data.draw(st.integers(2, 40))
    x = random(
        n,
        c,
        data.draw(side),
        data.draw(side),
        dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])),
        layout=data.draw(st.sampled_from(list(LAYOUTS))),
    )
    x = x[:, data.draw(st.integers(0, c - 2)) :, :: data.draw(st.integers(1, 3))]
    c = x.shape[1]
    target = make_labels(n, (data.draw(side), data.draw(st.integers(1, 300))), c)
    check(
        x,
        target.to(data.draw(st.sampled_from([torch.uint8, torch.int64]))),
        weight=data.draw(st.sampled_from([None, class_weight(c)])),
        label_smoothing=data.draw(st.sampled_from([0.0, 0.2])),
        align_corners=data.draw(st.booleans()),
        reduction=data.draw(st.sampled_from(["mean", "sum", "none"])),
    )


@pytest.mark.parametrize(("label", "dtype"), [(5, torch.uint8), (254, torch.uint8), (-1, torch.int64), (1 << 40, None)])
def test_wrong_label_is_named(label: int, dtype: torch.dtype | None) -> None:
    target = make_labels(2, (9, 11), 5)
    target[1, 4, 7] = target[1, 8, 0] = label
    message = rf"upsample_cross_entropy: target\[1, 4, 7\] is {label}, neither one of the 5 classes \(0 to 4\) nor"
    with pytest.raises(ValueError, match=message):
        upsample_cross_entropy(random(2, 5, 3, 4), target.to(dtype or torch.int64))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.usefixtures("needs_triton")
def test_wrong_label_makes_the_loss_nan_where_finding_it_would_stop_the_device() -> None:
    x = random(2, 5, 2, 2).requires_grad_()
    target = make_labels(2, (9, 11), 5)
    want = upsample_cross_entropy(x, target, reduction="none")
    target[1, 4, 7], target[0, 0, 0], target[0, 8, 10] = 5, -1, 1 << 40
    wrong = (target != 255) & ((target < 0) | (target >= 5))
    with backend.use("triton"):
        losses, argmax = upsample_cross_entropy_argmax(x, target, weight=class_weight(5), reduction="none")
        mean = upsample_cross_entropy(x, target)
        (dx,) = torch.autograd.grad(mean, x)
    assert torch.equal(losses.isnan(), wrong)
    assert mean.isnan() and dx.isnan().any()
    assert torch.equal(argmax, upsample_argmax(x, (9, 11)))
    assert want.isfinite().all()


def test_empty_batch(implementation: str) -> None:
    x = torch.zeros(0, 5, 3, 4, requires_grad=True)
    loss = upsample_cross_entropy(x, torch.zeros(0, 9, 9, dtype=torch.uint8))
    loss.backward()
    assert loss == 0 and x.grad is not None and x.grad.shape == x.shape


def test_types_without_a_kernel_run_the_reference() -> None:
    x, target = random(1, 5, 3, 4, dtype=torch.float16), make_labels(1, (9, 9), 5)
    loss, argmax = upsample_cross_entropy_argmax(x, target)
    assert loss == reference.upsample_cross_entropy(x, target)
    assert torch.equal(argmax, reference.upsample_argmax(x, (9, 9)))


def test_double_backward_is_refused() -> None:
    x = random(1, 5, 3, 4).requires_grad_()
    (dx,) = torch.autograd.grad(upsample_cross_entropy(x, make_labels(1, (9, 9), 5)), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        dx.sum().backward()


def test_loss_without_gradient() -> None:
    x = random(1, 5, 3, 4).requires_grad_()
    loss, argmax = upsample_cross_entropy_argmax(x, make_labels(1, (9, 9), 5))
    assert loss.requires_grad and not argmax.requires_grad
    with torch.no_grad():
        assert not upsample_cross_entropy(x, make_labels(1, (9, 9), 5)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_fp32(dtype: torch.dtype) -> None:
    x, target = random(1, 5, 3, 4, dtype=dtype).requires_grad_(), make_labels(1, (9, 9), 5)
    want = upsample_cross_entropy(x, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = upsample_cross_entropy(x, target)
    assert loss.dtype == torch.float32 and loss == want
    loss.backward()
    assert x.grad is not None and x.grad.dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str) -> None:
    x, target, weight = random(2, 5, 3, 4, layout=layout), make_labels(2, (9, 11), 5), class_weight(5)
    arguments = (x, target, weight, 255, 0.1, True, "mean")
    torch.library.opcheck(torch.ops.psp_fast.upsample_cross_entropy, arguments)
    loss, _, lse, divisor = torch.ops.psp_fast.upsample_cross_entropy(*arguments)
    backward = (torch.ones_like(loss), x, target, weight, lse, divisor, 255, 0.1, True)
    torch.library.opcheck(torch.ops.psp_fast.upsample_cross_entropy_backward, backward)


@pytest.mark.parametrize("options", [{"backend": "aot_eager"}, {"backend": "aot_eager", "dynamic": True}, {}])
def test_compile(options: dict[str, Any]) -> None:
    def loss(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        value, argmax = upsample_cross_entropy_argmax(x * 2, target, label_smoothing=0.1)
        return value * 3, argmax

    compiled = torch.compile(loss, fullgraph=True, **options)
    for layout in LAYOUTS:
        x, target = random(2, 5, 3, 4, layout=layout).requires_grad_(), make_labels(2, (9, 11), 5)
        (got, got_argmax), (want, want_argmax) = compiled(x, target), loss(x, target)
        torch.testing.assert_close(got, want)
        assert torch.equal(got_argmax, want_argmax)
        torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(want, x))


def test_export() -> None:
    class Loss(torch.nn.Module):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return upsample_cross_entropy(x, target)

    batch = torch.export.Dim("batch", min=1, max=64)
    x, target = random(2, 5, 3, 4), make_labels(2, (9, 11), 5)
    program = torch.export.export(Loss(), (x, target), dynamic_shapes={"x": {0: batch}, "target": {0: batch}})
    assert "psp_fast" not in str(program.graph)  # plain ops, for other runtimes
    x, target = random(4, 5, 3, 4), make_labels(4, (9, 11), 5)
    torch.testing.assert_close(program.module()(x, target), upsample_cross_entropy(x, target))


@pytest.mark.parametrize("setting", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_other_masks(setting: str, dtype: torch.dtype) -> None:
    """Masks as data sets and NumPy hand them over: narrower integers, with a dimension of channels."""
    x, target = random(2, 5, 3, 4), make_labels(2, (9, 7), 5)
    with backend.use(setting):
        want = upsample_cross_entropy_argmax(x, target, reduction="none")
        for mask in (target.to(dtype), target.unsqueeze(1), target.to(dtype).unsqueeze(1)):
            got = upsample_cross_entropy_argmax(x, mask, reduction="none")
            assert all(map(torch.equal, got, want))
            assert torch.equal(upsample_cross_entropy(x, mask, reduction="none"), want[0])
        ignored = target.where(target != 255, 3)
        index = np.int64(3)
        assert torch.equal(
            upsample_cross_entropy(x, ignored, ignore_index=index),  # type: ignore[arg-type]
            upsample_cross_entropy(x, ignored, ignore_index=3),
        )


LOGITS, TARGET = torch.zeros(2, 5, 3, 4), torch.zeros(2, 9, 9, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0], TARGET), {}, TypeError, "upsample_cross_entropy: logits must be a tensor, not list"),
        ((LOGITS.long(), TARGET), {}, TypeError, "logits must have a float type, not torch.int64"),
        ((LOGITS[0], TARGET), {}, ValueError, r"logits must be \(N, C, h, w\).*not \(5, 3, 4\)"),
        ((LOGITS[:, :0], TARGET), {}, ValueError, r"C, h and w at least 1, not \(2, 0, 3, 4\)"),
        ((LOGITS, TARGET.float()), {}, TypeError, "tensor of uint8, int16, int32 or int64, not torch.float32"),
        ((LOGITS, TARGET.to(torch.int8)), {}, TypeError, "tensor of uint8, int16, int32 or int64, not torch.int8"),
        ((LOGITS, [0]), {}, TypeError, "target must be a tensor of uint8, int16, int32 or int64, not list"),
        ((LOGITS, torch.stack([TARGET] * 3, 1)), {}, ValueError, r"or \(N, 1, H, W\) .*not \(2, 3, 9, 9\)"),
        ((LOGITS, TARGET[0]), {}, ValueError, r"target must be \(N, H, W\) or .* with N = 2 .*not \(9, 9\)"),
        ((LOGITS, TARGET[:1]), {}, ValueError, r"N = 2 as in logits.*not \(1, 9, 9\)"),
        ((LOGITS, TARGET[:, :0]), {}, ValueError, r"H and W at least 1, not \(2, 0, 9\)"),
        ((LOGITS, TARGET.to("meta")), {}, ValueError, "target must be on cpu as logits, not on meta"),
        ((LOGITS, TARGET), {"weight": torch.ones(4)}, ValueError, r"weight must be \(5,\).*not \(4,\)"),
        ((LOGITS, TARGET), {"weight": [1.0] * 5}, TypeError, "weight must be a float tensor or None, not list"),
        ((LOGITS, TARGET), {"weight": torch.ones(5).long()}, TypeError, "weight must be a float.*torch.int64"),
        ((LOGITS, TARGET), {"weight": torch.ones(5, device="meta")}, ValueError, "weight must be on cpu"),
        ((LOGITS, TARGET), {"weight": torch.ones(5, requires_grad=True)}, ValueError, r"pass weight\.detach\(\)"),
        ((LOGITS, TARGET), {"ignore_index": 2.0}, TypeError, "ignore_index must be a whole number, not 2.0"),
        ((LOGITS, TARGET), {"label_smoothing": 1.5}, ValueError, "label_smoothing must be between 0 and 1, not 1.5"),
        ((LOGITS, TARGET), {"reduction": "max"}, ValueError, "reduction must be 'mean', 'sum' or 'none', not 'max'"),
    ],
)
def test_bad_arguments(arguments: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        upsample_cross_entropy(*arguments, **options)


def test_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(reference, "upsample_cross_entropy", lambda *a, **k: calls.append(k) or a[0].sum())
    x, target = random(1, 5, 3, 4), make_labels(1, (9, 9), 5)
    upsample_cross_entropy(x, target)
    assert not calls
    with backend.use("reference"):
        upsample_cross_entropy(x, target, reduction="sum")
        upsample_cross_entropy_argmax(x, target, ignore_index=255)
    assert [call["reduction"] for call in calls] == ["sum", "mean"]


def test_missing_module_is_an_error_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_native", None)
    with pytest.raises(PspFastError, match="cannot be loaded"):
        upsample_cross_entropy(random(1, 5, 3, 4), make_labels(1, (9, 9), 5))


@pytest.mark.gpu
@needs_gpu
@align
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_matches_reference(dtype: torch.dtype, layout: str, align_corners: bool) -> None:
    for (h, w), size in SIZES:
        for n, c in ((1, 1), (2, 5), (1, 300)):
            x = random(n, c, h, w, dtype=dtype, layout=layout).cuda()
            check(x, make_labels(n, size, c, ignore_index=-1).cuda(), align_corners=align_corners, ignore_index=-1)
    x, target = random(1, 150, 60, 60, dtype=dtype, layout=layout).cuda(), make_labels(1, (473, 473), 150).cuda()
    check(x, target, weight=class_weight(150).cuda(), label_smoothing=0.1, align_corners=align_corners)


@pytest.mark.gpu
@needs_gpu
def test_gpu_is_deterministic_uses_the_current_stream_and_never_waits() -> None:
    x, target = random(2, 67, 30, 30).cuda().requires_grad_(), make_labels(2, (233, 233), 67).cuda()
    upsample_cross_entropy(x, target).backward()  # compiles
    stream, results = torch.cuda.Stream(), []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            with torch.cuda.stream(stream):
                loss = upsample_cross_entropy(x * 1, target, label_smoothing=0.1)
                results.append((loss, *torch.autograd.grad(loss, x)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
