"""What all projects' scripts share; numpy alone, as some projects' environments have no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

CLASSES = 5


def weights(shapes: Mapping[str, Iterable[int]]) -> dict[str, np.ndarray]:
    """He-scaled convolutions and lively batch norm parameters and statistics, key by key in sorted order; float32."""
    random = np.random.RandomState(7)
    found = {}
    for key, shape in sorted(shapes.items()):
        shape = tuple(shape)
        if len(shape) == 4:
            values = (random.random_sample(shape) - 0.5) * np.sqrt(24.0 / np.prod(shape[1:]))
        elif key.endswith(("bias", "mean")):
            values = 0.1 * random.standard_normal(shape)
        else:
            values = random.uniform(0.5, 1.0, shape)
        found[key] = values.astype(np.float32)
    return found


def image(height: int, width: int) -> np.ndarray:
    """A batch of one, (1, 3, H, W), normalised."""
    return np.random.RandomState(11).standard_normal((1, 3, height, width))


def sample(values: np.ndarray) -> list[float]:
    """400 of all values."""
    flat = np.asarray(values, np.float64).ravel()
    return flat[np.linspace(0, len(flat) - 1, min(400, len(flat))).astype(int)].tolist()


def digest(shapes: Mapping[str, Iterable[int]]) -> str:
    """Of all names and shapes."""
    lines = sorted(f"{key} {tuple(shape)}" for key, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def path(project: str) -> Path:
    return Path(__file__).with_name(f"{project}.json")


def write(project: str, numbers: dict) -> None:
    path(project).write_text(json.dumps(numbers) + "\n")
