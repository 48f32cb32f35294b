"""Tables on a device: made once, dropped in time, but for those that a CUDA graph reads."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from psp_fast.kernels.tables import device_tables


def test_made_once_and_dropped_when_there_are_too_many() -> None:
    made = []

    @device_tables(2)
    def table(length: int) -> Tensor:
        made.append(length)
        return torch.zeros(length)

    assert table(1) is table(1) and made == [1]
    dropped = weakref.ref(table(1))
    table(2), table(3)
    gc.collect()
    assert dropped() is None


def test_those_of_a_captured_graph_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    @device_tables(1)
    def table(length: int) -> Tensor:
        return torch.zeros(length)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    kept = weakref.ref(table(1))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    dropped = weakref.ref(table(2))
    table(3)
    gc.collect()
    assert kept() is not None and dropped() is None
