"""Compiling the kernels that upsample logits for GPUs that this machine does not have."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernels.ahead_of_time import ARCHITECTURES

pytest.importorskip("triton")

INTEGERS = dict.fromkeys(("channels", "h", "w", "height", "width", "stride_n", "stride_h"), "i32")
CASES = [  # side of the square of pixels, the logits' type, the stride that is 1 and so a constant, the other one
    (4, "*fp32", "stride_w", "stride_c"),
    (8, "*bf16", "stride_c", "stride_w"),
]


def request(arch: int, module: str, kernel: str, types: dict[str, str], constants: dict[str, Any]) -> dict[str, Any]:
    """One of ahead_of_time.resources, all pointers aligned; `types` without the constants."""
    warps = constants.pop("num_warps")
    return {
        "module": f"psp_fast.kernels.{module}",
        "kernel": kernel,
        "signature": types | dict.fromkeys(constants, "constexpr"),
        "constexprs": constants,
        "arch": arch,
        "num_warps": warps,
        "aligned": [name for name, type_ in types.items() if type_.startswith("*")],
    }


def cell_requests(module: str, kernel: str, types: dict[str, str]) -> list[dict[str, Any]]:
    """A kernel of cells in every configuration, for every architecture."""
    from psp_fast.kernels.upsample_cells import CONFIGURATIONS

    requests = []
    for arch in ARCHITECTURES:
        for side, logits, one, other in CASES:
            constants = CONFIGURATIONS[side] | {"ALIGN": side == 4, one: 1}
            all_types = {"logits": logits} | types | INTEGERS | {other: "i32"}
            requests.append(request(arch, module, kernel, all_types, constants))
    assert {case[0] for case in CASES} == set(CONFIGURATIONS)
    return requests
