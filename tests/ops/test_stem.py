"""The stem as one op against the same layers op by op: numbers, running statistics, memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from psp_fast.models.resnet import Stem, make_stem
from psp_fast.nn.fused import trains_stem
from psp_fast.ops import use
from psp_fast.ops.block import BatchNorm
from psp_fast.ops.stem import stem
from tests.ops.checks import LAYOUTS, random, relative_error

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")


def made_stem(kind: str, dtype: torch.dtype = torch.float64) -> Stem:
    torch.manual_seed(0)
    made = make_stem(kind)[0].to(dtype)
    for bn in (m for m in made if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.normal_(bn.bias)
    return made


def results(made: Stem, x: Tensor, setting: str, image_gradient: bool = True) -> list[Tensor]:
    """Output, gradients, and running statistics after one step from the same start."""
    start = {name: value.clone() for name, value in made.state_dict().items()}
    made.zero_grad()
    x = x.detach().requires_grad_(image_gradient)
    with use(setting):
        y = made(x)
        (y * random(*y.shape, seed=9).to(y.dtype)).sum().backward()
    found = [y.detach(), *(p.grad.clone() for p in made.parameters()), *(b.clone() for b in made.buffers())]
    found += [x.grad] if image_gradient else []
    made.load_state_dict(start)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["deep", "torchvision"])
@pytest.mark.parametrize("image_gradient", [True, False])
def test_matches_the_layers_op_by_op(kind: str, layout: str, image_gradient: bool) -> None:
    made = made_stem(kind)
    x = random(2, 3, 29, 38, dtype=torch.float64, layout=layout)
    given = (made, x)
    for got, want in zip(
        results(*given, "auto", image_gradient), results(*given, "reference", image_gradient), strict=True
    ):
        assert relative_error(got, want) <= 1e-11


def test_frozen_layers() -> None:
    made = made_stem("deep")
    made[4].eval()
    x = random(2, 3, 29, 38, dtype=torch.float64)
    for got, want in zip(results(made, x, "auto"), results(made, x, "reference"), strict=True):
        assert relative_error(got, want) <= 1e-11


def test_single_precision() -> None:
    """As near to float64 as op by op, but for Winograd's rounding, which gives a few windows another maximum."""
    made = made_stem("deep", torch.float32)
    for bn in (m for m in made if isinstance(m, nn.BatchNorm2d)):
        nn.init.constant_(bn.bias, 8.0)  # far from 0, so that no ReLU flips
    x = random(2, 3, 64, 64, layout="channels_last")
    got, plain = results(made, x, "auto"), results(made, x, "reference")
    truth = results(copy.deepcopy(made).double(), x.double(), "reference")
    assert relative_error(got[0], truth[0]) <= 3 * relative_error(plain[0], truth[0]) + 1e-5
    for ours, exact in zip(got, truth, strict=True):
        assert relative_error(ours, exact) <= 1e-2


def test_keeps_the_images_and_the_convolutions_results() -> None:
    made = made_stem("deep", torch.float32)
    x = random(1, 3, 64, 64, layout="channels_last")
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        made(x)
    maps = x.nbytes + (64 + 64 + 128) * 32 * 32 * 4
    assert sum(kept.values()) <= maps + sum(p.nbytes for p in made.parameters()) + 8192


def test_autocast() -> None:
    made = made_stem("deep", torch.float32)
    x = random(2, 3, 32, 32)
    for bn in (m for m in made if isinstance(m, nn.BatchNorm2d)):
        nn.init.constant_(bn.bias, 8.0)  # far from 0, so that few ReLUs flip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, plain = results(made, x, "auto"), results(made, x, "reference")
    truth = results(copy.deepcopy(made).double(), x.double(), "reference")
    assert [t.dtype for t in got] == [t.dtype for t in plain] and got[0].dtype == torch.bfloat16
    for ours, eager, exact in zip(got, plain, truth, strict=True):
        assert relative_error(ours, exact) <= 1.5 * relative_error(eager, exact) + 1e-3


def test_compile() -> None:
    made = made_stem("deep", torch.float32)
    x = random(2, 3, 32, 32)
    start = {name: value.clone() for name, value in made.state_dict().items()}
    found = []
    for run in (torch.compile(made, fullgraph=True, backend="aot_eager"), made):
        made.zero_grad()
        made.load_state_dict(start)
        y = run(x)
        y.sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in made.parameters()), *(b.clone() for b in made.buffers())])
    torch.testing.assert_close(found[0], found[1])


def test_double_backward_is_refused() -> None:
    x = random(2, 3, 16, 16, dtype=torch.float64).requires_grad_()
    (dx,) = torch.autograd.grad(made_stem("deep")(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="stem: second derivatives are not available"):
        dx.sum().backward()


@pytest.mark.parametrize(
    ("index", "changed"),
    [
        (0, nn.Conv2d(3, 64, 3, stride=2, bias=False)),
        (0, nn.Conv2d(3, 64, 3, stride=(2, 1), padding=1, bias=False)),
        (0, nn.Conv2d(3, 64, 4, stride=2, padding=2, bias=False)),
        (3, nn.Conv2d(64, 64, 3, padding=2, dilation=2, bias=False)),
        (4, nn.GroupNorm(4, 64)),
        (9, nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)),
        (9, nn.MaxPool2d(2)),
        (9, nn.AvgPool2d(3, 2, padding=1)),
    ],
)
def test_other_layers_run_one_by_one(index: int, changed: nn.Module) -> None:
    made = made_stem("deep", torch.float32)
    x = random(2, 3, 16, 16)
    assert trains_stem(x, list(zip(made[:9:3], made[1:9:3], made[2:9:3], strict=True)), made[9])  # type: ignore[arg-type]
    made[index] = changed
    assert not trains_stem(x, list(zip(made[:9:3], made[1:9:3], made[2:9:3], strict=True)), made[9])  # type: ignore[arg-type]


def test_another_activation_is_applied() -> None:
    made = made_stem("deep")
    x = random(2, 3, 16, 16, dtype=torch.float64)
    made[2] = nn.LeakyReLU(0.3)
    want = nn.Sequential.forward(copy.deepcopy(made), x)
    torch.testing.assert_close(made(x), want)
    made[2], calls = nn.ReLU(), []
    made[2].register_forward_hook(lambda *given: calls.append(given))
    made(x)
    assert len(calls) == 1


def test_bad_arguments() -> None:
    norm = BatchNorm(*(torch.ones(8) for _ in range(4)), True, 0.1, 1e-5, None)
    with pytest.raises(ValueError, match="stem: the weight of conv1 must be for 3 channels, not 4"):
        stem(random(1, 3, 8, 8), [torch.ones(8, 4, 3, 3)], [norm], [2])
    with pytest.raises(ValueError, match=r"stem: weight of bn1 must have one value for each of 9 channels, not \(8,\)"):
        stem(random(1, 3, 8, 8), [torch.ones(9, 3, 3, 3)], [norm], [2])
