"""Class names in scripts that the usual fonts do not have."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from psp_fast import fonts
from psp_fast.data.check import Report, _histogram
from psp_fast.data.palette import default_palette
from psp_fast.engine.plots import pixels_of
from psp_fast.engine.report.plots import confusion_figure, iou_figure
from psp_fast.pictures import Entry, draw_legend

NAMES = ["人行道", "tree"]


def block():
    """A glyph that fills its whole square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


@pytest.fixture
def system(tmp_path, monkeypatch):
    """The fonts that the system has are these files."""
    found = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(found))
    monkeypatch.setattr(fonts, "_boxed", [])
    known = list(font_manager.fontManager.ttflist)
    for cached in (fonts._files, fonts._font_file):
        cached.cache_clear()
    yield found
    font_manager.fontManager.ttflist[:] = known
    for cached in (fonts._files, fonts._font_file):
        cached.cache_clear()


@pytest.fixture
def chinese(tmp_path, system):
    """A system with a font of three characters, each drawn as a black square."""
    builder = FontBuilder(1000)
    names = [".notdef", "a", "b", "c"]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, NAMES[0]), names[1:], strict=True)))
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **{name: block() for name in names[1:]}})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=1000, usWinAscent=1000)
    builder.setupPost()
    builder.save(tmp_path / "squares.ttf")
    system.append(str(tmp_path / "squares.ttf"))


def has_squares(pixels):
    """Whether there is a square of 8 by 8 dark pixels."""
    dark = np.asarray(Image.fromarray(pixels).convert("L")) < 100
    counts = np.pad(dark.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return bool((counts[8:, 8:] - counts[:-8, 8:] - counts[8:, :-8] + counts[:-8, :-8] == 64).any())


def pictures():
    palette = default_palette(2)
    palette[:] = 240
    counts = np.array([[3, 1], [1, 3]])
    report = Report(tuple(NAMES), palette, 1, np.array([3, 1]), np.array([1, 1]))
    report.sizes[(2, 2)] = 1
    legend = draw_legend([Entry(name, (240, 240, 240), "") for name in NAMES], (300, 300), 16)
    return {
        "legend": np.asarray(legend),
        "histogram": _histogram(report),
        "bars": pixels_of(iou_figure([0.5, 0.6], NAMES, palette)),
        "confusion": pixels_of(confusion_figure(counts, NAMES)),
    }


@pytest.mark.filterwarnings("ignore:Glyph .* missing from")
def test_names_are_drawn_in_a_font_that_has_their_characters(chinese, capsys):
    for name, pixels in pictures().items():
        assert has_squares(pixels), name
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:Glyph .* missing from")
def test_where_no_font_has_them_one_warning_names_the_class(system, capsys):
    for name, pixels in pictures().items():
        assert not has_squares(pixels), name
    draw_legend([Entry("도로", (0, 0, 0), "")], (300, 300), 16)
    warning = capsys.readouterr().err
    assert warning.count("psp-fast: warning: no font on this system has the characters of '人行道'") == 1
    assert warning.count("\n") == 1


def test_pillows_own_font_is_kept_where_it_suffices(system):
    assert fonts.load_font(16, "tree").getname() == fonts.load_font(16).getname()
    assert fonts.load_font(16, "дорога").getname()[0] == "DejaVu Sans"
    assert fonts.load_font(16, "é").getmask("é").size[1] > 5
    assert fonts.families(["tree", "дорога"]) == fonts.families([])
