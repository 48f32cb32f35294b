"""The bottleneck as one op against the same block op by op: numbers, running statistics, memory, ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from psp_fast.models.resnet import Bottleneck
from psp_fast.ops import use
from tests.ops.checks import LAYOUTS, random, relative_error

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")


def block(stride: int = 1, dilation: int = 1, shortcut: bool = True, dtype: torch.dtype = torch.float64) -> Bottleneck:
    """A block of 16 inner channels, from 24 channels with a convolution on the shortcut, from 64 without."""
    torch.manual_seed(0)
    channels = 24 if shortcut else 64
    downsample = None
    if shortcut:
        downsample = nn.Sequential(nn.Conv2d(channels, 64, 1, stride, bias=False), nn.BatchNorm2d(64))
    made = Bottleneck(channels, 16, stride, dilation, downsample, True).to(dtype)
    for bn in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.normal_(bn.bias)
    return made


def results(made: Bottleneck, x: Tensor, setting: str) -> dict[str, Tensor]:
    """Output, gradients, and running statistics after one step from the same start."""
    start = {name: value.clone() for name, value in made.state_dict().items()}
    made.zero_grad()
    x = x.detach().requires_grad_()
    with use(setting):
        y = made(x)
        (y * random(*y.shape, seed=9).to(y.dtype)).sum().backward()
    found = {"y": y.detach(), "dx": x.grad, **{name: p.grad.clone() for name, p in made.named_parameters()}}
    found.update((name, buffer.clone()) for name, buffer in made.named_buffers())
    made.load_state_dict(start)
    return found


def assert_same(made: Bottleneck, x: Tensor, tolerance: float) -> None:
    got, want = results(made, x, "auto"), results(made, x, "reference")
    assert got.keys() == want.keys()
    for name in want:
        assert relative_error(got[name], want[name]) <= tolerance, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (1, 4)])
@pytest.mark.parametrize("shortcut", [True, False])
def test_matches_the_block_op_by_op(stride: int, dilation: int, shortcut: bool, layout: str) -> None:
    if stride == 2 and not shortcut:
        return  # the shortcut would not fit
    made = block(stride, dilation, shortcut)
    x = random(2, 24 if shortcut else 64, 13, 18, dtype=torch.float64, layout=layout)
    assert_same(made, x, 1e-11)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shortcut", [True, False])
def test_triton(shortcut: bool, layout: str) -> None:
    """The last convolution normalises what it reads; near to float64, as the block op by op."""
    made = block(1, 2, shortcut, torch.float32)
    for bn in (made.bn1, made.bn2, made.bn3):
        nn.init.constant_(bn.bias, 4.0)  # far from 0, so that few ReLUs flip
    x = random(1, 24 if shortcut else 64, 9, 8, layout=layout)
    for frozen in (False, True):
        made.bn2.train(not frozen)
        got, plain = results(made, x, "triton"), results(made, x, "reference")
        truth = results(made.double(), x.double(), "reference")
        made.float()
        for name in truth:
            assert relative_error(got[name], truth[name]) <= 3 * relative_error(plain[name], truth[name]) + 1e-5, name


def test_single_precision() -> None:
    """As near to float64 as the block op by op, but for Winograd's rounding."""
    made = block(dtype=torch.float32)
    for bn in (made.bn1, made.bn2, made.bn3):
        nn.init.constant_(bn.bias, 8.0)  # far from 0, so that no ReLU flips
    x = random(2, 24, 32, 32, layout="channels_last")
    got, plain = results(made, x, "auto"), results(made, x, "reference")
    truth = results(made.double(), x.double(), "reference")
    for name in truth:
        assert relative_error(got[name], truth[name]) <= 3 * relative_error(plain[name], truth[name]) + 1e-5, name


def test_frozen_layers() -> None:
    made = block()
    made.bn2.eval()
    x = random(2, 24, 13, 18, dtype=torch.float64)
    assert_same(made, x, 1e-11)
    made.bn3.eval()
    assert_same(made, x, 1e-11)


def test_layers_without_affine_or_running_statistics() -> None:
    made = block()
    made.bn1 = nn.BatchNorm2d(16, affine=False).double()
    made.bn2 = nn.BatchNorm2d(16, track_running_stats=False).double()
    made.bn3 = nn.BatchNorm2d(64, momentum=None).double()
    assert_same(made, random(2, 24, 13, 18, dtype=torch.float64), 1e-11)


def test_frozen_weights_and_input() -> None:
    made = block()
    made.conv2.weight.requires_grad_(False)
    x = random(2, 24, 13, 18, dtype=torch.float64)
    grads = []
    for setting in ("auto", "reference"):
        made.zero_grad()
        with use(setting):
            made(x).square().sum().backward()
        assert made.conv2.weight.grad is None
        grads.append([p.grad for p in made.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        assert relative_error(a, b) <= 1e-11


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the elements of the tensors kept for backward, each storage once."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        super().__init__(self.pack, lambda x: x)

    def __enter__(self) -> Saved:
        super().__enter__()
        return self

    def pack(self, x: Tensor) -> Tensor:
        self.storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x


def kept(made: nn.Module, x: Tensor, setting: str) -> int:
    with use(setting), Saved() as saved:
        made(x)
    return sum(saved.storages.values())


def test_keeps_half() -> None:
    """Kept: input, two inner maps, output: 4 + 1 + 1 + 4 times C a pixel; op by op two more C and another 4 C."""
    made = block(shortcut=False, dtype=torch.float32)
    x = random(2, 64, 40, 40, layout="channels_last").requires_grad_()
    unit = 2 * 16 * 40 * 40 * 4
    weights = sum(p.nbytes for p in made.parameters())
    assert kept(made, x, "auto") <= 10 * unit + 2 * weights
    assert kept(made, x, "reference") >= 15 * unit


def test_autocast() -> None:
    made = block(dtype=torch.float32)
    x = random(2, 24, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in made.parameters())
    torch.testing.assert_close(y.float(), block(dtype=torch.float32)(x), atol=0.3, rtol=0.1)


def test_compile() -> None:
    made = block(dtype=torch.float32)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    x = random(2, 24, 16, 16)
    start = {name: value.clone() for name, value in made.state_dict().items()}
    found = []
    for run in (compiled, made):
        made.zero_grad()
        made.load_state_dict(start)
        y = run(x)
        y.sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in made.parameters()), *(b.clone() for b in made.buffers())])
    torch.testing.assert_close(found[0], found[1])


def test_double_backward_is_refused() -> None:
    made = block()
    x = random(2, 24, 8, 8, dtype=torch.float64).requires_grad_()
    (dx,) = torch.autograd.grad(made(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        dx.sum().backward()
