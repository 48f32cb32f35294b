"""The tools as fixtures: a test that takes one is skipped by name where the tool is absent."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

_KEPT: list[torch.library.Library] = []
"""What a library defines lives as long as the library."""


@pytest.fixture(scope="session")
def _torchvision_imports() -> None:
    """Let torchvision import without its compiled operators, as where it was built for another kind of device.

    Many tools import torchvision where it is installed.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        _KEPT.append(library)
        importlib.import_module("torchvision")


def _fixture_of(module: str) -> Callable[[None], ModuleType]:
    @pytest.fixture(scope="session", name=module)
    def tool(_torchvision_imports: None) -> ModuleType:
        return pytest.importorskip(module, reason=f"{module} is not installed: pip install --group tools")

    return tool


torchvision = _fixture_of("torchvision")
timm = _fixture_of("timm")
peft = _fixture_of("peft")
lightning = _fixture_of("lightning")
torchmetrics = _fixture_of("torchmetrics")
torchinfo = _fixture_of("torchinfo")
ptflops = _fixture_of("ptflops")
thop = _fixture_of("thop")
torch_pruning = _fixture_of("torch_pruning")
torch_ema = _fixture_of("torch_ema")
accelerate = _fixture_of("accelerate")
onnx = _fixture_of("onnx")
onnxruntime = _fixture_of("onnxruntime")
