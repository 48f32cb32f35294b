"""The label maps that semseg's own tool/test.py makes, which test_semseg_test.py compares with, and how they are made.

    python -m tests.models.semseg_test_numbers CHECKOUT_OF_SEMSEG    writes semseg_test_numbers.json anew

Both sides fill PSPNet50 with the same weights and take the same images. A classifier of random weights favours one or
two classes everywhere; so the logits of each class are centred and scaled by semseg's own on the first image, and
these numbers are noted.
Needs OpenCV besides.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from psp_fast.normalisation import MEAN, STD
from tests.models.semseg_numbers import fill

NUMBERS = Path(__file__).with_suffix(".json")
CLASSES, TILE = 21, 16
SIX_SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


@dataclass(frozen=True)
class Case:
    """An image and how it is tested; sizes are height and width."""

    image: tuple[int, int]
    base_size: int
    crop: tuple[int, int]
    scales: list[float] = field(default_factory=lambda: [1.0])


CASES = {
    "wide, enlarged": Case((90, 130), 150, (65, 65)),
    "high, reduced, crop not square": Case((151, 97), 120, (73, 57)),
    "smaller than the crop": Case((40, 50), 50, (65, 65)),
    "lower than the crop": Case((50, 140), 140, (65, 65)),
    "wide, six scales, reduced": Case((85, 125), 70, (65, 65), SIX_SCALES),
    "high, six scales, enlarged, crop not square": Case((61, 43), 66, (57, 65), SIX_SCALES),
}


def picture(name: str) -> np.ndarray:
    """The image of a case, (H, W, 3) uint8: tiles of colours and noise, of integers alone, the same on any machine."""
    height, width = CASES[name].image
    random = np.random.RandomState(zlib.crc32(name.encode()))
    tiles = random.randint(0, 256, (2, height // TILE + 1, width // TILE + 1, 3))
    colours, noise = tiles.repeat(TILE, 1).repeat(TILE, 2)[:, :height, :width]
    return (colours + noise * random.randint(-100, 101, (height, width, 3)) // 200).clip(0, 255).astype(np.uint8)


@torch.no_grad()
def normalise(model: nn.Module, centre: list[float], spread: list[float]) -> None:
    """Take centre from the logits and divide them by spread, one number a class each."""
    classifier, scale = model.cls[4], torch.tensor(spread)
    classifier.bias.sub_(torch.tensor(centre)).div_(scale)
    classifier.weight.div_(scale[:, None, None, None])


def packed(labels: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(labels.tobytes(), 9)).decode()


def unpacked(name: str, text: str) -> np.ndarray:
    """The label map of a case, (H, W) uint8."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(CASES[name].image)


def label_map(tool: ModuleType, model: nn.Module, name: str) -> np.ndarray:
    """What semseg's test() writes for a case."""
    case, image = CASES[name], picture(name)
    loader = [(torch.from_numpy(image).permute(2, 0, 1)[None].float(), None)]
    with tempfile.TemporaryDirectory() as folder:
        gray, black = Path(folder, "gray"), [0] * 3 * CLASSES
        tool.test(
            loader, [("image.png", "")], model, CLASSES, list(MEAN), list(STD), case.base_size, *case.crop, case.scales,
            str(gray), str(Path(folder, "color")), black,
        )  # fmt: skip
        return tool.cv2.imread(str(gray / "image.png"), tool.cv2.IMREAD_GRAYSCALE)


def load_tool(checkout: str) -> ModuleType:
    sys.path.insert(0, checkout)
    spec = importlib.util.spec_from_file_location("semseg_test", Path(checkout, "tool", "test.py"))
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.logger = tool.get_logger()
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # tool/test.py knows GPUs alone
    return tool


def main(checkout: str) -> None:
    tool = load_tool(checkout)
    from model.pspnet import PSPNet

    model = PSPNet(layers=50, classes=CLASSES, pretrained=False).eval()
    with torch.no_grad():
        fill(model)
        x = (torch.from_numpy(picture(next(iter(CASES)))).float() - torch.tensor(MEAN)) / torch.tensor(STD)
        logits = model(x.permute(2, 0, 1)[None, :, :65, :65])
    centre, spread = logits.mean((0, 2, 3)).tolist(), (logits.std((0, 2, 3)) / 2).tolist()
    normalise(model, centre, spread)
    numbers = {"centre": centre, "spread": spread, "labels": {}}
    for name in CASES:
        labels = label_map(tool, model, name)
        numbers["labels"][name] = packed(labels)
        print(f"{name}: {len(np.unique(labels))} classes")
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
