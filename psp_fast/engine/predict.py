"""Label maps and overlays of the user's own images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from psp_fast.configs import Config
from psp_fast.data import read_image, write_png
from psp_fast.engine.inference import label_map
from psp_fast.engine.ours import check_replaceable, mark
from psp_fast.engine.run import Trained
from psp_fast.errors import DataError
from psp_fast.pictures import overlay


def predict(trained: Trained, images: Sequence[str], folder: Path, config: Config, device: torch.device) -> list[Path]:
    """Write <name>_labels.png (class ids, with the palette) and <name>_overlay.png into folder for every image.

    Args:
        trained: the model with its classes and palette.
        images: files of any size and mode that Pillow reads.
        folder: made when missing.
        config: its fields eval, and mean and std of augment.
        device: the model's.

    Returns:
        What was written, in the order of images.

    Raises:
        DataError: an image that cannot be read, two whose results would have the same name, or a file in the place of
            a result that is not an earlier one of the same image; then nothing is written.
    """
    if nameless := next((image for image in images if "\0" in image), None):
        raise DataError(f"{nameless!r} holds a NUL character, which no path can")
    paths = [Path(image) for image in images]
    stem, count = Counter(path.stem for path in paths).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{count} of the images are called {stem!r}: their results in {folder} would overwrite each other; use "
            "two calls with different --out"
        )
    for path in paths:
        check_replaceable(_results(path, folder), mark("predict", path), f"an earlier result of {path}")
    written = []
    for path in tqdm(paths, "predict", unit="image"):
        pixels = read_image(path, trained.config.model.in_channels)
        labels = label_map(trained.model, torch.from_numpy(pixels).to(device), config, name=path).cpu().numpy()
        label_file, overlay_file = _results(path, folder)
        texts = mark("predict", path)
        write_png(label_file, labels, trained.palette, texts)
        write_png(overlay_file, overlay(pixels, labels, trained.classes, trained.palette), texts=texts)
        written += [label_file, overlay_file]
    return written


def _results(image: Path, folder: Path) -> tuple[Path, Path]:
    return folder / f"{image.stem}_labels.png", folder / f"{image.stem}_overlay.png"
