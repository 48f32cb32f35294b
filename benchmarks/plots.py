"""The pictures of docs/performance.md, drawn from rows of results files."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.result_files import OURS, Row, name, other_seconds, title
from psp_fast.engine.plots import write_figure

_COLOURS = (
    *("#1f5fa8", "#d1603d", "#3f8f5b", "#8a5fa8", "#c29a2b"),
    *("#4aa3b5", "#7a6a5d", "#b0487a", "#222222", "#9bbf3b"),
)
_GREY = "#9aa0a6"
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # lines do not cross text on it
_MARKS = {False: "o", True: "s"}  # forward; with backward


def of_main_input(rows: Sequence[Row]) -> list[Row]:
    """The rows of the input that most ops were measured on, with its commonest classes, and all models."""
    given = Counter(row["input"] for row in rows if "op" in row)
    main = given.most_common(1)[0][0] if given else None
    classes = Counter(row["classes"] for row in rows if row["input"] == main and row["classes"] and "op" in row)
    allowed = {None, *(value for value, _ in classes.most_common(1))}
    ops = [row for row in rows if "op" in row and row["input"] == main and row["classes"] in allowed]
    return [row for row in rows if "model" in row] + ops + [row for row in rows if "processes" in row]


def of_main_setting(rows: Sequence[Row]) -> list[Row]:
    """The rows of the commonest layout and type."""
    settings = Counter((row["layout"], row["dtype"]) for row in rows if "op" in row).most_common(1)
    return [row for row in rows if "model" in row or (row["layout"], row["dtype"]) == settings[0][0]]


def label(row: Row) -> str:
    """What ran, on which images where that is not the main input."""
    return title(row) if "model" in row or "processes" in row else name(row)


def draw_ratios(rows: Sequence[Row], path: Path) -> None:
    """A bar for each row: how many times as fast as the fastest other, with quartiles."""
    labels = [label(row) for row in rows]
    figure, axis = _bars(labels, "times as fast as the fastest other, with quartiles", 9.5)
    colours = _colours(row["compared_with"].split()[0] for row in rows)
    axis.set_xscale("log")
    for i, row in enumerate(rows):
        low, high = row["quartiles"]
        axis.barh(i, row["ratio"] - 1, left=1, color=colours[row["compared_with"].split()[0]], height=0.7)
        axis.plot([low, high], [i, i], color="#333333", linewidth=1)
        axis.plot([low, high], [i, i], "|", color="#333333", markersize=5)
        _note(axis, max(high, row["ratio"], 1), i, f"{row['ratio']:.2f}")
    axis.axvline(1, color="#333333", linewidth=0.8)
    least, most = min(row["quartiles"][0] for row in rows), max(row["quartiles"][1] for row in rows)
    axis.set_xlim(min(0.8, least / 1.1), max(2, most) * 2)
    _plain_log(axis)
    for peer, colour in colours.items():
        axis.barh(0, 0, left=1, color=colour, label=peer)
    _legend(figure, axis, "the fastest other:")
    _save(figure, path)


def draw_shares(rows: Sequence[Row], bytes_per_second: float, path: Path) -> None:
    """A bar for each row whose floor is the bytes that it must move: its share of the bandwidth of a copy."""
    figure, axis = _bars([name(row) for row in rows], "% of the copy bandwidth", 8)
    shares = [100 * row["bytes"] / row["seconds"][OURS] / bytes_per_second for row in rows]
    axis.barh(range(len(rows)), shares, color=_COLOURS[0], height=0.7)
    for i, (row, share) in enumerate(zip(rows, shares, strict=True)):
        _note(axis, share, i, f"{share:.0f} %, {row['bytes'] / row['seconds'][OURS] / 1e9:.3g} GB/s")
    axis.axvline(100, color="#333333", linewidth=0.8, linestyle="--")
    axis.set_xlim(0, max(100, *shares) * 1.45)
    _save(figure, path)


def draw_roofline(rows: Sequence[Row], bytes_per_second: float, flops_per_second: float, path: Path) -> None:
    """FLOP/s over FLOPs per byte of the rows that compute, under what memory and multiplication allow."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axis = figure.subplots()
    ridge = flops_per_second / bytes_per_second
    intensities = [row["flops"] / row["bytes"] for row in rows]
    reached = [row["flops"] / row["seconds"][OURS] / 1e9 for row in rows]
    ends = np.array([min(ridge / 4, *intensities) / 1.5, ridge, max(ridge * 4, *intensities) * 1.5])
    roof = np.minimum(ends * bytes_per_second, flops_per_second) / 1e9
    axis.plot(ends, roof, color="#333333", linewidth=1.2)
    axis.annotate(
        f"copy, {bytes_per_second / 1e9:.3g} GB/s", (ends[0], roof[0]), (10, 2), textcoords="offset points", va="top"
    )
    axis.annotate(
        f"matrix multiplication, {flops_per_second / 1e9:.4g} GFLOP/s",
        (ends[1], roof[1]),
        (0, 4),
        textcoords="offset points",
    )
    colours = _colours(row.get("op") or row["model"] for row in rows)
    for row, x, y in zip(rows, intensities, reached, strict=True):
        backward = row.get("backward", False)
        what = row.get("op") or row["model"]
        axis.plot(x, y, _MARKS[backward], color=colours[what], alpha=0.8)
    for what, colour in colours.items():
        axis.plot([], [], _MARKS[False], color=colour, label=what)
    axis.plot([], [], _MARKS[True], color=_GREY, label="with backward")
    axis.set(xscale="log", yscale="log", xlabel="FLOPs of a direct computation / byte", ylabel="GFLOP/s")
    axis.set_ylim(min(*roof, *reached) / 1.5, max(*roof, *reached) * 1.6)
    _plain_log(axis)
    axis.grid(alpha=0.3)
    _legend(figure, axis)
    _save(figure, path)


