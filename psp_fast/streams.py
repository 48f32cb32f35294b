"""Standard output and error that never stop the work they report on."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from pathlib import Path
from typing import Any


class _Forgiving(io.FileIO):
    """A stream that drops what it cannot write, as where its reader has left (| head), or the disk is full."""

    told = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            pass
        except OSError as error:
            if not self.told:
                self.told = True
                with contextlib.suppress(OSError):
                    os.write(2, f"psp-fast: output is lost: {error.strerror}\n".encode())
        return memoryview(data).nbytes


def forgive_lost_output() -> None:
    """For this process: drop what cannot be printed, and escape characters that the terminal's encoding lacks.

    A thread of a library's that cannot write its file, as TensorBoard's, prints no traceback: its next call raises.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (open until the process ends)
            continue
        stream.flush()
        raw = _Forgiving(stream.fileno(), "w", closefd=False)
        text = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),  # type: ignore[type-var]
            stream.encoding,
            "backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,  # python -u
        )
        setattr(sys, name, text)
    default = threading.excepthook
    threading.excepthook = lambda given: None if isinstance(given.exc_value, OSError) else default(given)
