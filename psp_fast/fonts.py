"""Fonts that have the letters of class names, which may be of any script."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import ImageFont

from psp_fast.notices import warn

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_NO_LETTER = "\U0010fffe"  # is in no font, so it is drawn as a box
_SPECIAL = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif")
_boxed: list[str] = []  # texts that no font has; the first one was warned of


def load_font(size: int, text: str = "") -> Font:
    """A font, whose letters are `size` pixels high, with the characters of the text: Pillow's own if it has them.

    If no font of this system has them, boxes are drawn, and the first time a warning says so.
    """
    own = ImageFont.load_default(size)
    if text.isascii() or not _lacks(own, text):
        return own
    file = _font_file(text)
    return ImageFont.truetype(file, size) if file else own


def families(names: Sequence[str]) -> list[str]:
    """Matplotlib's font families for the names: its default ones, then others for characters that those lack."""
    from matplotlib import font_manager, rcParams
    from matplotlib.ft2font import FT2Font

    own = font_manager.findfont(font_manager.FontProperties())
    files = {file for name in names if not _letters(own).issuperset(_points(name)) and (file := _font_file(name))}
    for file in files:
        font_manager.fontManager.addfont(file)
    return [*rcParams["font.family"], *sorted(FT2Font(file).family_name for file in files)]


def _lacks(font: Font, text: str) -> bool:
    """Whether a font draws one of the characters as a box."""
    box = bytes(font.getmask(_NO_LETTER))
    return any(bytes(font.getmask(character)) == box for character in set(text) if not character.isspace())


@cache
def _font_file(text: str) -> str | None:
    """The first font on this system with all characters of the text; None, and a warning, if there is none."""
    wanted = _points(text)
    for file in _files():
        if _letters(file).issuperset(wanted):
            return file
    if not _boxed:
        warn(
            f"no font on this system has the characters of {text!r}: pictures show boxes in place of such names; "
            "install one, such as Noto Sans CJK for Chinese, Japanese and Korean (apt install fonts-noto-cjk)"
        )
    _boxed.append(text)
    return None


@cache
def _files() -> list[str]:
    """Matplotlib's own font, and those of the system, plain ones first."""
    from matplotlib import font_manager

    own = font_manager.findfont("DejaVu Sans")
    others = [file for file in font_manager.findSystemFonts() if "lastresort" not in file.lower()]
    return [own, *sorted(others, key=lambda file: (sum(word in Path(file).name.lower() for word in _SPECIAL), file))]


@cache
def _letters(file: str) -> frozenset[int]:
    """The code points that a font file draws; none if it cannot be read or has bitmaps alone."""
    from matplotlib.ft2font import FT2Font

    with contextlib.suppress(OSError, RuntimeError):
        font = FT2Font(file)
        if font.scalable:
            return frozenset(font.get_charmap())
    return frozenset()


def _points(text: str) -> set[int]:
    return {ord(character) for character in text if not character.isspace()}
