"""The classes of the scenes: names, ids and legend colours."""

import numpy as np

_TABLE: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("sky", (135, 206, 235)),
    ("grass", (124, 190, 80)),
    ("tree", (34, 110, 50)),
    ("building", (190, 80, 60)),
    ("sign", (230, 0, 0)),
    ("wall", (130, 110, 90)),
    ("water", (0, 80, 255)),
    ("road", (60, 60, 60)),
    ("bed", (110, 50, 20)),
    ("parasol", (255, 120, 180)),
    ("quay", (150, 190, 205)),
    ("pavement", (150, 145, 150)),
    ("boat", (0, 220, 220)),
    ("car", (255, 140, 0)),
    ("carpet", (240, 200, 250)),
    ("sand", (240, 220, 130)),
    ("pillow", (170, 0, 200)),
    ("rock", (60, 50, 120)),
)

CLASSES: tuple[str, ...] = tuple(name for name, _ in _TABLE)
PALETTE: np.ndarray = np.array([colour for _, colour in _TABLE], dtype=np.uint8)
ID: dict[str, int] = {name: index for index, name in enumerate(CLASSES)}
CONTEXTUAL_PAIRS: tuple[tuple[str, str], ...] = (
    ("quay", "pavement"),
    ("boat", "car"),
    ("carpet", "sand"),
    ("pillow", "rock"),
)
"""Classes drawn from the same pixels: only what lies far away in the picture tells one from the other."""
