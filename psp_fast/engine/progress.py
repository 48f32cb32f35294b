"""Pixel counts of the images that an evaluation has measured, kept on disk so that a killed one goes on."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from psp_fast.checkpoints import read_checkpoint, save_checkpoint
from psp_fast.checkpoints.fields import Field, check_fields
from psp_fast.configs import Config
from psp_fast.data import Dataset
from psp_fast.engine.distributed import Ranks
from psp_fast.errors import CheckpointError, PspFastError
from psp_fast.files import open_regular, read_text

_SECONDS = 1.0  # between two writings of the file, at least
_ZIP = b"PK"  # the first bytes of what torch.save writes
_TIMES = 20  # what a writing took, at least: a large data set's file grows


class Progress:
    """The confusion matrix of every image measured, without its zeros.

    Args:
        file: where they are kept; None keeps them in memory alone.
        key: of the evaluation that they are of.
        stamp: what an image has while its files do not change.
    """

    def __init__(self, file: Path | None = None, key: str = "", stamp: Callable[[int], str] = str) -> None:
        self.file, self.key, self.stamp = file, key, stamp
        self.counts: dict[int, Tensor] = {}  # image: (2, n) int64, places in its flattened matrix and their pixels
        self.stamps: dict[int, str] = {}
        self.saved, self.pause = time.monotonic(), _SECONDS

    def add(self, image: int, confusion: Tensor) -> None:
        """Note the confusion matrix (C, C) int64 of an image, and write the file unless it was just written."""
        pixels = confusion.flatten()
        places = pixels.nonzero()[:, 0]
        self.counts[image] = torch.stack([places, pixels[places]]).cpu()
        self.stamps[image] = self.stamp(image)
        if time.monotonic() - self.saved > self.pause:
            self.save()

    def save(self) -> None:
        """Write the file, if there is one.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self.file is None or not self.counts:
            return
        started = time.monotonic()
        content = {
            "evaluation": self.key,
            "images": torch.tensor(list(self.counts)),
            "stamps": [self.stamps[image] for image in self.counts],
            "lengths": torch.tensor([counts.shape[1] for counts in self.counts.values()]),
            "counts": torch.cat(list(self.counts.values()), 1),
        }
        save_checkpoint(content, self.file)
        self.saved = time.monotonic()
        self.pause = max(_SECONDS, _TIMES * (self.saved - started))

    def load(self, file: Path, images: int, classes: int) -> None:
        """Add what a file holds of this evaluation and of unchanged images; a damaged file is reported and not used.

        images and classes are the data set's numbers of them.

        Raises:
            CheckpointError: a file that no evaluation wrote.
        """
        try:
            content = read_checkpoint(file)
        except CheckpointError as error:
            if not _is_archive(file):
                raise _not_ours(file) from error
            _report_damage(error)
            return
        if "evaluation" not in content:
            raise _not_ours(file)
        if content["evaluation"] != self.key or "stamps" not in content:  # an older version wrote no stamps
            return
        try:
            _check(content, images, classes, file)
        except CheckpointError as error:
            _report_damage(error)
            return
        parts = content["counts"].split(content["lengths"].tolist(), 1)
        for image, stamp, part in list(zip(content["images"].tolist(), content["stamps"], parts, strict=True)):
            if stamp == self.stamp(image):
                self.counts[image], self.stamps[image] = part, stamp

    def matrices(self, classes: int) -> Iterator[tuple[int, Tensor]]:
        """Every image with its confusion matrix (C, C) int64 on the CPU."""
        for image, (places, pixels) in self.counts.items():
            flat = torch.zeros(classes * classes, dtype=torch.int64)
            flat[places] = pixels
            yield image, flat.view(classes, classes)


