"""timm's feature extractors around the network."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from tests.models.modules import module_by_module
from tests.tools.checks import assert_same, images, network

STAGES = {"layer0": 4, "layer1": 4, "layer2": 8, "layer3": 8, "layer4": 8}


@pytest.mark.parametrize("kind", ["FeatureListNet", "FeatureDictNet", "FeatureHookNet", "FeatureGraphNet"])
def test_features_of_every_stage(timm: ModuleType, kind: str) -> None:
    from timm.models import _features, _features_fx

    model = network(50).eval()
    model.feature_info = [{"num_chs": 1, "reduction": by, "module": name} for name, by in STAGES.items()]
    wrapper = getattr(_features, kind, None) or getattr(_features_fx, kind)
    got = wrapper(model, out_indices=(1, 2, 3, 4))(images(torch.float64))
    got = list(got.values()) if isinstance(got, dict) else got

    x, want = images(torch.float64), []
    with module_by_module():
        plain = network(50).eval()
        for name in STAGES:
            x = plain.get_submodule(name)(x)
            want.append(x)
    assert len(got) == 4
    for ours, theirs in zip(got, want[1:], strict=True):
        assert_same({"feature": ours}, {"feature": theirs}, 1e-9)
