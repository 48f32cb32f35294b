"""Loading weights into a model, strictly, with a readable account of what does not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psp_fast.checkpoints.weights import Paths, Weights, read_weights
from psp_fast.errors import CheckpointError

_BACKBONE = ("layer0.", "layer1.", "layer2.", "layer3.", "layer4.")
_SHOWN = 8
# Arguments that no shape tells. The first two make other networks of the backbone.
_COMPUTED = ("stride_in_1x1", "avg_down", "dilation", "output_stride", "pool", "bins")
_OF_BACKBONE = ("layers", "stem", "stride_in_1x1", "avg_down")


def load_checkpoint(
    model: nn.Module, path: Paths, *, backbone_only: bool = False, align_corners: bool | None = None
) -> None:
    """Load the weights in path into model, strictly.

    Reads psp_fast's and semseg's files, mmsegmentation's, mit-semseg's, PaddleSeg's and Caffe's PSPNet, and ImageNet
    weights of semseg, torchvision, timm, OpenMMLab and PaddleSeg, which fill the backbone and leave the heads alone
    (docs/checkpoints.md). Where the file, or the convention of the project that wrote it, tells align_corners, mean or
    std, a PSPNet's are set; a network that computes something else than the file's is an error.

    Args:
        model: a PSPNet, or a module with the same keys.
        path: a file (.pth, .safetensors, .pdparams, .caffemodel), or mit-semseg's encoder and decoder, a pair of them.
        backbone_only: load layer0 to layer4 alone, whatever else the file holds.
        align_corners: in place of what the layout's convention says: mmsegmentation's networks for 769 x 769 pixels
            were trained with True, which their weights do not tell.

    Raises:
        CheckpointError: the file is missing, unreadable, unsafe or of an unknown layout, or keys, shapes or the network
            differ; the message lists them and model is unchanged.
    """
    if backbone_only and isinstance(path, str | Path) and not Path(path).is_file():
        raise CheckpointError(
            f"no pretrained weights at {path}: put the ImageNet weights there (pretrained=True reads "
            "initmodel/resnet<layers>_v2.pth), "
            "give the path of a file (pretrained='path'), or start from scratch (pretrained=False)"
        )
    overrides = {} if align_corners is None else {"align_corners": align_corners}
    load_weights(model, read_weights(path), overrides, backbone_only=backbone_only)


def load_weights(
    model: nn.Module, weights: Weights, overrides: Mapping[str, Any], *, backbone_only: bool = False
) -> None:
    """What `load_checkpoint` does once the file is read; overrides are PSPNet's arguments the user chose."""
    partial = backbone_only or not weights.whole
    options: dict[str, Any] = getattr(model, "options", {})
    expected, state = model.state_dict(), weights.state
    if partial:
        expected = {key: value for key, value in expected.items() if key.startswith(_BACKBONE)}
        state = {key: value for key, value in state.items() if key.startswith(_BACKBONE) or not weights.whole}
    elif options.get("aux") is False:
        state = {key: value for key, value in state.items() if not key.startswith("aux.")}
    # Files written before BatchNorm counted its batches lack the counter, which only momentum=None reads.
    counters = {key: expected[key] for key in expected.keys() - state.keys() if key.endswith("num_batches_tracked")}
    differences = _differences({key: value for key, value in expected.items() if key not in counters}, state)
    others = _other_options(weights.options, options, overrides, _OF_BACKBONE if partial else tuple(options))
    if differences or any(name in _COMPUTED for name in others):
        raise CheckpointError(_account(weights, others, options, differences, partial))
    model.load_state_dict({**counters, **state}, strict=not partial)
    if not partial:
        _set_attributes(model, weights, overrides)


def _other_options(
    found: Mapping[str, Any], options: Mapping[str, Any], overrides: Collection[str], names: Collection[str]
) -> list[str]:
    """Those of names whose value in the file is another than the model's, and is not the user's choice."""
    return [
        name
        for name in names
        if name in found and name in options and name not in overrides and found[name] != options[name]
        if name != "align_corners" and not (name == "dilation" and _same_dilation(found[name], options))
    ]


def _same_dilation(found: str, options: Mapping[str, Any]) -> bool:
    """mit-semseg's and mmsegmentation's dilation differ in basic blocks only."""
    return options["layers"] >= 50 and sorted((found, options["dilation"])) == ["mit", "mmseg"]


def _set_attributes(model: nn.Module, weights: Weights, overrides: Mapping[str, Any]) -> None:
    """Set what a plain attribute can say and the file knows better than the model's constructor did."""
    if not hasattr(model, "options"):
        return
    model.mean, model.std = weights.mean, weights.std  # type: ignore[assignment]
    aligned = overrides.get("align_corners", weights.options.get("align_corners"))
    if aligned is not None:
        model.options["align_corners"] = aligned  # type: ignore[operator, index]
        for module in model.modules():
            if hasattr(module, "align_corners"):
                module.align_corners = aligned  # type: ignore[assignment]


def _account(
    weights: Weights, others: list[str], options: Mapping[str, Any], differences: list[str], partial: bool
) -> str:
    """The message of a file that does not fit."""
    lines = [f"{weights.source} ({weights.layout}'s layout) does not fit the model:"]
    if others:
        rows = [("", "file", "model"), *((name, str(weights.options[name]), str(options[name])) for name in others)]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines += ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += differences
    if others and partial:
        lines.append(f"  make the model with {', '.join(f'{name}={weights.options[name]!r}' for name in others)}")
    elif others:
        lines.append("  PSPNet.from_checkpoint(path) makes the network that the file is of")
    return "\n".join(lines)


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    both = [(key, found[key], value) for key, value in expected.items() if key in found]
    parts = {
        "missing in the file": [key for key in expected if key not in found],
        "not in the model": [key for key in found if key not in expected],
        "of another shape": [
            f"{key}: file {tuple(ours.shape)}, model {tuple(theirs.shape)}"
            for key, ours, theirs in both
            if ours.shape != theirs.shape
        ],
        "of another kind of number": [
            f"{key}: file {ours.dtype}, model {theirs.dtype}"
            for key, ours, theirs in both
            if ours.is_floating_point() != theirs.is_floating_point()
        ],
        "not a plain array": [
            f"{key}: {ours.layout} on {ours.device}"
            for key, ours, _ in both
            if ours.layout != torch.strided or ours.is_meta
        ],
    }
    return [_listing(title, keys) for title, keys in parts.items() if keys]


def _listing(title: str, keys: list[str]) -> str:
    more = f"\n    ... and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"  {len(keys)} {title}:\n    " + "\n    ".join(keys[:_SHOWN]) + more
