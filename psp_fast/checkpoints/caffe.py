"""Caffe's .caffemodel: a protocol buffer, of which only layers' names, types and numbers are read."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from torch import Tensor

from psp_fast.errors import CheckpointError

_BLOBS = {"Convolution": ("weight", "bias"), "BN": ("weight", "bias", "running_mean", "running_var")}

# Name, number and type of the fields read, as caffe.proto has them. A packed repeated number is bytes on the wire: so
# declared, a blob is read without an object a number.
_FIELDS = {
    "Shape": (("dim", 1, "int64*"),),
    "Blob": (
        ("num", 1, "int32"),
        ("channels", 2, "int32"),
        ("height", 3, "int32"),
        ("width", 4, "int32"),
        ("data", 5, "bytes*"),
        ("shape", 7, "Shape"),
        ("double_data", 8, "bytes*"),
    ),
    "Layer": (("name", 1, "string"), ("type", 2, "string"), ("blobs", 7, "Blob*")),
    "Net": (("layers", 2, "bytes*"), ("layer", 100, "Layer*")),
}


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """The tensors by "layer.weight", ".bias", ".running_mean" and ".running_var".

    Raises:
        CheckpointError: truncated, no .caffemodel, of Caffe's format before 2014, or a blob of the wrong size.
    """
    net = _messages()["Net"]()
    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{path} is truncated or no .caffemodel: {error}") from error
    if net.layers and not net.layer:
        raise CheckpointError(f"{path} has Caffe's old format: convert it with Caffe's upgrade_net_proto_binary")
    tensors: dict[str, Tensor] = {}
    for layer in net.layer:
        names = _BLOBS.get(layer.type, ())
        for i, blob in enumerate(layer.blobs):
            key = f"{layer.name}.{names[i] if i < len(names) else f'blob{i}'}"
            tensors[key] = _tensor(blob, f"{path}: {key}")
            if layer.type == "BN" or key.endswith(".bias"):
                tensors[key] = tensors[key].flatten()  # (1, C, 1, 1) in older files
    return tensors


def _tensor(blob: Any, name: str) -> Tensor:
    dtype = np.dtype("<f8" if blob.double_data else "<f4")
    data = b"".join(blob.double_data or blob.data)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else (blob.num, blob.channels, blob.height, blob.width)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise CheckpointError(f"{name} is damaged: shape {shape}, {len(data)} bytes")
    return torch.from_numpy(np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("=")))


@functools.cache
def _messages() -> dict[str, Any]:
    """Classes of the messages in `_FIELDS`."""
    file = descriptor_pb2.FileDescriptorProto(name="psp_fast/caffe.proto", package="psp_fast.caffe", syntax="proto2")
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for name, number, kind in fields:
            _add_field(described, name, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {name: message_factory.GetMessageClass(find(f"psp_fast.caffe.{name}")) for name in _FIELDS}


def _add_field(message: Any, name: str, number: int, kind: str) -> None:
    proto = descriptor_pb2.FieldDescriptorProto
    label = proto.LABEL_REPEATED if kind.endswith("*") else proto.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    kind = kind.rstrip("*")
    if kind in _FIELDS:
        field.type, field.type_name = proto.TYPE_MESSAGE, f".psp_fast.caffe.{kind}"
    else:
        field.type = getattr(proto, f"TYPE_{kind.upper()}")
