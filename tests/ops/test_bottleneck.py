"""The bottleneck as one op against the same block op by op: numbers, running statistics, memory, ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from psp_fast.models.resnet import Bottleneck, Geometry
from psp_fast.nn import convert_sync_batch_norm
from psp_fast.nn.fused import trains_bottleneck
from psp_fast.ops import use
from psp_fast.ops.block import BatchNorm, Layer
from psp_fast.ops.bottleneck import bottleneck
from tests.ops.checks import LAYOUTS, random, relative_error
from tests.processes import run_ranks

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")


def block(stride: int = 1, dilation: int = 1, shortcut: bool = True, dtype: torch.dtype = torch.float64) -> Bottleneck:
    """A block of 16 inner channels, from 24 channels with a convolution on the shortcut, from 64 without."""
    torch.manual_seed(0)
    made = Bottleneck(24 if shortcut else 64, 16, Geometry(stride, dilation, dilation, False, False)).to(dtype)
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
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (2, 2), (1, 2), (1, 4)])
@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_matches_the_block_op_by_op(stride: int, dilation: int, shortcut: bool, layout: str, recompute: bool) -> None:
    if stride == 2 and not shortcut:
        return  # the shortcut would not fit
    made = block(stride, dilation, shortcut)
    made.recompute = recompute
    x = random(2, 24 if shortcut else 64, 13, 18, dtype=torch.float64, layout=layout)
    assert_same(made, x, 1e-11)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.usefixtures("needs_triton")
def test_triton(shortcut: bool, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last convolution normalises what it reads; near to float64, as the block op by op."""
    applied: list[int] = []  # by which weights
    apply = Layer.apply

    def noted(layer: Layer, *given: Any, **options: Any) -> Tensor:
        assert layer.weight is not None
        applied.append(layer.weight.data_ptr())
        return apply(layer, *given, **options)

    monkeypatch.setattr(Layer, "apply", noted)
    made = block(1, 2, shortcut, torch.float32)
    made.recompute = layout == "nchw"
    for bn in (made.bn1, made.bn2, made.bn3):
        nn.init.constant_(bn.bias, 4.0)  # far from 0, so that few ReLUs flip
    x = random(1, 24 if shortcut else 64, 9, 8, layout=layout)
    for frozen in (False, True):
        made.bn2.train(not frozen)
        applied.clear()
        got = results(made, x, "triton")
        first, second = (bn.weight.data_ptr() for bn in (made.bn1, made.bn2))
        assert first in applied and second not in applied  # its result is never stored
        plain = results(made, x, "reference")
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


def test_keeps_half_or_a_third() -> None:
    """Kept: input and output, and two inner maps unless recomputed; op by op two more C and another 4 C a pixel."""
    made = block(shortcut=False, dtype=torch.float32)
    x = random(2, 64, 40, 40, layout="channels_last").requires_grad_()
    unit = 2 * 16 * 40 * 40 * 4
    weights = sum(p.nbytes for p in made.parameters())
    assert kept(made, x, "auto") <= 10 * unit + 2 * weights
    assert kept(made, x, "reference") >= 15 * unit
    made.recompute = True
    assert kept(made, x, "auto") <= 8 * unit + 2 * weights


def test_keeps_nothing_of_the_shortcut() -> None:
    made = block(dtype=torch.float32)
    x = random(2, 24, 40, 40, layout="channels_last").requires_grad_()
    weights = sum(p.nbytes for p in made.parameters())
    assert kept(made, x, "auto") <= 2 * (24 + 16 + 16 + 64) * 40 * 40 * 4 + 2 * weights


