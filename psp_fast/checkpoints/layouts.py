"""The layouts other projects write their weights in: their names, and what their networks are like."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from psp_fast.normalisation import MEAN, STD, Colour

Rule = tuple[str, str | Callable[[re.Match], str]]
"""A pattern, and what replaces it."""


@dataclass(frozen=True)
class Layout:
    """One project's names, and what its networks are like where neither names nor shapes tell.

    Args:
        name: what messages call it.
        marks: keys by which it is recognised; a file has all of them.
        rules: applied to every key, one after the other.
        dropped: pattern of keys that belong to no part of a PSPNet.
        options: PSPNet's arguments.
        whole: a whole network; else ImageNet weights, which fill the backbone.
        fine_to_coarse: the head's convolution reads the pyramid's levels from the finest to the coarsest.
        bgr: the first convolution reads blue, green, red.
        mean, std: RGB, 0..255, of the images it was trained on.
    """

    name: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    dropped: str = r"$^"
    options: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = True
    fine_to_coarse: bool = False
    bgr: bool = False
    mean: Colour = MEAN
    std: Colour = STD


def _renamed(names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules for modules of these full names."""
    return tuple((rf"^{re.escape(old)}\.", f"{new}.") for old, new in names.items())


_CONV_BN: tuple[Rule, ...] = (  # mmcv's ConvModule, behind names that end in "/"
    (r"/conv\.", ".0."),
    (r"/bn\.", ".1."),
)
_THREE_CONVS = {
    "conv1": "layer0.0",
    "bn1": "layer0.1",
    "conv2": "layer0.3",
    "bn2": "layer0.4",
    "conv3": "layer0.6",
    "bn3": "layer0.7",
}
_MIT_HEADS = {
    "conv_last": "cls",
    "cbr_deepsup": "aux",
    "conv_last_deepsup": "aux.4",
}
_CAFFE_BINS = {"1": "0", "2": "1", "3": "2", "6": "3"}
_CAFFE_CONVS = {"1x1_reduce": "1", "3x3": "2", "1x1_increase": "3"}


def _caffe_stem(match: re.Match) -> str:
    return f"layer0.{3 * (int(match[1]) - 1) + bool(match[2])}."


def _caffe_block(match: re.Match) -> str:
    block = f"layer{int(match[1]) - 1}.{int(match[2]) - 1}"
    if match[3] == "1x1_proj":
        return f"{block}.downsample.{int(bool(match[4]))}."
    return f"{block}.{'bn' if match[4] else 'conv'}{_CAFFE_CONVS[match[3]]}."


def _caffe_level(match: re.Match) -> str:
    return f"ppm.features.{_CAFFE_BINS[match[1]]}.{2 if match[2] else 1}."


def _paddle_stem(match: re.Match) -> str:
    return f"layer0.{3 * (int(match[1]) - 1)}/"


def _paddle_block(match: re.Match) -> str:
    return f"layer{int(match[1]) + 1}.{match[2]}."


_PADDLE: tuple[Rule, ...] = (
    (r"\._mean$", ".running_mean"),
    (r"\._variance$", ".running_var"),
    (r"^(?:backbone\.)?conv1_([123])\.", _paddle_stem),
    (r"^(?:backbone\.)?bb_([0-3])_(\d+)\.", _paddle_block),
    (r"^head\.psp_module\.stages\.(\d+)\.1\._conv\.", r"ppm.features.\1.1."),
    (r"^head\.psp_module\.stages\.(\d+)\.1\._batch_norm\.", r"ppm.features.\1.2."),
    (r"^head\.psp_module\.conv_bn_relu2\.", "cls/"),
    (r"^head\.conv\.", "cls.4."),
    (r"^head\.auxlayer\.conv_bn_relu\.", "aux/"),
    (r"^head\.auxlayer\.conv\.", "aux.4."),
    (r"\.conv(\d)\._conv\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.conv(\d)\._batch_norm\.", lambda match: f".bn{int(match[1]) + 1}."),
    (r"\.short\.", ".downsample/"),
    (r"^layer0\.([036])/_batch_norm\.", lambda match: f"layer0.{int(match[1]) + 1}."),
    (r"^layer0\.([036])/_conv\.", r"layer0.\1."),
    (r"/_conv\.", ".0."),
    (r"/_batch_norm\.", ".1."),
)
_PADDLE_OPTIONS = {"dilation": "semseg", "stride_in_1x1": False, "avg_down": True}
_HALF: Colour = (127.5, 127.5, 127.5)

