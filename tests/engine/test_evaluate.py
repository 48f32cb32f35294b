"""Evaluation: its numbers by hand, and shared between processes."""

import numpy as np
import torch

from psp_fast.data.scenes import CLASSES
from psp_fast.engine.distributed import Ranks
from psp_fast.engine.evaluate import evaluate
from psp_fast.engine.run import build_model
from psp_fast.engine.samples import build_dataset
from tests.engine import small
from tests.processes import run_ranks

CPU = torch.device("cpu")


def make():
    config = small.config()
    dataset = build_dataset(config.data, "val")
    torch.manual_seed(0)
    return config, dataset, build_model(config.model, len(dataset.classes))


def test_measures_are_those_of_predict():
    config, dataset, model = make()
    model.train()
    model.ppm.eval()  # frozen by the user
    metrics = evaluate(model, dataset, config, Ranks(0, 1, CPU))
    assert model.training and not model.ppm.training
    model.eval()
    hit, union = np.zeros(len(CLASSES)), np.zeros(len(CLASSES))
    for index in range(len(dataset)):
        image, label = dataset.load(index)
        x = (image - np.array(config.augment.mean)) / np.array(config.augment.std)
        found = model.predict(torch.from_numpy(x).float().permute(2, 0, 1)[None])[0].numpy()
        for c in range(len(CLASSES)):
            hit[c] += ((found == c) & (label == c)).sum()
            union[c] += ((found == c) | (label == c)).sum()
    np.testing.assert_allclose(metrics.miou, np.mean(hit[union > 0] / union[union > 0]), rtol=1e-3)
    np.testing.assert_allclose(metrics.pixel_accuracy, hit.sum() / (3 * 49 * 57), rtol=1e-3)


def _shared(rank, world, expected):
    config, dataset, model = make()
    metrics = evaluate(model, dataset, config, Ranks(rank, world, CPU))
    assert (metrics.miou, metrics.pixel_accuracy) == expected


def test_processes_share_the_images_and_agree_on_the_result():
    config, dataset, model = make()
    whole = evaluate(model, dataset, config, Ranks(0, 1, CPU))
    run_ranks(_shared, 2, (whole.miou, whole.pixel_accuracy))  # 3 images: unequal shares
