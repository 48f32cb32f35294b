"""The confusion matrix and the classes' IoU as figures, on light and dark paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psp_fast.engine.report.confusions import most_confused, row_shares
from psp_fast.fonts import families

_MOST_CLASSES = 30  # in a confusion matrix that is to be read
_MOST_BARS = 50  # in a column
_LONGEST_NAME = 22
_DPI = 120


class Theme(NamedTuple):
    """Colours of a figure, RGB in 0..1."""

    paper: tuple[float, float, float]
    ink: tuple[float, float, float]
    hit: tuple[float, float, float]
    miss: tuple[float, float, float]
    none: tuple[float, float, float]


LIGHT = Theme((1, 1, 1), (0.12, 0.13, 0.16), (0.10, 0.36, 0.68), (0.84, 0.24, 0.10), (0.92, 0.92, 0.93))
DARK = Theme((0.094, 0.106, 0.125), (0.88, 0.89, 0.91), (0.30, 0.62, 0.95), (1.0, 0.45, 0.25), (0.19, 0.20, 0.23))


def confusion_figure(counts: np.ndarray, classes: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """Shares of each true class's pixels in per cent: (C, C) counts, rows the truth.

    Of more than 30 classes the most confused 30 are drawn, with one column for all the others. Rows of classes that the
    truth lacks are grey.
    """
    chosen = list(range(len(classes))) if len(classes) <= _MOST_CLASSES else most_confused(counts, _MOST_CLASSES)
    shares = row_shares(counts)[chosen]
    names = [_short(classes[i]) for i in chosen]
    columns, shown = names, shares[:, chosen]
    if len(chosen) < len(classes):
        columns, shown = [*names, "all others"], np.column_stack([shown, shares.sum(1) - shown.sum(1)])
    cell = float(np.clip(8 / len(chosen), 0.33, 0.6)) if chosen else 0.6
    size = cell * len(columns) + 2.4, cell * len(names) + 2.4
    figure = Figure(size, dpi=_DPI, facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot(facecolor=theme.paper)
    axes.imshow(_cell_colours(shown, theme), aspect="equal")
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=theme.paper, linewidth=1)
    fonts = families(names)
    axes.set_xticks(range(len(columns)), columns, rotation=90, parse_math=False, fontfamily=fonts)
    axes.set_yticks(range(len(names)), names, parse_math=False, fontfamily=fonts)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _write_cells(axes, shown, 72 * cell * 0.32, theme)
    return _inked(figure, axes, theme)


def iou_figure(ious: Sequence[float], classes: Sequence[str], palette: np.ndarray, theme: Theme = LIGHT) -> Figure:
    """A bar a class in its colour, largest IoU first; an absent class (NaN) comes last and has none."""
    values = np.array(ious, float)
    order = np.argsort(np.where(np.isnan(values), np.inf, -values), kind="stable")
    columns = -(-len(order) // _MOST_BARS)
    rows = -(-len(order) // columns)
    size = 4.2 * columns + 2 * (columns == 1), 0.9 + 0.23 * rows
    figure = Figure(size, dpi=_DPI, facecolor=theme.paper, layout="constrained")
    for axes, first in zip(figure.subplots(1, columns, squeeze=False)[0], range(0, len(order), rows), strict=True):
        part = order[first : first + rows]
        axes.set_facecolor(theme.paper)
        axes.barh(
            range(len(part)), 100 * np.nan_to_num(values[part]), color=palette[part] / 255, edgecolor="0.5", lw=0.6
        )
        for row, value in enumerate(values[part]):
            text = "absent" if np.isnan(value) else f"{100 * value:.1f}"
            axes.text(100 * np.nan_to_num(value) + 1.5, row, text, va="center", fontsize=8, color=theme.ink)
        names = [_short(classes[i]) for i in part]
        axes.set_yticks(range(len(part)), names, fontsize=8, parse_math=False, fontfamily=families(names))
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_xlim(0, 115)
        axes.set_xticks(range(0, 101, 25))
        axes.set_xlabel("IoU, %")
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        _inked(figure, axes, theme)
    return figure


def _cell_colours(shares: np.ndarray, theme: Theme) -> np.ndarray:
    """(R, C) shares -> (R, C, 3) RGB: hits and misses from paper to their colour, rows without pixels grey."""
    hit = np.eye(*shares.shape, dtype=np.bool_)[..., None]
    # By the square root: a confusion of a few per cent has to be seen.
    weight = np.sqrt(np.clip(np.nan_to_num(shares), 0, 1))[..., None]
    colours = (1 - weight) * np.array(theme.paper) + weight * np.where(hit, np.array(theme.hit), np.array(theme.miss))
    colours[np.isnan(shares)] = theme.none
    return colours


def _write_cells(axes: Axes, shares: np.ndarray, font_size: float, theme: Theme) -> None:
    """The per cent in every cell that has half a per cent or more, black or white, whichever stands out."""
    luminance = _cell_colours(shares, theme) @ np.array([0.299, 0.587, 0.114])
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.005):
        colour = "black" if luminance[row, column] > 0.5 else "white"
        text = f"{100 * shares[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=font_size, color=colour)


def _inked(figure: Figure, axes: Axes, theme: Theme) -> Figure:
    axes.tick_params(which="both", colors=theme.ink, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.ink)
    axes.spines[:].set_visible(False)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
