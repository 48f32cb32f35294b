"""Evaluation of a model on a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from psp_fast.configs import Config
from psp_fast.data import Dataset, missing_classes
from psp_fast.engine.distributed import Ranks
from psp_fast.engine.inference import evaluating, label_map
from psp_fast.engine.metrics import Metrics, confusion_matrix, mean_iou
from psp_fast.engine.progress import Progress, check_result, discard, resume
from psp_fast.engine.samples import evaluation_samples
from psp_fast.errors import DataError
from psp_fast.models import PSPNet
from psp_fast.notices import warn


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a data set, on every process.

    Args:
        metrics: the measures.
        confusion: (C, C) int64 pixel counts over all images, rows the true class, columns the predicted; on the CPU.
        image_iou: mean IoU of every image, by its position in the data set, over the classes in its label or
            prediction; NaN where no pixel of the label counts.
    """

    metrics: Metrics
    confusion: Tensor
    image_iou: list[float]

    def warn_of_missing_classes(self) -> None:
        """Print a warning if there are classes that no pixel of the labels has."""
        if warning := missing_classes(self.confusion.sum(1).numpy(), self.metrics.classes, "the validation labels"):
            warn(warning)


def evaluate(model: PSPNet, dataset: Dataset, config: Config, ranks: Ranks, result: Path | None = None) -> Evaluation:
    """Measure model on dataset at the labels' own size; with several processes each takes its share of the images.

    The model is in eval mode during the evaluation, and every module in its former mode after it.

    Args:
        model: on the device of ranks.
        dataset: with labels.
        config: its fields eval, mean and std of augment, and train.workers.
        ranks: this process among the others.
        result: the file to write the measures to. Until it is written, files beside it, <stem>.measured.<process>, keep
            what has been measured: an evaluation that is killed and started again, on as many processes or not, goes on
            where it was, with the same result; one of other weights, configuration or samples starts anew, and images
            whose files have changed are measured again.

    Raises:
        DataError: an image or label that cannot be used, by its file's name.
        PspFastError: result, or a file beside it, cannot be written, or is there and not an evaluation's.
    """
    if result:
        check_result(result)
    progress, done = resume(result, model, dataset, config, ranks) if result else (Progress(), set())
    left = [index for index in range(len(dataset)) if index not in done]
    if done and ranks.main:
        tqdm.write(f"{len(done)} of {len(dataset)} images were measured before: going on with the others")
    bar = tqdm(
        desc="evaluate", total=len(dataset), initial=len(done), unit="image", disable=not ranks.main, leave=False
    )
    try:
        with evaluating(model), bar:
            for sample in evaluation_samples(dataset, left[ranks.rank :: ranks.world], config.train.workers):
                if isinstance(sample, DataError):
                    raise sample
                image, target, index = sample
                prediction = label_map(model, image.to(ranks.device), config, name=dataset.name(index))
                progress.add(index, confusion_matrix(target.to(ranks.device), prediction, len(dataset.classes)))
                bar.update(min(ranks.world, len(dataset) - bar.n))  # the other processes' images are not reported
    finally:
        progress.save()
    found = _summed(progress, dataset, config, ranks)
    if result and ranks.main:
        found.metrics.save(result)
        discard(result)
    return found


def _summed(progress: Progress, dataset: Dataset, config: Config, ranks: Ranks) -> Evaluation:
    """What all processes have measured."""
    classes = len(dataset.classes)
    total = torch.zeros(classes, classes, dtype=torch.int64)
    image_iou = torch.zeros(len(dataset), dtype=torch.float64)
    for index, confusion in progress.matrices(classes):
        total += confusion
        image_iou[index] = mean_iou(confusion)
    total, image_iou = (ranks.sum(tensor.to(ranks.device)).cpu() for tensor in (total, image_iou))
    return Evaluation(Metrics.from_confusion(total, dataset.classes, config.eval.absent), total, image_iou.tolist())
