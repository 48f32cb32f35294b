"""Settings for every benchmark: two threads, and the same numbers each time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

THREADS = 2


@pytest.fixture(autouse=True)
def fixed_conditions() -> Iterator[None]:
    """Two threads and a fixed seed."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
