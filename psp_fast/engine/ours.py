"""Telling the files that psp_fast wrote, which it replaces, from the user's, which it never touches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from psp_fast.errors import DataError
from psp_fast.files import open_regular

_KEY = "Software"  # PNG's own name for what wrote a file


def mark(command: str, source: Path | None = None) -> dict[str, str]:
    """The text that a PNG file of a command carries; with source, another for every file that it is made of."""
    of = "" if source is None else f" {hashlib.sha256(str(source.resolve()).encode(errors='replace')).hexdigest()[:16]}"
    return {_KEY: f"psp-fast {command}{of}"}


def has_mark(path: Path, expected: dict[str, str]) -> bool:
    """Whether path is a PNG file that carries the text."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            return image.format == "PNG" and image.info.get(_KEY) == expected[_KEY]
    except Exception:  # whatever a file of the user's makes Pillow raise
        return False


def check_replaceable(paths: Iterable[Path], expected: dict[str, str], made: str) -> None:
    """Raise DataError for the first of paths that is there and does not carry the text; made says what it is not."""
    for path in paths:
        if path.exists() and not has_mark(path, expected):
            raise DataError(f"{path} is there already and is not {made}: move it, or choose another folder with --out")
