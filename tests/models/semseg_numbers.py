"""The numbers of semseg's own PSPNet that test_semseg_parity.py compares with, and how they are made.

    python tests/models/semseg_numbers.py CHECKOUT_OF_SEMSEG    writes semseg_numbers.json anew

Both sides fill the model with the same weights (numpy's frozen legacy generator), take the same batch, and note:
samples of the logits, the losses, samples of every gradient and of the running statistics. semseg's numbers are kept
in float64, with the error its own float32 gradients have against them (ReLUs near zero flip: no float32 implementation
can be closer).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

NUMBERS = Path(__file__).with_suffix(".json")
CLASSES, SIZE, BATCH = 21, (57, 73), 2


def fill(model: torch.nn.Module) -> None:
    """He-scaled weights and lively batch norm parameters and statistics, key by key in sorted order."""
    random = np.random.RandomState(7)
    for key, value in sorted(model.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        shape = tuple(value.shape)
        if value.ndim == 4:
            new = random.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        elif key.endswith(("bias", "running_mean")):
            new = 0.1 * random.standard_normal(shape)
        else:
            new = random.uniform(0.5, 1.0, shape)
        value.copy_(torch.from_numpy(new))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.RandomState(11)
    images = torch.from_numpy(random.standard_normal((BATCH, 3, *SIZE)))
    labels = torch.from_numpy(random.randint(0, CLASSES, (BATCH, *SIZE)))
    labels[0, :9, 5:40] = 255
    return images, labels


def structure(model: torch.nn.Module) -> dict:
    """Number of keys and a digest of all keys and shapes."""
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items())
    return {"keys": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def sample(tensor: torch.Tensor, count: int) -> list[float]:
    flat = tensor.detach().double().flatten()
    return flat[np.linspace(0, len(flat) - 1, min(count, len(flat))).astype(int)].tolist()


def measure(model: torch.nn.Module, dtype: torch.dtype) -> dict:
    """Everything compared, of a filled model without dropout."""
    model.to(dtype)
    images, labels = batch()
    with torch.no_grad():
        logits = model.eval()(images.to(dtype))
    argmax, main, aux = model.train()(images.to(dtype), labels)
    (main + 0.4 * aux).backward()
    return {
        "logits_shape": list(logits.shape),
        "logits": sample(logits, 400),
        "losses": [main.item(), aux.item()],
        "argmax": sample(argmax, 400),
        "gradients": {name: sample(p.grad, 12) for name, p in sorted(model.named_parameters()) if p.grad is not None},
        "running": {name: sample(b, 6) for name, b in sorted(model.named_buffers()) if name.endswith(("mean", "var"))},
    }


def joined(samples: dict[str, list[float]]) -> list[float]:
    return [value for values in samples.values() for value in values]


def relative_error(ours: list[float], theirs: list[float]) -> float:
    return float(np.linalg.norm(np.subtract(ours, theirs)) / np.linalg.norm(theirs))


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    from model.pspnet import PSPNet

    numbers: dict = {"structure": {}}
    for layers in (50, 101, 152):
        numbers["structure"][str(layers)] = structure(PSPNet(layers=layers, classes=CLASSES, pretrained=False))
    measured = {}
    for dtype in (torch.float64, torch.float32):
        model = PSPNet(layers=50, classes=CLASSES, dropout=0.0, pretrained=False)
        fill(model)
        measured[dtype] = measure(model, dtype)
    numbers["pspnet50"] = measured[torch.float64]
    gradients = [joined(measured[dtype]["gradients"]) for dtype in (torch.float32, torch.float64)]
    numbers["float32_gradient_error"] = relative_error(*gradients)
    NUMBERS.write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
