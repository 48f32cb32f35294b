"""An evaluation as one HTML page that needs nothing else: pictures are in it, and it loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from psp_fast.configs import Config
from psp_fast.data import Dataset
from psp_fast.engine.evaluate import Evaluation
from psp_fast.engine.report.confusions import worst_confusions
from psp_fast.pictures import Entry

_CONFUSIONS = 12  # in the table
_OPEN = 30  # the table of more classes is folded up
_REDUCED = 2  # a plot on a narrow screen, at most; from there on it is scrolled


class Themed(NamedTuple):
    """A plot as PNG files, for light and dark screens, and their width in pixels."""

    light: bytes
    dark: bytes
    width: int


class Sample(NamedTuple):
    """An image of the data set that is drawn.

    Args:
        name: the data set's.
        iou: mean over the classes in its label or prediction, a fraction of 1.
        panels: JPEG files by their titles.
        size: their width and height in pixels.
        legend: what their colours mean.
    """

    name: str
    iou: float
    panels: dict[str, bytes]
    size: tuple[int, int]
    legend: list[Entry]


START = '<p class="how">'  # which pages of others hardly have
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="how">{how}</p>
<dl class="numbers">{numbers}</dl>
<h2>Classes</h2>
{bars}
<details{open}><summary>IoU, accuracy and pixels of every class</summary>
<div class="wide"><table><thead><tr><th>class</th><th>IoU, %</th><th>accuracy, %</th><th>pixels</th></tr></thead>
<tbody>{classes}</tbody></table></div></details>
<h2>What is taken for what</h2>
<p>Each row has the pixels of one true class, in per cent.</p>
{confusion}
<p>The largest confusions, by their share of the true class:</p>
<div class="wide"><table>
<thead><tr><th>class</th><th class="name">taken for</th><th>of its pixels, %</th><th>pixels</th></tr></thead>
<tbody>{confusions}</tbody></table></div>
{samples}
</main>
</body>
</html>
"""

_STYLE = """
:root{--paper:#fff;--ink:#1f2128;--soft:#5c6270;--line:#dcdfe5;--tile:#f4f5f8}
@media(prefers-color-scheme:dark){:root{--paper:#181b20;--ink:#e0e2e8;--soft:#a0a6b4;--line:#343a45;--tile:#22262d}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.6rem;overflow-wrap:anywhere;margin:0}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem}
.how{color:var(--soft);margin:.3rem 0 1rem;overflow-wrap:anywhere}
.numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0}
.numbers div{background:var(--tile);border-radius:8px;padding:12px 16px}
.numbers dt{color:var(--soft);font-size:.9rem}
.numbers dd{margin:0;font-size:1.6rem;font-variant-numeric:tabular-nums}
img{max-width:100%;height:auto;display:block}
figure{margin:0}
figure.wide{margin-bottom:1.2rem}
h3,figcaption,.legend{color:var(--soft);font-size:1rem;font-weight:400;overflow-wrap:anywhere}
h3{color:var(--ink);margin:1.6rem 0 .2rem}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:8px 12px}
.panels img{width:100%}
.legend{display:flex;flex-wrap:wrap;gap:0 1.2em;list-style:none;margin:.5rem 0 0;padding:0}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{padding:4px 12px 4px 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child,.name{text-align:left}
.swatch{display:inline-block;width:.9em;height:.9em;margin-right:.5em;border:1px solid var(--soft);vertical-align:-.1em}
summary{cursor:pointer;margin:.6rem 0}
"""


def page(
    source: str,
    dataset: Dataset,
    found: Evaluation,
    config: Config,
    bars: Themed,
    confusion: Themed,
    best: Sequence[Sample],
    worst: Sequence[Sample],
) -> str:
    """The page; source is the checkpoint's name, bars and confusion the plots."""
    metrics, counts = found.metrics, found.confusion.numpy()
    numbers = {
        "mean IoU" + (f" over {metrics.over()}" if metrics.over() else ""): metrics.miou,
        "pixel accuracy": metrics.pixel_accuracy,
        "mean accuracy": metrics.mean_accuracy,
        "score": metrics.score,
    }
    return _PAGE.format(
        title=f"Evaluation of {escape(source)}",
        style=_STYLE,
        how=escape(_how(config, len(found.image_iou))),
        numbers="".join(f"<div><dt>{name}</dt><dd>{100 * value:.2f} %</dd></div>" for name, value in numbers.items()),
        bars=_plot(bars, "IoU of every class as bars, largest first; the table below has the numbers"),
        open=" open" if len(counts) <= _OPEN else "",
        classes=_classes(dataset, found, counts),
        confusion=_plot(confusion, "Confusion matrix; the table below has its largest confusions"),
        confusions=_confusions(dataset, counts),
        samples=_samples("Best images", best) + _samples("Worst images", worst),
    )


