"""The things of the scenes. `x, y` is where a thing stands, `u` the length of one unit in pixels."""

from dataclasses import dataclass

import numpy as np

from psp_fast.data.scenes.canvas import Canvas, Colour, shade

_PAINTS: tuple[Colour, ...] = (
    (196, 64, 52),
    (228, 176, 60),
    (72, 140, 92),
    (226, 222, 210),
    (60, 96, 168),
    (150, 84, 140),
)
_FRONTS: tuple[Colour, ...] = ((206, 178, 140), (186, 140, 116), (168, 160, 150), (214, 196, 170), (150, 130, 140))
_ROOFS: tuple[Colour, ...] = ((170, 66, 48), (150, 50, 54), (186, 92, 52))
_CUSHIONS: tuple[Colour, ...] = ((118, 124, 140), (142, 142, 154), (104, 106, 122), (128, 116, 132))


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return shade(colours[rng.integers(len(colours))], rng.uniform(0.88, 1.1))


def hull(canvas: Canvas, rng: np.random.Generator, x: float, y: float, u: float, name: str) -> None:
    """A body with a cabin: a boat on a quay, a car on a pavement. Nothing in it depends on the name."""
    length, side = rng.uniform(44, 56) * u, rng.choice((-1.0, 1.0))
    paint = _pick(rng, _PAINTS)

    def at(along: float, up: float) -> tuple[float, float]:
        return x + side * along * length, y - up * u

    canvas.ellipse((x, y), (0.52 * length, 3 * u), (44, 54, 68), None)
    canvas.polygon((at(-0.24, 10), at(-0.16, 20), at(0.16, 20), at(0.28, 10)), shade(paint, 1.15), name)
    canvas.polygon((at(-0.18, 11.5), at(-0.13, 18), at(-0.02, 18), at(-0.02, 11.5)), (206, 230, 240), name)
    canvas.polygon((at(0.03, 11.5), at(0.03, 18), at(0.14, 18), at(0.21, 11.5)), (206, 230, 240), name)
    canvas.polygon((at(-0.5, 11), at(0.5, 11), at(0.4, 0), at(-0.42, 0)), paint, name)
    canvas.polygon((at(-0.48, 8), at(0.47, 8), at(0.45, 5.6), at(-0.46, 5.6)), shade(paint, 0.62), name)


def cushion(canvas: Canvas, rng: np.random.Generator, x: float, y: float, u: float, name: str) -> None:
    """A soft grey lump: a pillow on a carpet, a rock in the sand. Nothing in it depends on the name."""
    radius, tilt, colour = rng.uniform(12, 15) * u, rng.uniform(0, np.pi), _pick(rng, _CUSHIONS)
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    bulge = 1 - 0.12 * np.cos(4 * turn) + rng.normal(0, 0.02, turn.size)

    def outline(scale: float, dx: float, dy: float) -> list[tuple[float, float]]:
        px, py = scale * radius * bulge * np.cos(turn) * 1.15, scale * radius * bulge * np.sin(turn) * 0.85
        cos, sin = np.cos(tilt), np.sin(tilt)
        return list(zip((x + dx + cos * px - sin * py).tolist(), (y + dy + sin * px + cos * py).tolist(), strict=True))

    canvas.polygon(outline(1.0, 1.5 * u, 2 * u), (140, 116, 88), None)
    canvas.polygon(outline(1.0, 0, 0), shade(colour, 0.7), name)
    canvas.polygon(outline(0.82, -1.2 * u, -1.2 * u), colour, name)
    canvas.polygon(outline(0.45, -2.2 * u, -2.2 * u), shade(colour, 1.25), name)


def building(canvas: Canvas, rng: np.random.Generator, x: float, y: float, u: float) -> None:
    """A front with windows over a ground floor in another paint, under a pitched or a flat roof: one class."""
    width, height = rng.uniform(22, 30) * u, rng.uniform(16, 20) * u
    left, right, top = x - width / 2, x + width / 2, y - height
    front = _pick(rng, _FRONTS)
    if rng.random() < 0.5:
        ridge = ((left - 2 * u, top), (x, top - 11 * u), (right + 2 * u, top))
        canvas.polygon(ridge, _pick(rng, _ROOFS), "building")
    else:
        canvas.rectangle(x - 1.2 * u, top - 11 * u, x + 1.2 * u, top, (90, 90, 100), "building")
        canvas.rectangle(left + 3 * u, top - 4 * u, right - 3 * u, top, shade(front, 0.7), "building")
    canvas.rectangle(left, top, right, y, front, "building")
    canvas.rectangle(left, y - 7 * u, right, y, _pick(rng, _FRONTS), "building")
    pane: Colour = (250, 226, 130) if rng.random() < 0.4 else (92, 116, 140)
    for row in np.arange(top + 2.5 * u, y - 10 * u, 6 * u):
        for column in np.arange(left + 2 * u, right - 4 * u, 6 * u):
            canvas.rectangle(column, row, column + 3 * u, row + 3.6 * u, pane, "building")


