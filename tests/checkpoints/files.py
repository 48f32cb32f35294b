"""Files as other projects write them, made without those projects."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def write_pdparams(path: Path, arrays: Mapping[str, np.ndarray], protocol: int = 4) -> Path:
    """As paddle.save writes a state_dict: a pickle of arrays with the table of PaddlePaddle's own names."""
    table = {key: f"parameter_{i}" for i, key in enumerate(arrays)}
    path.write_bytes(pickle.dumps({**arrays, "StructuredToParameterName@@": table}, protocol=protocol))
    return path


def write_caffemodel(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """As Caffe writes a net, in protocol buffers' wire format; keys are "layer.weight" and so on, in a blob's order."""
    layers: dict[str, list[np.ndarray]] = {}
    for key, values in arrays.items():
        layers.setdefault(key.rpartition(".")[0], []).append(values)
    path.write_bytes(b"".join(_field(100, _layer(name, blobs)) for name, blobs in layers.items()))
    return path


def _layer(name: str, blobs: list[np.ndarray]) -> bytes:
    kind = "BN" if name.endswith("/bn") else "Convolution"
    parameters = b"".join(_field(7, _blob(values)) for values in blobs)
    return _field(1, name.encode()) + _field(2, kind.encode()) + parameters


def _blob(values: np.ndarray) -> bytes:
    shape = b"".join(map(_varint, values.shape))
    return _field(5, values.astype("<f4").tobytes()) + _field(7, _field(1, shape))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low = value & 0x7F
    return bytes([low]) if value < 0x80 else bytes([low | 0x80]) + _varint(value >> 7)
