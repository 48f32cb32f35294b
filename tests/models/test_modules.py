"""Ops stand for modules only where nobody can tell: every module of a network, changed in every way, has its effect."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from itertools import zip_longest
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from psp_fast import PSPNet, ops
from psp_fast.models.pyramid import Head, PyramidPooling
from psp_fast.nn import SyncBatchNorm2d
from psp_fast.nn.exact import may_fuse
from tests.models.modules import CHANGES, CLASSES, batch, make, module_by_module, units
from tests.ops.checks import relative_error

BACKWARD = ("backward_hook", "backward_pre_hook")
CALLED = ("hook", "pre_hook", *BACKWARD, "subclass", "own_forward", "wrapper", "own_convolution")
"""Changes that note their calls."""


def results(model: PSPNet, training: bool) -> dict[str, Tensor]:
    """What a call of the network gives: logits, or losses, gradients and running statistics."""
    images, labels = batch()
    if not training:
        with torch.no_grad():
            return {"logits": model.eval()(images)}
    model.train().zero_grad()
    _, main, aux = model(images, labels)
    (main + 0.4 * aux).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"main": main.detach(), "aux": aux.detach(), **gradients, **dict(model.named_buffers())}


def parent_of(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


@pytest.mark.parametrize(
    ("change", "training"), [(c, t) for c in CHANGES for t in (False, True) if t or c not in BACKWARD]
)
@pytest.mark.parametrize("layers", [18, 50])
def test_a_changed_module_has_its_effect(layers: int, change: str, training: bool) -> None:
    """In turn the first, second, ... module of every group that an op may stand for is changed, one a group."""
    original = make(layers)
    seen = set()
    for names in zip_longest(*units(original)):
        found: list[dict[str, Tensor]] = []
        for by_modules in (False, True):
            model, calls = copy.deepcopy(original), list[str]()
            torch.manual_seed(1)  # of changes that draw
            given = [(parent_of(model, name), name, model.get_submodule(name)) for name in names if name is not None]
            changed = {name for parent, name, module in given if CHANGES[change](parent, name, module, calls)}
            if not changed:
                break
            seen |= changed
            if by_modules:
                with module_by_module():
                    found.append(results(model, training))
            else:
                found.append(results(model, training))
            if change in CALLED:
                unused = {name for name in changed if not training and name.startswith("aux")}
                assert set(calls) == changed - unused
        if changed:
            got, want = found
            assert got.keys() == want.keys()
            for key in want:
                torch.testing.assert_close(got[key], want[key], rtol=1e-6, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}")
    if change in CALLED and change != "own_convolution":
        assert seen == {name for group in units(original) for name in group}
    assert seen


@pytest.mark.parametrize("training", [False, True], ids=["predict", "train"])
@pytest.mark.parametrize("layers", [18, 50])
def test_an_unchanged_network_is_its_modules(layers: int, training: bool) -> None:
    model = make(layers)
    other = copy.deepcopy(model)
    assert may_fuse(batch()[0])
    with module_by_module():
        want = results(other, training)
    for key, value in results(model, training).items():
        torch.testing.assert_close(value, want[key], rtol=1e-6, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}")


def _through_data(model: PSPNet) -> None:
    for p in model.parameters():
        p.data.mul_(0.7)


def _new_data(model: PSPNet) -> None:
    for p in model.parameters():
        p.data = 0.7 * p.data


def _through_numpy(model: PSPNet) -> None:
    for p in model.parameters():
        p.detach().numpy()[...] *= 0.7


def _through_vector(model: PSPNet) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(0.7 * vector, model.parameters())


def _buffers_through_data(model: PSPNet) -> None:
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.data.mul_(3)


def _through_a_collective(model: PSPNet) -> None:
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for p in model.parameters():
            dist.all_reduce(p.data.mul_(0.7))
    finally:
        dist.destroy_process_group()


def _swapped(model: PSPNet) -> None:
    """As averages of weights are swapped in for an evaluation."""
    average = [0.7 * p.detach() for p in model.parameters()]
    for p, other in zip(model.parameters(), average, strict=True):
        p.data, kept = other, p.data
        other.set_(kept)


def _assigned(model: PSPNet) -> None:
    model.load_state_dict({key: 0.7 * value for key, value in model.state_dict().items()}, assign=True)


def _optimised_frozen(model: PSPNet) -> None:
    """A step of an optimiser that writes to `.data`, beside frozen batch norms."""
    model(torch.randn(2, 3, 33, 41)).square().mean().backward()
    for p in model.parameters():
        if p.grad is not None:
            p.data.sub_(0.3 * p.data.norm() * p.grad / (p.grad.norm() + 1e-9))


CHANGES_OF_WEIGHTS = (
    _through_data,
    _new_data,
    _through_numpy,
    _through_vector,
    _buffers_through_data,
    _through_a_collective,
    _swapped,
    _assigned,
    _optimised_frozen,
)


@pytest.mark.parametrize("change", CHANGES_OF_WEIGHTS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_no_answer_is_from_weights_of_before(change: Callable[[PSPNet], None], mode: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = PSPNet(50, classes=CLASSES, pretrained=False, head_channels=(8, 8, 8)).eval()
    x = torch.randn(1, 3, 33, 41)
    with mode():
        before = model(x).detach().clone()
        model.predict(x)
    change(model)
    with mode():
        got, labels = model(x), model.predict(x)
        with ops.use("reference"):
            want, expected = model(x), model.predict(x)
    assert relative_error(got, want) <= 1e-5 and (labels != expected).float().mean() <= 0.005
    assert relative_error(before, want) > 0.01  # the change can be seen


@pytest.mark.parametrize(
    "register",
    [nn.modules.module.register_module_forward_hook, nn.modules.module.register_module_forward_pre_hook],
)
def test_pytorchs_own_tools_see_every_module(register: Callable[..., Any]) -> None:
    model, other = make(50).eval(), make(50).eval()
    called: list[list[str]] = []
    for by_modules, network in ((False, model), (True, other)):
        names = {module: name for name, module in network.named_modules()}
        seen: list[str] = []
        hook = register(lambda m, *_, s=seen, n=names: s.append(n.get(m, "?")))
        try:
            with torch.no_grad(), module_by_module() if by_modules else nullcontext():
                network(batch()[0])
        finally:
            hook.remove()
        called.append(seen)
    assert called[0] == called[1] and len(called[0]) > 150


@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook"])
def test_a_global_backward_hook_sees_every_convolution(kind: str) -> None:
    model, seen = make(50).train(), set[nn.Module]()
    for relu in (module for module in model.modules() if isinstance(module, nn.ReLU)):
        relu.inplace = False  # PyTorch refuses these hooks beside a change in place
    hook = getattr(nn.modules.module, f"register_module_{kind}")(lambda module, *_: seen.add(module))
    try:
        images, labels = batch()
        _, main, aux = model(images.requires_grad_(), labels)
        (main + aux).backward()
    finally:
        hook.remove()
    assert {module for module in model.modules() if isinstance(module, nn.Conv2d)} <= seen


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d])
def test_a_method_replaced_on_a_whole_class_is_called(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model = kind.forward, make(50)
    monkeypatch.setattr(kind, "forward", lambda self, x: 1.25 * plain(self, x))
    got = results(copy.deepcopy(model), training=False)["logits"]
    with module_by_module():
        torch.testing.assert_close(got, results(model, training=False)["logits"], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "method", "count"),
    [
        (PyramidPooling, "forward", 1),
        (Head, "forward", 1),
        (nn.Sequential, "forward", 12),
        (nn.Conv2d, "_conv_forward", 61),
    ],
)
def test_every_call_of_a_replaced_method_is_seen(
    kind: type[nn.Module], method: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, model, calls = getattr(kind, method), make(50).eval(), []

    def noted(*args: Any) -> Tensor:
        calls.append(args[0])
        return plain(*args)

    monkeypatch.setattr(kind, method, noted)
    with torch.no_grad():
        model(batch()[0])
    assert len(calls) >= count


class _Convolutions(TorchFunctionMode):
    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") == "conv2d"
        return func(*args, **(kwargs or {}))


def test_a_function_mode_sees_every_convolution() -> None:
    model = make(50).eval()
    with torch.no_grad(), _Convolutions() as seen:
        model(batch()[0])
    aux = sum(isinstance(module, nn.Conv2d) for module in model.aux.modules())
    assert seen.count == sum(isinstance(module, nn.Conv2d) for module in model.modules()) - aux


def test_a_default_device_is_no_reason_to_call_modules() -> None:
    with torch.device("cpu"):
        assert may_fuse(batch()[0])


@pytest.mark.parametrize(("name", "count"), [("conv2d", 61), ("batch_norm", 60), ("relu", 50), ("cross_entropy", 2)])
def test_every_call_of_a_replaced_function_is_seen(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model, calls = getattr(nn.functional, name), make(50).train(), []

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(name)
        return plain(*args, **kwargs)

    monkeypatch.setattr(nn.functional, name, noted)
    model(*batch())
    assert len(calls) >= count


@pytest.mark.parametrize("layers", [18, 50])
@pytest.mark.parametrize("training", [True, False])
def test_a_block_within_autocast_gives_the_modules_type(layers: int, training: bool) -> None:
    blocks = make(layers).float().train(training).layer1
    x = torch.randn(2, blocks[0].conv1.in_channels, 9, 7)
    for block in blocks:
        with torch.autocast("cpu", torch.bfloat16):
            got = copy.deepcopy(block)(x)
            with module_by_module():
                want = block(x)
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
        x = want.detach().float()


class _Others(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._overloadpacket is torch.ops.aten.convolution
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("knows", [False, True])
def test_a_dispatch_mode_of_others_sees_every_convolution(knows: bool) -> None:
    """Unless it says that it knows the ops which stand for them."""
    model = make(50).train()
    with _Others() as seen:
        seen.knows_psp_fast = knows
        model(*batch())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert (seen.count < convolutions) if knows else (seen.count == convolutions)


@pytest.mark.parametrize("layers", [18, 50])
def test_the_shortcut_comes_last(layers: int) -> None:
    """Also where one convolution is called: hooks, and random modules, go in semseg's order."""
    block = make(layers).train().layer2[0]
    last = "conv2" if layers == 18 else "conv3"
    block.set_submodule(last, nn.Sequential(block.get_submodule(last), nn.Dropout2d(0.5)))
    block.downsample.append(nn.Dropout2d(0.5))
    x = torch.randn(2, block.conv1.in_channels, 9, 9, dtype=torch.float64)
    torch.manual_seed(0)
    got = copy.deepcopy(block)(x)
    torch.manual_seed(0)
    with module_by_module():
        torch.testing.assert_close(got, block(x), rtol=1e-7, atol=1e-9)


