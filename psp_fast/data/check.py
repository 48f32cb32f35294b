"""Reading a whole data set before training on it: every problem at once, and how the classes are spread."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from psp_fast.data.base import IGNORE, Dataset, check_sample
from psp_fast.data.images import write_png
from psp_fast.data.missing import missing_classes
from psp_fast.errors import DataError
from psp_fast.fonts import families

_LISTED_PROBLEMS = 100
_LISTED_CLASSES = 30


@dataclass
class Report:
    """What `check_dataset` found; the counts are over the samples without a problem.

    pixels, images: (C,) int64, labelled pixels of each class and images in which it occurs.
    ignored: number of ignored pixels. sizes: number of images of each (height, width).
    problems: one sentence a sample that cannot be used, with the file's name.
    """

    classes: tuple[str, ...]
    palette: np.ndarray
    samples: int
    pixels: np.ndarray
    images: np.ndarray
    ignored: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every sample can be trained on."""
        return not self.problems

    @property
    def warning(self) -> str | None:
        """A sentence on classes that no pixel has, if there are any."""
        good = self.samples - len(self.problems)
        where = "the label" if good == 1 else f"the {good} labels"
        return missing_classes(self.pixels, self.classes, where) if good else None

    @property
    def shares(self) -> np.ndarray:
        """(C,) float64, shares of the labelled pixels in percent."""
        return 100 * self.pixels / max(self.pixels.sum(), 1)

    def text(self) -> str:
        """The report for a terminal: sizes, a table of the classes (the largest, if there are many), the problems."""
        total = self.pixels.sum() + self.ignored
        lines = [
            f"{self.samples} samples, {self.samples - len(self.problems)} without a problem",
            f"image size (width x height): {self._size_text()}",
            f"ignored pixels: {100 * self.ignored / max(total, 1):.2f} %",
            "",
            *self._table(),
        ]
        if self.warning:
            lines += ["", f"warning: {self.warning}"]
        lines += ["", f"{len(self.problems)} problem{'' if len(self.problems) == 1 else 's'}"]
        lines += [f"  {problem}" for problem in self.problems[:_LISTED_PROBLEMS]]
        if len(self.problems) > _LISTED_PROBLEMS:
            lines.append(f"  and {len(self.problems) - _LISTED_PROBLEMS} more")
        return "\n".join(lines).encode(errors="backslashreplace").decode()  # names of files may be no UTF-8

    def save_histogram(self, path: str | Path) -> None:
        """Draw the share of each class on a logarithmic axis as a PNG. Raises DataError when it cannot be written."""
        write_png(path, _histogram(self))

    def _size_text(self) -> str:
        if not self.sizes:
            return "unknown"
        heights, widths = zip(*self.sizes, strict=True)
        smallest, largest = f"{min(widths)}x{min(heights)}", f"{max(widths)}x{max(heights)}"
        if len(self.sizes) == 1:
            return f"{smallest}, all alike"
        return f"from {smallest} to {largest}, {len(self.sizes)} different"

    def _table(self) -> list[str]:
        shown = sorted(np.argsort(-self.pixels, kind="stable")[:_LISTED_CLASSES].tolist())
        width = max(len("class"), *(len(self.classes[index]) for index in shown))
        lines = [f" id  {'class':{width}}  {'pixels':>9}  {'images':>7}"] + [
            f"{index:3}  {self.classes[index]:{width}}  {self.shares[index]:7.3f} %  {self.images[index]:7}"
            for index in shown
        ]
        more = len(self.classes) - len(shown)
        return [*lines, f"and {more} more classes with fewer pixels: see the histogram"] if more else lines


def check_dataset(dataset: Dataset, threads: int = 2, progress: bool = True) -> Report:
    """Read every sample of a data set and collect what is wrong with it, instead of stopping at the first problem."""
    count = len(dataset.classes)
    report = Report(
        dataset.classes, dataset.palette, len(dataset), np.zeros(count, np.int64), np.zeros(count, np.int64)
    )
    with ThreadPoolExecutor(threads) as pool:
        samples = pool.map(lambda index: _examine(dataset, index), range(len(dataset)))
        for sample in tqdm(samples, total=len(dataset), desc="check-data", unit="image", disable=not progress):
            if isinstance(sample, str):
                report.problems.append(sample)
                continue
            size, counts = sample
            report.sizes[size] += 1
            report.pixels += counts[:count]
            report.images += counts[:count] > 0
            report.ignored += int(counts[IGNORE])
    return report


def _examine(dataset: Dataset, index: int) -> tuple[tuple[int, int], np.ndarray] | str:
    """Size (height, width) and (256,) pixel counts of one sample, or what is wrong with it."""
    try:
        image, label = dataset.load(index)
        check_sample(image, label, len(dataset.classes), dataset.name(index))
    except DataError as error:
        return str(error)
    return label.shape, np.bincount(label.ravel(), minlength=256)


def _histogram(report: Report) -> np.ndarray:
    """(H, W, 3) uint8 picture of a bar a class."""
    # Imported here because it takes long, and training, which imports this package too, draws nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = report.shares
    rows, found = np.arange(len(shares)), shares > 0
    lowest, highest = shares[found].min(initial=100) / 3, shares.max(initial=1)
    figure = Figure(figsize=(8, 1.2 + 0.24 * len(shares)), dpi=120, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.set_xscale("log")
    axes.barh(rows[found], shares[found], color=report.palette[found] / 255, edgecolor="0.35", linewidth=0.6)
    axes.set_xlim(lowest, highest * (highest / lowest) ** 0.35)  # room for the numbers beside the longest bar
    axes.set_xticks([tick for tick in 10.0 ** np.arange(-6, 3) if lowest <= tick <= highest])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_yticks(rows, report.classes, parse_math=False, fontfamily=families(report.classes))
    axes.set_ylim(len(shares) - 0.4, -0.6)
    axes.set_xlabel("share of the labelled pixels")
    axes.set_title(f"{len(shares)} classes in {sum(report.sizes.values())} images")
    axes.grid(axis="x", color="0.88")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for row, (share, images) in enumerate(zip(shares, report.images, strict=True)):
        text = f" {share:.2g} %, {images} image{'' if images == 1 else 's'}" if share else " never"
        axes.text(max(share, lowest), row, text, va="center", fontsize=8, color="0.2" if share else "crimson")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
