"""The profile: every event has one family, shares add up, the trace and the picture can be opened."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import profile as command
from benchmarks.kernel_families import (
    CONVOLUTION,
    CONVOLUTION_1X1,
    GLUE,
    UNKNOWN_CALL,
    call_times,
    family_of_call,
    kernel_times,
    maker_of_kernel,
    maker_times,
)


def call(name: str, parent: Any = None, shapes: Any = (), **more: Any) -> Any:
    """As torch.profiler has it."""
    values = {"name": name, "cpu_parent": parent, "input_shapes": shapes, "device_type": DeviceType.CPU}
    return SimpleNamespace(**values | more)


def kernel(name: str, launch: int, microseconds: float, annotation: bool = False) -> Any:
    span = SimpleNamespace(elapsed_us=lambda: microseconds)
    return SimpleNamespace(
        name=name, id=launch, device_type=DeviceType.CUDA, time_range=span, is_user_annotation=annotation
    )


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("psp_fast::pyramid_pool", "psp_fast::pyramid_pool"),
        ("Optimizer.step#SGD.step", "optimizer"),
        ("aten::cudnn_batch_norm_backward", "batch norm"),
        ("aten::native_batch_norm", "batch norm"),
        ("aten::upsample_bilinear2d", "pooling, interpolation"),
        ("aten::_log_softmax_backward_data", "loss"),
        ("aten::addmm", "matrix products"),
        ("aten::_to_copy", "copies, layout"),
        ("aten::copy_", "copies, layout"),
        ("aten::empty_strided", "memory"),
        ("aten::zero_", "memory"),
        ("aten::threshold_backward", "elementwise"),
        ("aten::add_", "elementwise"),
        ("aten::_foreach_add_", "elementwise"),
        ("aten::relu_", "elementwise"),
        ("aten::as_strided", "other"),
        ("iteration", GLUE),
        ("autograd::engine::evaluate_function: AddBackward0", GLUE),
        ("torch::autograd::AccumulateGrad", GLUE),
    ],
)
def test_family_of_a_call(name: str, family: str) -> None:
    assert family_of_call(call(name, call("iteration"))) == family


def test_the_outermost_call_decides() -> None:
    step = call("Optimizer.step#SGD.step", call("iteration"))
    assert family_of_call(call("aten::add_", step)) == "optimizer"
    pyramid = call("psp_fast::pyramid_conv3x3", call("_PyramidConv", call("iteration")))
    assert family_of_call(call("aten::empty", call("psp_fast::conv3x3", pyramid))) == "psp_fast::pyramid_conv3x3"


@pytest.mark.parametrize(("size", "family"), [(1, CONVOLUTION_1X1), (3, CONVOLUTION)])
def test_convolutions_by_size(size: int, family: str) -> None:
    x, weight = torch.randn(2, 8, 9, 9, requires_grad=True), torch.randn(4, 8, size, size, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        F.conv2d(x, weight).sum().backward()
    found = {row.name: row for row in call_times(profiler.events())}
    assert found[family].calls == 2  # forward and backward
    assert not {CONVOLUTION, CONVOLUTION_1X1} - {family} & set(found)
    pointwise = call("mkldnn::_convolution_pointwise", shapes=[[1, 8, 9, 9], [4, 8, size, size], [4]])
    assert family_of_call(pointwise) == family


def test_calls_inside_a_family_count_once() -> None:
    outer = call("aten::clone", call("iteration", self_cpu_time_total=1.0), self_cpu_time_total=2.0)
    inner = call("aten::copy_", outer, self_cpu_time_total=5.0)
    rows = call_times([outer.cpu_parent, outer, inner, kernel("not the CPU's", 1, 100.0)])
    assert [(row.name, row.calls) for row in rows] == [("copies, layout", 1), (GLUE, 1)]
    assert rows[0].seconds == pytest.approx(7e-6) and rows[0].share == pytest.approx(7 / 8)


@pytest.mark.parametrize(
    ("name", "maker"),
    [
        ("multiply_with_statistics", "Triton kernels"),
        ("triton_poi_fused_add_0", "Triton kernels"),
        ("void psp_fast::(anonymous namespace)::reduce_planes<float, 4>(Shape)", "csrc kernels"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "cuDNN, cuBLAS"),
        ("nvjet_tst_128x64_64x8_1x2_h_bz_TNT", "cuDNN, cuBLAS"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float>", "cuDNN, cuBLAS"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "cuDNN, cuBLAS"),
        ("Memcpy HtoD (Pinned -> Device)", "copies between memories"),
        ("Memset (Device)", "copies between memories"),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
            _COPIES := "PyTorch kernels: copies, layout",
        ),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<float>", _COPIES),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>",
            "PyTorch kernels: others",
        ),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<>", "PyTorch kernels: others"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "other"),
    ],
)
def test_maker_of_a_kernel(name: str, maker: str) -> None:
    assert maker_of_kernel(name) == maker


def test_kernels_belong_to_the_calls_that_launched_them() -> None:
    pool, step = call("psp_fast::pyramid_pool", call("iteration"), id=1), call("Optimizer.step#SGD.step", id=2)
    events = [
        pool,
        step,
        call("cudaLaunchKernel", pool, id=7),
        call("cuLaunchKernelEx", pool, id=8),
        call("cudaLaunchKernel", call("aten::_foreach_add_", step, id=1), id=9),
        kernel("void psp_fast::reduce_planes<float>", 7, 30.0),
        kernel("merge_windows", 8, 10.0),
        kernel("void at::native::multi_tensor_apply_kernel<>", 9, 40.0),
        kernel("unheard_of", 1, 20.0),  # the number of a call, not of a launch
        kernel("iteration", 0, 1000.0, annotation=True),
    ]
    families = {row.name: row for row in kernel_times(events)}
    assert {name: row.share for name, row in families.items()} == pytest.approx(
        {"psp_fast::pyramid_pool": 0.4, "optimizer": 0.4, UNKNOWN_CALL: 0.2}
    )
    assert families["psp_fast::pyramid_pool"].calls == 2
    makers = {row.name: row.share for row in maker_times(events)}
    assert makers == pytest.approx(
        {"PyTorch kernels: others": 0.4, "csrc kernels": 0.3, "other": 0.2, "Triton kernels": 0.1}
    )


def test_nothing_takes_no_time() -> None:
    assert call_times([]) == kernel_times([]) == []


def test_small_families_share_a_bar() -> None:
    rows = [
        {"name": name, "seconds": share, "share": share} for name, share in (("a", 0.993), ("b", 0.004), ("c", 0.003))
    ]
    shown = command.bars(rows)
    assert [name for name, _, _ in shown] == ["a", "2 smaller families"]
    assert shown[1][1:] == pytest.approx((7.0, 0.007))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("ops", ["auto", "reference"])
def test_a_small_network(
    ops: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "WARM_UP", 0)
    monkeypatch.setattr(command, "ITERATIONS", 1)
    kind = [] if ops == "auto" else ["--step"]
    assert command.main(["--model=18", "--input=41", "--batch=2", f"--ops={ops}", f"--out={tmp_path}", *kind]) == 0
    found = json.loads((tmp_path / "profile.json").read_text())["profiles"]
    assert list(found) == (["step", "predict"] if ops == "auto" else ["step"])
    printed = capsys.readouterr().out
    for name, result in found.items():
        rows = result["families"]
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        assert sum(row["seconds"] for row in rows) == pytest.approx(result["total"])
        assert all(row["name"] in printed for row in rows)
        if command.DEVICE == "cpu":  # on a GPU the rest is its waiting
            assert result["total"] == pytest.approx(result["wall_under_profiler"], rel=0.02)
        assert any(row["name"].startswith("psp_fast::") for row in rows) == (ops == "auto")
        with gzip.open(tmp_path / f"trace_{name}.json.gz", "rt") as file:
            names = {event["name"] for event in json.load(file)["traceEvents"]}
        assert "iteration" in names and ("psp_fast::pyramid_pool" in names) == (ops == "auto")
    with Image.open(tmp_path / "profile.png") as picture:
        assert picture.size[0] == 900
