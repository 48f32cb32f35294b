"""The kernel of upsample_argmax, compiled ahead of time; tests/ops/test_upsample_argmax.py checks its values."""

from __future__ import annotations

from tests.kernels.ahead_of_time import assert_fit
from tests.kernels.upsampling import cell_requests


def test_fits_every_gpu() -> None:
    assert_fit(cell_requests("upsample_argmax", "argmax_kernel", {"labels": "*u8"}))
