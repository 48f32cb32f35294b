"""A picture and its label map, drawn together so that they agree to the pixel."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from psp_fast.data.scenes.classes import ID

Point = tuple[float, float]
Colour = tuple[int, int, int]


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or lighter (above 1)."""
    r, g, b = (min(255, max(0, round(channel * factor))) for channel in colour)
    return r, g, b


def ripples(rng: np.random.Generator, height: int, width: int, cell: Point) -> np.ndarray:
    """Smooth noise (height, width), float32, mean about 0, deviation about 1, in blobs of `cell` (x, y) pixels."""
    rows, columns = max(2, round(height / cell[1])), max(2, round(width / cell[0]))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)) * 1.5


class Canvas:
    """Shapes put on an image and on its label map by the same rasteriser, without anti-aliasing.

    Every shape takes a colour and a class name; the name None paints the image only (a shadow, say).
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self._image, self._label = Image.fromarray(pixels), Image.fromarray(labels)
        self._on_image, self._on_label = ImageDraw.Draw(self._image), ImageDraw.Draw(self._label)

    def polygon(self, points: Sequence[Point], colour: Colour, name: str | None) -> None:
        self._on_image.polygon(points, fill=colour)
        if name is not None:
            self._on_label.polygon(points, fill=ID[name])

    def ellipse(self, centre: Point, radius: Point, colour: Colour, name: str | None) -> None:
        (x, y), (rx, ry) = centre, radius
        box = (x - rx, y - ry, x + rx, y + ry)
        self._on_image.ellipse(box, fill=colour)
        if name is not None:
            self._on_label.ellipse(box, fill=ID[name])

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour, name: str | None) -> None:
        self.polygon(((left, top), (right, top), (right, bottom), (left, bottom)), colour, name)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture (H, W, 3) and the label map (H, W), both uint8."""
        return np.array(self._image), np.array(self._label)
