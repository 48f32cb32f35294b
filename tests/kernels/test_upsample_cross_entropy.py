"""The kernels of upsample_cross_entropy, compiled ahead of time; for values see tests/ops."""

from __future__ import annotations

from tests.kernels.ahead_of_time import ARCHITECTURES, assert_fit
from tests.kernels.upsampling import INTEGERS, cell_requests, request

MODULE = "upsample_cross_entropy"
SETTINGS = {"ignore_index": "i32", "kept": "fp32", "spread": "fp32"}
POINTERS = {"weight": "*fp32", "lse": "*fp32"}


def test_forward_fits_every_gpu() -> None:
    types = {"target": "*u8", "argmax": "*u8", "partial": "*fp32"} | {"losses": "*fp32"} | POINTERS | SETTINGS
    assert_fit(cell_requests(MODULE, "forward_kernel", types))


def test_gradient_fits_every_gpu() -> None:
    types = {"target": "*i64", "divisor": "*fp32", "grad": "*fp32", "corners": "*fp32", "stride_grad": "i32"}
    assert_fit(cell_requests(MODULE, "cell_gradient_kernel", types | POINTERS | SETTINGS))


def test_reductions_fit_every_gpu() -> None:
    from psp_fast.kernels.upsample_cross_entropy import GATHER_CELLS, REDUCE_BLOCK

    requests = []
    for arch in ARCHITECTURES:
        sums = {"partial": "*fp32", "loss": "*fp32", "divisor": "*fp32", "cells": "i32"}
        requests.append(
            request(arch, MODULE, "reduce_kernel", sums, {"MEAN": True, "BLOCK": REDUCE_BLOCK, "num_warps": 4})
        )
        types = {"corners": "*fp32", "dlogits": "*bf16", "cells": "i32", "stride_w": "i32"} | INTEGERS
        constants = {"stride_c": 1, "CELLS": GATHER_CELLS, "CLASSES": 32, "num_warps": 4}
        requests.append(request(arch, MODULE, "gather_kernel", types, constants))
    assert_fit(requests)
