"""Where a training step and a prediction of PSPNet spend their time, by torch.profiler.

    python -m benchmarks.profile [--step | --predict]

runs on the GPU where there is one (bf16, channels_last), else on two threads of the CPU, and writes to --out a table by
family (profile.json), its picture (profile.png) and chrome traces (trace_step.json.gz, trace_predict.json.gz).
On a GPU times are those of the kernels; what is missing to the wall time is the GPU waiting for the CPU.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.kernel_families import Family, call_times, kernel_times, maker_times
from benchmarks.shapes import DEVICE, DTYPE
from psp_fast import PSPNet, ops
from psp_fast.engine.plots import write_figure
from psp_fast.files import replacing, write_text
from psp_fast.info import environment
from psp_fast.models.resnet import BLOCKS

CLASSES = 150
THREADS = 2
WARM_UP, ITERATIONS = (3, 5) if DEVICE == "cuda" else (1, 2)
BATCHES = {"step": 16, "predict": 16} if DEVICE == "cuda" else {"step": 2, "predict": 1}
TITLES = {"step": "training step", "predict": "prediction"}
SHOWN = 0.005
"""Families with a smaller share are one bar in the picture."""
WIDTH = 42  # of a table's first column
OURS, THEIRS = "#1f5fa8", "#9aa0a6"
Run = Callable[[], object]


def make_step(network: PSPNet, batch: int, side: int) -> Run:
    """Forward, both losses, backward, SGD with momentum; in bf16 where there is a GPU."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    images, labels = _images(batch, side), torch.randint(CLASSES, (batch, side, side), device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE, DTYPE, enabled=DEVICE == "cuda"):
            _, main, aux = network(images, labels)
        (main + 0.4 * aux).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_prediction(network: PSPNet, batch: int, side: int) -> Run:
    """Images to label maps."""
    network.eval()
    images = _images(batch, side)

    def predict() -> None:
        with torch.autocast(DEVICE, DTYPE, enabled=DEVICE == "cuda"):
            network.predict(images)

    return predict


def _images(batch: int, side: int) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last)


MAKE = {"step": make_step, "predict": make_prediction}


def profiled(run: Run, trace: Path) -> dict[str, Any]:
    """Seconds of an iteration, without and with the profiler, and by family; its trace goes to a file."""
    for _ in range(WARM_UP):
        run()
    wall = statistics.median(_seconds(run) for _ in range(ITERATIONS))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]
    with profile(activities=activities, record_shapes=True) as profiler:
        under = statistics.mean(_seconds(run) for _ in range(ITERATIONS))
    _save_trace(profiler, trace)
    events = profiler.events()
    tables = {"families": call_times(events)}
    if DEVICE == "cuda":
        tables = {"families": kernel_times(events), "makers": maker_times(events)}
    rows = {name: [_an_iteration(row)._asdict() for row in table] for name, table in tables.items()}
    total = sum(row["seconds"] for row in rows["families"])
    return {"wall": wall, "wall_under_profiler": under, "total": total, **rows}


def _seconds(run: Run) -> float:
    """Wall time of one iteration, as a call of its own for the profiler: its self time is Python's."""
    start = time.perf_counter()
    with record_function("iteration"):
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - start


def _an_iteration(row: Family) -> Family:
    return row._replace(seconds=row.seconds / ITERATIONS, calls=round(row.calls / ITERATIONS))


