"""The suite's results files: reading them, and what each of their rows is about."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from psp_fast.errors import PspFastError

OURS = "psp_fast"
_IDENTITY = ("op", "model", "input", "channels", "classes", "layout", "backward", "processes", "device", "dtype")
Row = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    """The content of a results file, checked; PspFastError says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check(content)
    except OSError as error:
        raise PspFastError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PspFastError(
            f"{path}: not a whole results file ({_reason(error)}); write one with "
            "`pytest benchmarks/ --benchmark-only --results FILE.json`"
        ) from error
    return content


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _check(content: dict[str, Any]) -> None:
    """Raise an error where something is missing, of another type, or a number that cannot be."""
    _numbers(content["threads"], *(content["ceilings"][key] for key in ("bytes_per_second", "flops_per_second")))
    if not all(isinstance(value, str) for value in content["environment"].values()):
        raise ValueError("its environment does not consist of texts")
    seen = set()
    for row in content["rows"]:
        _check_row(row)
        if identity(row) in seen:
            raise ValueError(f"two rows for {title(row)}")
        seen.add(identity(row))


def _check_row(row: Row) -> None:
    what = ("model",) if "model" in row else ("op", "classes", "layout", "backward")
    for key in (*what, "input", "device", "dtype", "compared_with"):
        row[key]
    _numbers(*map(int, row["input"].split("x")))
    low, high = row["quartiles"]
    _numbers(row["ratio"], low, high, row["seconds"][OURS], other_seconds(row), *row["seconds"].values())
    if row.keys() & {"floor", "bytes", "flops", "share_of_ceiling"}:
        _numbers(row["floor"], row["bytes"], row["share_of_ceiling"])
        _numbers(row["flops"], zero=True)
    if "peak_bytes" in row:
        _numbers(row["peak_bytes"][OURS], *row["peak_bytes"].values(), zero=True)


def _numbers(*values: Any, zero: bool = False) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{value!r} where a number should be")
        if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            raise ValueError(f"{value!r} where a positive number should be")


def identity(row: Row) -> tuple[Any, ...]:
    """What a row measures: equal for the same row of another file."""
    return tuple(row.get(key) for key in _IDENTITY)


def name(row: Row) -> str:
    """What ran, without its input: "conv3x3, 256 channels, forward"."""
    half = ["bf16"] if row["device"] == "cpu" and row["dtype"] == "bfloat16" else []
    if "model" in row:
        return ", ".join([row["model"], *half])
    parts = [row["op"]]
    if row.get("channels") not in (None, row["classes"]):
        parts.append(f"{row['channels']} channels")
    parts.append("forward + backward" if row["backward"] else "forward")
    if row["layout"] == "nchw":
        parts.append("NCHW")
    parts += half
    if "processes" in row:
        parts.append(f"{row['processes']} processes")
    return ", ".join(parts)


def title(row: Row) -> str:
    """Name and input: different for all rows of one device and type."""
    return f"{name(row)}, {row['input']}" + (f", {row['classes']} classes" if row.get("classes") else "")


def other_seconds(row: Row) -> float:
    """Of the fastest other implementation."""
    return row["seconds"][row["compared_with"]]


def milliseconds(seconds: float) -> str:
    """With three digits that count, or all before the point."""
    value = seconds * 1e3
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def spread(row: Row) -> str:
    """The ratio and its quartiles."""
    low, high = row["quartiles"]
    return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
