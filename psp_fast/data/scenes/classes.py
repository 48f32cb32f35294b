"""The classes of the scenes: names, ids and legend colours."""

import numpy as np

_TABLE: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("sky", (135, 206, 235)),
    ("grass", (124, 190, 80)),
    ("tree", (34, 110, 50)),
    ("house", (190, 80, 60)),
    ("tower", (120, 90, 160)),
    ("wall", (130, 110, 90)),
    ("bridge", (205, 150, 90)),
    ("crossing", (245, 245, 245)),
    ("headboard", (110, 50, 20)),
    ("parasol", (255, 120, 180)),
    ("lamp", (255, 220, 0)),
    ("sign", (230, 0, 0)),
    ("water", (0, 80, 255)),
    ("road", (80, 80, 80)),
    ("boat", (0, 220, 220)),
    ("car", (255, 140, 0)),
    ("bed", (240, 200, 250)),
    ("sand", (240, 220, 130)),
    ("pillow", (170, 0, 200)),
    ("rock", (60, 50, 120)),
)

CLASSES: tuple[str, ...] = tuple(name for name, _ in _TABLE)
PALETTE: np.ndarray = np.array([colour for _, colour in _TABLE], dtype=np.uint8)
ID: dict[str, int] = {name: index for index, name in enumerate(CLASSES)}
CONTEXTUAL_PAIRS: tuple[tuple[str, str], ...] = (
    ("water", "road"),
    ("boat", "car"),
    ("bed", "sand"),
    ("pillow", "rock"),
)
"""Classes drawn from the same pixels: only the rest of the picture tells one from the other."""
