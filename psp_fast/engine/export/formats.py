"""The kinds of files that networks are exported to: how each is made of a program, and run."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

from psp_fast.errors import PspFastError

INPUT = "images"
DYNAMIC = {0: "batch", 2: "height", 3: "width"}
"""The input's dimensions that may be free."""
METADATA_FILE = "psp_fast.json"
"""Of a program: what `torch.export.load(path, extra_files={METADATA_FILE: ""})` fills in."""

Metadata = Mapping[str, Any]
Run = Callable[[Tensor], Tensor]


class Format(NamedTuple):
    """A kind of file."""

    requires: tuple[str, ...]
    """Modules of the extra psp_fast[export]."""
    serialise: Callable[[ExportedProgram, Metadata], bytes]
    load: Callable[[bytes], Run]


def required(name: str) -> ModuleType:
    """A module of the extra; PspFastError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise PspFastError(
            f"exporting to ONNX needs the package {name}, which cannot be imported ({error}): run "
            "pip install 'psp_fast[export]'"
        ) from error


def _serialise_program(program: ExportedProgram, metadata: Metadata) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata)})
    return file.getvalue()


def _load_program(content: bytes) -> Run:
    return torch.export.load(io.BytesIO(content)).module()


def _serialise_onnx(program: ExportedProgram, metadata: Metadata) -> bytes:
    with _quiet():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=[INPUT],
            output_names=[metadata["output"]],
            dynamic_shapes={INPUT: DYNAMIC} if program.range_constraints else None,
            verbose=False,
        )
    assert exported is not None  # dynamo's exporter returns its program
    model = exported.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # lines of source code
    required("onnx").helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    return model.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporter says of its own code, and of torchvision not being there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _load_onnx(content: bytes) -> Run:
    session = required("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


FORMATS = {
    ".pt2": Format((), _serialise_program, _load_program),
    ".onnx": Format(("onnx", "onnxscript", "onnxruntime"), _serialise_onnx, _load_onnx),
}
"""By the ending of the file's name."""