def draw_scaling(rows: Sequence[Row], path: Path) -> None:
    """Time per pixel of each op over pixels, images and classes, psp_fast and the fastest other; flat: proportional."""
    panels = {axis: lines for axis, lines in scaling(rows).items() if lines}
    figure = Figure(figsize=(4.6 * len(panels), 5.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    colours = _colours(sorted({op for lines in panels.values() for op in lines}))
    for axis, (what, lines) in zip(axes, panels.items(), strict=True):
        places = sorted({point[0] for points in lines.values() for point in points})
        for op, points in lines.items():
            at = [places.index(point[0]) for point in points]
            look = {"color": colours[op], "markersize": 4, "linewidth": 1.2}
            axis.plot(at, [point[1] for point in points], "o-", **look)
            axis.plot(at, [point[2] for point in points], "o--", alpha=0.5, **look)
        axis.set(yscale="log", xlabel=what)
        axis.set_xticks(range(len(places)), [_short(place) for place in places])
        axis.margins(x=0.1)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
    axes[0].set_ylabel("ns per pixel of the images")
    for op, colour in colours.items():
        axes[0].plot([], [], "o-", color=colour, label=op)
    axes[0].plot([], [], "o--", color=_GREY, label="dashed: the fastest other")
    _legend(figure, axes[0])
    _save(figure, path)


Points = list[tuple[float, float, float]]


def scaling(rows: Sequence[Row]) -> dict[str, dict[str, Points]]:
    """By axis and op: (place, ns per pixel of psp_fast, of the fastest other), where an op has several places.

    With backward where the op has one, in the commonest layout and type. Along the first two axes an op on logits has
    the fewest classes that it was measured with on each input; along the second all images are of one size.
    """
    rows = of_main_setting([row for row in rows if "op" in row and "processes" not in row])
    axes: dict[str, dict[str, Points]] = {"pixels of all images": {}, "images": {}, "classes": {}}
    for op in dict.fromkeys(row["op"] for row in rows):
        mine = [row for row in rows if row["op"] == op]
        backward, channels = max(row["backward"] for row in mine), _first_channels(mine)
        mine = [row for row in mine if row["backward"] == backward and (row["classes"] or row["channels"] == channels)]
        least = {row["input"]: min(o["classes"] or 0 for o in mine if o["input"] == row["input"]) for row in mine}
        few = [row for row in mine if (row["classes"] or 0) == least[row["input"]]]
        size = Counter(row["input"].split("x", 1)[1] for row in few).most_common(1)[0][0]
        of_size = [row for row in few if row["input"].split("x", 1)[1] == size]
        given = Counter(row["input"] for row in mine).most_common(1)[0][0]
        of_input = [row for row in mine if row["classes"] and row["input"] == given]
        places: list[tuple[list[Row], Callable[[Row], int]]] = [
            (few, pixels),
            (of_size, lambda row: int(row["input"].split("x")[0])),
            (of_input, lambda row: row["classes"]),
        ]
        for (chosen, place), lines in zip(places, axes.values(), strict=True):
            if len({place(row) for row in chosen}) > 1:
                lines[op] = sorted((place(row), *(1e9 * t / pixels(row) for t in _both(row))) for row in chosen)
    return axes


def _first_channels(rows: Sequence[Row]) -> int:
    """The channels with which an op was measured on most inputs."""
    return Counter(row["channels"] for row in rows).most_common(1)[0][0]


def _both(row: Row) -> tuple[float, float]:
    return row["seconds"][OURS], other_seconds(row)


def _short(number: float) -> str:
    """Of pixels in thousands, where that is shorter."""
    return f"{number / 1e6:.2g}M" if number >= 1e6 else f"{number / 1e3:.0f}k" if number >= 1e4 else f"{number:g}"


def draw_memory(peaks: dict[str, tuple[float, float]], path: Path) -> None:
    """A bar for each name: peak bytes of psp_fast as a share of eager's."""
    figure, axis = _bars(["\n".join(textwrap.wrap(text, 52)) for text in peaks], "peak memory, % of eager's", 9)
    shares = [100 * ours / other for ours, other in peaks.values()]
    axis.barh(range(len(peaks)), shares, color=_COLOURS[0], height=0.6)
    for i, ((ours, other), share) in enumerate(zip(peaks.values(), shares, strict=True)):
        _note(axis, share, i, f"{share:.3g} %: {megabytes(ours)} of {megabytes(other)}")
    axis.axvline(100, color="#333333", linewidth=0.8, linestyle="--")
    axis.set_xlim(0, max(100, *shares) * 1.6)
    _save(figure, path)


def pixels(row: Row) -> int:
    """Of all images of a row's input, which is batch x height x width."""
    return int(np.prod([int(side) for side in row["input"].split("x")]))


def megabytes(number: float) -> str:
    """Three digits that count, or all before the point."""
    value = number / 1e6
    return f"{value:.3g} MB" if value < 100 else f"{value:.0f} MB"


def _colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each different name, grey beyond the last."""
    different = list(dict.fromkeys(names))
    return {text: _COLOURS[i] if i < len(_COLOURS) else _GREY for i, text in enumerate(different)}


def _bars(labels: Sequence[str], xlabel: str, width: float) -> tuple[Figure, Axes]:
    """A figure for horizontal bars, from top to bottom."""
    lines = sum(1 + text.count("\n") for text in labels)
    figure = Figure(figsize=(width, 0.9 + 0.3 * lines), layout="constrained")
    axis = figure.subplots()
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xlabel(xlabel)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _note(axis: Axes, x: float, y: float, text: str) -> None:
    """Text to the right of a point."""
    axis.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", fontsize=9, bbox=_PAPER)


def _plain_log(axis: Axes) -> None:
    """Ticks of logarithmic axes at 1, 2 and 5, or at 1 where there are many, written as numbers."""
    for side, scale, ends in (
        (axis.xaxis, axis.get_xscale(), axis.get_xlim()),
        (axis.yaxis, axis.get_yscale(), axis.get_ylim()),
    ):
        if scale == "log":
            side.set_major_locator(LogLocator(subs=(1, 2, 5) if ends[1] < 1e3 * ends[0] else (1,)))
            side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
            side.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axis: Axes, heading: str | None = None) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, title=heading, frameon=False, loc="outside upper left", ncols=4, fontsize=9, alignment="left"
    )


def _save(figure: Figure, path: Path) -> None:
    write_figure(path, figure)