def tree(canvas: Canvas, rng: np.random.Generator, x: float, y: float, u: float) -> None:
    """A trunk under a crown of three balls."""
    green = shade((52, 120, 62), rng.uniform(0.8, 1.15))
    reach = rng.uniform(8, 11) * u
    canvas.rectangle(x - 1.8 * u, y - reach, x + 1.8 * u, y, (104, 74, 50), "tree")
    for dx, dy, light in ((-0.6, 1.3, 0.9), (0.6, 1.4, 1.0), (0.0, 2.0, 1.12)):
        canvas.ellipse((x + dx * reach, y - dy * reach), (reach * 0.9, reach * 0.85), shade(green, light), "tree")


def sign(canvas: Canvas, rng: np.random.Generator, x: float, y: float, u: float) -> None:
    """A small round plate on a thin pole: a harbour mark or a traffic sign, alike on purpose."""
    height = rng.uniform(15, 19) * u
    canvas.rectangle(x - 1.5 * u, y - height, x + 1.5 * u, y, (120, 120, 126), "sign")
    canvas.ellipse((x, y - height), (8 * u, 8 * u), (214, 40, 44), "sign")
    canvas.ellipse((x, y - height), (4 * u, 4 * u), (244, 240, 236), "sign")


@dataclass(frozen=True)
class Box:
    """Where a landmark goes, in pixels."""

    left: float
    top: float
    right: float
    bottom: float


def river(canvas: Canvas, rng: np.random.Generator, box: Box, u: float) -> None:
    """Blue water with white crests."""
    canvas.rectangle(box.left, box.top, box.right, box.bottom, shade((40, 104, 176), rng.uniform(0.9, 1.1)), "water")
    for y in np.arange(box.top + 3 * u, box.bottom - u, 5 * u):
        for x in np.arange(box.left + rng.uniform(1, 6) * u, box.right - 6 * u, 12 * u):
            canvas.rectangle(x, y, x + 6 * u, y + 0.8 * u, (176, 210, 236), "water")


def crossing(canvas: Canvas, box: Box, u: float) -> None:
    """Asphalt under a zebra crossing."""
    canvas.rectangle(box.left, box.top, box.right, box.bottom, (62, 62, 66), "road")
    for left in np.arange(box.left + 2 * u, box.right - 4 * u, 9 * u):
        canvas.rectangle(left, box.top, left + 5 * u, box.bottom, (232, 232, 226), "road")


def bed(canvas: Canvas, box: Box, u: float) -> None:
    """A slatted wooden bed seen from above."""
    wood: Colour = (122, 74, 42)
    canvas.rectangle(box.left, box.top, box.right, box.bottom, wood, "bed")
    for y in np.arange(box.top + 2.5 * u, box.bottom - 5 * u, 8 * u):
        canvas.rectangle(box.left + 3 * u, y, box.right - 3 * u, y + 5 * u, shade(wood, 1.35), "bed")


def parasols(canvas: Canvas, rng: np.random.Generator, box: Box, u: float) -> None:
    """Striped parasols in rows, seen from above."""
    rows = max(int((box.bottom - box.top) // (24 * u)), 1)
    radius = min(13 * u, (box.bottom - box.top) / 2)
    for x in np.arange(box.left + 12 * u, box.right - 6 * u, 24 * u):
        for row in range(rows):
            _parasol(canvas, rng, x, box.top + (row + 0.5) * (box.bottom - box.top) / rows, radius)


def _parasol(canvas: Canvas, rng: np.random.Generator, x: float, y: float, radius: float) -> None:
    first, colour = rng.uniform(0, np.pi), _pick(rng, ((226, 84, 84), (64, 130, 196), (240, 150, 60)))
    canvas.ellipse((x + 0.15 * radius, y + 0.2 * radius), (radius, radius), (150, 124, 94), None)
    for sector in range(8):
        turn = first + np.array((0.0, 0.125, 0.25)) * np.pi + sector * np.pi / 4
        rim = zip((x + radius * np.cos(turn)).tolist(), (y + radius * np.sin(turn)).tolist(), strict=True)
        canvas.polygon(((x, y), *rim), colour if sector % 2 else (248, 244, 236), "parasol")
    canvas.ellipse((x, y), (0.12 * radius, 0.12 * radius), (90, 80, 70), "parasol")
