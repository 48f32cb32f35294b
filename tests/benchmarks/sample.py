"""Hand-made results files, as the suite writes them."""

from __future__ import annotations

from typing import Any


def op(name: str = "pyramid_pool", *, ratio: float = 2.0, spread: float = 0.1, **changes: Any) -> dict[str, Any]:
    """A row in which psp_fast takes 10 ms, at half of the ceiling, and eager `ratio` times that."""
    row = {
        "op": name,
        "input": "1x473x473",
        "channels": 2048,
        "classes": 150,
        "layout": "channels_last",
        "backward": False,
        "device": "cpu",
        "dtype": "float32",
        "seconds": {"psp_fast": 0.01, "eager nchw": 0.01 * ratio},
        "compared_with": "eager nchw",
        "ratio": ratio,
        "quartiles": [ratio - spread, ratio + spread],
        "floor": 0.005,
        "bytes": 50_000_000,
        "flops": 0,
        "share_of_ceiling": 0.5,
    }
    return row | changes


def model(name: str = "PSPNet50 predict", seconds: float = 0.5) -> dict[str, Any]:
    """A row in which psp_fast takes `seconds`, OpenVINO twice that, and eager three times, with twice the memory."""
    return {
        "model": name,
        "input": "2x473x473",
        "classes": 150,
        "device": "cpu",
        "dtype": "float32",
        "seconds": {"psp_fast": seconds, "eager nchw": 3 * seconds, "openvino": 2 * seconds},
        "compared_with": "openvino",
        "ratio": 2.0,
        "quartiles": [1.9, 2.1],
        "peak_bytes": {"psp_fast": 10**9, "eager nchw": 2 * 10**9},
    }


def results(*rows: dict[str, Any], **environment: str) -> dict[str, Any]:
    """A file's content; `environment` replaces parts of that of the usual machine."""
    usual = {"python": "3.11.7", "torch": "2.13.0", "CPU": "AMD EPYC", "GPU": "none", "commit": "0123456789abcdef"}
    return {
        "environment": usual | environment,
        "threads": 2,
        "ceilings": {"bytes_per_second": 1e10, "flops_per_second": 1e11},
        "rows": list(rows),
    }
