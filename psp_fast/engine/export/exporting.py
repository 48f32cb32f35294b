"""From a trained network to a file that has been run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from psp_fast import ops
from psp_fast.engine.export.agreement import Agreement, compare
from psp_fast.engine.export.formats import DYNAMIC, FORMATS, INPUT, Run, required
from psp_fast.engine.export.network import ExportNetwork, Output
from psp_fast.engine.run import Trained
from psp_fast.errors import ConfigError, PspFastError
from psp_fast.files import write_bytes
from psp_fast.models import PSPNet

_TRACED = (233, 361)  # a size without coincidences, which would be taken for rules; nothing is computed


def export(
    trained: Trained, path: str | Path, size: tuple[int, int], *, dynamic: bool = False, output: Output = "logits"
) -> list[Agreement]:
    """Write a network for another runtime, after running the file's content against the network in plain PyTorch.

    The file takes `images`, (1, 3, H, W) float32 RGB (or as many channels as the network has), normalised by the mean
    and std that stand in its metadata beside the class names and the palette, as JSON: an ONNX model's properties, a
    program's extra file psp_fast.json.

    Args:
        trained: the network, on the CPU and in eval mode, with its classes, palette and configuration.
        path: .pt2 for a torch.export program, .onnx for ONNX.
        size: H and W of the images that the file takes.
        dynamic: the file takes any number of images of any size from one pixel more than the output stride on; it is
            run on `size` and on another one.
        output: "logits" (N, classes, h, w), h and w being `PSPNet.output_size`, or "labels" (N, H, W), uint8 up to 256
            classes, else int64.

    Returns:
        The agreement on a random image of each size that was run.

    Raises:
        ConfigError: another ending, or a size that is too small.
        PspFastError: the extra psp_fast[export] is missing, the file's results are not the network's, or it cannot be
            written. A file that was at `path` is then untouched.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: the name must end in {' or '.join(FORMATS)}")
    stride = trained.config.model.output_stride
    smallest = stride + 1 if dynamic else 1
    if min(size) < smallest:
        raise ConfigError(f"the size must be at least {smallest} x {smallest} pixels, not {size[0]} x {size[1]}")
    file_format = FORMATS[path.suffix]
    for name in file_format.requires:
        required(name)
    channels = trained.config.model.in_channels
    program = _program(ExportNetwork(trained.model, output), channels, size, smallest if dynamic else None)
    content = file_format.serialise(program, _metadata(trained, output))
    # Sizes that differ by no multiple of the stride have pooling windows of other kinds.
    sizes = [size, (size[0] + 5, size[1] + 11)] if dynamic else [size]
    run = file_format.load(content)
    agreements = [_check(trained.model, run, channels, each, output, path) for each in sizes]
    write_bytes(path, content)
    return agreements


def _program(network: ExportNetwork, channels: int, size: tuple[int, int], smallest: int | None) -> ExportedProgram:
    """The network for images of `size`, or for all sizes from `smallest` on."""
    shape = (1, channels, *size) if smallest is None else (2, channels, *_TRACED)
    free = {dim: Dim(name, min=smallest if dim else None) for dim, name in DYNAMIC.items()}
    with torch.no_grad():
        program = torch.export.export(
            network,
            (torch.zeros(shape),),
            dynamic_shapes=None if smallest is None else {INPUT: free},
            # What holds for all sizes, but cannot be proved for them, is checked at run time.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names this machine's folders
    return program


def _metadata(trained: Trained, output: Output) -> dict[str, Any]:
    """What a user of the file has to know, in JSON's types."""
    return {
        "colours": {1: "grey", 3: "RGB"}.get(trained.config.model.in_channels, "bands"),
        "mean": list(trained.config.augment.mean),
        "std": list(trained.config.augment.std),
        "output": output,
        "classes": list(trained.classes),
        "palette": np.asarray(trained.palette).tolist(),
    }


def _check(model: PSPNet, run: Run, channels: int, size: tuple[int, int], output: Output, path: Path) -> Agreement:
    """The file's agreement with the network; PspFastError where it does not hold."""
    images = torch.randn((1, channels, *size), generator=torch.Generator().manual_seed(0))
    agreement = compare(run(images), _expected(model, images, output), size)
    if not agreement.holds:
        raise PspFastError(
            f"{path} is not written: its results are not the network's; {agreement}. Report this with the versions "
            "that psp-fast info prints"
        )
    return agreement


@torch.no_grad()
def _expected(model: PSPNet, images: Tensor, output: Output) -> Tensor:
    with ops.use("reference"):
        return model(images) if output == "logits" else model.predict(images)
