"""PSPNet's arguments from the names and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_STEMS = {(64, 3): "deep", (32, 3): "v1c", (64, 7): "torchvision"}  # by channels and side of the first convolution


def infer_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Those of PSPNet's arguments that tensors by psp_fast's names tell; of a backbone alone, layers, stem and
    in_channels."""
    options: dict[str, Any] = {}
    depths = [len({match[1] for key in state if (match := re.match(rf"layer{i}\.(\d+)\.", key))}) for i in range(1, 5)]
    bottleneck = "layer1.0.conv3.weight" in state
    if all(depths):
        options["layers"] = (3 if bottleneck else 2) * sum(depths) + 2
    first = _shape(state, "layer0.0.weight")
    if first and (first[0], first[-1]) in _STEMS:
        options["stem"] = _STEMS[first[0], first[-1]]
        options["in_channels"] = first[1]
    classifier, head = _shape(state, "cls.4.weight"), _shape(state, "cls.0.weight")
    if classifier and head:
        options["classes"] = classifier[0]
        options |= _heads(state, 2048 if bottleneck else 512, head)
    return options


def _heads(state: Mapping[str, Tensor], channels: int, head: tuple[int, ...]) -> dict[str, Any]:
    """The arguments of the pyramid and the heads, on a map of `channels`."""
    aux = _shape(state, "aux.0.weight")
    levels = [shape for i in range(len(state)) if (shape := _shape(state, f"ppm.features.{i}.1.weight"))]
    count = len(levels) or head[1] // channels - 1
    options: dict[str, Any] = {"aux": aux is not None, "use_ppm": count > 0}
    if count > 0:
        options["dim_reduction"] = bool(levels)
    if count == 1:
        options["bins"] = (1,)
    usual = channels // max(count, 1), channels // 4, channels // 8
    found = levels[0][0] if levels else usual[0], head[0], aux[0] if aux else usual[2]
    return options if found == usual else options | {"head_channels": found}


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...] | None:
    shape = tuple(state[key].shape) if key in state else ()
    return shape if len(shape) == 4 else None
