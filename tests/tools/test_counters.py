"""torchinfo, ptflops and thop, which count by hooks and patched methods."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from tests.tools.checks import both_ways, images, network


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_torchinfo(torchinfo: ModuleType, mode: str) -> None:
    def run() -> list[tuple[Any, ...]]:
        model = network(50).float()
        summary = torchinfo.summary(model, input_data=images(), mode=mode, depth=6, verbose=0)
        return [
            (each.var_name, each.class_name, each.input_size, each.output_size, each.num_params, each.macs)
            for each in summary.summary_list
        ]

    got, want = both_ways(run)
    assert got == want
    assert sum(row[-1] > 0 for row in want) > 20


@pytest.mark.parametrize("backend", ["pytorch", "aten"])
def test_ptflops(ptflops: ModuleType, backend: str) -> None:
    def run() -> tuple[int, int]:
        model = network(50).float()
        return ptflops.get_model_complexity_info(
            model, (3, 33, 41), as_strings=False, print_per_layer_stat=False, backend=backend
        )

    (got, got_parameters), (want, parameters) = both_ways(run)
    assert got_parameters == parameters
    # Its first backend also counts calls of F.interpolate.
    assert got == want if backend == "aten" else abs(got - want) < 1e-3 * want
    assert want > 1e6


def test_thop(thop: ModuleType) -> None:
    def run() -> Any:
        model = network(50).float()
        return thop.profile(model, (images(),), ret_layer_info=True, verbose=False)

    got, want = both_ways(run)
    assert got == want
    assert want[0] > 1e6
