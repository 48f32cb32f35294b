"""Where things stand: the quay (river beside street) and the beach house (bed beside sand).

A picture has one zone, or two side by side with a wall between them. All zones have the same ground and the same things
on it; what a zone is, and so the class of its ground and its things, shows only in a landmark at its outer end.
"""

from dataclasses import dataclass

import numpy as np

from psp_fast.data.scenes import sprites
from psp_fast.data.scenes.canvas import Canvas, Colour, ripples, shade
from psp_fast.data.scenes.classes import ID


@dataclass(frozen=True)
class Zone:
    """One part of the picture, from column `left` to `right`; its landmark stands at `landmark`."""

    left: float
    right: float
    landmark: float
    first: bool  # river or bed; else street or sand


def _zones(rng: np.random.Generator, width: int, u: float) -> list[Zone]:
    ends = 14 * u + rng.uniform(-4, 4) * u, width - 14 * u + rng.uniform(-4, 4) * u
    kind = bool(rng.random() < 0.5)
    if rng.random() < 0.35:
        return [Zone(0, width, ends[rng.integers(2)], kind)]
    middle = width * rng.uniform(0.42, 0.58)
    other = kind if rng.random() < 0.4 else not kind
    return [Zone(0, middle, ends[0], kind), Zone(middle, width, ends[1], other)]


def _ground(
    rng: np.random.Generator, pixels: np.ndarray, top: int, base: Colour, cell: tuple[float, float], depth: float
) -> None:
    height, width = pixels.shape[0] - top, pixels.shape[1]
    waves = ripples(rng, height, width, cell) * depth
    pixels[top:] = np.clip(np.asarray(base, np.float32) + waves[..., None], 0, 255).astype(np.uint8)


def _places(rng: np.random.Generator, zone: Zone, u: float, count: int) -> list[float]:
    """Spots for things, away from the landmark and from the zone's ends."""
    spots = np.arange(zone.left + 29 * u, zone.right - 29 * u, 4 * u)
    spots = spots[np.abs(spots - zone.landmark) > 70 * u]
    return rng.choice(spots, size=min(count, spots.size), replace=False).tolist() if spots.size else []


def quay(rng: np.random.Generator, height: int, width: int, u: float) -> Canvas:
    """Sky, a row of buildings and trees, and below them wet asphalt or still water with hulls on it."""
    horizon = round(height * rng.uniform(0.42, 0.47))
    zones = _zones(rng, width, u)
    base = shade((96, 108, 124), rng.uniform(0.85, 1.12))
    pixels, labels = np.zeros((height, width, 3), np.uint8), np.full((height, width), ID["sky"], np.uint8)
    fade = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    sky = np.asarray((120, 176, 226), np.float32) * (1 - fade) + np.asarray((236, 232, 220), np.float32) * fade
    pixels[:] = np.clip(sky + 5 * ripples(rng, height, width, (40 * u, 10 * u))[..., None], 0, 255).astype(np.uint8)
    _ground(rng, pixels, horizon, base, (16 * u, 2.5 * u), 7)
    for zone in zones:
        labels[horizon:, round(zone.left) : round(zone.right)] = ID["water" if zone.first else "road"]
    canvas = Canvas(pixels, labels)
    _skyline(canvas, rng, width, horizon, u)
    if len(zones) == 2:
        _embankment(canvas, zones[1].left, horizon, height, u)
    for zone in zones:
        if zone.first:
            sprites.bridge(canvas, zone.landmark, horizon + 4 * u, u, base)
        else:
            sprites.crossing(canvas, zone.landmark, horizon + 4 * u, u)
    things = [(y, x, zone) for zone in zones for x, y in _spread(rng, zone, horizon + 22 * u, height - 3 * u, u)]
    for y, x, zone in sorted(things, key=lambda thing: thing[0]):
        sprites.hull(canvas, rng, x, y, u, "boat" if zone.first else "car")
    return canvas


def _spread(rng: np.random.Generator, zone: Zone, top: float, bottom: float, u: float) -> list[tuple[float, float]]:
    count = int(rng.integers(1, 3)) + (zone.right - zone.left > 200 * u)
    return [(x, rng.uniform(top, bottom)) for x in _places(rng, zone, u, count)]


def _skyline(canvas: Canvas, rng: np.random.Generator, width: int, horizon: int, u: float) -> None:
    bank = horizon + 5 * u
    x = rng.uniform(-6, 10) * u
    while x < width:
        kind = rng.random()
        if kind < 0.4:
            sprites.tree(canvas, rng, x, horizon + u, u)
            x += rng.uniform(20, 28) * u
        elif kind < 0.9:
            sprites.building(canvas, rng, x + 8 * u, horizon + u, u, "house" if kind < 0.65 else "tower")
            x += rng.uniform(34, 42) * u
        else:
            x += 16 * u
    canvas.rectangle(0, horizon, width, bank, shade((126, 176, 84), rng.uniform(0.85, 1.1)), "grass")
    for _ in range(rng.integers(2, 5)):
        sprites.lamp(canvas, rng, rng.uniform(5, width - 5), bank, u)
    for _ in range(rng.integers(1, 4)):
        sprites.sign(canvas, rng, rng.uniform(5, width - 5), bank, u)


def _embankment(canvas: Canvas, x: float, top: float, bottom: float, u: float) -> None:
    stone: Colour = (142, 134, 124)
    canvas.rectangle(x - 6 * u, top, x + 6 * u, bottom, stone, "wall")
    canvas.rectangle(x - 6 * u, top, x - 2.5 * u, bottom, shade(stone, 1.2), "wall")
    for y in np.arange(top + 5 * u, bottom, 9 * u):
        canvas.rectangle(x - 6 * u, y, x + 6 * u, y + 0.8 * u, shade(stone, 0.75), "wall")


def beach_house(rng: np.random.Generator, height: int, width: int, u: float) -> Canvas:
    """Seen from above: wrinkled linen or rippled sand with grey lumps on it."""
    zones = _zones(rng, width, u)
    pixels, labels = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    _ground(rng, pixels, 0, shade((214, 190, 150), rng.uniform(0.9, 1.08)), (9 * u, 5 * u), 8)
    for zone in zones:
        labels[:, round(zone.left) : round(zone.right)] = ID["bed" if zone.first else "sand"]
    canvas = Canvas(pixels, labels)
    if len(zones) == 2:
        _embankment(canvas, zones[1].left, 0, height, u)
    for zone in zones:
        y = height / 2 + rng.uniform(-20, 20) * u
        if zone.first:
            sprites.headboard(canvas, zone.landmark, y, u)
        else:
            sprites.parasol(canvas, rng, zone.landmark, y, u)
        for x, y in _spread(rng, zone, 16 * u, height - 16 * u, u):
            sprites.cushion(canvas, rng, x, y, u, "pillow" if zone.first else "rock")
    return canvas
