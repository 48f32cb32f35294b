"""Pictures of label maps: an overlay on the image and a grid that compares, both with a legend."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from psp_fast.data.base import IGNORE
from psp_fast.fonts import Font, load_font

PAPER, INK = (255, 255, 255), (30, 30, 30)
_FRAME = (120, 120, 120)
_SMALL = 256  # an overlay enlarges images by the largest whole factor that stays within this longer side
_PAPER_PIXELS = 1 << 22  # that a legend may add to a picture of any size
_CELL = 320  # longer side of a comparison's cells
_GAP = 8  # between its cells
_LONGEST_NAME = 15  # in a legend, in heights of its font
_FEWEST_ROWS = 6  # of a legend, however low the image


class Entry(NamedTuple):
    """A line of a legend."""

    name: str
    colour: tuple[int, int, int]
    note: str


def colourise(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """(H, W) ids -> (H, W, 3) uint8 RGB; ids up to 255 beyond the palette, so also ignored pixels, are black."""
    colours = np.zeros((max(256, len(palette)), 3), np.uint8)
    colours[: len(palette)] = palette
    return colours[label]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """What is drawn of an image (H, W, C) uint8, as (H, W, 3): grey, or the first three channels."""
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else np.ascontiguousarray(image[..., :3])


def overlay(
    image: np.ndarray, label: np.ndarray, classes: Sequence[str], palette: np.ndarray, alpha: float = 0.5
) -> Image.Image:
    """The image under its labels, with a legend below of the classes present and their shares, largest first.

    image (H, W, C) uint8; label (H, W) ids; alpha is the weight of the labels' colours. The image keeps its size,
    unless it is so small that it can be enlarged by a whole factor within 256 pixels. Where the legend would be higher
    than half of the image, its last line says how many classes are left out. A long narrow image whose size it would
    more than double, by megapixels of paper, has none.
    """
    picture = Image.blend(Image.fromarray(as_rgb(image)), Image.fromarray(colourise(label, palette)), alpha)
    factor = max(_SMALL // max(picture.size), 1)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    font_size = max(min(max(picture.size) // 45, min(picture.size) // 8), 12)
    legend = draw_legend(present_classes(label, classes, palette), picture.size, font_size)
    pixels = max(picture.width, legend.width) * (picture.height + legend.height)
    return picture if pixels > 2 * picture.width * picture.height + _PAPER_PIXELS else stacked(picture, legend)


def comparison(
    titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]], classes: Sequence[str], palette: np.ndarray
) -> Image.Image:
    """A grid of pictures with a title above each column and a legend below.

    A cell is an image (H, W, C) uint8 or a label map (H, W), drawn in the palette's colours with ignored pixels black.
    The cells of a row take the form of its first, with a longer side of about 320 pixels.
    """
    grid = [[_cell(cell, _cell_size(row[0].shape), palette) for cell in row] for row in rows]
    widths = [max(cell.width for cell in column) for column in zip(*grid, strict=True)]
    heights = [row[0].height for row in grid]
    font = load_font(16)
    header = 16 + 2 * _GAP
    size = sum(widths) + _GAP * (len(widths) + 1), header + sum(heights) + _GAP * len(heights)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    left = _GAP
    for column, (title, width) in enumerate(zip(titles, widths, strict=True)):
        draw.text((left, _GAP), _shorten(title, font, width), INK, font)
        top = header
        for row, height in zip(grid, heights, strict=True):
            picture.paste(row[column], (left, top))
            top += height + _GAP
        left += width + _GAP
    labels = [cell.ravel() for row in rows for cell in row if cell.ndim == 2]
    entries = present_classes(np.concatenate(labels), classes, palette) if labels else []
    return stacked(picture, draw_legend([entry._replace(note="") for entry in entries], picture.size, 14))


def present_classes(label: np.ndarray, classes: Sequence[str], palette: np.ndarray) -> list[Entry]:
    """The classes in a label map with their shares, largest first, and at the end the ignored pixels."""
    counts = np.bincount(label.ravel(), minlength=max(IGNORE + 1, len(classes)))
    order = [int(index) for index in np.argsort(-counts[: len(classes)], kind="stable") if counts[index]]
    entries = [Entry(classes[i], _colour(palette[i]), _percent(counts[i] / label.size)) for i in order]
    if len(classes) <= IGNORE and counts[IGNORE]:
        entries.append(Entry("ignored", (0, 0, 0), _percent(counts[IGNORE] / label.size)))
    return entries


def draw_legend(entries: Sequence[Entry], picture_size: tuple[int, int], font_size: int) -> Image.Image:
    """Swatch, name and note of every entry in columns, filled downwards, that suit a picture of (width, height)."""
    font = load_font(font_size)
    fonts = [load_font(font_size, entry.name) for entry in entries]
    names = [_shorten(entry.name, own, _LONGEST_NAME * font_size) for entry, own in zip(entries, fonts, strict=True)]
    lengths = [own.getlength(name) for name, own in zip(names, fonts, strict=True)]
    notes_at = 1.5 * font_size + max(lengths, default=0) + font_size / 2
    notes = max((font.getlength(entry.note) for entry in entries), default=0)
    column_width, row_height = round(notes_at + notes + 1.5 * font_size), round(1.5 * font_size)
    columns = max(min((picture_size[0] - font_size) // column_width, len(entries)), 1)
    most_rows = max(picture_size[1] // 2 // row_height, _FEWEST_ROWS)
    rows = min(-(-len(entries) // columns), most_rows)
    shown = len(entries) if len(entries) <= rows * columns else rows * columns - 1
    legend = Image.new("RGB", (columns * column_width + font_size, rows * row_height + font_size), PAPER)
    draw = ImageDraw.Draw(legend)
    for position in range(min(len(entries), rows * columns)):
        column, row = divmod(position, rows)
        left, top = font_size + column * column_width, font_size // 2 + row * row_height
        if position == shown:
            draw.text((left, top), f"and {len(entries) - shown} more", INK, font)
            break
        draw.rectangle((left, top, left + font_size, top + font_size), entries[position].colour, _FRAME)
        draw.text((left + 1.5 * font_size, top), names[position], INK, fonts[position])
        draw.text((left + notes_at, top), entries[position].note, _FRAME, font)
    return legend


def stacked(picture: Image.Image, legend: Image.Image) -> Image.Image:
    """The picture with its legend below."""
    both = Image.new("RGB", (max(picture.width, legend.width), picture.height + legend.height), PAPER)
    both.paste(picture, (0, 0))
    both.paste(legend, (0, picture.height))
    return both


def _cell_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of a cell for an image or label of `shape`: small ones by a whole factor, large ones reduced."""
    longest = max(shape[:2])
    factor = _CELL // longest if longest <= _CELL else _CELL / longest
    return max(round(shape[1] * factor), 1), max(round(shape[0] * factor), 1)


def _cell(pixels: np.ndarray, size: tuple[int, int], palette: np.ndarray) -> Image.Image:
    """Resized to (width, height): labels and enlarged images by nearest pixel, reduced images by averaging."""
    if pixels.ndim == 2:
        return Image.fromarray(colourise(pixels, palette)).resize(size, Image.Resampling.NEAREST)
    resample = Image.Resampling.NEAREST if pixels.shape[1] <= size[0] else Image.Resampling.BOX
    return Image.fromarray(as_rgb(pixels)).resize(size, resample)


def _shorten(text: str, font: Font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "<0.1 %"


def _colour(rgb: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rgb)
    return red, green, blue