LAYOUTS = (
    Layout(
        "mmsegmentation",
        ("decode_head.psp_modules.0.1.conv.weight", "decode_head.bottleneck.conv.weight"),
        (
            (r"^backbone\.stem\.", "layer0."),
            (r"^backbone\.conv1\.", "layer0.0."),
            (r"^backbone\.bn1\.", "layer0.1."),
            (r"^backbone\.", ""),
            (r"^decode_head\.psp_modules\.(\d+)\.1\.conv\.", r"ppm.features.\1.1."),
            (r"^decode_head\.psp_modules\.(\d+)\.1\.bn\.", r"ppm.features.\1.2."),
            (r"^decode_head\.bottleneck\.", "cls/"),
            (r"^decode_head\.conv_seg\.", "cls.4."),
            (r"^auxiliary_head\.convs\.0\.", "aux/"),
            (r"^auxiliary_head\.conv_seg\.", "aux.4."),
            *_CONV_BN,
        ),
        options={"align_corners": False, "dilation": "mmseg", "stride_in_1x1": False},
    ),
    Layout(
        "mit-semseg",
        ("ppm.0.1.weight", "conv_last.0.weight", "conv_last.4.weight"),
        ((r"^ppm\.", "ppm.features."), *_renamed(_MIT_HEADS), *_renamed(_THREE_CONVS)),
        dropped=r"^fc\.",
        options={"align_corners": False, "dilation": "mit", "stride_in_1x1": False},
    ),
    Layout(
        "PaddleSeg",
        ("head.psp_module.stages.0.1._conv.weight",),
        _PADDLE,
        options={"align_corners": False, **_PADDLE_OPTIONS},
        fine_to_coarse=True,
        mean=_HALF,
        std=_HALF,
    ),
    Layout("PaddleSeg's ImageNet", ("conv1_1._conv.weight",), _PADDLE, r"^(fc|out)\.", _PADDLE_OPTIONS, whole=False),
    Layout(
        "Caffe",
        ("conv1_1_3x3_s2.weight", "conv5_4.weight", "conv6.weight"),
        (
            (r"^conv1_([123])_3x3(?:_s2)?(/bn)?\.", _caffe_stem),
            (r"^conv5_3_pool([1236])_conv(/bn)?\.", _caffe_level),
            (r"^conv([2-5])_(\d+)_(1x1_reduce|3x3|1x1_increase|1x1_proj)(/bn)?\.", _caffe_block),
            (r"^conv5_4\.", "cls.0."),
            (r"^conv5_4/bn\.", "cls.1."),
            (r"^conv6\.", "cls.4."),
            (r"^conv4_\d+\.", "aux.0."),
            (r"^conv4_\d+/bn\.", "aux.1."),
            (r"^conv6_1\.", "aux.4."),
        ),
        options={"align_corners": True, "dilation": "semseg", "stride_in_1x1": True, "avg_down": False},
        fine_to_coarse=True,
        bgr=True,
        mean=(123.68, 116.779, 103.939),
        std=(1.0, 1.0, 1.0),
    ),
    Layout("semseg", ("layer0.0.weight", "cls.0.weight")),
    Layout("psp_fast's backbone", ("layer0.0.weight", "layer1.0.conv1.weight"), whole=False),
    Layout(
        "timm's deep-stem ResNet",
        ("conv1.0.weight", "layer1.0.conv1.weight"),
        ((r"^conv1\.", "layer0."), (r"^bn1\.", "layer0.7.")),
        r"^fc\.",
        {"stride_in_1x1": False},
        whole=False,
    ),
    Layout(
        "OpenMMLab's deep-stem ResNet",
        ("stem.0.weight", "layer1.0.conv1.weight"),
        ((r"^stem\.", "layer0."),),
        r"^fc\.",
        {"stride_in_1x1": False},
        whole=False,
    ),
    Layout(
        "ImageNet ResNet",  # torchvision's, timm's and semseg's; mit-semseg's encoder
        ("conv1.weight", "layer1.0.conv1.weight"),
        _renamed(_THREE_CONVS),
        r"^fc\.",
        {"stride_in_1x1": False},
        whole=False,
    ),
)
