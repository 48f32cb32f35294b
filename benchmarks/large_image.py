"""Peak memory and time of `psp-fast evaluate` on one very large image, in a sliding window, on the CPU.

python -m benchmarks.large_image [SIDE]    a square of 10000 pixels, or of SIDE; writes docs/results/large_image.json

The image is a PNG, the network a PSPNet18 of 150 classes with random weights. Output stride 16 and windows that do not
overlap make it take minutes; the scores that are kept, and so most of the memory, do not depend on them. Linux and
macOS only.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from psp_fast.checkpoints import save_checkpoint
from psp_fast.configs import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from psp_fast.data import ListDataset, write_png
from psp_fast.engine.run import build_model, describe
from psp_fast.files import write_text
from psp_fast.info import environment

RESULT = Path("docs/results/large_image.json")
CLASSES = [f"class {i}" for i in range(150)]
TILE = 100  # pixels


def prepare(folder: Path, side: int) -> Path:
    """Write image, label and list into folder, and the checkpoint of a network to evaluate on them."""
    random = np.random.default_rng(0)
    for name, shape, values in (("image", (3,), 256), ("label", (), len(CLASSES))):
        tiles = random.integers(0, values, (-(-side // TILE), -(-side // TILE), *shape), dtype=np.uint8)
        write_png(folder / f"{name}.png", tiles.repeat(TILE, 0).repeat(TILE, 1)[:side, :side])
    (folder / "val.txt").write_text("image.png label.png\n")
    config = Config(
        device="cpu",
        model=ModelConfig(layers=18, output_stride=16),
        data=DataConfig(root=str(folder), classes=CLASSES),
        train=TrainConfig(workers=0),  # the image is decoded in the process that is measured
        eval=EvalConfig(mode="slide", crop=(473, 473), stride=1.0),
    )
    torch.manual_seed(0)
    model = build_model(config.model, len(CLASSES))
    dataset = ListDataset(folder, "val.txt", CLASSES)
    save_checkpoint({**describe(config, dataset), "state_dict": model.state_dict()}, folder / "last.pth")
    return folder / "last.pth"


def measure(side: int) -> dict[str, Any]:
    """The record of one evaluation; its memory is that of the whole process, the interpreter and PyTorch included."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = prepare(Path(folder), side)
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "psp_fast", "evaluate", str(checkpoint)], check=True)
        seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "environment": environment(),
        "network": "PSPNet18, output stride 16",
        "classes": len(CLASSES),
        "image": [side, side],
        "mode": "slide",
        "crop": [473, 473],
        "stride": 1.0,
        "peak_memory_MB": round(peak / 1e6),
        "scores_of_the_image_MB": round(4 * len(CLASSES) * side * side / 1e6),
        "seconds": round(seconds),
    }


def main(side: str = "10000") -> None:
    record = measure(int(side))
    print(f"{side}x{side} pixels: {record['peak_memory_MB']} MB at most, {record['seconds']} s")
    write_text(RESULT, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
