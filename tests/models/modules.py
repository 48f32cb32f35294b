"""PSPNet evaluated module by module, as semseg does it, and changes that tools make to single modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils._pytree import tree_map

from psp_fast import PSPNet
from psp_fast.models.pyramid import Head, PyramidPooling
from psp_fast.models.resnet import BasicBlock, Bottleneck, Stem, initialise

CLASSES = 5


def make(layers: int) -> PSPNet:
    """A network in float64 of an eighth of the width, with lively batch norms; its ReLUs let backward hooks in."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = PSPNet(layers, classes=CLASSES, pretrained=False, dropout=0.0)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            module.inplace = False
        elif isinstance(module, nn.Conv2d):
            model.set_submodule(name, _narrow(module))
        elif isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.BatchNorm2d(module.num_features // 8))
    initialise(model.double())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model


def _narrow(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution like conv with an eighth of the channels; images and classes keep theirs."""
    inputs, outputs = (c if c in (3, CLASSES) else c // 8 for c in (conv.in_channels, conv.out_channels))
    geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return nn.Conv2d(inputs, outputs, *geometry, bias=conv.bias is not None)  # type: ignore[arg-type]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 25, 33, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, CLASSES, (2, 25, 33), generator=generator)


def _basic_block(self: Any, x: Tensor) -> Tensor:
    out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def _bottleneck(self: Any, x: Tensor) -> Tensor:
    out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
    out = self.bn3(self.conv3(out))
    return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def _pyramid(self: Any, x: Tensor) -> Tensor:
    levels = [F.interpolate(f(x), x.shape[2:], mode="bilinear", align_corners=True) for f in self.features]
    return torch.cat([x, *levels], 1)


def _network(self: Any, x: Tensor, y: Tensor | None = None) -> Any:
    size = x.shape[2:]
    shallow = self.layer3(self.layer2(self.layer1(self.layer0(x))))
    aux = self.aux(shallow) if self.training else None
    main = F.interpolate(self.cls(self.ppm(self.layer4(shallow))), size, mode="bilinear", align_corners=True)
    if aux is None or y is None:
        return main
    aux = F.interpolate(aux, size, mode="bilinear", align_corners=True)
    return main.argmax(1), self.criterion(main, y), self.criterion(aux, y)


@contextmanager
def module_by_module() -> Iterator[None]:
    """Within the context every network calls every module that it is made of."""
    plain: list[tuple[type[nn.Module], Callable[..., Any]]] = [
        (BasicBlock, _basic_block),
        (Bottleneck, _bottleneck),
        (Stem, nn.Sequential.forward),
        (Head, nn.Sequential.forward),
        (PyramidPooling, _pyramid),
        (PSPNet, _network),
    ]
    patches = [mock.patch.object(kind, "forward", forward) for kind, forward in plain]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


Change = Callable[[nn.Module, str, nn.Module, list[str]], bool]
"""Changes a child of a parent by its name, noting its calls in the list; False where it does not apply."""


class Wrapper(nn.Module):
    """A module with none of its content's attributes, as adapters wrap layers."""

    def __init__(self, content: nn.Module, name: str, calls: list[str]) -> None:
        super().__init__()
        self.content, self.name, self.calls = content, name, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(self.name)
        return 1.25 * self.content(x)


class Larger(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 1.25 * weight


def _hook(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    def hook(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        calls.append(name)
        return 1.25 * result

    module.register_forward_hook(hook)
    return True


def _pre_hook(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    def hook(module: nn.Module, args: Any) -> Any:
        calls.append(name)
        return (1.25 * args[0], *args[1:])

    module.register_forward_pre_hook(hook)
    return True


def _backward_hook(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    def hook(module: nn.Module, gradients: Any, outputs: Any) -> Any:
        calls.append(name)
        return tuple(None if g is None else 1.25 * g for g in gradients)

    module.register_full_backward_hook(hook)
    return True


def _backward_pre_hook(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    def hook(module: nn.Module, gradients: Any) -> Any:
        calls.append(name)
        return tuple(None if g is None else 1.25 * g for g in gradients)

    module.register_full_backward_pre_hook(hook)
    return True


def _subclass(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    kind = type(module)

    def forward(self: Any, *args: Any) -> Tensor:
        calls.append(name)
        return 1.25 * kind.forward(self, *args)

    module.__class__ = type(f"Larger{kind.__name__}", (kind,), {"forward": forward})
    return True


def _own_forward(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    plain = module.forward

    def forward(*args: Any) -> Tensor:
        calls.append(name)
        return 1.25 * plain(*args)

    module.forward = forward  # type: ignore[method-assign]
    return True


def _wrap(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    setattr(parent, name.rpartition(".")[2], Wrapper(module, name, calls))
    return True


def _bias(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    if not isinstance(module, nn.Conv2d) or module.bias is not None:
        return False
    module.bias = nn.Parameter(torch.linspace(-1, 1, module.out_channels, dtype=torch.float64))
    return True


def _parametrise(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    if not isinstance(module, nn.Conv2d | nn.BatchNorm2d):
        return False
    parametrize.register_parametrization(module, "weight", Larger())
    return True


class LargerTensor(Tensor):
    """A weight that counts as 1.25 times its values in every function of PyTorch."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            args = tree_map(lambda t: 1.25 * t.as_subclass(Tensor) if isinstance(t, cls) else t, args)
            return func(*args, **(kwargs or {}))


def _tensor_subclass(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    if not isinstance(module, nn.Conv2d | nn.BatchNorm2d):
        return False
    weight = module.weight.detach().as_subclass(LargerTensor)
    del module.weight
    module.weight = weight  # type: ignore[assignment]
    return True


def _prune(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    if not isinstance(module, nn.Conv2d | nn.BatchNorm2d):
        return False
    prune.random_unstructured(module, "weight", 0.3)
    return True


def _dilate(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (3, 3):
        return False
    first = module.dilation[0] + 1
    module.dilation, module.padding = (first, 1), (first, 1)
    return True


def _dilate_evenly(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    """What the ops know in the backbone, but not in the head."""
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (3, 3):
        return False
    rate = module.dilation[0] + 1
    module.dilation = module.padding = (rate, rate)
    return True


def _pad_circularly(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (3, 3) or module.stride != (1, 1):
        return False
    module.padding_mode, module.padding, module.dilation = "circular", (1, 1), (1, 1)
    module._reversed_padding_repeated_twice = [1, 1, 1, 1]
    return True


def _own_convolution(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    plain = module._conv_forward

    def forward(*args: Any) -> Tensor:
        calls.append(name)
        return 1.25 * plain(*args)

    module._conv_forward = forward  # type: ignore[method-assign]
    return True


def _exchange(parent: nn.Module, name: str, module: nn.Module, calls: list[str]) -> bool:
    """Another kind of module that fits."""
    attribute = name.rpartition(".")[2]
    if isinstance(module, nn.BatchNorm2d):
        other: nn.Module = nn.GroupNorm(2, module.num_features).double()
    elif isinstance(module, nn.ReLU):
        other = nn.LeakyReLU(0.2)
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        other = nn.AdaptiveAvgPool2d(int(module.output_size) + 1)  # type: ignore[call-overload]
    elif isinstance(module, nn.MaxPool2d):
        other = nn.AvgPool2d(3, 2, padding=1)
    elif isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.in_channels % 2 == 0:
        options = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation, "bias": False}
        other = nn.Conv2d(module.in_channels, module.out_channels, 3, groups=2, **options).double()  # type: ignore[arg-type]
    else:
        return False
    setattr(parent, attribute, other)
    return True


CHANGES: dict[str, Change] = {
    "hook": _hook,
    "pre_hook": _pre_hook,
    "backward_hook": _backward_hook,
    "backward_pre_hook": _backward_pre_hook,
    "subclass": _subclass,
    "own_forward": _own_forward,
    "wrapper": _wrap,
    "bias": _bias,
    "parametrisation": _parametrise,
    "tensor_subclass": _tensor_subclass,
    "pruning": _prune,
    "dilation": _dilate,
    "even_dilation": _dilate_evenly,
    "circular_padding": _pad_circularly,
    "own_convolution": _own_convolution,
    "exchange": _exchange,
}


def units(model: PSPNet) -> list[list[str]]:
    """Names of all modules that are called, in the groups that ops may stand for: each group's module first."""
    groups: dict[str, list[str]] = {}
    for name, _ in model.named_modules():
        if name in ("", "criterion", "ppm.features"):  # a list of modules is not called
            continue
        parts = name.split(".")
        if name.startswith("ppm.features"):
            key = ".".join(parts[:3])
        elif parts[0] in ("ppm", "cls"):
            key = "head"
        else:
            key = ".".join(parts[: 2 if parts[0].startswith("layer") and parts[0] != "layer0" else 1])
        groups.setdefault(key, []).append(name)
    return list(groups.values())
