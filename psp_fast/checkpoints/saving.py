"""Writing checkpoints so that a crash, a full disk or a kill never harms the one already there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from psp_fast.errors import CheckpointError
from psp_fast.files import replacing


def save_checkpoint(content: Mapping, path: str | Path) -> None:
    """Write content with torch.save to path, atomically: path holds the old file or the whole new one.

    Raises:
        CheckpointError: the folder cannot be written or the disk is full; an existing file at path is untouched.
    """
    try:
        with replacing(path) as file:
            torch.save(dict(content), file)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
        kept = " (the previous checkpoint there is untouched)" if Path(path).exists() else ""
        raise CheckpointError(
            f"cannot write checkpoint {path}{kept}: {_reason(error)}; free disk space or choose another folder"
        ) from error


def _reason(error: BaseException) -> str:
    """The operating system's own words where torch wrapped them, else the first line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return (cause.strerror or str(cause)) if isinstance(cause, OSError) else str(error).splitlines()[0]