def test_backward_inside_autocast() -> None:
    """Autocast there changes nothing: the types were chosen in forward."""
    made = block(dtype=torch.float32)
    x = random(2, 24, 16, 16)
    found = []
    for enabled in (False, True):
        made.zero_grad()
        y = made(x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y.square().sum().backward()
        found.append([p.grad.clone() for p in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("conv", "changed"),
    [
        ("conv2", nn.Conv2d(16, 16, 5, padding=2, bias=False)),
        ("conv2", nn.Conv2d(16, 16, 3, padding=1, dilation=2, bias=False)),
        ("conv2", nn.Conv2d(16, 16, 3, padding=(1, 2), dilation=(1, 2), bias=False)),
        ("conv2", nn.Conv2d(16, 16, 3, stride=(1, 2), padding=1, bias=False)),
        ("conv2", nn.Conv2d(16, 16, 3, padding=1, groups=2, bias=False)),
        ("conv2", nn.Conv2d(16, 16, 3, padding=1)),
        ("conv2", nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect", bias=False)),
        ("conv1", nn.Conv2d(24, 16, 3, padding=1, bias=False)),
        ("conv3", nn.Conv2d(16, 64, 1, stride=1, bias=True)),
        ("conv3", nn.Conv2d(16, 64, 1, padding=1, bias=False)),
        ("conv2", nn.Conv2d(16, 16, 3, padding=1, bias=False).double()),
        ("bn2", nn.GroupNorm(4, 16)),
    ],
)
def test_other_layers_run_one_by_one(conv: str, changed: nn.Module) -> None:
    made = block(dtype=torch.float32)
    setattr(made, conv, changed)
    layers = [(getattr(made, f"conv{i}"), getattr(made, f"bn{i}"), made.relu) for i in (1, 2, 3)] + [
        (*made.downsample, None)
    ]
    assert not trains_bottleneck(random(2, 24, 8, 8), layers)


@pytest.mark.parametrize("name", ["conv1", "conv2", "bn3", "downsample.0"])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_hooks_of_the_layers_are_called(name: str, kind: str) -> None:
    made, calls = block(dtype=torch.float32), []
    getattr(made.get_submodule(name), f"register_{kind}")(lambda *given: calls.append(given))
    made(random(2, 24, 8, 8)).sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["bn1", "bn2", "bn3"])
def test_a_batch_too_small_is_refused_before_it_is_counted(name: str) -> None:
    made = block(stride=2, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"more than one value per channel, got an input of shape \(1, 16, 1, 1\)"):
        made(random(1, 24, 2, 2))
    assert made.get_submodule(name).num_batches_tracked == 0


def test_backward_finds_what_a_frozen_layer_used() -> None:
    """Though the layer has been trained since."""
    made = block()
    made.bn2.eval()
    x = random(2, 24, 9, 8, dtype=torch.float64)
    made.zero_grad()
    made(x).square().sum().backward()
    want = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    made = copy.deepcopy(made)
    for bn in (made.bn1, made.bn3, made.downsample[1]):
        bn.momentum = 0.0
    loss = made(x).square().sum()
    made.bn2(100 * random(2, 16, 5, 5, dtype=torch.float64))
    made.bn2.running_mean.add_(5.0)
    loss.backward()
    for p, gradient in zip(made.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_subclasses_are_called() -> None:
    calls = []

    class Counted(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(x)

    made = block(dtype=torch.float32)
    made.conv2 = Counted(16, 16, 3, padding=1, bias=False)
    made(random(2, 24, 8, 8))
    assert calls == [1]


def weights_and_norms() -> tuple[list[Tensor], list[BatchNorm]]:
    shapes = [(16, 64, 1, 1), (16, 16, 3, 3), (64, 16, 1, 1)]
    norms = [BatchNorm(*(torch.ones(shape[0]) for _ in range(4)), True, 0.1, 1e-5, None) for shape in shapes]
    return [torch.ones(shape) for shape in shapes], norms


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, n: w.__setitem__(1, torch.ones(16, 16, 1, 1)), r"weight of conv2 must be \(16, 16, 3, 3\), not"),
        (lambda w, n: w.__setitem__(0, torch.ones(16, 60, 1, 1)), r"weight of conv1 must be \(16, 64, 1, 1\), not"),
        (lambda w, n: w.__setitem__(2, torch.ones(60, 16, 1, 1)), "weight of bn3 must have one value for each of 60"),
        (lambda w, n: n.__setitem__(1, n[1]._replace(bias=torch.ones(3))), r"bias of bn2 .* 16 channels, not \(3,\)"),
        (
            lambda w, n: n.__setitem__(2, n[2]._replace(bias=torch.ones(64, device="meta"))),
            "bias of bn3 must be on the device of x, cpu, not on meta",
        ),
        (lambda w, n: w.__setitem__(2, w[2].to("meta")), "the weight of conv3 must be on the device of x, cpu"),
        (
            lambda w, n: n.__setitem__(0, n[0]._replace(running_mean=None, training=False)),
            "bn1 is frozen and has no running statistics",
        ),
    ],
)
def test_bad_arguments(change: Callable[[list[Tensor], list[BatchNorm]], None], message: str) -> None:
    weights, norms = weights_and_norms()
    change(weights, norms)
    with pytest.raises(ValueError, match=message):
        bottleneck(random(2, 64, 8, 8), weights, norms, stride=1, dilation=1)


def test_x_must_fit_as_the_shortcut() -> None:
    weights, norms = weights_and_norms()
    with pytest.raises(ValueError, match=r"\(2, 64, 8, 8\) is no shortcut for 64 channels at stride 2: give conv4"):
        bottleneck(random(2, 64, 8, 8), weights, norms, stride=2, dilation=1)


def _groups_of_their_own(rank: int, world: int) -> None:
    """bn2's statistics are of all ranks, the others' of each rank."""
    made = convert_sync_batch_norm(block()).double()
    alone = [dist.new_group([k]) for k in range(world)][rank]
    for bn in (made.bn1, made.bn3, made.downsample[1]):
        bn.process_group = alone
    assert_same(made, random(2, 24, 9, 8, dtype=torch.float64, seed=rank), 1e-9)


def _all_empty(rank: int, world: int) -> None:
    made = convert_sync_batch_norm(block(dtype=torch.float32))
    before = {name: value.clone() for name, value in made.state_dict().items() if "running" in name}
    made(random(0, 24, 9, 8)).sum().backward()
    after = made.state_dict()
    assert before and all(torch.equal(value, after[name]) for name, value in before.items())


def test_batches_of_two_processes_may_all_be_empty() -> None:
    run_ranks(_all_empty, 2)


def test_process_groups_layer_by_layer() -> None:
    run_ranks(_groups_of_their_own, 2)


def test_autocast() -> None:
    made = block(dtype=torch.float32)
    x = random(2, 24, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in made.parameters())
    torch.testing.assert_close(y.float(), block(dtype=torch.float32)(x), atol=0.3, rtol=0.1)


def test_a_retained_graph_can_be_run_again() -> None:
    """Backward lets go of what was saved, but not where the graph is retained."""
    made, x = block(), random(2, 24, 8, 8, dtype=torch.float64).requires_grad_()
    y, inputs = made(x), [x, *made.parameters()]
    first = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(y.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y.sum(), inputs)


def test_a_graph_of_a_released_backward_refuses_second_derivatives() -> None:
    made, x = block(), random(2, 24, 8, 8, dtype=torch.float64).requires_grad_()
    (dx,) = torch.autograd.grad(made(x).sum(), x, create_graph=True, retain_graph=False)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        dx.sum().backward()


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
