"""What PSPNet's constructor refuses, by the argument's name."""

import numpy as np
import pytest
import torch

from psp_fast import PSPNet

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("layers", [0, -50, 19, NAN, "50", None, [50], True]),
        ("bins", [[], [0], [-1, 2], [1.5], [NAN], [INF], [10**9], 3, "123", None, [True]]),
        ("dropout", [-0.1, 1, 1.5, NAN, INF, "0.1", None, True]),
        ("classes", [0, 1, -2, NAN, 2.5, 10**9, "3", None, True]),
        ("zoom_factor", [0, 3, 8.5, NAN, "8", True]),
        ("use_ppm", ["no", 2, None, []]),
        ("aux", ["no", 2, None]),
        ("align_corners", ["false", NAN]),
        ("pool", ["min", 3, None]),
        ("stem", ["shallow", None, ["deep"]]),
        ("dilation", ["none", 3]),
        ("output_stride", [4, 32, NAN, "that of dilations (1, 2, 2, 4)"]),
        ("head_channels", [(1, 2), (1, 2, 0), (1, 2, 3.5), (1, 2, 10**9), "abc", 5]),
        ("in_channels", [0, -3, 1.5, NAN, 10**9, "3", None, True]),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^PSPNet: {name} must be "), torch.device("meta"):
            PSPNet(**{"layers": 18, "pretrained": False, name: value})


def test_numbers_of_numpy_are_numbers():
    with torch.device("meta"):
        model = PSPNet(np.int64(18), [np.int32(1), 2], np.float64(0.2), classes=np.int64(4), pretrained=False)
        assert PSPNet(18, (), pretrained=False, use_ppm=False).cls[0].in_channels == 512
    assert model.cls[4].out_channels == 4 and len(model.ppm.features) == 2
