"""The Triton kernels of sync_batch_norm_relu compile for GPUs that are not here, without spills."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")

from psp_fast.kernels.sync_batch_norm_relu import TILES
from tests.kernels.ahead_of_time import ARCHITECTURES, SHARED_MEMORY, STACK, resources

# A kernel's arguments: maps, vectors of fp32, sizes.
REDUCTION = ("rows", "channels", "tiles", "length")
KERNELS = {
    "statistics_kernel": (("x",), ("partial",), REDUCTION),
    "apply_kernel": (("x", "residual", "y"), ("mean", "invstd", "weight", "bias"), ("rows", "channels")),
    "sums_kernel": (("dy", "x", "y"), ("mean", "invstd", "weight", "bias", "partial"), REDUCTION),
    "input_kernel": (
        ("x", "dy", "y", "dx", "g_out"),
        ("mean", "invstd", "weight", "bias", "sums"),
        ("rows", "channels"),
    ),
    "merge_statistics_kernel": ((), ("partial", "stats"), (*REDUCTION, "chunks")),
    "merge_sums_kernel": ((), ("partial", "sums"), ("channels", "chunks")),
}
OPTIONAL = {
    "apply_kernel": ("residual", "weight", "bias"),
    "sums_kernel": ("y", "weight"),
    "input_kernel": ("y", "g_out", "weight", "sums"),
}


def constants(kernel: str, kind: str) -> dict[str, Any]:
    rows, channels = TILES[kind]
    if kernel == "merge_sums_kernel":
        return {"CHANNELS": 32}
    if kernel == "merge_statistics_kernel":
        return {"ROWS": rows, "CHANNELS": 32}
    relu = {} if kernel == "statistics_kernel" else {"RELU": True}
    return {"ROWS": rows, "CHANNELS": channels, "CHANNELS_LAST": kind == "channels_last"} | relu


def request(kernel: str, kind: str, dtype: str, sizes: str, absent: tuple[str, ...] = ()) -> dict[str, Any]:
    """A request of ahead_of_time.resources but for the architecture. Sizes are "any", "aligned" (divisible by 16) or
    "one", which Triton makes constants; `absent` arguments are None."""
    maps, vectors, numbers = KERNELS[kernel]
    signature = dict.fromkeys(maps, f"*{dtype}") | dict.fromkeys(vectors, "*fp32") | dict.fromkeys(numbers, "i32")
    if kernel == "input_kernel":
        signature["share"] = "fp32"
    fixed = constants(kernel, kind) | dict.fromkeys(absent) | (dict.fromkeys(numbers, 1) if sizes == "one" else {})
    aligned = [*maps, *vectors, *(("rows", "channels") if sizes == "aligned" else ())]
    return {
        "module": "psp_fast.kernels.sync_batch_norm_relu",
        "kernel": kernel,
        "signature": signature | dict.fromkeys(fixed, "constexpr"),
        "constexprs": fixed,
        "aligned": [name for name in aligned if name in signature and name not in fixed],
    }


def test_every_kernel_compiles_for_every_gpu_without_spills() -> None:
    wanted = []
    for kernel in KERNELS:
        wanted += [request(kernel, kind, "fp32", "aligned") for kind in TILES]
        wanted += [request(kernel, kind, "bf16", "any") for kind in ("channels_last", "planes")]
        wanted.append(request(kernel, "channels_last", "fp16", "any", OPTIONAL.get(kernel, ())))
        wanted.append(request(kernel, "small planes", "fp32", "one"))
    asked = [one | {"arch": arch} for arch in ARCHITECTURES for one in wanted]
    for one, needs in zip(asked, resources(asked), strict=True):
        what = f"{one['kernel']} {one['constexprs']} on sm_{one['arch']}: {needs}"
        assert needs["spills"] <= STACK, what
        assert needs["shared"] <= SHARED_MEMORY[one["arch"]], what
        assert needs["registers"] <= 128, what
