"""Which values PSPNet's arguments may have."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from psp_fast.models.resnet import BLOCKS, STEMS

_ALLOWED: dict[str, tuple] = {
    "layers": tuple(BLOCKS),
    "zoom_factor": (1, 2, 4, 8),
    "pool": ("avg", "max"),
    "stem": tuple(STEMS),
    "dilation": ("semseg", "mmseg", "mit"),
    "output_stride": (8, 16),
}
_FLAGS = ("use_ppm", "dim_reduction", "aux", "align_corners", "stride_in_1x1", "avg_down", "recompute")
_LARGEST_BIN = 1000  # cells each way; a map of a 713 x 713 crop has 90
_MOST_CHANNELS = 65536


def check_arguments(**arguments: Any) -> None:
    """Raise ValueError for the first of PSPNet's arguments whose value cannot work."""
    given = dict(arguments)
    for name, allowed in _ALLOWED.items():
        if not _is_one_of(given[name], allowed):
            raise ValueError(
                f"PSPNet: {name} must be one of {', '.join(map(str, allowed))}, got {reprlib.repr(given[name])}"
            )
    for name in _FLAGS:
        if not isinstance(given[name], int) or given[name] not in (False, True):
            raise ValueError(f"PSPNet: {name} must be True or False, got {reprlib.repr(given[name])}")
    layers, bins, head_channels, dropout = (given[name] for name in ("layers", "bins", "head_channels", "dropout"))
    rules = (
        ("classes", _is_integer(given["classes"], 2, _MOST_CHANNELS), f"at least 2 and at most {_MOST_CHANNELS}"),
        (
            "in_channels",
            _is_integer(given["in_channels"], 1, _MOST_CHANNELS),
            f"at least 1 and at most {_MOST_CHANNELS}",
        ),
        ("dropout", _is_real(dropout) and 0 <= dropout < 1, "in [0, 1)"),
        (
            "bins",
            _are_integers(bins, _LARGEST_BIN) and (len(bins) > 0 or not given["use_ppm"]),
            f"one or more positive integers up to {_LARGEST_BIN}",
        ),
        (
            "head_channels",
            head_channels is None or (_are_integers(head_channels, _MOST_CHANNELS) and len(head_channels) == 3),
            f"three positive integers up to {_MOST_CHANNELS}",
        ),
    )
    for name, fits, wanted in rules:
        if not fits:
            raise ValueError(f"PSPNet: {name} must be {wanted}, got {reprlib.repr(given[name])}")
    if given["recompute"] and layers < 50:
        raise ValueError(f"PSPNet: recompute needs 50 layers or more, not {layers}: smaller ones have no bottlenecks")


def _is_one_of(value: Any, allowed: tuple) -> bool:
    """Whether value is in allowed; True is no 1."""
    return isinstance(value, str | Integral) and not isinstance(value, bool) and value in allowed


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _are_integers(values: Any, most: int) -> bool:
    """Whether values is a sequence of integers from 1 to most."""
    sequence = isinstance(values, Sequence) and not isinstance(values, str)
    return sequence and all(_is_integer(value, 1, most) for value in values)