def resume(result: Path, model: nn.Module, dataset: Dataset, config: Config, ranks: Ranks) -> tuple[Progress, set[int]]:
    """This process's progress towards the file `result`, and the images that need not be measured again.

    The main process takes over what any process measured for the same weights, configuration and samples, and removes
    files of another evaluation. Samples are told by their names, and by the size and time of change of their files.
    """
    progress = Progress(_file(result, ranks.rank), stamp=dataset.stamp)
    if ranks.main:
        progress.key = _key(model, dataset, config, ranks.device)
        for file in _files(result):
            progress.load(file, len(dataset), len(dataset.classes))
        progress.save()  # before the files are removed, so that a kill at any time loses nothing
        for file in _files(result):
            if file != progress.file or not progress.counts:
                file.unlink(missing_ok=True)
    progress.key, done = ranks.from_main((progress.key, set(progress.counts)))
    return progress, done


def check_result(result: Path) -> None:
    """Raise PspFastError where `result` is there, but not an earlier evaluation's."""
    if not result.exists():
        return
    try:
        content = json.loads(read_text(result))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not {"miou", "classes"} <= content.keys():
        raise PspFastError(f"{result} is there already and is not an evaluation's: move it, or use another --out")


def _is_archive(file: Path) -> bool:
    """Whether the file begins as one that `Progress.save` wrote."""
    try:
        with open_regular(file) as opened:
            return opened.read(len(_ZIP)) == _ZIP
    except OSError:
        return False


def _not_ours(file: Path) -> CheckpointError:
    return CheckpointError(f"{file} is there already and is not an evaluation's: move it, or use another --out")


def _report_damage(error: CheckpointError) -> None:
    tqdm.write(f"ignored, and its images are measured again: {error}", file=sys.stderr)


def _check(content: Mapping[str, Any], images: int, classes: int, file: Path) -> None:
    """Raise CheckpointError unless content is of such a data set, as `Progress.save` wrote it."""
    check_fields(
        content,
        {
            "images": Field(f"images 0 to {images - 1}", lambda value: _are_integers(value, 1, images)),
            "stamps": Field("texts", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value)),
            "lengths": Field("numbers of places", lambda value: _are_integers(value, 1, classes**2 + 1)),
            "counts": Field("places and pixels", lambda value: _are_integers(value, 2, None)),
        },
        file,
    )
    lengths, counts = content["lengths"], content["counts"]
    if not len(content["images"]) == len(content["stamps"]) == len(lengths):
        raise CheckpointError(f"{file} is damaged: its fields 'images', 'stamps' and 'lengths' are not as long")
    if counts.shape != (2, int(lengths.sum())) or not bool((counts[0] < classes**2).all()):
        raise CheckpointError(f"{file} is damaged: its field 'counts' is not of the {classes} classes and of 'lengths'")


def _are_integers(value: Any, ndim: int, below: int | None) -> bool:
    """Whether value is a tensor of ndim dimensions of int64 from 0 to below."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim != ndim:
        return False
    return bool((value >= 0).all()) and (below is None or bool((value < below).all()))


def discard(result: Path) -> None:
    """Remove the files of all processes."""
    for file in _files(result):
        file.unlink(missing_ok=True)


def _file(result: Path, rank: int) -> Path:
    return result.with_name(f"{result.stem}.measured.{rank}")


def _files(result: Path) -> list[Path]:
    return sorted(
        file
        for file in result.parent.glob(f"{glob.escape(result.stem)}.measured.*")
        if file.suffix.removeprefix(".").isdecimal()
    )


def _key(model: nn.Module, dataset: Dataset, config: Config, device: torch.device) -> str:
    """A digest of all that the counts depend on."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    settings = {
        "model": dataclasses.asdict(config.model),
        "data": dataclasses.asdict(config.data),
        "eval": dataclasses.asdict(config.eval),
        "normalisation": [config.augment.mean, config.augment.std],
        "device": device.type,
        "classes": list(dataset.classes),
        "samples": [dataset.name(index) for index in range(len(dataset))],
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()
