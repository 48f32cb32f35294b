"""torch.onnx.export of the network itself, run by ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from tests.tools.checks import assert_same, network


def _answers(onnxruntime: ModuleType, path: Path, x: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return {"logits": torch.from_numpy(result)}


def test_the_exporter_by_graph_takes_any_batch(onnx: ModuleType, onnxruntime: ModuleType, tmp_path: Path) -> None:
    """It makes adaptive pooling of PyTorch's modules, too, for the example's size; `psp-fast convert` for any."""
    model = network(18).float().eval().requires_grad_(False)
    path = tmp_path / "network.onnx"
    example = torch.randn(2, 3, 33, 41)
    options = {"dynamic_shapes": {"x": {0: "batch"}}, "verbose": False, "optimize": False}
    torch.onnx.export(model, (example,), path, dynamo=True, **options)
    for x in (example, torch.randn(3, 3, 33, 41)):
        assert_same(_answers(onnxruntime, path, x), {"logits": model(x)}, 1e-4)


def test_the_exporter_by_trace(onnx: ModuleType, onnxruntime: ModuleType, tmp_path: Path) -> None:
    """It knows adaptive pooling to a divisor of the map's size alone: 6x6 cells of 41x41 pixels."""
    model = network(50).float().eval().requires_grad_(False)
    x = torch.randn(1, 3, 41, 41)
    path = tmp_path / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, dynamo=False, opset_version=18)
    assert_same(_answers(onnxruntime, path, x), {"logits": model(x)}, 1e-4)
