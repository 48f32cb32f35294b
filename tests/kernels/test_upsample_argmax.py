"""The kernel of upsample_argmax, compiled ahead of time; tests/ops/test_upsample_argmax.py checks its values."""

from __future__ import annotations

from tests.kernels.upsampling import assert_fit, cell_requests


def test_fits_every_gpu() -> None:
    assert_fit(cell_requests("upsample_argmax", "argmax_kernel", {"labels": "*u8"}))
