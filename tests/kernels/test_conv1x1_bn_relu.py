"""conv1x1_bn_relu's Triton kernels: values in the interpreter, and compiled for GPUs that this machine may not have."""

from __future__ import annotations

import inspect
from typing import Any

from psp_fast.kernels import conv1x1_bn_relu as kernels
from psp_fast.kernels.conv1x1_bn_relu import Config

FLAGS = {  # with all that a kernel can do, and with as little
    "multiply_with_statistics": (
        {"GROUPED": True, "PROLOGUE": False, "RELU": False},
        {"GROUPED": False, "PROLOGUE": True, "RELU": True},
    ),
    "multiply_with_bias": ({"RESIDUAL": True, "RELU": True},),
    "multiply_back": ({"NORMALISED": False, "RELU": False}, {"NORMALISED": True, "RELU": True}),
    "multiply_over_pixels": ({"PROLOGUE": False, "RELU": False}, {"PROLOGUE": True, "RELU": True}),
}
FACTORS = ("parts", "stats", "scale", "shift", "mean", "invstd")


def request(kernel: str, dtype: str, arch: int, flags: dict[str, Any], config: Config | None = None) -> dict[str, Any]:
    """As `resources` takes it, for aligned tensors with many channels and pixels."""
    constexprs = dict(flags)
    if config is not None:
        constexprs |= {"ROWS": config.rows, "COLUMNS": config.columns, "INNER": config.inner}
    signature = {}
    numbers = ("pixels", "images", "channels", "outputs", "columns", "steps", "count", "a_part")
    for name in inspect.signature(getattr(kernels, kernel).fn).parameters:
        if name in constexprs:
            signature[name] = "constexpr"
        elif name.rstrip("0123") in numbers:
            signature[name] = "i32"
        else:
            signature[name] = "*fp32" if name in FACTORS else f"*{dtype}"
    divisible = ("pixels", "channels", "outputs")
    return {
        "module": kernels.__name__,
        "kernel": kernel,
        "signature": signature,
        "constexprs": constexprs,
        "arch": arch,
        "num_warps": config.warps if config else 4,
        "num_stages": config.stages if config else 3,
        "aligned": [name for name, kind in signature.items() if kind[0] == "*" or name.rstrip("0123") in divisible],
    }
