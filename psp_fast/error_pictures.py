"""Where a prediction is right and wrong: image, truth, prediction and errors of a sample, side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from psp_fast.data.base import IGNORE
from psp_fast.fonts import load_font
from psp_fast.pictures import INK, PAPER, Entry, as_rgb, colourise, draw_legend, present_classes, stacked

WRONG = (214, 32, 64)
IGNORED = ((96, 100, 112), (168, 172, 184))  # two colours, in stripes
_STRIPE = 4  # their width in pixels
_SIDE = 640  # longest side of a panel
_LABELS = 0.55  # weight of the labels' colours over the image
_PALE = 0.65  # weight of white over the pixels that are right
_GAP = 8


def panels(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, palette: np.ndarray) -> dict[str, Image.Image]:
    """The image, truth and prediction laid over it, and the errors, by their titles.

    image (H, W, C) uint8; truth and prediction (H, W) ids; palette (C, 3) uint8. A longer side of more than 640 pixels
    is reduced to 640; a smaller image is enlarged by the largest whole factor that stays within.
    """
    size = _size_of(truth.shape)
    enlarged = size[0] >= truth.shape[1]
    picture = Image.fromarray(as_rgb(image)).resize(
        size, Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX
    )
    truth, prediction = _resized(truth), _resized(prediction)
    return {
        "image": picture,
        "truth": Image.blend(picture, Image.fromarray(colourise(truth, palette)), _LABELS),
        "prediction": Image.blend(picture, Image.fromarray(colourise(prediction, palette)), _LABELS),
        "errors": Image.fromarray(error_map(np.asarray(picture), truth, prediction)),
    }


def error_map(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 in pale grey, wrong pixels in `WRONG`, ignored ones in stripes of `IGNORED`."""
    grey = np.asarray(Image.fromarray(image).convert("L"))
    pale = np.rint((1 - _PALE) * grey + _PALE * 255).astype(np.uint8)
    errors = np.repeat(pale[..., None], 3, axis=2)
    ignored = truth == IGNORE
    errors[(truth != prediction) & ~ignored] = WRONG
    rows, columns = np.nonzero(ignored)
    errors[rows, columns] = np.array(IGNORED, np.uint8)[(rows + columns) // _STRIPE % 2]
    return errors


def legend(truth: np.ndarray, prediction: np.ndarray, classes: Sequence[str], palette: np.ndarray) -> list[Entry]:
    """What the panels' colours mean: the marks of errors, then the classes that they show, largest first."""
    shown = np.stack([_resized(label) for label in (truth, prediction)])
    entries = present_classes(shown[shown != IGNORE], classes, palette)
    marks = [Entry("wrong", WRONG, "")] + [Entry("ignored", IGNORED[0], "")] * bool((shown == IGNORE).any())
    return marks + [entry._replace(note="") for entry in entries]


def board(drawn: Mapping[str, Image.Image], entries: Sequence[Entry]) -> Image.Image:
    """The panels two by two with their titles, and the legend below."""
    width, height = next(iter(drawn.values())).size
    title = 16 + 2 * _GAP
    picture = Image.new("RGB", (2 * width + 3 * _GAP, 2 * (title + height) + _GAP), PAPER)
    draw, font = ImageDraw.Draw(picture), load_font(16)
    for place, (name, panel) in enumerate(drawn.items()):
        left, top = _GAP + place % 2 * (width + _GAP), place // 2 * (title + height)
        draw.text((left, top + _GAP), name, INK, font)
        picture.paste(panel, (left, top + title))
    return stacked(picture, draw_legend(entries, picture.size, 14))


def _resized(label: np.ndarray) -> np.ndarray:
    """(H, W) ids at the panels' size."""
    reduced = Image.fromarray(label.astype(np.uint8)).resize(_size_of(label.shape), Image.Resampling.NEAREST)
    return np.asarray(reduced)


def _size_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of the panels of a label of (H, W)."""
    longest = max(shape)
    factor = _SIDE // longest if longest <= _SIDE else _SIDE / longest
    return max(round(shape[1] * factor), 1), max(round(shape[0] * factor), 1)
