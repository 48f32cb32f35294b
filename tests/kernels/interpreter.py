"""bf16 in Triton's interpreter as on a GPU: it truncates where they round, and `tl.dot` takes the bits for integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def correct_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of the test, round to nearest even when narrowing to bf16, and widen bf16 before `tl.dot`."""
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def rounding_cast(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            narrow = torch.from_numpy(np.array(src.data)).bfloat16().view(torch.int16)
            return TensorHandle(narrow.numpy().view(np.uint16), tl.bfloat16)
        return cast(self, src, dst_type)

    def widening_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        widened = (cast(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, *widened, *rest)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounding_cast)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", widening_dot)