def _save_trace(profiler: profile, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        with replacing(path) as file:
            file.write(gzip.compress(plain.read_bytes(), mtime=0))


def table(rows: Sequence[dict[str, Any]], title: str) -> str:
    """Families as text, with a line for all of them."""
    whole = {"name": "all", "seconds": sum(r["seconds"] for r in rows), "share": sum(r["share"] for r in rows)}
    lines = [title, f"{'family':<{WIDTH}} {'ms':>9} {'share':>8} {'calls':>7}"]
    for row in [*rows, {**whole, "calls": sum(r["calls"] for r in rows)}]:
        lines.append(f"{row['name']:<{WIDTH}} {1e3 * row['seconds']:9.2f} {row['share']:8.2%} {row['calls']:7}")
    return "\n".join(lines)


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars of the families, a panel for each profile."""
    panels = {kind: bars(result["families"]) for kind, result in found.items()}
    heights = [len(rows) + 2 for rows in panels.values()]
    figure = Figure(figsize=(9, 0.27 * sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (kind, rows) in zip(axes, panels.items(), strict=True):
        _draw(axis, rows, found[kind], kind)
    axes[-1].set_xlabel("milliseconds an iteration; blue: psp_fast's ops")
    write_figure(path, figure)


def bars(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """(name, milliseconds, share) of what is worth a bar, and of all the others together."""
    shown = [(r["name"], 1e3 * r["seconds"], r["share"]) for r in rows if r["share"] >= SHOWN]
    small = [(1e3 * r["seconds"], r["share"]) for r in rows if r["share"] < SHOWN]
    if small:
        shown.append((f"{len(small)} smaller families", sum(s[0] for s in small), sum(s[1] for s in small)))
    return shown


def _draw(axis: Axes, rows: Sequence[tuple[str, float, float]], result: dict[str, Any], kind: str) -> None:
    names, times, shares = zip(*rows, strict=True)
    drawn = axis.barh(range(len(rows)), times, color=[OURS if "psp_fast" in name else THEIRS for name in names])
    axis.bar_label(drawn, [f"{_ms(t)}, {share:.1%}" for t, share in zip(times, shares, strict=True)], padding=4)
    axis.set_yticks(range(len(rows)), [name.replace("psp_fast::", "") for name in names])
    axis.set(xlim=(0, 1.25 * max(times)), title=f"{title(result, kind)}: {_ms(1e3 * result['total'])}")
    axis.invert_yaxis()
    axis.margins(y=0.02)
    axis.spines[["top", "right"]].set_visible(False)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def title(result: dict[str, Any], kind: str) -> str:
    """What was profiled, in words."""
    shape = f"{result['batch']}x3x{result['input']}x{result['input']}"
    name = f"PSPNet{result['model']} {TITLES[kind]}, {shape}, {result['device']} {result['dtype']}"
    return name if result["ops"] == "auto" else f"{name}, ops={result['ops']}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=int, default=50, choices=BLOCKS, help="depth of the ResNet")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--step", dest="kind", action="store_const", const="step", help="the training step only")
    kinds.add_argument("--predict", dest="kind", action="store_const", const="predict", help="the prediction only")
    parser.add_argument("--input", type=int, default=473, help="side of the images")
    parser.add_argument("--batch", type=int, help=f"images, by default {BATCHES}".replace("{", "").replace("}", ""))
    parser.add_argument("--ops", choices=("auto", "reference"), default="auto", help="kernels, or plain PyTorch")
    parser.add_argument("--out", type=Path, default=Path("runs/profile"), help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    found = {kind: _profile(kind, options) for kind in MAKE if options.kind in (None, kind)}
    content = {"environment": environment(), "threads": THREADS, "profiles": found}
    write_text(options.out / "profile.json", json.dumps(content, indent=1) + "\n")
    plot(found, options.out / "profile.png")
    print(f"wrote profile.json, profile.png and the traces to {options.out}")
    return 0


def _profile(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    network = PSPNet(options.model, classes=CLASSES, pretrained=False).to(DEVICE)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = options.batch or BATCHES[kind]
    with ops.use(options.ops):
        times = profiled(MAKE[kind](network, batch, options.input), options.out / f"trace_{kind}.json.gz")
    what = {"model": options.model, "input": options.input, "batch": batch, "ops": options.ops}
    what |= {"device": DEVICE, "dtype": str(DTYPE).removeprefix("torch."), "iterations": ITERATIONS}
    print(table(times["families"], title({**what, **times}, kind)))
    if "makers" in times:
        print(table(times["makers"], "the same kernels, by who made them"))
    wall, under, total = (1e3 * times[key] for key in ("wall", "wall_under_profiler", "total"))
    print(
        f"wall time {wall:.2f} ms an iteration, {under:.2f} ms under the profiler: {total / under:.1%} in the table\n"
    )
    return {**what, **times}


if __name__ == "__main__":
    sys.exit(main())
