"""How much faster the CPU kernels are than PyTorch eager, and how much less memory: measured, checked, printed.

python -m benchmarks.cpu_table [--only TEXT] [--seconds 12] [--out docs/results/cpu_table.json]

Two threads, fp32. Eager is the reference in plain PyTorch with NCHW or channels_last maps, whichever is faster. A row
whose numbers are wrong reports no speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.calls import LAYOUTS, Call, Op, assert_same, call_of
from benchmarks.memory import measure, measure_in_process
from benchmarks.networks import Step, predict
from benchmarks.shapes import BINS, Input
from benchmarks.timing import compare
from psp_fast import PSPNet, ops
from psp_fast.files import write_text
from psp_fast.info import environment
from psp_fast.ops import reference

THREADS = 2
CLASSES = 150
PREDICTED, TRAINED = Input(1, 473, 473, CLASSES), Input(2, 241, 241, CLASSES)
WIDTH = 84  # of the first column


class Row(NamedTuple):
    """One line of the table; `make` gives what to time, ours first, and checks their numbers."""

    name: str
    target: float
    """The ratio to reach; below 2 for "at most" rows."""
    make: Callable[[], dict[str, Call]]
    at_most: bool = False
    """Whether the target is a limit on ours / the other, not a speed-up."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--seconds", type=float, default=12, help="time for each row")
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)  # used by this program for its own processes
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if options.memory:
        print(_MEMORY_CASES[options.memory[0]](options.memory[1]))
        return 0
    print(f"{'op, shape':<{WIDTH}} {'ours':>9} {'eager':>9}  {'ratio (quartiles)':<22} target")
    results = [_timed(row, options.seconds) for row in ROWS if options.only in row.name]
    results += [_weighed(*row) for row in MEMORY_ROWS if options.only in row[0]]
    if options.out:
        content = {"environment": environment(), "threads": THREADS, "rows": results}
        write_text(options.out, json.dumps(content, indent=1) + "\n")
    return 0 if all(result["met"] for result in results) else 1


def _timed(row: Row, seconds: float) -> dict[str, Any]:
    try:
        implementations = row.make()
    except AssertionError as error:
        print(f"{row.name:<{WIDTH}} wrong numbers, no speed: {error}")
        return {"name": row.name, "met": False, "error": str(error)}
    result = compare(implementations, seconds=seconds)
    ours, other = result.seconds["psp_fast"], result.seconds[result.best]
    ratio, low, high = result.ratio, result.low, result.high
    if row.at_most:
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    met = ratio <= row.target if row.at_most else ratio >= row.target
    wanted = f"{'<=' if row.at_most else '>='} {row.target}"
    spread = f"{ratio:.2f} ({low:.2f} to {high:.2f})"
    print(
        f"{row.name:<{WIDTH}} {_ms(ours)} {_ms(other)}  {spread:<22} {wanted} {'ok' if met else 'MISSED'}", flush=True
    )
    return {
        "name": row.name,
        "seconds": result.seconds,
        "compared_with": result.best,
        "ratio": ratio,
        "quartiles": [low, high],
        "target": row.target,
        "at_most": row.at_most,
        "met": met,
    }


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:8.2f}m"


def _weighed(name: str, case: str, limit: float) -> dict[str, Any]:
    """A row about peak memory: ours at most `limit` times eager's, each in a process of its own."""
    found = {setting: measure_in_process("benchmarks.cpu_table", "--memory", case, setting) for setting in SETTINGS}
    ratio = found["auto"] / found["reference"]
    met = ratio <= limit
    mb = [f"{found[setting] / 1e6:7.1f}MB" for setting in SETTINGS]
    print(f"{name:<{WIDTH}} {mb[0]} {mb[1]}  {ratio:<22.3f} <= {limit:.3g} {'ok' if met else 'MISSED'}", flush=True)
    return {"name": name, "bytes": found, "ratio": ratio, "target": limit, "at_most": True, "met": met}


