"""torch.utils.flop_counter counts what the modules do, for each of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.modules import batch
from tests.tools.checks import both_ways, network


@pytest.mark.parametrize("training", [False, True], ids=["predict", "train"])
@pytest.mark.parametrize("layers", [18, 50])
def test_counts_of_every_module(layers: int, training: bool) -> None:
    def run() -> dict[str, dict[Any, int]]:
        model = network(layers).float().train(training)
        x, labels = batch()
        with FlopCounterMode(display=False) as counter:
            if training:
                _, main, aux = model(x.float(), labels)
                (main + aux).backward()
            else:
                with torch.no_grad():
                    model(x.float())
        return {name: dict(counts) for name, counts in counter.get_flop_counts().items()}

    got, want = both_ways(run)
    assert got == want
    names = {"Global", "PSPNet.layer4.1.conv2", "PSPNet.ppm.features.3.1", "PSPNet.cls.0", "PSPNet.cls.4"}
    assert names <= want.keys()
    assert all(sum(want[name].values()) > 0 for name in names)


def test_a_prediction_counts_its_convolutions() -> None:
    model = network(18).float().eval()
    with FlopCounterMode(display=False) as called:
        model(batch()[0].float())
    with FlopCounterMode(display=False) as predicted:
        model.predict(batch()[0].float())
    assert predicted.get_total_flops() == called.get_total_flops() > 0
