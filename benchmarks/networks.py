"""PSPNet as users run it, with our ops, in eager PyTorch and in what else they would pick; random weights."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.calls import LAYOUTS, Call
from benchmarks.shapes import DEVICE, DTYPE, Input
from psp_fast import PSPNet, ops

THREADS = 2


def network(layers: int, classes: int, **options: bool) -> PSPNet:
    """The same weights each time."""
    torch.manual_seed(0)
    return PSPNet(layers, classes=classes, pretrained=False, **options)


def images(given: Input) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(given.batch, 3, given.height, given.width, generator=generator)


class Plain(nn.Module):
    """Image to label map in plain PyTorch: what eager, compiled and exported networks run."""

    def __init__(self, trained: PSPNet) -> None:
        super().__init__()
        self.trained = trained

    def forward(self, x: Tensor) -> Tensor:
        with ops.use("reference"):
            logits = self.trained._logits(x)[0]
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True).argmax(1)


def predict(layers: int, given: Input, setting: str = "auto", layout: str = "nchw", use_ppm: bool = True) -> Call:
    """`PSPNet.predict` of fixed images, with our ops or their references."""
    trained = network(layers, given.classes, use_ppm=use_ppm).eval().to(DEVICE, memory_format=LAYOUTS[layout])
    x = images(given).to(DEVICE).contiguous(memory_format=LAYOUTS[layout])

    def call() -> Tensor:
        with ops.use(setting), _autocast():
            return trained.predict(x)

    return call


def predict_compiled(layers: int, given: Input, layout: str) -> Call:
    """The same network under torch.compile: frozen on the CPU, max-autotune with CUDA graphs on a GPU."""
    import torch._inductor.config as inductor

    trained = Plain(network(layers, given.classes).eval()).to(DEVICE, memory_format=LAYOUTS[layout])
    x = images(given).to(DEVICE).contiguous(memory_format=LAYOUTS[layout])
    compiled = torch.compile(trained, mode="max-autotune" if DEVICE == "cuda" else None)

    @torch.no_grad()
    def call() -> Tensor:
        with inductor.patch(freezing=True), _autocast():
            return compiled(x)

    return call


def onnx_file(layers: int, given: Input, folder: Path) -> Path:
    """The plain network from images to label map, as ONNX of a fixed size."""
    path = folder / f"pspnet{layers}.onnx"
    plain = Plain(network(layers, given.classes).eval())
    with torch.no_grad():
        torch.onnx.export(plain, (images(given),), str(path), dynamo=False, opset_version=17)
    return path


def predict_onnxruntime(path: Path, given: Input) -> Call:
    """Raises ImportError without the package."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images(given).numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def predict_openvino(path: Path, given: Input) -> Call:
    """Raises ImportError without the package."""
    import openvino

    hints: dict[str, Any] = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(path), "CPU", {**hints, "INFERENCE_PRECISION_HINT": "f32"})
    feed = images(given).numpy()
    return lambda: torch.from_numpy(np.asarray(next(iter(compiled(feed).values()))))


def other_runtimes(layers: int, given: Input) -> tuple[dict[str, Call], list[str]]:
    """The installed ones, with the network loaded, and a line for each that is not."""
    calls: dict[str, Call] = {}
    absent = []
    with tempfile.TemporaryDirectory() as folder:
        path = None
        for name, load in (("onnxruntime", predict_onnxruntime), ("openvino", predict_openvino)):
            try:
                __import__(name)
            except ImportError:
                absent.append(f"{name} is not installed (pip install psp_fast[peers])")
                continue
            path = path or onnx_file(layers, given, Path(folder))
            calls[name] = load(path, given)
    return calls, absent


class Step:
    """A training step: forward, both losses, backward, SGD with momentum; the result is the loss."""

    def __init__(
        self, layers: int, given: Input, setting: str, layout: str, recompute: bool = False, compiled: bool = False
    ) -> None:
        self.setting = setting
        self.network = network(layers, given.classes, recompute=recompute).to(DEVICE, memory_format=LAYOUTS[layout])
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3, momentum=0.9)
        self.images = images(given).to(DEVICE).contiguous(memory_format=LAYOUTS[layout])
        generator = torch.Generator().manual_seed(3)
        size = (given.batch, given.height, given.width)
        self.labels = torch.randint(0, given.classes, size, generator=generator).to(DEVICE)
        self.forward = torch.compile(self.network) if compiled else self.network

    def __call__(self) -> Tensor:
        with ops.use(self.setting):
            self.optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(0)
            with _autocast():
                _, main, aux = self.forward(self.images, self.labels)
            loss = main + 0.4 * aux
            loss.backward()
            self.optimizer.step()
        return loss.detach()


def _autocast() -> contextlib.AbstractContextManager[Any]:
    """Mixed precision on a GPU, where it helps everyone."""
    return torch.autocast("cuda", DTYPE) if DEVICE == "cuda" else contextlib.nullcontext()
