"""Every tile and variant that kernels choose from by layout, type, size and alignment, on the GPU where there is one.

Each op at the smallest shapes that make its launcher choose each of them; small enough for compute-sanitizer, and for
Triton's interpreter, which runs the Triton kernels where there is no GPU. The configurations of conv1x1_bn_relu are in
test_conv1x1_bn_relu.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from psp_fast import ops
from psp_fast.ops import backend, reference
from tests.kernels.interpreter import correct_bfloat16
from tests.ops.checks import LAYOUTS, assert_matches, random, relative_error
from tests.ops.upsampling import assert_classes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAPS = {  # by the tile of psp_fast.kernels.sync_batch_norm_relu that they take
    "channels_last": ((2, 67, 4, 9), "channels_last"),
    "planes": ((2, 2, 17, 16), "nchw"),
    "small planes": ((2, 5, 4, 7), "nchw"),
}
SIDES = {4: ((3, 2), (9, 7)), 8: ((2, 2), (13, 11))}
"""Logits and labels by the square of pixels of psp_fast.kernels.upsample_cells that they take."""
LEVELS = ((5, 1, 1), (20, 3, 2))

pytestmark = pytest.mark.usefixtures("poison_empty", "setting")
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(params=["auto", "triton"] if DEVICE == "cuda" else ["triton"])
def setting(needs_triton: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels that users get, which are CUDA C++ where there are any, and Triton's."""
    if DEVICE == "cpu":
        correct_bfloat16(monkeypatch)
    with backend.use(request.param):
        yield


@pytest.fixture(
    params=[torch.float32, torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.bfloat16], ids=str
)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def made(*shape: int, **kind: Any) -> Tensor:
    return random(*shape, **kind).to(DEVICE)


def alignments(x: Tensor) -> list[Tensor]:
    """x, and for C++ kernels x where 16 bytes do not divide its address."""
    return [x, misaligned(x)] if DEVICE == "cuda" else [x]


def misaligned(x: Tensor) -> Tensor:
    flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:]
    return torch.as_strided(flat, x.shape, x.stride()).copy_(x)


@each_layout
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_pyramid_pool(dtype: torch.dtype, layout: str, mode: str) -> None:
    for channels, width in ((8, 4), (5, 5)):  # whole packs, and not
        for x in alignments(made(1, channels, 3, width, dtype=dtype, layout=layout)):
            assert_matches(
                lambda x: ops.pyramid_pool(x, (1, 2), mode), lambda x: reference.pyramid_pool(x, (1, 2), mode), x
            )


def normalised(op: Any, training: bool) -> Any:
    """Batch norm as a function of its maps and parameters."""

    def call(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        mean, var = torch.zeros_like(weight), torch.ones_like(weight)
        return op(x, weight, bias, mean, var, training=training, residual=residual)

    return call


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "constant"])
def test_batch_norm(dtype: torch.dtype, kind: str, training: bool) -> None:
    """In one read where the C++ kernels can, and in two: of maps that are not aligned."""
    shape, layout = MAPS[kind]
    x, residual = (made(*shape, dtype=dtype, layout=layout, seed=seed) for seed in (0, 1))
    parameters = made(shape[1], seed=2), made(shape[1], seed=3)
    ours, truth = (normalised(op, training) for op in (ops.sync_batch_norm_relu, reference.sync_batch_norm_relu))
    for maps in zip(alignments(x), alignments(residual), strict=True):
        assert_matches(ours, truth, *maps, *parameters)
    assert_matches(ours, truth, x, None, *parameters)


@pytest.mark.parametrize("kind", MAPS)
def test_batch_norm_in_steps(dtype: torch.dtype, kind: str) -> None:
    """The kernels between which processes exchange their sums."""
    shape, layout = MAPS[kind]
    x = made(*shape, dtype=dtype, layout=layout)
    mean, squares = torch.ops.psp_fast.batch_norm_statistics(x)
    exact, count = x.double(), x.numel() // x.shape[1]
    assert relative_error(mean, exact.mean((0, 2, 3))) <= 1e-5
    assert relative_error(squares, exact.var((0, 2, 3), correction=0) * count) <= 1e-5
    channels = (mean, (squares / count + 1e-5).rsqrt(), None, None)
    y = torch.ops.psp_fast.batch_norm_apply(x, *channels, None, True)
    sums = torch.ops.psp_fast.batch_norm_backward_sums(x, x, y, *channels, True)
    want = torch.where(y > 0, exact, 0).sum((0, 2, 3))
    assert relative_error(sums[0], want) <= 1e-5
    dx, g = torch.ops.psp_fast.batch_norm_backward_input(x, x, y, *channels, sums / count, True, True)
    assert torch.equal(g, torch.where(y > 0, x, 0)) and dx.shape == x.shape and dx.isfinite().all()


@each_layout
@pytest.mark.parametrize("side", SIDES)
def test_upsampled_logits(dtype: torch.dtype, layout: str, side: int) -> None:
    inputs, size = SIDES[side]
    logits = made(1, 37, *inputs, dtype=dtype, layout=layout)
    labels = torch.randint(0, 37, (1, *size), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert_classes(ops.upsample_argmax(logits, size), logits, size, True)
    assert_matches(
        lambda x: ops.upsample_cross_entropy(x, labels), lambda x: reference.upsample_cross_entropy(x, labels), logits
    )


@each_layout
def test_upsample_concat(dtype: torch.dtype, layout: str) -> None:
    inputs = [made(1, *size, dtype=dtype, layout=layout) for size in ((3, 5, 18), *LEVELS)]
    assert_matches(
        lambda x, *levels: ops.upsample_concat(x, levels),
        lambda x, *levels: reference.upsample_concat(x, levels),
        *inputs,
    )


@each_layout
def test_pyramid_conv3x3(dtype: torch.dtype, layout: str) -> None:
    inputs = [made(1, *size, dtype=dtype, layout=layout) for size in ((3, 3, 18), *LEVELS)]
    weight = made(17, 28, 3, 3, dtype=dtype, layout=layout)
    assert_matches(
        lambda weight, x, *levels: ops.pyramid_conv3x3(x, levels, weight),
        lambda weight, x, *levels: reference.pyramid_conv3x3(x, levels, weight),
        weight,
        *inputs,
    )


def test_shapes_choose_every_tile() -> None:
    from psp_fast.kernels import sync_batch_norm_relu, upsample_cells

    assert set(MAPS) == set(sync_batch_norm_relu.TILES) and set(SIDES) == set(upsample_cells.CONFIGURATIONS)
    for kind, (shape, layout) in MAPS.items():
        chosen = sync_batch_norm_relu._plan(torch.empty(shape), layout == "channels_last").tile
        assert (chosen["ROWS"], chosen["CHANNELS"]) == sync_batch_norm_relu.TILES[kind]
    for side, (inputs, size) in SIDES.items():
        assert upsample_cells.configuration(inputs, size)["SIDE"] == side
