"""What stands between an op and a kernel that cannot take its tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from psp_fast import ops
from psp_fast.errors import ConfigError
from psp_fast.ops import backend, reference
from psp_fast.ops.conv3x3 import conv3x3
from tests.ops.checks import random

_registered = torch.ops.psp_fast
_HALF: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "pyramid_pool": lambda x, level: _registered.pyramid_pool(x, [2, 3], "avg"),
    "upsample_concat": lambda x, level: _registered.upsample_concat(x, [level], True),
    "upsample_concat_backward": lambda x, level: _registered.upsample_concat_backward(x, 1, [2, 2, 2], True),
    "pyramid_conv3x3": lambda x, level: _registered.pyramid_conv3x3(x, [level], x.new_ones(4, 5, 3, 3), True, False),
    "upsample_argmax": lambda x, level: _registered.upsample_argmax(x, [9, 9], True),
    "upsample_cross_entropy": lambda x, level: _registered.upsample_cross_entropy(
        x, torch.zeros(2, 9, 9, dtype=torch.int64), None, 255, 0.0, True, "mean"
    ),
    "batch_norm_statistics": lambda x, level: _registered.batch_norm_statistics(x),
}


@pytest.mark.parametrize("op", _HALF)
def test_cpu_kernels_refuse_float16(op: str) -> None:
    """The ops' functions run the reference then; an exported program calls what is registered."""
    x, level = random(2, 3, 5, 4, dtype=torch.float16), random(2, 2, 2, 2, dtype=torch.float16)
    with pytest.raises((TypeError, ValueError), match=r"no CPU kernel for (torch\.)?float16: convert"):
        _HALF[op](x, level)


def test_concatenation_refuses_levels_of_another_batch() -> None:
    with pytest.raises(ValueError, match="must have x's batch size, 2, not 1"):
        _registered.upsample_concat(random(2, 3, 5, 4), [random(1, 2, 2, 2)], True)


def test_channels_last_is_for_types_that_have_kernels() -> None:
    for dtype, wanted in (
        (torch.float32, True),
        (torch.bfloat16, True),
        (torch.float64, False),
        (torch.float16, False),
    ):
        assert backend.prefers_channels_last(random(1, 1, 1, 1, dtype=dtype)) == wanted
    for setting in ("reference", "triton"):
        with backend.use(setting):
            assert not backend.prefers_channels_last(random(1, 1, 1, 1))


def test_cuda_tensors_never_reach_cpu_kernels() -> None:
    """Not even in a backward within use("reference")."""
    x: Any = SimpleNamespace(is_cuda=True, dtype=torch.float32, device=torch.device("cuda"))
    for setting in ("reference", "auto", "triton"):
        with backend.use(setting):
            assert backend.runs_triton("upsample_concat", x)
    with backend.use("reference"):
        assert not backend.runs_triton("upsample_concat", random(1, 1, 1, 1))


def loss(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    return ops.upsample_cross_entropy(x, torch.zeros(2, 9, 9, dtype=torch.int64))


_ASKING: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "upsample_concat": lambda x, level: ops.upsample_concat(x, [level]),
    "pyramid_conv3x3": lambda x, level: ops.pyramid_conv3x3(x, [level], torch.ones(4, 5, 3, 3)),
    "upsample_argmax": lambda x, level: ops.upsample_argmax(x, (9, 9)),
    "upsample_cross_entropy": loss,
}


@pytest.mark.parametrize("op", _ASKING)
def test_every_pass_asks_which_kernels(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    runs_triton = backend.runs_triton
    monkeypatch.setattr(backend, "runs_triton", lambda op, x: (asked.append(op), runs_triton(op, x))[1])
    y = _ASKING[op](random(2, 3, 5, 4).requires_grad_(), random(2, 2, 2, 2).requires_grad_())
    assert asked == [op]
    if y.requires_grad:
        y.sum().backward()
        assert asked == [op, op]


def test_settings_nest() -> None:
    x = random(1, 1, 1, 1)
    with backend.use("reference"):
        with backend.use("auto"):
            assert backend.choose("upsample_concat", x) == "csrc/cpu"
        assert backend.choose("upsample_concat", x) == "reference"
        with (
            pytest.raises(ConfigError, match="must be one of auto, triton, reference, not 'fast'"),
            backend.use("fast"),
        ):
            pass
        assert backend.current_setting() == "reference"
    assert backend.current_setting() == "auto"


def test_threads_have_their_own_setting() -> None:
    """Two contexts that overlap in time, neither inside the other; a new thread starts with the default."""
    step = threading.Barrier(2, timeout=60)
    seen: dict[str, list[str]] = {"reference": [], "triton": []}

    def run(setting: str, late: bool) -> None:
        seen[setting].append(backend.current_setting())
        if late:
            step.wait()
        with backend.use(setting):
            if not late:
                step.wait()
            step.wait()
            seen[setting].append(backend.current_setting())
            if late:
                step.wait()
        if not late:
            step.wait()
        seen[setting].append(backend.current_setting())

    with backend.use("reference"):
        threads = [threading.Thread(target=run, args=item) for item in (("reference", False), ("triton", True))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {setting: ["auto", setting, "auto"] for setting in seen}
    assert backend.current_setting() == "auto"


@pytest.mark.parametrize("op", ["upsample_concat", "upsample_cross_entropy"])
@pytest.mark.usefixtures("needs_triton")
def test_backward_runs_what_forward_ran(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a thread, as autograd's for CUDA are, and after `use` has been left."""
    chosen: list[str] = []
    runs_triton = backend.runs_triton
    monkeypatch.setattr(backend, "runs_triton", lambda *a: (chosen.append(backend.choose(*a)), runs_triton(*a))[1])
    x, level = random(2, 3, 5, 4).requires_grad_(), random(2, 2, 2, 2).requires_grad_()
    with backend.use("triton"):
        y = _ASKING[op](x, level)
    thread = threading.Thread(target=y.sum().backward)
    thread.start()
    thread.join()
    assert chosen == ["triton", "triton"]
    assert x.grad is not None


def test_compiled_code_follows_the_setting() -> None:
    compiled = torch.compile(_ASKING["upsample_argmax"], fullgraph=True, backend="aot_eager")
    x, level = random(2, 3, 5, 4), random(2, 2, 2, 2)
    called = []
    original = ops.reference.upsample_argmax
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops.reference, "upsample_argmax", lambda *a, **k: (called.append(1), original(*a, **k))[1])
        compiled(x, level)
        assert not called
        with backend.use("reference"):
            compiled(x, level)
        assert called


def test_tensors_that_wrap_others_run_the_reference() -> None:
    x, weight = random(1, 16, 16, 16), random(16, 16, 3, 3)
    assert backend.choose("conv3x3", x) == "csrc/cpu"
    assert backend.choose("conv3x3", TwoTensor(x, x)) == "reference"
    y = conv3x3(TwoTensor(x, x), TwoTensor(weight, weight))
    torch.testing.assert_close(y.b, reference.conv3x3(x, weight))
