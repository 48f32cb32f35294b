"""Writing a PSPNet's weights as other projects name them, where those projects can compute the same network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from psp_fast.errors import CheckpointError

_TO_MMSEG = (
    (r"^layer0\.", "backbone.stem."),
    (r"^layer", "backbone.layer"),
    (r"^ppm\.features\.(\d+)\.1\.", r"decode_head.psp_modules.\1.1.conv."),
    (r"^ppm\.features\.(\d+)\.2\.", r"decode_head.psp_modules.\1.1.bn."),
    (r"^cls\.0\.", "decode_head.bottleneck.conv."),
    (r"^cls\.1\.", "decode_head.bottleneck.bn."),
    (r"^cls\.4\.", "decode_head.conv_seg."),
    (r"^aux\.0\.", "auxiliary_head.convs.0.conv."),
    (r"^aux\.1\.", "auxiliary_head.convs.0.bn."),
    (r"^aux\.4\.", "auxiliary_head.conv_seg."),
)
_TO_MMSEG_SHALLOW_STEM = ((r"^layer0\.0\.", "backbone.conv1."), (r"^layer0\.1\.", "backbone.bn1."))
_BASIC = {"use_ppm": True, "pool": "avg", "dim_reduction": True}
_SEMSEG = {
    **_BASIC,
    "stem": "deep",
    "dilation": "semseg",
    "output_stride": 8,
    "stride_in_1x1": False,
    "avg_down": False,
    "aux": True,
    "align_corners": True,
}


def to_semseg(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of a PSPNet for semseg's test.py and demo.py, which expect DataParallel's "module." before names.

    Raises:
        CheckpointError: a network that semseg's class cannot be.
    """
    options: Any = model.options
    width = 512 if options["layers"] < 50 else 2048
    usual = {**_SEMSEG, "head_channels": (width // len(options["bins"]), width // 4, width // 8)}
    _check("semseg", options, usual)
    if options["layers"] not in (50, 101, 152):
        raise CheckpointError(f"semseg has no PSPNet of {options['layers']} layers: 50, 101 or 152")
    return {f"module.{key}": value for key, value in model.state_dict().items()}


def to_mmseg(model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """The state_dict of a PSPNet for mmsegmentation, and the configuration of the model that takes it.

    Raises:
        CheckpointError: a network that mmsegmentation's cannot be.
    """
    options: Any = model.options
    _check("mmsegmentation", options, _BASIC)
    level, main, _ = options["head_channels"]
    if level != main:
        raise CheckpointError(f"mmsegmentation's levels have the head's channels: {level} and {main} differ")
    if options["layers"] < 50 and options["dilation"] != "mmseg":
        raise CheckpointError(
            "mmsegmentation has 18 and 34 layers with its own dilation alone, dilation='mmseg'; a bare state_dict is "
            "taken to have semseg's: convert a checkpoint that psp-fast train wrote, which names it"
        )
    if options["avg_down"] and options["stem"] == "torchvision":
        raise CheckpointError("mmsegmentation has average-pooled shortcuts with a deep stem alone")
    rules = _TO_MMSEG if options["stem"] != "torchvision" else (*_TO_MMSEG_SHALLOW_STEM, *_TO_MMSEG)
    state = {_mmseg_name(key, rules, options["avg_down"]): value for key, value in model.state_dict().items()}
    return state, _mmseg_config(options, model)


def _mmseg_name(key: str, rules: tuple, avg_down: bool) -> str:
    for pattern, replacement in rules:
        new = re.sub(pattern, replacement, key)
        if new != key:
            break
    if avg_down:
        new = re.sub(r"\.downsample\.([01])\.", lambda match: f".downsample.{int(match[1]) + 1}.", new)
    return new


def _mmseg_config(options: Mapping[str, Any], model: Any) -> str:
    kind = "ResNet" if options["stem"] == "torchvision" else "ResNetV1d" if options["avg_down"] else "ResNetV1c"
    stem = 128 if options["stem"] == "deep" else 64
    strides, dilations = ("1, 2, 1, 1", "1, 1, 2, 4") if options["output_stride"] == 8 else ("1, 2, 2, 1", "1, 1, 1, 2")
    style = "caffe" if options["stride_in_1x1"] else "pytorch"
    contracted = options["dilation"] != "semseg"
    width = 512 if options["layers"] < 50 else 2048
    _, main, aux = options["head_channels"]
    heads = f"num_classes={options['classes']}, align_corners={options['align_corners']}"
    bins = options["bins"]
    lines = [
        f"data_preprocessor=dict(mean={list(model.mean)}, std={list(model.std)}, bgr_to_rgb=True)",
        f"backbone=dict(type='{kind}', depth={options['layers']}, stem_channels={stem}, strides=({strides}), "
        f"dilations=({dilations}), style='{style}', contract_dilation={contracted})",
        f"decode_head=dict(type='PSPHead', in_channels={width}, channels={main}, pool_scales={bins}, {heads})",
    ]
    if options["aux"]:
        lines.append(
            f"auxiliary_head=dict(type='FCNHead', in_channels={width // 2}, channels={aux}, num_convs=1, "
            f"concat_input=False, {heads})"
        )
    return "\n".join(lines)


def _check(project: str, options: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    for name, value in needed.items():
        if options[name] != value:
            raise CheckpointError(
                f"{project} cannot compute this network: it needs {name}={value}, not {options[name]}"
            )
