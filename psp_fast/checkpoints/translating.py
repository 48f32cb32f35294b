"""From other projects' names and orders of channels to psp_fast's, which are semseg's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from psp_fast.checkpoints.layouts import LAYOUTS, Layout
from psp_fast.errors import CheckpointError

# Networks called PSPNet that are another network, or parts of one: the mark, and what to say.
_REFUSED = {
    "decoder.psp.blocks.0.pool.1.0.weight": (
        "is segmentation_models_pytorch's PSPNet, which is not the paper's: its stride of 8 comes from leaving out the "
        "encoder's last stages, its level of bin 1 has no batch norm, and its head is a 1x1 convolution; use it with "
        "segmentation_models_pytorch"
    ),
    "backbone.conv1_1._conv.weight": "is a network of PaddleSeg other than PSPNet",
    "decode_head.conv_seg.weight": "is a network of mmsegmentation other than PSPNet: its decode_head is no PSPHead",
}
# What modules keep beside a network's weights: mit-semseg's batch norm, and the loss with its class weights.
_NO_WEIGHTS = re.compile(r"\._(tmp_running_mean|tmp_running_var|running_iter)$|^criterion\.")


def recognise(keys: Mapping[str, Tensor], path: str) -> Layout:
    """The layout of a state_dict.

    Raises:
        CheckpointError: none of those known here, or one of a network that is no PSPNet.
    """
    for layout in LAYOUTS:
        if all(mark in keys for mark in layout.marks):
            return layout
    for mark, reason in _REFUSED.items():
        if mark in keys:
            raise CheckpointError(f"{path} {reason}")
    some = ", ".join(list(keys)[:4])
    raise CheckpointError(
        f"{path} is in no known layout (its keys: {some}, ...): known are "
        f"{', '.join(layout.name for layout in LAYOUTS)}; mit-semseg's networks are two files, which are read together"
    )


def translate(layout: Layout, tensors: Mapping[str, Tensor], path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by psp_fast's names, in its order of channels, and what the layout tells of PSPNet's arguments."""
    state: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if re.search(layout.dropped, key) or _NO_WEIGHTS.search(key):
            continue
        new = key
        for pattern, replacement in layout.rules:
            new = re.sub(pattern, replacement, new)
        if new in state:
            raise CheckpointError(f"{path} holds {new} twice, the second time as {key}")
        state[new] = value
    options = dict(layout.options)
    if layout.options:  # semseg's names are psp_fast's own, whose networks may be any
        state, averages = _renumber_shortcuts(state)
        options.setdefault("avg_down", averages)
    if layout.bgr and _is_convolution(state, "layer0.0.weight"):
        state["layer0.0.weight"] = state["layer0.0.weight"].flip(1)
    if layout.fine_to_coarse:
        _reverse_levels(state)
    _fold_biases(state)
    return state, options


def _renumber_shortcuts(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Name ResNet-D's shortcuts (pooling, convolution, batch norm) as those without pooling; whether there were any."""
    if not any(key.endswith(".downsample.2.weight") for key in state):
        return state, False

    def less_one(match: re.Match) -> str:
        return f".downsample.{int(match[1]) - 1}."

    return {re.sub(r"\.downsample\.([12])\.", less_one, key): value for key, value in state.items()}, True


def _is_convolution(state: Mapping[str, Tensor], key: str) -> bool:
    return key in state and state[key].ndim == 4


def _fold_biases(state: dict[str, Tensor]) -> None:
    """Take the bias of a convolution that batch norm follows from the mean that batch norm subtracts."""
    for key in list(state):
        match = re.fullmatch(r"((?:cls|aux|ppm\.features\.\d+)\.)([01])\.bias", key)
        if match and _is_convolution(state, f"{match[1]}{match[2]}.weight"):
            mean = f"{match[1]}{int(match[2]) + 1}.running_mean"
            if mean in state and state[mean].shape == state[key].shape:
                state[mean] = state[mean].double() - state.pop(key)  # rounded once, to the model's type


def _reverse_levels(state: dict[str, Tensor]) -> None:
    """Order the input channels of the head's convolution as x, then the levels from the coarsest to the finest."""
    levels = [key for i in range(len(state)) if _is_convolution(state, key := f"ppm.features.{i}.1.weight")]
    widths = [state[key].shape[0] for key in levels]
    if not widths or not _is_convolution(state, "cls.0.weight") or state["cls.0.weight"].shape[1] <= sum(widths):
        return  # the comparison with the model says what is missing
    weight = state["cls.0.weight"]
    parts = weight.split([weight.shape[1] - sum(widths), *reversed(widths)], dim=1)
    state["cls.0.weight"] = torch.cat([parts[0], *reversed(parts[1:])], dim=1)
