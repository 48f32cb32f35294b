"""Reading checkpoints: the file, the layout it is in, and a readable account of what does not fit."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psp_fast.errors import CheckpointError

_BACKBONE = ("layer0", "layer1", "layer2", "layer3", "layer4")
_DEEP_STEM = {
    "conv1": "layer0.0",
    "bn1": "layer0.1",
    "conv2": "layer0.3",
    "bn2": "layer0.4",
    "conv3": "layer0.6",
    "bn3": "layer0.7",
}
_SHOWN = 8


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file, tensors on the CPU; only tensors and plain types are ever unpickled.

    Raises:
        CheckpointError: missing, truncated, no checkpoint at all, or holding objects other than tensors and plain
            types.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        if zipfile.is_zipfile(path) and (damaged := zipfile.ZipFile(path).testzip()):  # torch.load checks no checksum
            raise CheckpointError(f"{path} is damaged: the checksum of its part {damaged} is wrong; copy it again")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is not a checkpoint of tensors and plain types: {_first_line(error)}") from error
    except Exception as error:  # what a damaged file makes torch raise is not documented
        raise CheckpointError(f"{path} is truncated or not a checkpoint: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state_dict")
    return content


def load_checkpoint(model: nn.Module, path: str | Path, *, backbone_only: bool = False) -> None:
    """Load the weights in path into model, strictly.

    Understands psp_fast's and semseg's files ({"state_dict": ...} or the bare state_dict, with or without "module."),
    semseg's ImageNet weights and torchvision's ResNets. ImageNet weights fill the backbone and leave the heads alone.

    Args:
        model: a PSPNet, or a module with the same keys.
        path: a .pth file.
        backbone_only: load layer0 to layer4 alone, whatever else the file holds.

    Raises:
        CheckpointError: the file is missing or unreadable, or keys or shapes differ; the message lists them and model
            is unchanged.
    """
    path = Path(path)
    if backbone_only and not path.is_file():
        raise CheckpointError(
            f"no pretrained weights at {path}: put the ImageNet weights there (pretrained=True reads "
            "initmodel/resnet<layers>_v2.pth), "
            "give the path of a file (pretrained='path'), or start from scratch (pretrained=False)"
        )
    state = _state_dict(read_checkpoint(path), path)
    imagenet = "conv1.weight" in state
    if imagenet:
        state = {_stem_key(key): value for key, value in state.items() if not key.startswith("fc.")}
    expected = model.state_dict()
    if imagenet or backbone_only:
        expected = {key: value for key, value in expected.items() if key.startswith(_BACKBONE)}
        state = {key: value for key, value in state.items() if key.startswith(_BACKBONE)}
    # Files written before BatchNorm counted its batches lack the counter, which only momentum=None reads.
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, value)
    problems = _differences(expected, state)
    if problems:
        raise CheckpointError(f"{path} does not fit the model:\n" + "\n".join(problems))
    model.load_state_dict(state, strict=not (imagenet or backbone_only))


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state = content.get("state_dict", content)
    tensors = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(state):
        raise CheckpointError(
            f"{path} holds no state_dict: expected tensors by name, or such a dictionary under 'state_dict'"
        )
    return tensors


def _stem_key(key: str) -> str:
    module, _, rest = key.partition(".")
    return f"{_DEEP_STEM[module]}.{rest}" if module in _DEEP_STEM else key


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{key}: file {tuple(found[key].shape)}, model {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    kinds = [
        f"{key}: file {found[key].dtype}, model {value.dtype}"
        for key, value in expected.items()
        if key in found and found[key].is_floating_point() != value.is_floating_point()
    ]
    parts = {
        "missing in the file": [key for key in expected if key not in found],
        "not in the model": [key for key in found if key not in expected],
        "of another shape": shapes,
        "of another kind of number": kinds,
    }
    return [_listing(title, keys) for title, keys in parts.items() if keys]


def _listing(title: str, keys: list[str]) -> str:
    more = f"\n    ... and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"  {len(keys)} {title}:\n    " + "\n    ".join(keys[:_SHOWN]) + more


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
