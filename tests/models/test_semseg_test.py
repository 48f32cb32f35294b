"""Label maps against those of semseg's own tool/test.py (semseg_test_numbers.py), of the same weights and images."""

import json

import numpy as np
import pytest
import torch

from psp_fast import PSPNet
from psp_fast.engine.inference import label_map
from tests.engine import small
from tests.models import semseg_test_numbers
from tests.models.semseg_numbers import fill
from tests.models.semseg_test_numbers import CASES, CLASSES, picture, unpacked

NUMBERS = json.loads(semseg_test_numbers.NUMBERS.read_text())


@pytest.fixture(scope="module")
def model():
    made = PSPNet(layers=50, classes=CLASSES, pretrained=False).eval()
    with torch.no_grad():
        fill(made)
    semseg_test_numbers.normalise(made, NUMBERS["centre"], NUMBERS["spread"])
    return made


def test_label_maps_are_those_of_semsegs_test_procedure(model, record_property):
    differing, pixels = {}, 0
    for name, case in CASES.items():
        config = small.config(
            eval__mode="slide", eval__mirror=True,
            eval__crop=case.crop, eval__scales=case.scales, eval__base_size=case.base_size,
        )  # fmt: skip
        expected = unpacked(name, NUMBERS["labels"][name])
        assert len(np.unique(expected)) >= 5
        found = label_map(model, torch.from_numpy(picture(name)), config).numpy()
        differing[name], pixels = int((found != expected).sum()), pixels + expected.size
    agreement = 1 - sum(differing.values()) / pixels
    record_property("agreement", agreement)
    print(f"of {pixels} pixels {100 * agreement:.4f} % agree; differing: {differing}")
    assert agreement >= 0.9999, differing