def _how(config: Config, images: int) -> str:
    evaluation = config.eval
    window = f" of {evaluation.crop[0]}x{evaluation.crop[1]}" if evaluation.mode == "slide" else ""
    shown = {"whole": "whole images", "slide": f"a sliding window{window}"}[evaluation.mode]
    scales = ", ".join(f"{scale:g}" for scale in evaluation.scales)
    mirrored = "mirrored as well" if evaluation.mirror else "not mirrored"
    plural = "s" if len(evaluation.scales) > 1 else ""
    base = "" if evaluation.base_size is None else f" of the base size {evaluation.base_size}"
    several = evaluation.mode == "slide" or evaluation.mirror or len(evaluation.scales) > 1
    averaged = f"; {evaluation.average} are averaged" if several else ""
    absent = {"zero": "counts 0 in the means", "skip": "is left out of the means"}[evaluation.absent]
    return (
        f"{images} image{'s' * (images != 1)} of {config.data.dataset}, {shown}, scale{plural} {scales}{base}, "
        f"{mirrored}{averaged}. A class in neither labels nor predictions {absent}."
    )


def _plot(plot: Themed, alt: str) -> str:
    dark = f'<source srcset="{_data("png", plot.dark)}" media="(prefers-color-scheme: dark)">'
    image = f'<img src="{_data("png", plot.light)}" style="min-width:{plot.width // _REDUCED}px" alt="{escape(alt)}">'
    return f'<figure class="wide"><picture>{dark}{image}</picture></figure>'


def _samples(title: str, samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    return f"<h2>{title}</h2>\n" + "\n".join(map(_sample, samples))


def _sample(sample: Sample) -> str:
    name, (width, height) = escape(sample.name), sample.size
    panels = "".join(
        f'<figure><figcaption>{title}</figcaption><img src="{_data("jpeg", picture)}" width="{width}" '
        f'height="{height}" loading="lazy" alt="{title} of {name}"></figure>'
        for title, picture in sample.panels.items()
    )
    legend = "".join(f"<li>{_swatch(entry.colour)}{escape(entry.name)}</li>" for entry in sample.legend)
    return (
        f'<h3>{name}: mean IoU {100 * sample.iou:.1f} %</h3><div class="panels">{panels}</div>'
        f'<ul class="legend">{legend}</ul>'
    )


def _classes(dataset: Dataset, found: Evaluation, counts: np.ndarray) -> str:
    rows = zip(found.metrics.class_iou, found.metrics.class_accuracy, counts.sum(1), strict=True)
    return "".join(
        f"<tr><td>{_named(dataset, index)}</td><td>{_percent(iou)}</td><td>{_percent(accuracy)}</td>"
        f"<td>{pixels:,}</td></tr>"
        for index, (iou, accuracy, pixels) in enumerate(rows)
    )


def _confusions(dataset: Dataset, counts: np.ndarray) -> str:
    return "".join(
        f'<tr><td>{_named(dataset, pair.truth)}</td><td class="name">{_named(dataset, pair.found)}</td>'
        f"<td>{_percent(pair.share)}</td><td>{pair.pixels:,}</td></tr>"
        for pair in worst_confusions(counts, _CONFUSIONS)
    )


def _named(dataset: Dataset, index: int) -> str:
    return f"{_swatch(dataset.palette[index])}{escape(dataset.classes[index])}"


def _swatch(colour: Sequence[int] | np.ndarray) -> str:
    red, green, blue = colour
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def _percent(value: float) -> str:
    return "absent" if np.isnan(value) else f"{100 * value:.2f}"


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
