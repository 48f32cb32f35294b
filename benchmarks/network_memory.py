"""Peak memory of a network on the CPU: python -m benchmarks.network_memory predict|step LAYERS auto|reference LAYOUT

prints bytes, measured in a process of its own, over the weights and, of a training step, momentum.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from benchmarks.memory import measure, measure_in_process
from benchmarks.networks import THREADS, Step, predict
from benchmarks.result_files import OURS
from benchmarks.shapes import MAIN, TRAINED


def peaks(kind: str, layers: int) -> Callable[[str], dict[str, int]]:
    """For a layout: bytes of psp_fast and of eager PyTorch in it, each in a process of its own."""

    def measured(layout: str) -> dict[str, int]:
        settings = {OURS: ["auto", "nchw"], f"eager {layout}": ["reference", layout]}
        module = "benchmarks.network_memory"
        return {name: measure_in_process(module, kind, str(layers), *given) for name, given in settings.items()}

    return measured


def of_prediction(layers: int, setting: str, layout: str) -> int:
    """Of the second prediction."""
    call = predict(layers, MAIN, setting, layout)
    call()
    return measure(call)


def of_step(layers: int, setting: str, layout: str) -> int:
    """Of the third step, gradients included."""
    step = Step(layers, TRAINED, setting, layout)
    for _ in range(2):
        step()
    step.network.zero_grad(set_to_none=True)
    return measure(step)


def main(kind: str, layers: str, setting: str, layout: str) -> None:
    torch.set_num_threads(THREADS)
    print({"predict": of_prediction, "step": of_step}[kind](int(layers), setting, layout))


if __name__ == "__main__":
    main(*sys.argv[1:])
