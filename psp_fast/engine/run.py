"""The folder of a run: configuration, checkpoints, history, pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from psp_fast.checkpoints import check_weights, read_checkpoint
from psp_fast.checkpoints.fields import CLASSES, CONFIG, PALETTE, STATE_DICT, check_field, check_fields
from psp_fast.configs import AugmentConfig, Config, ModelConfig, config_from_dict, config_to_yaml
from psp_fast.data import Dataset
from psp_fast.errors import CheckpointError, ConfigError, PspFastError
from psp_fast.files import locked, read_text, write_text
from psp_fast.info import environment
from psp_fast.models import PSPNet

CONFIG_FILE, LAST, BEST, HISTORY, ENVIRONMENT, TENSORBOARD = (
    "config.yaml",
    "last.pth",
    "best.pth",
    "history.json",
    "environment.json",
    "tensorboard",
)
_STARTED = (CONFIG_FILE, ENVIRONMENT, TENSORBOARD)  # what is there before the first checkpoint
_RESULTS = (LAST, BEST, HISTORY, "metrics.json", "curves.png", "examples.png")


@contextlib.contextmanager
def new_folder(config: Config, recipe: str) -> Iterator[Path]:
    """The folder for a new run: config.out, or the first free runs/<recipe>-N; made, with the configuration in it.

    No other run can have it until the block ends. One in which a run failed before its first checkpoint is free.

    Raises:
        ConfigError: config.out holds a run or files that a run would replace, or cannot be written.
    """
    folder = _numbered(recipe) if config.out is None else Path(config.out)
    _check_free(folder)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder))
            _check_free(folder)  # of two runs started at once, the other may be done already
            for old in (folder / TENSORBOARD).glob("events.out.tfevents.*"):
                old.unlink()
            text = config_to_yaml(config)
            started = {**environment(), "launch": _launch(), "config_sha256": _sha256(text)}
            write_text(folder / ENVIRONMENT, json.dumps(started, indent=1) + "\n")
            write_text(folder / CONFIG_FILE, text)
        except PspFastError as error:
            raise ConfigError(f"the output folder {folder} cannot be used: {error}") from error
        yield folder


def _check_free(folder: Path) -> None:
    """Raise ConfigError where a new run would replace something, other than what one without a checkpoint left."""
    there = [name for name in (*_STARTED, *_RESULTS) if (folder / name).exists()]
    if not there or (set(there) <= set(_STARTED) and _is_untouched(folder)):
        return
    if CONFIG_FILE in there:
        raise ConfigError(f"{folder} already holds a run: continue it with --resume {folder}, or choose another --out")
    raise ConfigError(f"{folder} holds {', '.join(there)}, which a run would replace: choose another --out")


def _is_untouched(folder: Path) -> bool:
    """Whether the configuration in folder, if there is one, is as a new run wrote it."""
    written = _started(folder).get("config_sha256")
    path = folder / CONFIG_FILE
    return written is not None and (not path.exists() or _sha256(read_text(path)) == written)


def _started(folder: Path) -> dict[str, Any]:
    """What a new run wrote into folder of its start; nothing where none did."""
    try:
        found = json.loads(read_text(folder / ENVIRONMENT))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def before_restart(config: Config, recipe: str) -> Path | None:
    """The folder of the run that torchrun has just started again with the same configuration, if it did."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    folders = Path("runs").glob(f"{glob.escape(recipe)}-*") if config.out is None else [Path(config.out)]
    text = config_to_yaml(config)
    for folder in folders:
        path = folder / CONFIG_FILE
        if _started(folder).get("launch") == _launch() and path.is_file() and read_text(path) == text:
            return folder
    return None


