"""The folder of a run: configuration, checkpoints, history, pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from psp_fast.checkpoints import read_checkpoint
from psp_fast.configs import Config, ModelConfig, config_from_dict, config_to_yaml
from psp_fast.data import Dataset
from psp_fast.errors import CheckpointError, ConfigError, PspFastError
from psp_fast.files import write_text
from psp_fast.info import environment
from psp_fast.models import PSPNet

CONFIG_FILE, LAST, BEST, HISTORY, ENVIRONMENT = (
    "config.yaml",
    "last.pth",
    "best.pth",
    "history.json",
    "environment.json",
)


def new_folder(config: Config, recipe: str) -> Path:
    """The folder for a new run: config.out, or the first free runs/<recipe>-N; made, with the configuration in it.

    Raises:
        ConfigError: config.out already holds a run, or cannot be written.
    """
    if config.out is not None:
        folder = Path(config.out)
        if (folder / CONFIG_FILE).exists():
            raise ConfigError(
                f"{folder} already holds a run: continue it with --resume {folder}, or choose another --out"
            )
    else:
        folder = _numbered(recipe)
    try:
        write_text(folder / ENVIRONMENT, json.dumps(environment(), indent=1) + "\n")
        write_text(folder / CONFIG_FILE, config_to_yaml(config))
    except PspFastError as error:
        raise ConfigError(f"the output folder {folder} cannot be used: {error}") from error
    return folder


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
    options = dataclasses.asdict(config)
    if options["in_channels"] == 3:
        del options["in_channels"]
    try:
        return PSPNet(classes=classes, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error


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


def load_trained(path: str | Path, device: torch.device) -> Trained:
    """The model in a checkpoint that `psp-fast train` wrote, or in that of a run's folder, in eval mode on device.

    Raises:
        CheckpointError: unreadable, or not written by psp-fast train.
    """
    path = checkpoint_of(path)
    content = _read_described(path)
    config = config_from_dict(content["config"])
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
    return config_from_dict(_read_described(checkpoint_of(path))["config"])


def _read_described(path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if not {"config", "classes", "palette", "state_dict"} <= content.keys():
        raise CheckpointError(
            f"{path} does not describe its model: give a checkpoint that psp-fast train wrote, or make one of another "
            f"project's weights: psp-fast convert {path} OUT.pth --recipe RECIPE"
        )
    return content


def load_weights(model: PSPNet, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Load a state_dict; CheckpointError with torch's account of the differences where it does not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds another model: {error}") from error


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """The points of the training and validation curves, one object each."""
    write_text(folder / HISTORY, json.dumps(history, indent=1) + "\n")
