"""torch.nn.utils.fusion: batch norm folded into the convolution before it, a pair at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from psp_fast import PSPNet
from tests.tools.checks import assert_same, network, predict

PAIRS = (
    ("layer0.0", "layer0.1"),
    ("layer1.0.conv1", "layer1.0.bn1"),
    ("layer2.0.conv2", "layer2.0.bn2"),
    ("layer2.0.downsample.0", "layer2.0.downsample.1"),
    ("ppm.features.2.1", "ppm.features.2.2"),
    ("cls.0", "cls.1"),
)


def _fold(model: PSPNet, conv: str, bn: str) -> None:
    model.set_submodule(conv, fuse_conv_bn_eval(model.get_submodule(conv), model.get_submodule(bn)))
    model.set_submodule(bn, nn.Identity())


@pytest.mark.parametrize("pair", [*PAIRS, None], ids=[*(conv for conv, _ in PAIRS), "all"])
def test_folded_pairs_answer_alike(pair: tuple[str, str] | None) -> None:
    model = network(50).eval()
    for conv, bn in [pair] if pair else PAIRS:
        _fold(model, conv, bn)
        assert model.get_submodule(conv).bias is not None
    with torch.no_grad():
        assert_same(predict(model), predict(network(50)), 1e-9)
