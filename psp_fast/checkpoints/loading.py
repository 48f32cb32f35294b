"""Loading weights into a model, strictly or in parts, with a readable account of what does not fit."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from psp_fast.checkpoints.parts import HEADS, compare, part_of, table
from psp_fast.checkpoints.weights import Paths, Weights, read_weights
from psp_fast.errors import CheckpointError
from psp_fast.normalisation import for_channels

_log = logging.getLogger("psp_fast")

_SHOWN = 8
_FIRST = "layer0.0.weight"
# Arguments that no shape tells. The first two make other networks of the backbone.
_COMPUTED = ("stride_in_1x1", "avg_down", "dilation", "output_stride", "pool", "bins")
_OF_BACKBONE = ("layers", "stem", "in_channels", "stride_in_1x1", "avg_down")
_TRAINED = ("dilation", "output_stride")  # a whole network's backbone was trained with them, ImageNet's was not
# What decides which parts need not fit, of the arguments given to PSPNet.from_checkpoint.
_OPTIONAL = {"classes": ("cls.4", "aux.4"), "aux": ("aux", "aux.4"), "in_channels": ()}


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
    overrides = {} if align_corners is None else {"align_corners": align_corners}
    weights = read_weights(path)
    if backbone_only or not weights.whole:
        _fill(model, weights, overrides, HEADS, backbone_only=backbone_only, untouched="kept")
    else:
        _load_whole(model, weights, overrides)


def load_pretrained(model: nn.Module, path: str | Path) -> None:
    """Load every part of a new PSPNet that the file in path fits, and log a table of the parts.

    The backbone has to fit. Heads that do not fit (other classes, channels or bins) stay new. RGB weights are adapted
    to images of other channels.

    Raises:
        CheckpointError: the file is missing, unreadable, unsafe or of an unknown layout, or of another backbone, or
            of a network with another geometry; the message lists the differences and model is unchanged.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            f"no pretrained weights at {path}: put the ImageNet weights there (pretrained=True reads "
            "initmodel/resnet<layers>_v2.pth), "
            "give the path of a file (pretrained='path'), or start from scratch (pretrained=False)"
        )
    _fill(model, read_weights(path), {}, HEADS, untouched="new")


def load_weights(model: nn.Module, weights: Weights, overrides: Mapping[str, Any]) -> None:
    """Load a whole network's weights into a PSPNet made of their options and of overrides.

    Strictly, unless overrides are other classes, an auxiliary head or in_channels, which make new parts.

    Raises:
        CheckpointError: keys, shapes or the network differ otherwise.
    """
    optional = {part for name in overrides for part in _OPTIONAL.get(name, ())}
    if _OPTIONAL.keys() & overrides.keys():
        _fill(model, weights, overrides, optional, untouched="new")
    else:
        _load_whole(model, weights, overrides)
        if given := _given(weights, overrides):
            _log.warning("%s: %s", weights.source, given)


def _load_whole(model: nn.Module, weights: Weights, overrides: Mapping[str, Any]) -> None:
    """Load all of a file; an auxiliary head that the model does not have is left out."""
    options: dict[str, Any] = getattr(model, "options", {})
    expected, state = model.state_dict(), weights.state
    if options.get("aux") is False:
        state = {key: value for key, value in state.items() if not key.startswith("aux.")}
    counters = _counters(expected, state)
    differences = _differences({key: value for key, value in expected.items() if key not in counters}, state)
    others = [name for name in _other_options(weights, options, overrides, options) if name != "align_corners"]
    if differences or any(name in _COMPUTED for name in others):
        advice = "PSPNet.from_checkpoint(path) makes the network that the file is of" if others else None
        raise CheckpointError(_account(weights, others, options, differences, advice))
    model.load_state_dict({**counters, **state})
    if options:
        _set_normalisation(model, weights)
        _set_align_corners(model, overrides.get("align_corners", weights.options.get("align_corners")))


def _fill(
    model: nn.Module,
    weights: Weights,
    overrides: Mapping[str, Any],
    optional: Collection[str],
    *,
    backbone_only: bool = False,
    untouched: str,
) -> None:
    """Load the parts of a file that fit, and log the table; parts that are not optional have to fit."""
    options: dict[str, Any] = getattr(model, "options", {})
    expected = model.state_dict()
    state, adapted = _adapted(weights.state, options.get("in_channels"))
    chosen = {*overrides, "in_channels"} if adapted else set(overrides)
    found = {key: value for key, value in state.items() if not backbone_only or part_of(key) not in HEADS}
    names: tuple[str, ...] = _OF_BACKBONE
    if weights.whole:
        names = (*_OF_BACKBONE, *_TRAINED, *(() if backbone_only else ("align_corners",)))
    others = _other_options(weights, options, chosen, names)
    counters = _counters(expected, found)
    required = {key: value for key, value in expected.items() if key not in counters and part_of(key) not in optional}
    differences = _differences(required, {key: v for key, v in found.items() if part_of(key) not in optional})
    if differences or others:
        raise CheckpointError(_account(weights, others, options, differences, _geometry_of(weights, others)))
    parts = compare(expected, found, weights.options, options, chosen)
    if backbone_only:
        parts.new.update(dict.fromkeys(parts.new, "only the backbone was wanted"))
    loaded = {key: value for key, value in found.items() if part_of(key) in parts.loaded}
    model.load_state_dict(loaded, strict=False)
    more = {"adapted": adapted} if adapted else {}
    if given := _given(weights, overrides):
        more["given"] = given
    if options:
        _set_normalisation(model, weights)
        more["images"] = f"normalised by mean {_numbers(weights.mean)}, std {_numbers(weights.std)}"
    _log.warning("%s", table(parts, f"weights of {weights.source} ({weights.layout}'s layout):", untouched, more))


