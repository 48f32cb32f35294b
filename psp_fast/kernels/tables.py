"""Small tables on a device that kernels read: made once for each shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

_Tables = TypeVar("_Tables")


def device_tables(maxsize: int) -> Callable[[Callable[..., _Tables]], Callable[..., _Tables]]:
    """Decorate a function that makes tensors: as `functools.lru_cache`, but a CUDA graph's tables stay for good.

    A graph reads the addresses that it was captured with, whatever has been dropped since. Making tables copies from
    the host, which no capture allows: run once before, as PyTorch asks for anyway.
    """

    def decorate(make: Callable[..., _Tables]) -> Callable[..., _Tables]:
        cached = functools.lru_cache(maxsize)(make)
        captured: dict[Hashable, _Tables] = {}

        @functools.wraps(make)
        def get(*key: Hashable) -> _Tables:
            tables = cached(*key)
            if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                captured[key] = tables
            return tables

        return get

    return decorate
