"""Label maps for the Cityscapes server."""

from __future__ import annotations

from pathlib import Path

import torch
from tqdm import tqdm

from psp_fast.configs import Config
from psp_fast.data import read_image, write_png
from psp_fast.data.official import cityscapes
from psp_fast.engine.inference import label_map
from psp_fast.engine.ours import check_replaceable, mark
from psp_fast.engine.run import Trained
from psp_fast.errors import ConfigError


def submit(trained: Trained, config: Config, folder: Path, device: torch.device) -> list[Path]:
    """Write the label maps of all images of Cityscapes' test set, as the server takes them, into folder.

    They hold ids, not trainIds, at the images' own size, and have the images' names, <city>_<sequence>_<frame>*.png.

    Args:
        trained: a network of the 19 classes.
        config: its fields data.root, eval, and mean and std of augment.
        folder: made when missing.
        device: the model's.

    Raises:
        ConfigError: a network of other classes.
        DataError: an image that is missing or cannot be read, or a file in the place of a result that is not an earlier
            one; then nothing is written.
    """
    if tuple(trained.classes) != cityscapes.LAYOUT.classes:
        count = len(trained.classes)
        raise ConfigError(f"submit is for networks of Cityscapes' 19 classes; this one's {count} are not those")
    images = cityscapes.images_to_submit(Path(config.data.root))
    check_replaceable([folder / path.name for path in images], mark("submit"), "an earlier result of psp-fast submit")
    written = []
    for path in tqdm(images, "submit", unit="image"):
        pixels = torch.from_numpy(read_image(path, trained.config.model.in_channels)).to(device)
        found = label_map(trained.model, pixels, config, name=path)
        written.append(folder / path.name)
        write_png(written[-1], cityscapes.submitted(found.cpu().numpy()), texts=mark("submit"))
    return written
