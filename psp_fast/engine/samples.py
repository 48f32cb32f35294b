"""From data sets to batches: what a step sees depends on the seed and the step alone, so that a run can be resumed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from psp_fast.configs import AugmentConfig, Config, DataConfig
from psp_fast.data import (
    LAYOUTS,
    Dataset,
    ListDataset,
    Scenes,
    Transform,
    folder_dataset,
    official_dataset,
    train_transform,
)
from psp_fast.errors import ConfigError, DataError

_ORDER, _AUGMENT = 0, 1  # streams of random numbers
_SHARED_MEMORY = "/dev/shm"  # where processes that load images leave them


def build_dataset(config: DataConfig, split: Literal["train", "val"], channels: int = 3) -> Dataset:
    """The data set of a split, "train" or "val", with images of so many channels (scenes: always RGB)."""
    if config.dataset == "scenes":
        scenes = config.scenes
        return Scenes(split, (scenes.height, scenes.width), getattr(scenes, split), scenes.seed)
    splits = config.train_splits if split == "train" else config.val_splits
    if config.dataset in LAYOUTS:
        return official_dataset(config.dataset, config.root, splits, channels)
    if config.dataset == "folder":
        return folder_dataset(config.root, splits, config.classes, config.palette, config.label_ids, channels)
    list_file = config.train_list if split == "train" else config.val_list
    return ListDataset(config.root, list_file, config.classes, config.palette, config.label_ids, channels)


def build_train_transform(config: AugmentConfig) -> Transform:
    """The training transform of a configuration."""
    return train_transform(
        config.preset,
        config.crop,
        scale=config.scale,
        mirror=config.mirror,
        degrees=config.degrees,
        blur=config.blur,
        base_scale=config.base_scale,
        cat_max_ratio=config.cat_max_ratio,
        mean=config.mean,
        std=config.std,
    )


class _Loader(DataLoader):
    """A DataLoader whose processes may be impossible to start."""

    def __iter__(self) -> Any:
        try:
            if self.num_workers:
                multiprocessing.Lock()  # a DataLoader that fails in its own leaves a traceback when it is deleted
            return super().__iter__()
        except OSError as error:
            raise DataError(
                f"the processes that load images cannot be started ({error.strerror}), as where {_SHARED_MEMORY} "
                "cannot be written: use --train.workers 0"
            ) from error


class TrainingSamples(TorchDataset):
    """Augmented samples by (epoch, index); an unusable one comes back as its DataError, so that no worker dies."""

    def __init__(self, dataset: Dataset, transform: Transform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | DataError:
        epoch, index = key
        try:
            image, label = self.dataset.load(index)
        except DataError as error:
            return error
        rng = np.random.default_rng([self.seed, _AUGMENT, epoch, index])
        image, label = self.transform(image, label, rng)
        return torch.from_numpy(image), torch.from_numpy(label)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) pairs of this process's share of every step's batch, from step `start` on.

    Every epoch is a permutation of the data set from which the incomplete last batch is dropped.
    """

    def __init__(self, samples: int, batch_size: int, start: int, stop: int, seed: int, rank: int, world: int) -> None:
        if batch_size % world:
            raise ConfigError(
                f"train.batch_size {batch_size} cannot be split over {world} processes: make it a multiple of {world}"
            )
        if samples < batch_size:
            raise DataError(
                f"the training set has {samples} images, fewer than train.batch_size {batch_size}: make the batch "
                "smaller"
            )
        self.samples, self.batch_size, self.start, self.stop, self.seed = samples, batch_size, start, stop, seed
        share = batch_size // world
        self.share = slice(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = self.samples // self.batch_size
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start, self.stop):
            if step // batches != epoch:
                epoch = step // batches
                order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.samples)
            first = step % batches * self.batch_size
            yield [(epoch, int(i)) for i in order[first : first + self.batch_size][self.share]]


def training_batches(config: Config, dataset: Dataset, start: int, rank: int, world: int) -> DataLoader:
    """Batches (images (n, 3, h, w) float32, labels (n, h, w) int64), or a DataError, for every step from `start` on."""
    train = config.train
    samples = TrainingSamples(dataset, build_train_transform(config.augment), train.seed)
    sampler = StepSampler(len(dataset), train.batch_size, start, train.steps, train.seed, rank, world)
    return _Loader(
        samples,
        batch_sampler=sampler,
        num_workers=usable_workers(train.workers),
        collate_fn=_collate,
        pin_memory=config.device != "cpu" and torch.cuda.is_available(),
    )


def usable_workers(workers: int) -> int:
    """So many processes, but no more than there are cores for this one; what a sample is depends on none of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(workers, cores)


class EvaluationSamples(TorchDataset):
    """Images (H, W, C) uint8 with their labels (H, W) uint8 and positions, or the DataError of one that is unusable."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int] | DataError:
        try:
            image, label = self.dataset.load(index)
        except DataError as error:
            return error
        return _shared(self.dataset.name(index), torch.from_numpy(image), torch.from_numpy(label), index)


def evaluation_samples(dataset: Dataset, indices: Sequence[int], workers: int) -> DataLoader:
    """These samples of the data set, one at a time; a worker keeps one ready, as images may be large."""
    workers = usable_workers(workers)
    return _Loader(
        EvaluationSamples(dataset),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        prefetch_factor=1 if workers else None,
    )


def _collate(samples: Sequence[Any]) -> Any:
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    images, labels = zip(*samples, strict=True)
    return _shared(f"a batch of {len(images)} images", torch.stack(images), torch.stack(labels))


def _shared(name: str, *parts: Any) -> Any:
    """The parts, whose tensors a loading process has put into shared memory; a DataError where they do not fit.

    Left to the DataLoader, a tensor that does not fit is lost, and training waits for it for ever.
    """
    if get_worker_info() is None:
        return parts
    try:
        for part in parts:
            if isinstance(part, Tensor):
                part.share_memory_()
    except RuntimeError as error:
        size = sum(part.nbytes for part in parts if isinstance(part, Tensor))
        return DataError(
            f"{name}: {size / 1e6:.1f} MB do not fit into shared memory beside what waits there already "
            f"({_free(_SHARED_MEMORY)}; {error}): use --train.workers 0, or enlarge it (docker run --shm-size)"
        )
    return parts


def _free(folder: str) -> str:
    if not Path(folder).is_dir():
        return f"there is no {folder}"
    usage = shutil.disk_usage(folder)
    return f"{folder} has {usage.free / 1e6:.1f} of {usage.total / 1e6:.1f} MB free"
