"""PSPNet as users run it, with our ops, in eager PyTorch and in what else they would pick; random weights."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import warnings
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


def predict(
    layers: int,
    given: Input,
    setting: str = "auto",
    layout: str = "nchw",
    use_ppm: bool = True,
    dtype: torch.dtype = DTYPE,
) -> Call:
    """`PSPNet.predict` of fixed images, with our ops or their references; in half precisions by autocast."""
    trained = network(layers, given.classes, use_ppm=use_ppm).eval().to(DEVICE, memory_format=LAYOUTS[layout])
    x = images(given).to(DEVICE).contiguous(memory_format=LAYOUTS[layout])

    def call() -> Tensor:
        with ops.use(setting), _autocast(dtype):
            return trained.predict(x)

    return call


def predict_compiled(layers: int, given: Input, layout: str, dtype: torch.dtype = DTYPE) -> Call:
    """The same network under torch.compile: frozen, and on a GPU with max-autotune and CUDA graphs."""
    import torch._inductor.config as inductor

    trained = Plain(network(layers, given.classes).eval()).to(DEVICE, memory_format=LAYOUTS[layout])
    x = images(given).to(DEVICE).contiguous(memory_format=LAYOUTS[layout])
    torch.compiler.reset()
    compiled = torch.compile(trained, mode="max-autotune" if DEVICE == "cuda" else None)

    @torch.no_grad()
    def call() -> Tensor:
        with inductor.patch(freezing=True), _autocast(dtype):
            return compiled(x)

    return call


def onnx_file(layers: int, given: Input, folder: Path) -> Path:
    """The plain network from images to label map, as ONNX of a fixed size."""
    path = folder / f"pspnet{layers}.onnx"
    plain = Plain(network(layers, given.classes).eval())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated, and traces checks of shapes
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


_RUNTIMES = {"onnxruntime": predict_onnxruntime, "openvino": predict_openvino}


def missing_runtimes() -> list[str]:
    """A line for each that is not installed, or cannot be given the network."""
    needed = {name: [name, "onnx"] for name in _RUNTIMES}
    absent = {name: [m for m in modules if importlib.util.find_spec(m) is None] for name, modules in needed.items()}
    return [
        f"{name} is left out: {' and '.join(modules)} not installed (pip install psp_fast[peers])"
        for name, modules in absent.items()
        if modules
    ]


def other_runtimes(layers: int, given: Input) -> dict[str, Call]:
    """The installed ones, with the network loaded."""
    missing = [line.split()[0] for line in missing_runtimes()]
    loaders = {name: load for name, load in _RUNTIMES.items() if name not in missing}
    if not loaders:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = onnx_file(layers, given, Path(folder))
        return {name: load(path, given) for name, load in loaders.items()}


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
        self.forward = self._compiled() if compiled else self.network

    def _compiled(self) -> Any:
        """Without CUDA graphs, which our step does not have either."""
        torch.compiler.reset()
        return torch.compile(self.network, mode="max-autotune-no-cudagraphs" if DEVICE == "cuda" else None)

    def __call__(self) -> Tensor:
        with ops.use(self.setting):
            self.optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(0)
            with _autocast(DTYPE):
                _, main, aux = self.forward(self.images, self.labels)
            loss = main + 0.4 * aux
            loss.backward()
            self.optimizer.step()
        return loss.detach()


def _autocast(dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision in half precisions: on a GPU, where it helps everyone, by default."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(DEVICE, dtype)
