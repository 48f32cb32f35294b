"""What the suite measures: the images of the paper's data sets, and nothing that takes too long."""

from __future__ import annotations

import pytest
import torch

from benchmarks import work
from benchmarks.cases import MOST, Case, cases
from benchmarks.shapes import DEVICE, DTYPE, MAIN, Input


def cases_of(mark: pytest.MarkDecorator) -> dict[Case, bool]:
    """Each case, and whether --quick runs it."""
    return {parameter.values[0]: not parameter.marks for parameter in mark.args[1]}


def test_every_size_batch_and_number_of_classes() -> None:
    found = cases_of(cases(work.upsample_cross_entropy, logits=True))
    for backward in (False, True):
        given = [case.given for case in found if case.backward == backward]
        assert {(g.height, g.width) for g in given} == {(473, 473), (713, 713), (512, 1024)}
        assert {g.batch for g in given} == {1, 2, 16} and {g.classes for g in given} == {19, 21, 150}
    assert {case.layout for case in found} == {"channels_last", "nchw"}
    assert {case.dtype for case in found} == {DTYPE, torch.bfloat16}
    assert [case.backward for case, quick in found.items() if quick] == [False, True]
    assert all(case.main == quick for case, quick in found.items())


def test_names_tell_cases_apart() -> None:
    found = cases_of(cases(work.upsample_argmax, backward=[False], logits=True))
    assert len({str(case) for case in found}) == len(found) == 8 - (DEVICE == "cuda")
    assert str(next(iter(found))) == f"{MAIN}-150-forward-channels_last-{str(DTYPE).removeprefix('torch.')}"


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU is fast enough for all")
def test_what_takes_too_long_is_left_out() -> None:
    found = cases_of(cases(work.pyramid_conv3x3))
    assert all(case.given == MAIN or case.work.flops <= MOST.flops for case in found)
    assert {case.given.batch for case in found if not case.backward} == {1, 2}
    assert {case.given for case in found if case.backward} == {MAIN}


def test_work_of_backward_is_of_both() -> None:
    given = Input(2, 473, 473, 21)
    assert given.cells == 2 * 60 * 60 and given.pixels == 2 * 473 * 473
    for name, estimate in work.OPS.items():
        forward, both = estimate(given, False, 4), estimate(given, True, 4)
        assert forward.bytes < both.bytes or name == "upsample_argmax"
        assert (forward.flops == 0) == (both.flops == 0) and both.flops <= 3 * forward.flops
        assert estimate(given, False, 2).bytes < forward.bytes
    assert work.pyramid_pool(given, False, 4).bytes == 4 * 2048 * 7200
