"""Writing checkpoints so that a crash, a full disk or a kill never harms the one already there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch

from psp_fast.checkpoints.reading import METADATA
from psp_fast.errors import CheckpointError
from psp_fast.files import replacing


def save_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Write content to path, atomically: path holds the old file or the whole new one.

    By torch.save, or where path ends in .safetensors, as a safetensors file of content["state_dict"] with the rest of
    content, which has to be plain values, as JSON in its metadata.

    Raises:
        CheckpointError: the folder cannot be written or the disk is full; an existing file at path is untouched.
    """
    try:
        with replacing(path) as file:
            _write(content, file, Path(path).suffix.lower())
    except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
        if interrupt := next((cause for cause in _causes(error) if isinstance(cause, KeyboardInterrupt)), None):
            raise interrupt from None
        kept = " (the previous checkpoint there is untouched)" if Path(path).exists() else ""
        raise CheckpointError(
            f"cannot write checkpoint {path}{kept}: {_reason(error)}; free disk space or choose another folder"
        ) from error


def _write(content: Mapping[str, Any], file: BinaryIO, suffix: str) -> None:
    if suffix != ".safetensors":
        torch.save(dict(content), file)
        return
    rest = {key: value for key, value in content.items() if key != "state_dict"}
    tensors = {key: value.contiguous() for key, value in content["state_dict"].items()}
    file.write(safetensors.torch.save(tensors, {METADATA: json.dumps(rest)}))


def _reason(error: BaseException) -> str:
    """The operating system's own words where torch wrapped them, else the first line."""
    cause = next((cause for cause in _causes(error) if isinstance(cause, OSError)), None)
    return (cause.strerror or str(cause)) if cause else str(error).splitlines()[0]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised for."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
