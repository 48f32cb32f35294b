"""Which parts of a file fit a network that may have other heads, and the table of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor

HEADS = ("ppm", "cls", "cls.4", "aux", "aux.4")
"""The parts that may be new; a classifier is a part of its own."""

_READS = {"cls": "ppm", "cls.4": "cls", "aux.4": "aux"}
_OF_PYRAMID = ("use_ppm", "pool", "dim_reduction", "bins")


class Parts(NamedTuple):
    """The parts of a network and of a file; of those that are new or left out, the reason."""

    loaded: list[str]
    new: dict[str, str]
    left_out: dict[str, str]


def part_of(key: str) -> str:
    """The part that a tensor belongs to: layer0 to layer4, or one of `HEADS`."""
    module, _, rest = key.partition(".")
    return f"{module}.4" if rest.startswith("4.") and module in ("cls", "aux") else module


def compare(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    file_options: Mapping[str, Any],
    options: Mapping[str, Any],
    chosen: Collection[str],
) -> Parts:
    """The parts of the tensors that a network has (expected) and those of a file (found).

    Args:
        expected: a network's tensors by name.
        found: a file's.
        file_options: what the file tells of PSPNet's arguments.
        options: the network's arguments.
        chosen: arguments that the user gave in place of the file's.
    """
    parts = Parts([], {}, {})
    pyramid = [
        f"{name} is {file_options[name]} in the file, {options[name]} here"
        for name in _OF_PYRAMID
        if name in file_options and name in options and name not in chosen and file_options[name] != options[name]
    ]
    for part in dict.fromkeys(map(part_of, (*expected, *found))):
        ours, theirs = _of_part(expected, part), _of_part(found, part)
        if not theirs:
            parts.new[part] = "not in the file"
        elif not ours:
            parts.left_out[part] = "not in the model"
        elif part in ("ppm", "cls") and pyramid:
            parts.new[part] = pyramid[0]
        elif _READS.get(part) in parts.new:
            parts.new[part] = f"reads {_READS[part]}, which is new"
        elif difference := _difference(part, ours, theirs):
            parts.new[part] = difference
        else:
            parts.loaded.append(part)
    return parts


def _of_part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if part_of(key) == part}


def _difference(part: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str | None:
    """What keeps a part from fitting; batch norm's counters may be missing, older files have none."""
    for key in (*ours, *theirs):
        if key.endswith("num_batches_tracked"):
            continue
        if key not in theirs or key not in ours:
            return f"{key} is not in the {'model' if key in theirs else 'file'}"
        here, there = tuple(ours[key].shape), tuple(theirs[key].shape)
        if here != there and part.endswith(".4") and here[1:] == there[1:]:
            return f"{there[0]} classes in the file, {here[0]} here"
        if here != there:
            return f"{key} is {there} in the file, {here} here"
    return None


def table(parts: Parts, title: str, untouched: str, more: Mapping[str, str]) -> str:
    """The lines for the user.

    Args:
        parts: what was loaded.
        title: the first line.
        untouched: what parts are that were not loaded: "new", or "kept".
        more: further rows.
    """
    rows = [("loaded", ", ".join(parts.loaded))]
    for name, reasons in ((untouched, parts.new), ("left out", parts.left_out)):
        for reason in dict.fromkeys(reasons.values()):
            rows.append((name, f"{', '.join(part for part in reasons if reasons[part] == reason)}: {reason}"))
    return "\n".join([title, *(f"  {name:<9} {text}" for name, text in [*rows, *more.items()])])
