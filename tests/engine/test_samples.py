"""Which samples a step sees."""

import multiprocessing
import os
import warnings

import numpy as np
import pytest
import torch

from psp_fast.data import Scenes
from psp_fast.engine.samples import (
    StepSampler,
    TrainingSamples,
    build_dataset,
    build_train_transform,
    evaluation_samples,
    training_batches,
    usable_workers,
)
from psp_fast.errors import ConfigError, DataError
from tests.engine import small


def steps(start=0, stop=12, rank=0, world=1, seed=5):
    return list(StepSampler(10, 4, start, stop, seed, rank, world))


def test_every_epoch_is_a_permutation_without_its_last_part_batch():
    batches = steps()
    for epoch in range(6):
        keys = batches[2 * epoch] + batches[2 * epoch + 1]
        assert {e for e, _ in keys} == {epoch}
        assert len({i for _, i in keys}) == 8
    assert len({tuple(i for _, i in b) for b in batches}) == 12


def test_a_resumed_run_sees_the_rest():
    assert steps(start=7) == steps()[7:]
    assert len(StepSampler(10, 4, 7, 12, 5, 0, 1)) == 5


def test_processes_share_a_batch():
    joined = [a + b for a, b in zip(steps(rank=0, world=2), steps(rank=1, world=2), strict=True)]
    assert joined == steps()


def test_batches_that_cannot_be_made_are_errors():
    with pytest.raises(ConfigError, match="batch_size 4 cannot be split over 3 processes"):
        StepSampler(10, 4, 0, 1, 0, 0, 3)
    with pytest.raises(DataError, match="3 images, fewer than"):
        StepSampler(3, 4, 0, 1, 0, 0, 1)


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    config = small.config()
    samples = TrainingSamples(build_dataset(config.data, "train"), build_train_transform(config.augment), 3)
    other_seed = TrainingSamples(samples.dataset, samples.transform, 4)
    image = samples[2, 5][0]
    assert torch.equal(samples[2, 5][0], image)
    assert image.shape == (3, *small.SIZE)
    for other in (samples[3, 5], samples[2, 6], other_seed[2, 5]):
        assert not torch.equal(other[0], image)


class Broken:
    classes, palette = ("a", "b"), np.zeros((2, 3), np.uint8)

    def __len__(self):
        return 6

    def load(self, index):
        if index == 3:
            raise DataError("images/3.jpg is broken")
        return Scenes("train", 49, 6, 0).load(index)

    def name(self, index):
        return f"images/{index}.jpg"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_arrives_as_its_error_not_as_a_dead_worker(workers):
    config = small.config(train__workers=workers, train__batch_size=2, train__steps=3)
    batches = list(training_batches(config, Broken(), 0, 0, 1))
    errors = [batch for batch in batches if isinstance(batch, DataError)]
    assert len(batches) == 3
    assert [str(error) for error in errors] == ["images/3.jpg is broken"]


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_gives_images_as_they_are_and_a_bad_one_as_its_error(workers):
    found = list(evaluation_samples(Broken(), [5, 3], workers))
    image, label = Scenes("train", 49, 6, 0).load(5)
    assert np.array_equal(found[0][0], image) and np.array_equal(found[0][1], label) and found[0][2] == 5
    assert str(found[1]) == "images/3.jpg is broken"


def test_no_more_workers_than_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3}, raising=False)
    assert [usable_workers(n) for n in (0, 1, 2, 8)] == [0, 1, 2, 2]
    dataset = build_dataset(small.config().data, "val")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # DataLoader's, of too many workers
        assert evaluation_samples(dataset, [0], 8).num_workers == 2


def full(self):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def test_images_that_do_not_fit_into_shared_memory_arrive_as_an_error(monkeypatch):
    """Never is what the DataLoader would make of it: it loses them in a thread, and waits."""
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    fork = multiprocessing.get_context("fork")  # whose processes see the line above
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", fork)
    config = small.config(train__workers=1, train__steps=1)
    [batch] = training_batches(config, build_dataset(config.data, "train"), 0, 0, 1)
    [sample] = evaluation_samples(build_dataset(config.data, "val"), [1], 1)
    assert isinstance(batch, DataError) and isinstance(sample, DataError)
    assert str(batch).startswith("a batch of 4 images: 0.2 MB do not fit into shared memory beside what waits there")
    assert "No space left on device" in str(batch) and "use --train.workers 0" in str(batch)
    assert "0.0 MB do not fit" in str(sample)
    config = small.config(train__workers=0, train__steps=1)
    [batch] = training_batches(config, build_dataset(config.data, "train"), 0, 0, 1)
    assert batch[0].shape == (4, 3, *small.SIZE)


def test_processes_that_cannot_be_started_are_an_error(monkeypatch):
    def refused():
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("multiprocessing.Lock", refused)
    loader = evaluation_samples(build_dataset(small.config().data, "val"), [1], 1)
    with pytest.raises(DataError, match=r"cannot be started \(Permission denied\).*/dev/shm.*use --train\.workers 0"):
        iter(loader)
