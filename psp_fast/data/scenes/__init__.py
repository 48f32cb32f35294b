"""A small labelled world drawn from a seed, in which context decides: the data set that needs no download."""

from typing import Literal

import numpy as np

from psp_fast.data.scenes.classes import CLASSES, CONTEXTUAL_PAIRS, PALETTE
from psp_fast.data.scenes.worlds import floor, outdoors
from psp_fast.errors import ConfigError, DataError

__all__ = ["CLASSES", "CONTEXTUAL_PAIRS", "PALETTE", "Scenes"]

_SPLITS = ("train", "val")


class Scenes:
    """Pictures drawn on demand: (split, index, size, seed) fixes every byte, and no two splits share a draw.

    Args:
        split: "train" or "val".
        size: height and width in pixels, or one side of a square; at least 33. Wide suits this world.
        count: how many pictures.
        seed: of the whole set, 0 or more.

    Raises:
        ConfigError: a split, size, count or seed that cannot be drawn.
    """

    classes: tuple[str, ...] = CLASSES
    palette: np.ndarray = PALETTE

    def __init__(self, split: Literal["train", "val"], size: int | tuple[int, int], count: int, seed: int) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if split not in _SPLITS:
            raise ConfigError(f"scenes: split {split!r} does not exist; use one of {', '.join(_SPLITS)}.")
        if min(self.size) < 33:
            raise ConfigError(f"scenes: size {self.size} is too small to draw; use at least 33 pixels a side.")
        if count < 1 or seed < 0:
            raise ConfigError(f"scenes: count {count} must be at least 1 and seed {seed} at least 0.")
        self.split, self.count, self.seed = split, count, seed

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw picture `index`: image (H, W, 3) uint8 RGB and label (H, W) uint8 in 0..C-1."""
        if not 0 <= index < self.count:
            raise DataError(f"scenes: there is no picture {index} in {self.split}, which has {self.count}.")
        rng = np.random.default_rng([self.seed, _SPLITS.index(self.split), index])
        height, width = self.size
        unit = min(height / 95, width / 160)
        world = outdoors if rng.random() < 0.55 else floor
        image, label = world(rng, height, width, unit).finish()
        grain = rng.normal(0, 4, image.shape[:2]).astype(np.float32)
        return np.clip(image + grain[..., None], 0, 255).astype(np.uint8), label

    def name(self, index: int) -> str:
        """What messages and output files call picture `index`."""
        return f"scenes/{self.split}/{index:05d}"

    def stamp(self, index: int) -> str:
        """Nothing: picture `index` is always the same."""
        return ""
