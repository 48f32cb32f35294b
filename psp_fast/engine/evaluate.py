"""Evaluation of a model on a data set."""

from __future__ import annotations

import torch
from tqdm import tqdm

from psp_fast.configs import Config
from psp_fast.data import Dataset
from psp_fast.engine.distributed import Ranks
from psp_fast.engine.inference import evaluating, label_map
from psp_fast.engine.metrics import Metrics, confusion_matrix
from psp_fast.engine.samples import evaluation_samples
from psp_fast.errors import DataError
from psp_fast.models import PSPNet


def evaluate(model: PSPNet, dataset: Dataset, config: Config, ranks: Ranks) -> Metrics:
    """Measures of model on dataset at the labels' own size; with several processes each takes its share of the images.

    The model is in eval mode during the evaluation, and every module in its former mode after it.

    Raises:
        DataError: an image or label that cannot be used, by its file's name.
    """
    classes = len(dataset.classes)
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=ranks.device)
    bar = tqdm(
        evaluation_samples(dataset, range(ranks.rank, len(dataset), ranks.world), config.train.workers),
        "evaluate",
        unit="image",
        disable=not ranks.main,
        leave=False,
    )
    with evaluating(model):
        for sample in bar:
            if isinstance(sample, DataError):
                raise sample
            image, target, _ = sample
            prediction = label_map(model, image.to(ranks.device), config)
            confusion += confusion_matrix(target.to(ranks.device), prediction, classes)
    return Metrics.from_confusion(ranks.sum(confusion), dataset.classes, config.eval.absent)