def _launch() -> str | None:
    """What the processes that one torchrun starts, and starts again, have in common; None without torchrun."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch != "none":  # torchrun's default
        return launch
    return f"{platform.node()} {os.getppid()} {_started_at(os.getppid())}"


def _started_at(process: int) -> str:
    """When a process started, in ticks of Linux's clock, because its number is given again to later ones."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, UnicodeDecodeError):
        return ""


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The last checkpoint of the run in folder; None before its first one.

    Raises:
        CheckpointError: it is gone, while results that a start at step 0 would replace are there.
    """
    if (folder / LAST).exists():
        return folder / LAST
    there = [name for name in _RESULTS if (folder / name).exists()]
    if there:
        raise CheckpointError(
            f"{folder / LAST} is gone: a run that starts at step 0 would replace {', '.join(there)}; put it back, or "
            "train into another folder"
        )
    return None


def _numbered(recipe: str) -> Path:
    """The first free runs/<recipe>-N, made, so that of two runs started at once each has its own."""
    number = 1
    while True:
        folder = Path("runs") / f"{recipe}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(
                f"cannot make the output folder {folder}: {error.strerror}; choose one with --out"
            ) from error


def build_model(config: ModelConfig, classes: int) -> PSPNet:
    """The network of a configuration.

    Raises:
        ConfigError: a value that PSPNet refuses.
    """
    try:
        return PSPNet(classes=classes, **dataclasses.asdict(config))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_normalisation(model: PSPNet, config: AugmentConfig) -> None:
    """Raise ConfigError where pretrained weights are of images normalised otherwise than the configuration says."""
    wanted, given = (model.mean, model.std), (config.mean, config.std)
    if model.normalised_by is None or np.allclose(wanted, given, rtol=1e-3):
        return
    mean, std = (list(values) for values in wanted)
    raise ConfigError(
        f"{model.normalised_by} is of images normalised by mean {mean} and std {std}, but augment.mean is "
        f"{list(config.mean)} and augment.std {list(config.std)}: give --augment.mean '{mean}' --augment.std '{std}'"
    )


def describe(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint says of its run besides the weights."""
    return {
        "config": dataclasses.asdict(config),
        "classes": list(dataset.classes),
        "palette": np.asarray(dataset.palette).tolist(),
    }


@dataclass(frozen=True)
class Trained:
    """A model with all that is needed to use it."""

    model: PSPNet
    config: Config
    classes: Sequence[str]
    palette: np.ndarray

    @property
    def unnamed(self) -> bool:
        """Whether the classes have the names that `psp-fast convert` gives where nothing names them."""
        return list(self.classes) == [f"class {i}" for i in range(len(self.classes))]

    def check_classes(self, classes: Sequence[str], source: str | Path) -> None:
        """Raise ConfigError unless the model of the file source has these classes, or as many without names."""
        if tuple(classes) != tuple(self.classes) and not (self.unnamed and len(classes) == len(self.classes)):
            raise ConfigError(
                f"{source} was trained on the classes {', '.join(self.classes)}, not on {', '.join(classes)}; if those "
                "are other names of the same classes, convert the original file with --recipe"
            )


def load_trained(path: str | Path, device: torch.device) -> Trained:
    """The model in a checkpoint that `psp-fast train` wrote, or in that of a run's folder, in eval mode on device.

    Raises:
        CheckpointError: unreadable, or not written by psp-fast train.
    """
    path = checkpoint_of(path)
    content = _read_described(path)
    config = config_from_dict(content["config"], f"{path}: its configuration")
    model = build_model(dataclasses.replace(config.model, pretrained=False), len(content["classes"]))
    load_weights(model, content["state_dict"], path)
    model.mean, model.std = config.augment.mean, config.augment.std
    model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Trained(model, config, tuple(content["classes"]), np.array(content["palette"], np.uint8))


def checkpoint_of(path: str | Path) -> Path:
    """A checkpoint's own path, or that of a run's folder: its best checkpoint, or else its last."""
    path = Path(path)
    if not path.is_dir():
        return path
    return path / (BEST if (path / BEST).exists() else LAST)


def saved_config(path: str | Path) -> Config:
    """The configuration in a checkpoint that `psp-fast train` wrote, or in that of a run's folder."""
    path = checkpoint_of(path)
    return config_from_dict(_read_described(path)["config"], f"{path}: its configuration")


def _read_described(path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if not {"config", "classes", "palette", "state_dict"} <= content.keys():
        raise CheckpointError(
            f"{path} does not describe its model: give a checkpoint that psp-fast train wrote, or make one of another "
            f"project's weights: psp-fast convert {path} OUT.pth --recipe RECIPE"
        )
    described = {"config": CONFIG, "classes": CLASSES, "palette": PALETTE, "state_dict": STATE_DICT}
    check_fields(content, described, path)
    if len(content["palette"]) != len(content["classes"]):
        raise CheckpointError(
            f"{path} is damaged: {len(content['classes'])} classes and {len(content['palette'])} colours"
        )
    return content


def load_weights(model: PSPNet, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Load a state_dict; CheckpointError where it is damaged, or with torch's account of what does not fit."""
    check_field(state, STATE_DICT, "state_dict", path)
    check_weights(state, path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds another model: {error}") from error


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """The points of the training and validation curves, one object each."""
    write_text(folder / HISTORY, json.dumps(history, indent=1) + "\n")
