"""Reading checkpoint files of every format into tensors and plain values; nothing in a file is ever executed."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from psp_fast.checkpoints.caffe import read_caffemodel
from psp_fast.checkpoints.foreign import stand_ins
from psp_fast.checkpoints.pdparams import read_pdparams
from psp_fast.errors import CheckpointError

METADATA = "psp_fast"  # the entry of a .safetensors file's metadata with what a .pth file holds besides the weights


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file, tensors on the CPU; only tensors and plain types are ever made of it.

    The suffix tells the format: .safetensors, .caffemodel (Caffe), .pdparams (PaddlePaddle); any other is torch.save's.
    The first three give {"state_dict": tensors by name}, and with it what `save_checkpoint` put beside the weights.

    Raises:
        CheckpointError: missing, truncated, no checkpoint at all, or holding objects other than tensors and plain
            types.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path} is a folder: give a checkpoint in it"
            if path.is_dir()
            else f"no checkpoint at {path}: check the path"
        )
    read = _READERS.get(path.suffix.lower(), _read_torch)
    try:
        return read(path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is not a checkpoint of tensors and plain types: {_reason(error)}") from error
    except Exception as error:  # what a damaged file makes the readers raise is not documented
        raise CheckpointError(f"{path} is truncated or not a checkpoint: {_reason(error)}") from error


def _read_torch(path: Path) -> dict[str, Any]:
    if zipfile.is_zipfile(path):
        _check_archive(path)
    with torch.serialization.safe_globals(stand_ins()):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state_dict")
    return content


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is, and parts with a wrong checksum; torch checks neither."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > path.stat().st_size:  # torch.save does not compress
            raise CheckpointError(
                f"{path} is no checkpoint as torch.save writes it: it is compressed, and would take {unpacked} bytes; "
                "unpack the archive and store it without compression"
            )
        if damaged := archive.testzip():
            raise CheckpointError(f"{path} is damaged: the checksum of its part {damaged} is wrong; copy it again")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dictionary)
            described = (file.metadata() or {}).get(METADATA)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from error
    rest = json.loads(described) if described else {}
    if not isinstance(rest, dict):
        raise CheckpointError(f"{path} is damaged: its metadata {METADATA!r} must be a dictionary")
    return {**rest, "state_dict": tensors}


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".safetensors": _read_safetensors,
    ".caffemodel": lambda path: {"state_dict": read_caffemodel(path)},
    ".pdparams": lambda path: {"state_dict": read_pdparams(path)},
}


def _reason(error: BaseException) -> str:
    """What torch's message names as unsafe, else its first sentence."""
    text = str(error).strip()
    unsafe = next((line.strip() for line in text.splitlines() if "GLOBAL" in line or "class" in line.lower()), "")
    return unsafe or (text.splitlines()[0].split(". ")[0] if text else type(error).__name__)
