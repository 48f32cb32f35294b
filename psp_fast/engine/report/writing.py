"""The pictures of an evaluation and the page that holds them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from psp_fast.configs import Config
from psp_fast.data import Dataset, png_texts, write_png
from psp_fast.engine.evaluate import Evaluation
from psp_fast.engine.inference import evaluating, label_map
from psp_fast.engine.ours import check_replaceable, has_mark, mark
from psp_fast.engine.plots import pixels_of
from psp_fast.engine.report.page import START, Sample, Themed, page
from psp_fast.engine.report.plots import DARK, LIGHT, confusion_figure, iou_figure
from psp_fast.error_pictures import board, legend, panels
from psp_fast.errors import DataError
from psp_fast.files import read_text, write_bytes, write_text
from psp_fast.models import PSPNet

_PAGE, _MARK = "evaluation.html", mark("evaluate")


def write_report(
    folder: Path, source: str, model: PSPNet, dataset: Dataset, found: Evaluation, config: Config, count: int
) -> Path:
    """Write evaluation.html into folder, which needs no other file, and its pictures as PNG files into folder/pictures.

    Args:
        folder: made when missing.
        source: the checkpoint, as the page calls it.
        model: whose evaluation it is; it predicts the images that are drawn once more.
        dataset: that it was evaluated on.
        found: what `evaluate` returned.
        config: its fields eval, and mean and std of augment.
        count: how many of the best and of the worst images to draw; never one as both.

    Returns:
        The page.

    Raises:
        PspFastError: a file cannot be written, or would replace one that is not from an earlier evaluation.
    """
    pictures = folder / "pictures"
    check_report(folder, count)
    for old in [*pictures.glob("best_*.png"), *pictures.glob("worst_*.png")]:
        if has_mark(old, _MARK):
            old.unlink()
    best, worst = chosen(found.image_iou, count)
    bar = tqdm(total=len(best) + len(worst), desc="pictures", unit="image", leave=False)
    with evaluating(model), bar:
        samples = {
            kind: [
                _sample(pictures / f"{kind}_{place}.png", index, model, dataset, found, config, bar)
                for place, index in enumerate(indices, 1)
            ]
            for kind, indices in (("best", best), ("worst", worst))
        }
    counts, ious = found.confusion.numpy(), found.metrics.class_iou
    confusion = _themed(confusion_figure, counts, dataset.classes)
    bars = _themed(iou_figure, ious, dataset.classes, dataset.palette)
    write_bytes(pictures / "confusion.png", confusion.light)
    write_bytes(pictures / "classes.png", bars.light)
    target = folder / _PAGE
    write_text(target, page(source, dataset, found, config, bars, confusion, samples["best"], samples["worst"]))
    return target


def check_report(folder: Path, count: int) -> None:
    """Raise DataError where `write_report` would replace a file that it did not write."""
    kinds = [f"{kind}_{place}" for kind in ("best", "worst") for place in range(1, count + 1)]
    pictures = [folder / "pictures" / f"{name}.png" for name in (*kinds, "confusion", "classes")]
    check_replaceable(pictures, _MARK, "from an earlier evaluation")
    page = folder / _PAGE
    if page.exists() and not _is_page(page):
        raise DataError(f"{page} is there already and is not from an earlier evaluation: move it, or use another --out")


def _is_page(path: Path) -> bool:
    try:
        return START in read_text(path)
    except OSError:
        return False


def chosen(image_iou: Sequence[float], count: int) -> tuple[list[int], list[int]]:
    """Positions of the best and of the worst images by their mean IoU, best and worst first; NaN is neither."""
    known = [index for index, iou in enumerate(image_iou) if not np.isnan(iou)]
    order = sorted(known, key=lambda index: image_iou[index])
    worst = order[: min(count, (len(order) + 1) // 2)]
    return order[len(worst) :][::-1][:count], worst


def _sample(
    path: Path, index: int, model: PSPNet, dataset: Dataset, found: Evaluation, config: Config, bar: tqdm
) -> Sample:
    image, truth = dataset.load(index)
    device = next(model.parameters()).device
    prediction = label_map(model, torch.from_numpy(image).to(device), config, name=dataset.name(index)).cpu().numpy()
    drawn = panels(image, truth, prediction, dataset.palette)
    entries = legend(truth, prediction, dataset.classes, dataset.palette)
    write_png(path, board(drawn, entries), texts=_MARK)
    bar.update()
    # For the page alone: of a photograph a JPEG is a fifth of its PNG.
    files = {title: _file(panel, "JPEG", quality=88, subsampling=0) for title, panel in drawn.items()}
    return Sample(dataset.name(index), found.image_iou[index], files, drawn["image"].size, entries)


def _themed(figure: Callable[..., Figure], *given: Any) -> Themed:
    """What figure(*given, theme) draws, as PNG files."""
    light, dark = (Image.fromarray(pixels_of(figure(*given, theme))) for theme in (LIGHT, DARK))
    files = [_file(picture, "PNG", optimize=True, pnginfo=png_texts(_MARK)) for picture in (light, dark)]
    return Themed(files[0], files[1], light.width)


def _file(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()