def _adapted(state: Mapping[str, Tensor], channels: int | None) -> tuple[Mapping[str, Tensor], str | None]:
    """The state with a first convolution of RGB for so many channels, as timm makes it, and what was done."""
    first = state.get(_FIRST)
    if channels in (None, 3) or first is None or first.ndim != 4 or first.shape[1] != 3:
        return state, None
    if channels == 1:
        return {**state, _FIRST: first.sum(1, keepdim=True)}, f"{_FIRST}: the sum over RGB, for 1 channel"
    weight = first.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)
    return {**state, _FIRST: weight}, f"{_FIRST}: RGB repeated for {channels} channels, times 3 / {channels}"


def _counters(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that the file lacks: written before BatchNorm counted its batches, which only momentum=None reads."""
    return {key: expected[key] for key in expected.keys() - found.keys() if key.endswith("num_batches_tracked")}


def _other_options(
    weights: Weights, options: Mapping[str, Any], chosen: Collection[str], names: Collection[str]
) -> list[str]:
    """Those of names whose value in the file is another than the model's, and is not the user's choice."""
    found = weights.options
    return [
        name
        for name in names
        if name in found and name in options and name not in chosen and found[name] != options[name]
        if not (name == "dilation" and _same_dilation(found[name], options))
    ]


def _same_dilation(found: str, options: Mapping[str, Any]) -> bool:
    """mit-semseg's and mmsegmentation's dilation differ in basic blocks only."""
    return options["layers"] >= 50 and {found, options["dilation"]} == {"mit", "mmseg"}


def _given(weights: Weights, overrides: Mapping[str, Any]) -> str:
    """Arguments that the user gave in place of the file's, and that no shape shows."""
    return ", ".join(
        f"{name}={overrides[name]!r} as given, {weights.options[name]!r} in the file"
        for name in (*_COMPUTED, "align_corners")
        if name in overrides and name in weights.options and _plain(overrides[name]) != weights.options[name]
    )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _set_normalisation(model: nn.Module, weights: Weights) -> None:
    """Set a PSPNet's mean and std, and where they come from; those of other channels are told by no file."""
    options: Any = model.options
    told = weights.normalised and len(weights.mean) == options["in_channels"]
    model.mean = for_channels(weights.mean, options["in_channels"])  # type: ignore[assignment]
    model.std = for_channels(weights.std, options["in_channels"])  # type: ignore[assignment]
    model.normalised_by = weights.source if told else None  # type: ignore[assignment]


def _set_align_corners(model: nn.Module, aligned: bool | None) -> None:
    """Set what a plain attribute says and the file knows better than the model's constructor did."""
    if aligned is None:
        return
    model.options["align_corners"] = aligned  # type: ignore[operator, index]
    for module in model.modules():
        if hasattr(module, "align_corners"):
            module.align_corners = aligned  # type: ignore[assignment]


def _geometry_of(weights: Weights, others: list[str]) -> str | None:
    """How to make the network that a file fits."""
    if not others:
        return None
    values = {name: weights.options[name] for name in others}
    arguments = ", ".join(f"{name}={value!r}" for name, value in values.items())
    shell = " ".join(f"--model.{name} {str(value).lower()}" for name, value in values.items())
    return f"make the model with {arguments} ({shell})"


def _account(
    weights: Weights, others: list[str], options: Mapping[str, Any], differences: list[str], advice: str | None
) -> str:
    """The message of a file that does not fit."""
    lines = [f"{weights.source} ({weights.layout}'s layout) does not fit the model:"]
    if others:
        rows = [("", "file", "model"), *((name, str(weights.options[name]), str(options[name])) for name in others)]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines += ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += differences
    return "\n".join([*lines, *([f"  {advice}"] if advice else [])])


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
    }
    return [_listing(title, keys) for title, keys in parts.items() if keys]


def _listing(title: str, keys: list[str]) -> str:
    more = f"\n    ... and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"  {len(keys)} {title}:\n    " + "\n    ".join(keys[:_SHOWN]) + more


def _numbers(values: Collection[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