class _InHalf(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.bfloat16())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layers", "name"), [(18, "layer1.0.conv2"), (50, "layer1.0.conv3"), (50, "layer2.0.downsample.0"),
                         (50, "ppm.features.0.1")]
)  # fmt: skip
def test_a_convolution_in_another_type_is_promoted_as_by_modules(layers: int, name: str, training: bool) -> None:
    model = make(layers).float()
    model.set_submodule(name, _InHalf(model.get_submodule(name)))
    x, y = batch()
    got = copy.deepcopy(model).train(training)(x.float(), y)
    with module_by_module():
        torch.testing.assert_close(got, model.train(training)(x.float(), y), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("shortcut", ["broadcast", "number"])
@pytest.mark.parametrize("layers", [18, 50])
def test_a_shortcut_of_another_shape_is_broadcast(shortcut: str, layers: int) -> None:
    block = make(layers).eval().layer2[0]
    if shortcut == "broadcast":
        block.downsample = nn.Sequential(nn.AdaptiveAvgPool2d(1), *block.downsample[:1])
        block.downsample[1].stride = (1, 1)
    else:
        block.downsample = _Nothing()
    x = torch.randn(2, block.conv1.in_channels, 9, 9, dtype=torch.float64)
    got = block(x)
    with module_by_module():
        torch.testing.assert_close(got, block(x), rtol=1e-7, atol=1e-9)


class _Nothing(nn.Module):
    def forward(self, x: Tensor) -> int:
        return 0


class _WithCoordinates(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        return super().forward(torch.cat([x, x.new_ones(n, 2, height, width)], 1))


def test_images_are_what_a_changed_first_layer_takes() -> None:
    model = make(18).eval()
    model.layer0[0] = _WithCoordinates(5, 8, 3, 2, 1, bias=False).double()
    images = batch()[0]
    assert torch.equal(model(images).argmax(1), model.predict(images).long())
    model = make(18).eval()
    model.layer0.register_forward_pre_hook(lambda module, given: (given[0].expand(-1, 3, -1, -1),))
    grey = batch()[0][:, :1]
    assert model(grey).shape[1] == CLASSES and model.predict(grey).shape == (grey.shape[0], *grey.shape[2:])


def test_parts_of_the_heads_and_of_the_stem() -> None:
    model, x = make(50).eval(), torch.randn(2, 256, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(nn.Sequential(model.aux[:-1], *model.aux[-1:])(x[:, :128]), model.aux(x[:, :128]))
        assert model.cls[:3][0] is model.cls[0] and model.layer0[:0](x) is x


@pytest.mark.parametrize("of", ["parameter", "buffer"])
def test_statistics_that_want_a_gradient_are_refused_as_by_pytorch(of: str) -> None:
    model = make(18).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            if of == "parameter":
                module.running_mean = nn.Parameter(module.running_mean.clone())
            else:
                module.running_mean.requires_grad_()
    with pytest.raises(RuntimeError, match="not differentiable with respect to argument 'running_mean'"):
        model(batch()[0])


def test_a_quantised_map_reaches_the_modules() -> None:
    ppm = make(50).eval().ppm
    x = torch.quantize_per_tensor(torch.randn(2, 256, 9, 11), 0.1, 0, torch.quint8)
    assert not may_fuse(x) and not may_fuse(torch.ones(1, 3, 8, 8, dtype=torch.int64))
    for level in ppm.features:
        del level[1:]
    torch.testing.assert_close(ppm.levels(x)[1].dequantize(), ppm.features[1](x).dequantize())


def test_a_replaced_forward_of_the_network_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model, calls = PSPNet.forward, make(18).eval(), []
    monkeypatch.setattr(PSPNet, "forward", lambda self, x, y=None: (calls.append(x), plain(self, x, y))[1])
    want = model(batch()[0]).argmax(1)
    assert torch.equal(model.predict(batch()[0]).long(), want) and len(calls) == 2


def test_tensors_in_place_of_parameters_train_as_one_op() -> None:
    """As in the replicas of nn.DataParallel."""
    model = make(50).train()
    block = model.layer1[1]
    for module in block.modules():
        for name, value in [*module._parameters.items()]:
            del module._parameters[name]
            setattr(module, name, None if value is None else value.detach().requires_grad_())
    x = torch.randn(2, 32, 9, 9, dtype=torch.float64)
    assert "Bottleneck" in type(block(x).grad_fn).__name__


class _Louder(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return 1.25 * result if func in (nn.functional.relu, torch.relu, torch.relu_) else result


def test_a_function_mode_below_a_default_device_is_seen() -> None:
    block, x = make(50).eval().layer1[1], torch.randn(1, 32, 9, 9, dtype=torch.float64)
    with torch.no_grad(), _Louder(), torch.device("cpu"):
        got = block(x)
        with module_by_module():
            torch.testing.assert_close(got, block(x), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("where", ["Conv2d.__call__", "Module._call_impl", "conv2._call_impl"])
def test_every_way_into_a_call_is_seen(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block, calls = make(50).eval().layer1[1], list[nn.Module]()
    if where == "conv2._call_impl":
        plain = block.conv2._call_impl
        block.conv2._call_impl = lambda *args: (calls.append(block.conv2), plain(*args))[1]
    else:
        kind, name = getattr(nn, where.split(".")[0]), where.split(".")[1]
        replaced = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, *args: (calls.append(self), replaced(self, *args))[1])
    with torch.no_grad():
        block(torch.randn(1, 32, 9, 9, dtype=torch.float64))
    assert block.conv2 in calls


def test_numbers_in_place_of_pairs_are_pytorchs() -> None:
    model = make(50)
    conv = model.layer4[1].conv2
    conv.stride, conv.dilation = 1, 4
    got = results(model, training=False)["logits"]
    with module_by_module():
        torch.testing.assert_close(got, results(model, training=False)["logits"], rtol=1e-7, atol=1e-9)


def test_a_weight_of_another_kernel_is_the_weight() -> None:
    model = make(18).train()
    model.layer0[0].weight = nn.Parameter(torch.randn(8, 3, 5, 5, dtype=torch.float64))
    with module_by_module():
        want = results(copy.deepcopy(model), training=True)
    torch.testing.assert_close(results(model, training=True)["main"], want["main"])


def test_a_block_narrowed_by_hand_trains() -> None:
    model = make(50)
    block = model.layer2[1]
    block.conv2, block.bn2 = nn.Conv2d(16, 12, 3, padding=1, bias=False).double(), nn.BatchNorm2d(12).double()
    block.conv3 = nn.Conv2d(12, 64, 1, bias=False).double()
    with module_by_module():
        want = results(copy.deepcopy(model), training=True)
    torch.testing.assert_close(results(model, training=True)["main"], want["main"])


def test_a_replaced_call_sees_every_module(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model, seen = nn.Module.__call__, make(50).eval(), []

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(self)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", call)
    with torch.no_grad():
        model(batch()[0])
    called = {*model.modules()} - {model.ppm.features, model.criterion, *model.aux.modules()}
    assert {*seen} == called


def test_make_fx_traces_pytorchs_own_ops() -> None:
    model, images = make(50).eval(), batch()[0]
    with torch.no_grad():
        graph = make_fx(model)(images)
        torch.testing.assert_close(graph(images), model(images), rtol=1e-7, atol=1e-9)
    assert not any("psp_fast" in str(node.target) for node in graph.graph.nodes)


@pytest.mark.parametrize("change", ["hook", "pre_hook", "subclass", "own_forward"])
def test_a_changed_loss_is_called(change: str) -> None:
    model, calls = make(18).train(), list[str]()
    CHANGES[change](model, "criterion", model.criterion, calls)
    assert all(loss.isfinite() for loss in model(*batch())[1:])
    assert calls == ["criterion", "criterion"]


def test_batch_norms_of_other_kinds_keep_their_meaning() -> None:
    """One that applies ReLU itself, one that keeps but does not use averages, one that averages over all batches."""
    model = make(50)
    block = model.layer2[0]
    block.bn3 = SyncBatchNorm2d(64, relu=True).double()
    model.layer3[0].bn2.track_running_stats = False
    model.layer1[0].bn1.momentum = None
    other = copy.deepcopy(model)
    for training in (False, True):
        with module_by_module():
            want = results(other, training)
        for key, value in results(model, training).items():
            torch.testing.assert_close(value, want[key], rtol=1e-6, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}")


def test_a_frozen_batch_norm_may_add_nothing_to_the_variance() -> None:
    try:
        nn.functional.batch_norm(torch.ones(1, 1), torch.ones(1), torch.ones(1), eps=0.0)
    except ValueError:
        pytest.skip("this PyTorch's batch norm takes no eps of 0")
    model = make(50)
    model.layer2[0].bn1.eps = model.layer2[0].bn2.eps = model.cls[1].eps = 0.0
    got = results(model, training=False)["logits"]
    with module_by_module():
        torch.testing.assert_close(got, results(model, training=False)["logits"], rtol=1e-7, atol=1e-9)


def test_the_operations_counted_are_those_of_the_modules() -> None:
    counts = []
    for by_modules in (False, True):
        with module_by_module() if by_modules else nullcontext(), FlopCounterMode(display=False) as counter:
            _, main, aux = make(50).train()(*batch())
            (main + aux).backward()
        counts.append(counter.get_flop_counts()["Global"])
    assert counts[0] == counts[1] and sum(counts[0].values()) > 0


@pytest.mark.parametrize("change", ["cls", "ppm", "insert", "append"])
@pytest.mark.parametrize("training", [True, False])
def test_containers_may_be_replaced_and_extended(change: str, training: bool) -> None:
    model = make(50)
    if change == "cls":
        model.cls = nn.Sequential(*model.cls, nn.Softmax(1))
    elif change == "ppm":
        model.ppm = nn.Conv2d(256, 2 * 256, 1).double()
    elif change == "insert":
        model.cls.insert(1, nn.Tanh())
    else:
        model.layer2[0].downsample.append(nn.Tanh())
    other = copy.deepcopy(model)
    with module_by_module():
        want = results(other, training=training)
    torch.testing.assert_close(results(model, training=training), want, rtol=1e-7, atol=1e-9)


class _Frozen(nn.Module):
    """Of its parameters and statistics, as torchvision's FrozenBatchNorm2d."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        given = (self.running_mean, self.running_var, self.weight, self.bias)
        return nn.functional.batch_norm(x, *(value.to(x) for value in given))


@pytest.mark.parametrize("kind", [nn.GroupNorm, nn.Identity, _Frozen, nn.BatchNorm2d])
def test_a_batch_of_one_needs_values_for_batch_norm_alone(kind: type[nn.Module]) -> None:
    model = make(18).train()
    for level in model.ppm.features:
        if kind is not nn.BatchNorm2d:
            level[2] = nn.GroupNorm(2, 16).double() if kind is nn.GroupNorm else kind(16)
    images, labels = batch()
    if kind is nn.BatchNorm2d:
        with pytest.raises(ValueError, match=r"ppm\.features\.0\.2.*one value per channel"):
            model(images[:1], labels[:1])
    else:
        assert model(images[:1], labels[:1])[1].isfinite()
