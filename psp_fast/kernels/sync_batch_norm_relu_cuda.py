"""Launches the CUDA C++ kernels of batch norm; csrc/cuda/sync_batch_norm_relu.h says what each computes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from psp_fast.ops import backend


def run(kernel: str, channels_last: bool, relu: bool, arrays: Mapping[str, Tensor], **numbers: float) -> None:
    """Queue a kernel on the current stream of its arrays' device.

    The arrays are named as the kernel's arguments; maps, one of them "x", are dense and in one layout and type, others
    dense and fp32.
    """
    x = arrays["x"]
    with torch.cuda.device_of(x):
        plan = plan_of(x, channels_last)
        scratch = torch.empty(plan.scratch, dtype=torch.float32, device=x.device)
        addresses = {name: array.data_ptr() for name, array in arrays.items()}
        launch = getattr(backend.native(), f"batch_norm_{kernel}_cuda")
        launch(plan, relu, scratch.data_ptr(), _stream(x), **addresses, **numbers)


def plan_of(x: Tensor, channels_last: bool) -> Any:
    """How the kernels share out maps like the dense x on its device, which is the current one."""
    n, c, height, width = x.shape
    sizes = (n, c, height * width)
    return _plan(str(x.dtype).removeprefix("torch."), channels_last or height * width == 1, sizes, x.device)


@lru_cache(maxsize=256)
def _plan(dtype: str, channels_last: bool, sizes: tuple[int, int, int], device: torch.device) -> Any:
    return backend.native().BatchNormPlan(dtype, channels_last, sizes)


def _stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream
