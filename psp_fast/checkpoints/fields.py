"""What a file says beside its weights, checked before anything uses it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from psp_fast.errors import CheckpointError


class Field(NamedTuple):
    """What a field has to be, in words and as a check."""

    wanted: str
    fits: Callable[[Any], bool]


def check_fields(content: Mapping[str, Any], fields: Mapping[str, Field], path: str | Path) -> None:
    """Raise CheckpointError with the file and the field for the first of fields that is missing or damaged."""
    for name, field in fields.items():
        if name not in content:
            raise CheckpointError(f"{path} is damaged or of another kind: it has no field {name!r}")
        check_field(content[name], field, name, path)


def check_field(value: Any, field: Field, name: str, path: str | Path) -> None:
    """Raise CheckpointError where value, a file's field of that name, is not what it has to be."""
    if not field.fits(value):
        found = f"{type(value).__name__} {reprlib.repr(value)}"
        raise CheckpointError(f"{path} is damaged: its field {name!r} must be {field.wanted}, not {found}")


def is_number(value: Any) -> bool:
    """A finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """An int of 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def has_names(value: Any) -> bool:
    """A dictionary by names."""
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_colour(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(is_count(v) and v <= 255 for v in value)


def _is_argument(value: Any) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(isinstance(v, bool | int | float | str) for v in values)


def numbers(count: int, *, positive: bool = False) -> Field:
    """A list of so many finite numbers."""
    return Field(
        f"a list of {count} {'positive' if positive else 'finite'} numbers",
        lambda value: (
            isinstance(value, list | tuple)
            and len(value) == count
            and all(is_number(number) and (number > 0 or not positive) for number in value)
        ),
    )


CONFIG = Field("a dictionary by names", has_names)
CLASSES = Field(
    "two or more names",
    lambda value: isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(name, str) for name in value),
)
PALETTE = Field(
    "RGB colours of 0 to 255", lambda value: isinstance(value, list | tuple) and all(map(_is_colour, value))
)
STATE_DICT = Field(
    "tensors by name", lambda value: has_names(value) and all(isinstance(tensor, Tensor) for tensor in value.values())
)
ARGUMENT = Field("a plain value or a list of them", _is_argument)
