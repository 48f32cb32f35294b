"""What a checkpoint file holds, in psp_fast's terms, whichever project wrote it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from psp_fast.checkpoints import fields
from psp_fast.checkpoints.architecture import infer_options
from psp_fast.checkpoints.fields import check_field
from psp_fast.checkpoints.layouts import Layout
from psp_fast.checkpoints.reading import read_checkpoint
from psp_fast.checkpoints.translating import recognise, translate
from psp_fast.checkpoints.values import check_arrays, check_weights
from psp_fast.errors import CheckpointError
from psp_fast.normalisation import MEAN, STD, for_channels

Paths = str | Path | Sequence[str | Path]
"""A checkpoint file, or the files that make one network together."""

_NOT_COMPUTED = ("pretrained", "dropout", "zoom_factor", "recompute")  # of a saved configuration's model
_MMSEG_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "align_corners": {"True": {"align_corners": True}, "False": {"align_corners": False}},
    "contract_dilation": {"False": {"dilation": "semseg"}},
    "style": {"caffe": {"stride_in_1x1": True}},
}
_MMSEG_DILATIONS: dict[tuple[int, ...], int] = {(1, 1, 2, 4): 8, (1, 1, 1, 2): 16, (1, 1, 1, 1): 32}
"""Of the four stages, and the output stride they make."""


@dataclass(frozen=True)
class Weights:
    """The weights of a file by psp_fast's names, with what is known of their network.

    Args:
        source: the file's name, for messages.
        layout: the project that wrote it.
        state: tensors by PSPNet's names.
        options: PSPNet's arguments, as far as the file, its shapes or its layout tell them.
        whole: a whole network, not a backbone alone.
        mean, std: of the images the weights expect; a value a channel, RGB where there are three, 0..255.
        normalised: the file, or the project that wrote it, tells mean and std; else they are ImageNet's, as most are.
        classes: names, where the file has them.
        palette: RGB of each class, where the file has them.
        config: the whole configuration, in a file of psp_fast's.
    """

    source: str
    layout: str
    state: dict[str, Tensor]
    options: dict[str, Any]
    whole: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalised: bool
    classes: tuple[str, ...] | None = None
    palette: list[list[int]] | None = None
    config: dict[str, Any] | None = None


def read_weights(path: Paths) -> Weights:
    """Read a checkpoint of any known layout; mit-semseg's encoder and decoder are given together.

    Raises:
        CheckpointError: a file that is missing, damaged or unsafe, or a layout that is not known.
    """
    paths = [Path(p) for p in ([path] if isinstance(path, str | Path) else path)]
    source = " and ".join(map(str, paths))
    contents = [read_checkpoint(p) for p in paths]
    tensors: dict[str, Tensor] = {}
    for file, content in zip(paths, contents, strict=True):
        more = _tensors(content, file)
        if twice := sorted(more.keys() & tensors.keys()):
            raise CheckpointError(f"{source} both hold {twice[0]}: give the files of one network")
        tensors |= more
    layout = recognise(tensors, source)
    state, options = translate(layout, tensors, source)
    check_weights(state, source)
    first = contents[0]
    options |= infer_options(state)
    if layout.name == "mmsegmentation":
        options |= _of_mmseg_config(first, options, source)
    options |= _described(first, source)
    mean, std, normalised = _normalisation(first, layout, state, source)
    classes, palette = _classes(first, source)
    if options.get("dilation") == "mit" and options.get("layers") in (50, 101, 152, 269):
        options["dilation"] = "mmseg"  # the two differ in basic blocks only
    config = dict(_own_config(first, source)) if layout.name == "semseg" else {}
    name = "psp_fast" if config else layout.name
    return Weights(source, name, state, options, layout.whole, mean, std, normalised, classes, palette, config or None)


def _tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        state = {}
    tensors = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(state):
        raise CheckpointError(
            f"{path} holds no state_dict: expected tensors by name, or such a dictionary under 'state_dict'"
        )
    check_arrays(tensors, path)
    return tensors


def _described(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """PSPNet's arguments in the configuration that `psp-fast train` and `psp-fast convert` save."""
    model = _own_config(content, source).get("model", {})
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in model.items()}
    values = {key: value for key, value in values.items() if key not in _NOT_COMPUTED and value is not None}
    for key, value in values.items():
        check_field(value, fields.ARGUMENT, f"config.model.{key}", source)
    return values


