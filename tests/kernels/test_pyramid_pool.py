"""pyramid_pool's Triton kernels, compiled for GPUs that this machine may not have: no spills, bounded shared memory."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

pytest.importorskip("triton")

from psp_fast.kernels import pyramid_pool as kernels
from tests.kernels.ahead_of_time import ARCHITECTURES, assert_fit

TILES = {
    "reduce_rectangles": (kernels.CHANNELS_LAST, kernels.PLANES),
    "merge_windows": (kernels.MERGE,),
    "gather_gradient": (kernels.CHANNELS_LAST, kernels.PLANES),
}
OF_THE_MAPS_TYPE = ("x", "y", "dx", "dy")
FLOATS = ("values", "areas")
INTEGERS = ("segments_h", "segments_w", "channels", "width", "b", "first", "levels", "cells")


def request(kernel: str, dtype: str, is_max: bool, tile: kernels.Tile, arch: int) -> dict[str, Any]:
    """As `resources` takes it, for aligned maps with many channels."""
    channels_last = tile is not kernels.PLANES
    constexprs = {"IS_MAX": is_max, "AXIS": tile.axis, "PIXELS": tile.pixels, "CHANNELS": tile.channels}
    constexprs["stride_c" if channels_last else "stride_w"] = 1
    signature = {}
    for name in inspect.signature(getattr(kernels, kernel).fn).parameters:
        if name in constexprs:
            signature[name] = "constexpr"
        elif name in OF_THE_MAPS_TYPE:
            signature[name] = f"*{dtype}"
        elif name in FLOATS:
            signature[name] = "*fp32"
        elif name in INTEGERS or name.startswith("stride"):
            signature[name] = "i32"
        else:
            signature[name] = "*i32"
    aligned = [name for name, kind in signature.items() if kind.startswith("*")]
    aligned += [name for name in signature if name.startswith("stride") and name not in constexprs and channels_last]
    return {
        "module": kernels.__name__,
        "kernel": kernel,
        "signature": signature,
        "constexprs": {name: value for name, value in constexprs.items() if name in signature},
        "arch": arch,
        "aligned": aligned,
    }


@pytest.mark.parametrize("kernel", TILES)
def test_compiles_without_spills(kernel: str) -> None:
    requests = [
        request(kernel, dtype, is_max, tile, arch)
        for arch, dtype in zip(ARCHITECTURES, ("fp16", "bf16", "fp32"), strict=True)
        for is_max in (False, True)
        for tile in TILES[kernel]
    ]
    assert_fit(requests)


def test_compiles_where_every_number_is_one() -> None:
    """Triton makes a constant of an argument that is 1."""
    requests = []
    for kernel, tiles in TILES.items():
        asked = request(kernel, "fp32", True, tiles[0], 90)
        ones = [name for name, kind in asked["signature"].items() if kind == "i32"]
        asked["signature"] |= dict.fromkeys(ones, "constexpr")
        asked["constexprs"] |= dict.fromkeys(ones, 1)
        asked["aligned"] = []
        requests.append(asked)
    assert_fit(requests)
