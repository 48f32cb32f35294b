"""One colour a class."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from psp_fast.errors import DataError


def default_palette(count: int) -> np.ndarray:
    """(count, 3) uint8 RGB colours that differ as much as the eye allows; the first n are the same for every count."""
    return _distinct_colours(count).copy()


@lru_cache
def _distinct_colours(count: int) -> np.ndarray:
    """Greedy farthest points in CIELAB among colours neither dark nor garish, started from black (ignored pixels)."""
    levels = np.arange(0, 256, 15)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _to_lab(rgb)
    usable = (lab[:, 0] > 30) & (lab[:, 0] < 92) & (np.hypot(lab[:, 1], lab[:, 2]) < 85)
    rgb, lab = rgb[usable], lab[usable]
    distance = np.linalg.norm(lab, axis=1)
    chosen = []
    for _ in range(count):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return rgb[chosen].astype(np.uint8)


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """(N, 3) sRGB in 0..255 -> (N, 3) CIELAB under D65."""
    linear = np.where(rgb <= 10.31475, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def checked_palette(palette: Sequence[Sequence[int]] | np.ndarray | None, count: int) -> np.ndarray:
    if palette is None:
        return default_palette(count)
    colours = np.asarray(palette)
    if colours.shape != (count, 3) or colours.min() < 0 or colours.max() > 255:
        raise DataError(f"the palette must hold {count} RGB colours in 0..255 but has the shape {colours.shape}")
    return colours.astype(np.uint8)