SETTINGS = ("auto", "reference")


def _op_row(
    name: str, target: float, op: str, make: Callable[[], list[Any]], backward: bool, ours: str = "channels_last"
) -> Row:
    """A row for an op: `make` returns its arguments; 4-dimensional tensors are tried in both layouts."""

    def implementations() -> dict[str, Call]:
        arguments = make()
        calls = {"psp_fast": call_of(getattr(ops, op), arguments, ours, backward)}
        for layout in LAYOUTS:
            calls[f"eager {layout}"] = call_of(getattr(reference, op), arguments, layout, backward)
        assert_same(calls["psp_fast"](), calls["eager nchw"]())
        return calls

    return Row(name, target, implementations)


def _pyramid(n: int, channels: int = 512) -> list[Tensor]:
    return [torch.randn(n, channels, b, b) for b in BINS]


def _pool() -> list[Any]:
    return [torch.randn(1, 2048, 60, 60), BINS]


def _concat() -> list[Any]:
    return [torch.randn(1, 2048, 60, 60), _pyramid(1)]


def _pyramid_conv() -> list[Any]:
    return [torch.randn(2, 2048, 60, 60), _pyramid(2), torch.randn(512, 4096, 3, 3) / 192]


def _logits() -> Tensor:
    return torch.randn(1, CLASSES, 60, 60)


def _labels() -> Tensor:
    return torch.randint(0, CLASSES, (1, 473, 473))


