"""What a checkpoint file holds, in psp_fast's terms, whichever project wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from psp_fast.checkpoints.architecture import infer_options
from psp_fast.checkpoints.reading import read_checkpoint
from psp_fast.checkpoints.translating import recognise, translate
from psp_fast.errors import CheckpointError
from psp_fast.normalisation import Colour

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
        mean, std: of the images the weights expect; RGB, 0..255.
        classes: names, where the file has them.
        palette: RGB of each class, where the file has them.
        config: the whole configuration, in a file of psp_fast's.
    """

    source: str
    layout: str
    state: dict[str, Tensor]
    options: dict[str, Any]
    whole: bool
    mean: Colour
    std: Colour
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
    first = contents[0]
    try:
        options |= infer_options(state)
        if layout.name == "mmsegmentation":
            options |= _of_mmseg_config(first, options)
        options |= _described(first)
        mean, std = _normalisation(first) or (layout.mean, layout.std)
        if layout.name == "mmsegmentation":
            mean, std = _of_mmseg_images(first, state, mean, std)
        classes, palette = _classes(first)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source}: what it says of its network is damaged: {error}") from error
    if options.get("dilation") == "mit" and options.get("layers", 0) >= 50:
        options["dilation"] = "mmseg"  # the two differ in basic blocks only
    config = first.get("config") if layout.name == "semseg" and isinstance(first.get("config"), dict) else None
    name = layout.name if config is None else "psp_fast"
    return Weights(source, name, state, options, layout.whole, mean, std, classes, palette, config)


def _tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        state = {}
    tensors = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(state):
        raise CheckpointError(
            f"{path} holds no state_dict: expected tensors by name, or such a dictionary under 'state_dict'"
        )
    return tensors


def _described(content: Mapping[str, Any]) -> dict[str, Any]:
    """PSPNet's arguments in the configuration that `psp-fast train` and `psp-fast convert` save."""
    config = content.get("config")
    if not isinstance(config, Mapping) or not isinstance(config.get("model"), Mapping):
        return {}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in config["model"].items()}
    return {key: value for key, value in values.items() if key not in _NOT_COMPUTED and value is not None}


def _of_mmseg_config(content: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What the text of mmsegmentation's configuration, where the file has it, says of PSPNet's arguments."""
    text = _mmseg_text(content)
    found: dict[str, Any] = {}
    for name, meanings in _MMSEG_SETTINGS.items():
        values = set(re.findall(rf"""\b{name}["']?\s*[=:]\s*["']?(\w+)""", text))
        if len(values) == 1:  # where the text is of one mind
            found |= meanings.get(values.pop(), {})
    if bins := _mmseg_numbers(text, "pool_scales"):
        found["bins"] = tuple(map(int, bins))
    if dilations := _mmseg_numbers(text, "dilations"):
        stages = tuple(map(int, dilations))
        found["output_stride"] = _MMSEG_DILATIONS.get(stages, f"that of dilations {stages}")  # which no PSPNet has
    if found.get("dilation") == "semseg" and options.get("layers", 50) < 50:
        found["dilation"] = "mmseg with contract_dilation=False"  # whose basic blocks PSPNet does not have
    return found


def _of_mmseg_images(
    content: Mapping[str, Any], state: dict[str, Tensor], mean: Colour, std: Colour
) -> tuple[Colour, Colour]:
    """Mean and std, RGB, where mmsegmentation's configuration has others; a first convolution for BGR is turned."""
    text = _mmseg_text(content)
    bgr = re.search(r"""\b(?:bgr_)?to_rgb["']?\s*[=:]\s*False""", text) is not None
    colours = [_mmseg_numbers(text, name) or given for name, given in (("mean", mean), ("std", std))]
    if bgr:
        state["layer0.0.weight"] = state["layer0.0.weight"].flip(1)
        colours = [colour[::-1] for colour in colours]
    (r, g, b), (x, y, z) = colours
    return (r, g, b), (x, y, z)


def _mmseg_text(content: Mapping[str, Any]) -> str:
    meta = content.get("meta")
    return str(meta.get("cfg", meta.get("config", ""))) if isinstance(meta, Mapping) else ""


def _mmseg_numbers(text: str, name: str) -> tuple[float, ...] | None:
    """The numbers of a list or tuple, which may be over several lines; None where it is not said, or not only one."""
    lists = re.findall(rf"""\b{name}["']?\s*[=:]\s*[\[(]([^\[\]()]*)[\])]""", text)
    values = {tuple(float(number) for number in re.findall(r"[-+.\deE]+", numbers)) for numbers in lists}
    return values.pop() if len(values) == 1 else None


def _normalisation(content: Mapping[str, Any]) -> tuple[Colour, Colour] | None:
    config = content.get("config")
    augment = config.get("augment") if isinstance(config, Mapping) else None
    if not isinstance(augment, Mapping) or not {"mean", "std"} <= augment.keys():
        return None
    (r, g, b), (x, y, z) = augment["mean"], augment["std"]
    return (r, g, b), (x, y, z)


def _classes(content: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, list[list[int]] | None]:
    """Names and colours that psp_fast's or mmsegmentation's trainer saved."""
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    named = meta.get("dataset_meta")
    named = named if isinstance(named, Mapping) else {}
    classes = content.get("classes", named.get("classes", meta.get("CLASSES")))
    palette = content.get("palette", named.get("palette", meta.get("PALETTE")))
    names = tuple(map(str, classes)) if isinstance(classes, list | tuple) else None
    return names, [list(map(int, colour)) for colour in palette] if isinstance(palette, list | tuple) else None
