"""PaddlePaddle's .pdparams: a pickle of numpy arrays by name, read without numpy's or any other class being called.

Every class and function the pickle names is replaced by an inert one of this module; any that such a file does not
need is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psp_fast.errors import CheckpointError

_NAME_TABLE = "StructuredToParameterName@@"
_DTYPES = {"f2": "f2", "f4": "f4", "f8": "f8", "i4": "i4", "i8": "i8", "u1": "u1", "b1": "?"}


class _DType:
    """numpy.dtype's arguments and byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """numpy.ndarray's pickled state."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def tensor(self) -> Tensor:
        """The array's values; ValueError where they are no numbers, or not as many as the shape needs."""
        if not isinstance(self.dtype, _DType) or self.dtype.name not in _DTYPES or not isinstance(self.data, bytes):
            raise ValueError("an array of something other than numbers")
        dtype = np.dtype(self.dtype.order + _DTYPES[self.dtype.name])
        shape = tuple(int(side) for side in self.shape)
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(self.data):
            raise ValueError(f"an array of shape {shape} with {len(self.data)} bytes of {dtype}")
        values = np.frombuffer(self.data, dtype).reshape(shape, order="F" if self.fortran else "C")
        return torch.from_numpy(np.array(values, dtype.newbyteorder("="), order="C"))


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how protocol 2 writes bytes


def _no_bytes() -> bytes:
    return b""  # how protocol 2 writes no bytes at all


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which no .pdparams file of weights needs")
        return _STAND_INS[module, name]


def _check_memo(data: bytes) -> None:
    """Refuse a memo that is not filled in order: pickle allocates it up to the largest number in the file."""
    count = 0
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if int(argument or 0) > count:
                raise pickle.UnpicklingError(f"its memo jumps to {argument}")
            count += 1


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """The tensors by name.

    Raises:
        CheckpointError: something other than arrays of numbers by name.
        pickle.UnpicklingError: it names a class or function that arrays do not need, or is no pickle.
    """
    data = path.read_bytes()
    _check_memo(data)
    content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not arrays by name")
    tensors = {}
    for key, value in content.items():
        if key == _NAME_TABLE:
            continue
        if not isinstance(value, _Array):
            raise CheckpointError(f"{path}: {key} is a {type(value).__name__}, not an array")
        try:
            tensors[str(key)] = value.tensor()
        except (ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{path}: {key} is damaged: {error}") from error
    return tensors