def _batch_norm(ours: str) -> dict[str, Call]:
    x, residual = torch.randn(4, 256, 60, 60), torch.randn(4, 256, 60, 60)
    vectors = [torch.rand(256) + 0.5, torch.randn(256)]
    # No sum near 0: there rounding decides whether ReLU lets the gradient pass.
    sums = F.batch_norm(x, None, None, *vectors, training=True) + residual
    residual[sums.abs() < 1e-3] += 0.01

    def layer(module: Any) -> Op:
        def op(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
            mean, var = torch.zeros(256), torch.ones(256)
            return module.sync_batch_norm_relu(x, weight, bias, mean, var, training=True, residual=residual)

        return op

    arguments = [x, *vectors, residual]
    calls = {"psp_fast": call_of(layer(ops), arguments, ours, True)}
    for layout in LAYOUTS:
        calls[f"eager {layout}"] = call_of(layer(reference), arguments, layout, True)
    assert_same(calls["psp_fast"](), calls["eager nchw"]())
    return calls


def _prediction() -> dict[str, Call]:
    calls = {"psp_fast": predict(50, PREDICTED)}
    calls |= {f"eager {layout}": predict(50, PREDICTED, "reference", layout) for layout in LAYOUTS}
    assert_same(calls["psp_fast"](), calls["eager nchw"]())
    return calls


def _price_of_the_pyramid() -> dict[str, Call]:
    return {"psp_fast": predict(50, PREDICTED), "without the pyramid": predict(50, PREDICTED, use_ppm=False)}


def _training(recompute: bool) -> dict[str, Call]:
    calls: dict[str, Call] = {"psp_fast": Step(50, TRAINED, "auto", "nchw", recompute)}
    calls |= {f"eager {layout}": Step(50, TRAINED, "reference", layout) for layout in LAYOUTS}
    for _ in range(2):  # the second loss depends on the first gradients
        loss, eager = calls["psp_fast"](), calls["eager nchw"]()
        assert (loss - eager).abs() <= 1e-3 * eager.abs(), f"loss {loss:.6f}, eager {eager:.6f}"
    return calls


def _memory_of_loss(setting: str) -> int:
    logits, labels = _logits().requires_grad_(), _labels()
    upsample_cross_entropy = (ops if setting == "auto" else reference).upsample_cross_entropy
    upsample_cross_entropy(logits[:, :, :2, :2], labels[:, :16, :16]).backward()  # what is loaded once
    return measure(lambda: upsample_cross_entropy(logits, labels).backward())


def _memory_of_training(setting: str, recompute: bool = False) -> int:
    """Three steps with weights and momentum, without what any training loads: code, and the libraries' own memory."""
    _warm_up(setting)

    def train() -> None:
        step = Step(50, TRAINED, setting, "nchw", recompute)
        for _ in range(3):
            step()

    return measure(train)


def _warm_up(setting: str) -> None:
    """A step of a small network, which loads what any training loads."""
    network = PSPNet(50, classes=2, pretrained=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    with ops.use(setting):
        _, main, aux = network(torch.randn(2, 3, 57, 57), torch.zeros(2, 57, 57, dtype=torch.long))
        (main + aux).backward()
        optimizer.step()


def _memory_of_step(setting: str, recompute: bool = False) -> int:
    """What the third step needs besides: activations, gradients, scratch."""
    step = Step(50, TRAINED, setting, "nchw", recompute)
    for _ in range(2):
        step()
    step.network.zero_grad(set_to_none=True)
    return measure(step)


_MEMORY_CASES = {
    "loss": _memory_of_loss,
    "step": _memory_of_step,
    "training": _memory_of_training,
    "step recompute": lambda setting: _memory_of_step(setting, setting == "auto"),
    "training recompute": lambda setting: _memory_of_training(setting, setting == "auto"),
}
_LOSS_SHAPE = f"{CLASSES}x60x60 -> 473x473"
_STEP = "PSPNet50 training step, 2x3x241x241"
_RECOMPUTED = f"{_STEP}, recompute=True"
MEMORY_ROWS = [
    (f"upsample_cross_entropy forward + backward, {_LOSS_SHAPE}: peak memory", "loss", 1 / 20),
    (f"{_STEP}: peak memory over weights, momentum", "step", 0.6),
    (f"{_STEP}: with weights, momentum", "training", 0.6),
    (f"{_RECOMPUTED}: over weights, momentum", "step recompute", 0.6),
    (f"{_RECOMPUTED}: with weights, momentum", "training recompute", 0.6),
]
_BATCH_NORM = "sync_batch_norm_relu with residual, forward + backward, 4x256x60x60"
ROWS = [
    _op_row("pyramid_pool forward, 1x2048x60x60", 4, "pyramid_pool", _pool, False),
    _op_row("pyramid_pool forward, 1x2048x60x60, ours NCHW", 4, "pyramid_pool", _pool, False, "nchw"),
    _op_row("pyramid_pool forward + backward, 1x2048x60x60", 3, "pyramid_pool", _pool, True),
    _op_row("upsample_concat forward, 2048 + 4x512 at 60x60", 4, "upsample_concat", _concat, False),
    _op_row("pyramid_conv3x3 forward, 2x2048x60x60 -> 512", 1.9, "pyramid_conv3x3", _pyramid_conv, False),
    _op_row("pyramid_conv3x3 forward + backward, 2x2048x60x60 -> 512", 1.9, "pyramid_conv3x3", _pyramid_conv, True),
    _op_row(f"upsample_argmax, {_LOSS_SHAPE}", 40, "upsample_argmax", lambda: [_logits(), (473, 473)], False),
    _op_row(
        f"upsample_cross_entropy forward + backward, {_LOSS_SHAPE}",
        20,
        "upsample_cross_entropy",
        lambda: [_logits(), _labels()],
        True,
    ),
    Row(_BATCH_NORM, 1.5, lambda: _batch_norm("channels_last")),
    Row(f"{_BATCH_NORM}, ours NCHW", 1.5, lambda: _batch_norm("nchw")),
    Row("PSPNet50 predict, 1x3x473x473 to label map", 1.5, _prediction),
    Row("PSPNet50 predict over the same without the pyramid", 1.06, _price_of_the_pyramid, at_most=True),
    Row(f"{_STEP}: time", 1.4, lambda: _training(False)),
    Row(f"{_RECOMPUTED}: time", 1.4, lambda: _training(True)),
]

if __name__ == "__main__":
    sys.exit(main())