def _own_config(content: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The configuration that psp_fast saved; empty in files of others, which may call something else so."""
    config = content.get("config")
    if isinstance(config, Mapping) and isinstance(config.get("model"), Mapping):
        return config
    if "config" in content and fields.CLASSES.fits(content.get("classes")) and "palette" in content:
        check_field(config, fields.CONFIG, "config", source)
        check_field(config.get("model"), fields.CONFIG, "config.model", source)  # type: ignore[union-attr]
    return {}


def _of_mmseg_config(content: Mapping[str, Any], options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What the text of mmsegmentation's configuration, where the file has it, says of PSPNet's arguments."""
    text = _mmseg_text(content)
    found: dict[str, Any] = {}
    for name, meanings in _MMSEG_SETTINGS.items():
        values = set(re.findall(rf"""\b{name}["']?\s*[=:]\s*["']?(\w+)""", text))
        if len(values) == 1:  # where the text is of one mind
            found |= meanings.get(values.pop(), {})
    if bins := _mmseg_numbers(text, "pool_scales", source):
        found["bins"] = tuple(map(int, bins))
    if dilations := _mmseg_numbers(text, "dilations", source):
        stages = tuple(map(int, dilations))
        found["output_stride"] = _MMSEG_DILATIONS.get(stages, f"that of dilations {stages}")  # which no PSPNet has
    if found.get("dilation") == "semseg" and options.get("layers", 50) < 50:
        found["dilation"] = "mmseg with contract_dilation=False"  # whose basic blocks PSPNet does not have
    return found


def _normalisation(
    content: Mapping[str, Any], layout: Layout, state: dict[str, Tensor], source: str
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean and std, and whether file or project tell them; a first convolution for mmsegmentation's BGR is turned."""
    augment = _own_config(content, source).get("augment", {})
    check_field(augment, fields.CONFIG, "config.augment", source)
    mean, std = augment.get("mean"), augment.get("std")
    first = state.get("layer0.0.weight")
    channels = 3 if first is None or first.ndim != 4 else first.shape[1]
    if layout.name == "mmsegmentation" and mean is None and std is None:
        mean, std = _of_mmseg_images(content, state, source)
    normalised = mean is not None or std is not None or (layout.mean, layout.std) != (MEAN, STD)
    mean = for_channels(layout.mean, channels) if mean is None else mean
    std = for_channels(layout.std, channels) if std is None else std
    check_field(mean, fields.numbers(channels), "mean of images", source)
    check_field(std, fields.numbers(channels, positive=True), "std of images", source)
    return tuple(mean), tuple(std), normalised


def _of_mmseg_images(
    content: Mapping[str, Any], state: dict[str, Tensor], source: str
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and std, RGB, where mmsegmentation's configuration has them; a first convolution for BGR is turned."""
    text = _mmseg_text(content)
    mean, std = (_mmseg_numbers(text, name, source) for name in ("mean", "std"))
    if re.search(r"""\b(?:bgr_)?to_rgb["']?\s*[=:]\s*False""", text) is None:
        return mean, std
    first = state.get("layer0.0.weight")
    if first is not None and first.ndim == 4:
        state["layer0.0.weight"] = first.flip(1)
    return mean and mean[::-1], std and std[::-1]


def _mmseg_text(content: Mapping[str, Any]) -> str:
    meta = content.get("meta")
    return str(meta.get("cfg", meta.get("config", ""))) if isinstance(meta, Mapping) else ""


def _mmseg_numbers(text: str, name: str, source: str) -> tuple[float, ...] | None:
    """The numbers of a list or tuple, which may be over several lines; None where it is not said, or not only one."""
    lists = re.findall(rf"""\b{name}["']?\s*[=:]\s*[\[(]([^\[\]()]*)[\])]""", text)
    try:
        values = {tuple(float(number) for number in re.findall(r"[-+.\deE]+", numbers)) for numbers in lists}
        if not all(math.isfinite(number) for numbers in values for number in numbers):
            raise ValueError("a number that is too large")
    except ValueError as error:
        raise CheckpointError(f"{source} is damaged: {name} in its configuration: {error}") from error
    return values.pop() if len(values) == 1 else None


def _classes(content: Mapping[str, Any], source: str) -> tuple[tuple[str, ...] | None, list[list[int]] | None]:
    """Names and colours that psp_fast's or mmsegmentation's trainer saved."""
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    named = meta.get("dataset_meta")
    named = named if isinstance(named, Mapping) else {}
    classes = content.get("classes", named.get("classes", meta.get("CLASSES")))
    palette = content.get("palette", named.get("palette", meta.get("PALETTE")))
    if _own_config(content, source):  # in files of others these fields may be anything
        if classes is not None:
            check_field(classes, fields.CLASSES, "classes", source)
        if palette is not None:
            check_field(palette, fields.PALETTE, "palette", source)
    return (
        tuple(classes) if fields.CLASSES.fits(classes) else None,
        [list(colour) for colour in palette] if fields.PALETTE.fits(palette) else None,
    )
