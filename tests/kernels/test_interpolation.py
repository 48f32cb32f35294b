"""Interpolation's Triton kernels, and those built on them, compiled for GPUs that this machine may not have.

upsample_concat and pyramid_conv3x3 share them. No spills, bounded shared memory.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from psp_fast.kernels import interpolation, pyramid_conv3x3, upsample_concat
from tests.kernels.ahead_of_time import ARCHITECTURES, assert_fit

KERNELS = {
    "expand_columns_kernel": interpolation,
    "gather_rows_kernel": interpolation,
    "gather_columns_kernel": interpolation,
    "write_rows_kernel": upsample_concat,
    "add_rows_kernel": pyramid_conv3x3,
    "merge_statistics_kernel": pyramid_conv3x3,
}
OF_THE_MAPS_TYPE = ("out", "dy", "cells")
FLOATS = ("rows", "share", "weight", "parts", "statistics")
INDICES = ("near", "counts", "span")


def request(module: ModuleType, kernel: str, dtype: str, channels_last: bool, arch: int) -> dict[str, Any]:
    """As `resources` takes it, for aligned maps with many channels."""
    block = interpolation.blocks(1 if channels_last or kernel == "gather_columns_kernel" else 0)
    constexprs = {"STATISTICS": True, "TILE": block["BLOCK_W"], **block}
    if kernel == "merge_statistics_kernel":
        constexprs |= pyramid_conv3x3.MERGE_BLOCKS
    constexprs |= {"stride_c": 1} if channels_last else {"stride_w": 1, "stride_j": 1}
    signature = {}
    for name in inspect.signature(getattr(module, kernel).fn).parameters:
        if name in constexprs:
            signature[name] = "constexpr"
        elif name in OF_THE_MAPS_TYPE:
            signature[name] = f"*{dtype}"
        elif name in FLOATS:
            signature[name] = "*fp32"
        else:
            signature[name] = "*i32" if name in INDICES else "i32"
    aligned = [name for name, kind in signature.items() if kind.startswith("*")]
    aligned += [name for name in signature if name.startswith("stride") and name not in constexprs and channels_last]
    return {
        "module": module.__name__,
        "kernel": kernel,
        "signature": signature,
        "constexprs": {name: value for name, value in constexprs.items() if name in signature},
        "arch": arch,
        "aligned": aligned,
        "num_warps": interpolation.NUM_WARPS,
    }


def test_kernels_compile_without_spills() -> None:
    requests = [
        request(module, kernel, dtype, channels_last, arch)
        for arch, dtype in zip(ARCHITECTURES, ("fp16", "bf16", "fp32"), strict=True)
        for channels_last in (True, False)
        for kernel, module in KERNELS.items()
        if channels_last or kernel != "expand_columns_kernel"  # its cells always are
    ]
    assert_fit(requests)


def test_kernels_compile_where_every_number_is_one() -> None:
    """Triton makes a constant of an argument that is 1."""
    requests = []
    for kernel, module in KERNELS.items():
        asked = request(module, kernel, "fp32", True, 90)
        ones = [name for name, kind in asked["signature"].items() if kind == "i32"]
        asked["signature"] |= dict.fromkeys(ones, "constexpr")
        asked["constexprs"] |= dict.fromkeys(ones, 1)
        asked["aligned"] = []
        requests.append(asked)
    assert_fit(requests)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("taps", [1, 3])
def test_axis_is_bilinear_interpolation(taps: int, align_corners: bool) -> None:
    for length, cells in ((1, (1, 3)), (2, (5,)), (9, (1, 2, 3, 6)), (11, (6, 11, 20))):
        axis = interpolation.make_axis(length, cells, taps, align_corners, torch.device("cpu"))
        want = []
        for count in cells:
            basis = torch.eye(count, dtype=torch.float64).view(1, count, 1, count)
            line = F.interpolate(basis, (1, length), mode="bilinear", align_corners=align_corners)[0, :, 0]
            padded = F.pad(line, (taps // 2, taps // 2))
            want += [padded[:, tap : tap + length] for tap in range(taps)]
        torch.testing.assert_close(axis.weight, torch.cat(want).float())
        for position in range(length):
            terms = torch.zeros(len(axis.weight))
            for k in range(axis.counts[position]):
                terms[axis.near[position, k]] += axis.share[position, k]
            torch.testing.assert_close(terms, axis.weight[:, position])
        for line, (first, end) in enumerate(axis.span.tolist()):
            outside = [p for p in range(length) if not first <= p < end]
            assert not axis.weight[line, outside].any()
