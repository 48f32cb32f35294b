"""Where things stand: outdoors (on a quay by a river, or a pavement by a road), and on a carpet or on sand.

A picture has one band of ground, or two with a wall between them. The grounds of a world and the things on them look
alike; what a band is, and so what its things are, shows only in a landmark at its left or right end: water or road, a
bed or parasols.
"""

from dataclasses import dataclass

import numpy as np

from psp_fast.data.scenes import sprites
from psp_fast.data.scenes.canvas import Canvas, Colour, ripples, shade
from psp_fast.data.scenes.classes import ID

_ONE_BAND, _ALIKE = 0.4, 0.4  # how often there is one band; how often both of two bands are the same
_FAR = 0.5  # things keep this share of the width away from the end where their landmark is
_WALL = 5.0  # thickness in units
_LANDMARK = 0.22  # share of the width that a landmark covers


@dataclass(frozen=True)
class Band:
    """A strip of ground between two rows; its landmark fills the columns at its left or right end."""

    top: float
    bottom: float
    landmark: tuple[float, float]
    soft: bool  # by water or in a bedroom; else by a road or on a beach

    @property
    def box(self) -> sprites.Box:
        """Where the landmark goes."""
        return sprites.Box(self.landmark[0], self.top, self.landmark[1], self.bottom)


def _bands(rng: np.random.Generator, top: float, height: int, width: int, u: float) -> list[Band]:
    def end() -> tuple[float, float]:
        share = width * _LANDMARK * rng.uniform(0.8, 1.2)
        return (0.0, share) if rng.random() < 0.5 else (width - share, float(width))

    soft = bool(rng.random() < 0.5)
    if rng.random() < _ONE_BAND:
        return [Band(top, height, end(), soft)]
    middle = (top + height) / 2 + rng.uniform(-1, 1) * u
    below = soft if rng.random() < _ALIKE else not soft
    half = _WALL / 2 * u
    return [Band(top, middle - half, end(), soft), Band(middle + half, height, end(), below)]


def _ground(
    rng: np.random.Generator, pixels: np.ndarray, top: int, base: Colour, cell: tuple[float, float], depth: float
) -> None:
    height, width = pixels.shape[0] - top, pixels.shape[1]
    waves = ripples(rng, height, width, cell) * depth
    pixels[top:] = np.clip(np.asarray(base, np.float32) + waves[..., None], 0, 255).astype(np.uint8)


def _label(labels: np.ndarray, bands: list[Band], top: int, soft: str, hard: str) -> None:
    """Label each band's ground, from row `top` on."""
    rows = np.arange(labels.shape[0])
    for band in bands:
        inside = (rows >= max(top, round(band.top) - 4)) & (rows < round(band.bottom) + 1)
        labels[inside] = ID[soft if band.soft else hard]


def _wall(canvas: Canvas, bands: list[Band], width: int, u: float) -> None:
    if len(bands) == 1:
        return
    top, bottom, stone = bands[0].bottom, bands[1].top, (150, 104, 96)
    canvas.rectangle(0, top - 1, width, bottom + 1, stone, "wall")
    canvas.rectangle(0, top - 1, width, top + u, shade(stone, 1.25), "wall")
    for x in np.arange(4 * u, width, 9 * u):
        canvas.rectangle(x, top, x + u, bottom + 1, shade(stone, 0.75), "wall")


def _places(
    rng: np.random.Generator, band: Band, width: int, u: float, above: float, below: float
) -> list[tuple[float, float]]:
    """Feet (x, y) of one to three things, far from the landmark, `above` and `below` units inside the band."""
    slots = np.arange(12 * u, width - 12 * u, 30 * u) + rng.uniform(0, 10) * u
    far = slots[np.abs(slots - (0 if band.landmark[0] == 0 else width)) > _FAR * width]
    chosen = rng.choice(far, size=min(len(far), int(rng.integers(1, 4))), replace=False)
    top, bottom = band.top + above * u, band.bottom - below * u
    return [(x, rng.uniform(top, max(top, bottom))) for x in chosen.tolist()]


def outdoors(rng: np.random.Generator, height: int, width: int, u: float) -> Canvas:
    """Sky, a row of buildings and trees, and below them grey stone with hulls on it."""
    horizon = round(height * rng.uniform(0.31, 0.34))
    bands = _bands(rng, horizon + 4 * u, height, width, u)
    pixels, labels = np.zeros((height, width, 3), np.uint8), np.full((height, width), ID["sky"], np.uint8)
    fade = np.linspace(0, 2, height, dtype=np.float32)[:, None, None]
    sky = np.asarray((120, 176, 226), np.float32) * (1 - fade) + np.asarray((236, 232, 220), np.float32) * fade
    pixels[:] = np.clip(sky + 5 * ripples(rng, height, width, (40 * u, 10 * u))[..., None], 0, 255).astype(np.uint8)
    _ground(rng, pixels, horizon, shade((150, 152, 156), rng.uniform(0.85, 1.12)), (16 * u, 2.5 * u), 7)
    _label(labels, bands, horizon, "quay", "pavement")
    canvas = Canvas(pixels, labels)
    _wall(canvas, bands, width, u)
    _skyline(canvas, rng, width, horizon, u)
    for band in bands:
        if band.soft:
            sprites.river(canvas, rng, band.box, u)
        else:
            sprites.crossing(canvas, band.box, u)
        for x, y in sorted(_places(rng, band, width, u, 21, 3), key=lambda place: place[1]):
            sprites.hull(canvas, rng, x, y, u, "boat" if band.soft else "car")
    return canvas


def _skyline(canvas: Canvas, rng: np.random.Generator, width: int, horizon: int, u: float) -> None:
    foot = horizon + u
    x = rng.uniform(-6, 10) * u
    while x < width:
        kind = rng.random()
        if kind < 0.4:
            sprites.tree(canvas, rng, x, foot, u)
            x += rng.uniform(20, 28) * u
        elif kind < 0.9:
            sprites.building(canvas, rng, x + 8 * u, foot, u)
            x += rng.uniform(34, 42) * u
        else:
            x += 16 * u
    canvas.rectangle(0, horizon, width, horizon + 4 * u, shade((126, 176, 84), rng.uniform(0.85, 1.1)), "grass")
    for _ in range(rng.integers(1, 4)):
        sprites.sign(canvas, rng, rng.uniform(5, width - 5), horizon + 3 * u, u)


def floor(rng: np.random.Generator, height: int, width: int, u: float) -> Canvas:
    """A pale floor seen from above, with grey lumps on it."""
    bands = _bands(rng, 0, height, width, u)
    pixels, labels = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    _ground(rng, pixels, 0, shade((214, 190, 150), rng.uniform(0.9, 1.08)), (9 * u, 5 * u), 8)
    _label(labels, bands, 0, "carpet", "sand")
    canvas = Canvas(pixels, labels)
    for band in bands:
        for x, y in _places(rng, band, width, u, 15, 15):
            sprites.cushion(canvas, rng, x, y, u, "pillow" if band.soft else "rock")
    _wall(canvas, bands, width, u)
    for band in bands:
        if band.soft:
            sprites.bed(canvas, band.box, u)
        else:
            sprites.parasols(canvas, rng, band.box, u)
    return canvas
