"""What the types of the configuration do not say: ranges, and fields that have to fit each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from psp_fast.configs.schema import Config, DataConfig
from psp_fast.errors import ConfigError

_MOST_PIXELS = 65535  # a side of an image; formats allow no more
_MOST_SCALE = 100


def check(config: Config) -> None:
    """Raise ConfigError for the first field whose value cannot work."""
    _check_nulls(config, "")
    for rules in (_model(config), _augment(config), _optim(config), _train(config), _eval(config)):
        for name, (value, fits, wanted) in rules.items():
            if not fits:
                raise ConfigError(f"{name} must be {wanted}, got {value}")
    _check_channels(config)
    _check_data(config.data)


def _check_nulls(section: Any, prefix: str) -> None:
    """Raise ConfigError for a null where the type has none: jsonargparse takes it for "not given"."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            _check_nulls(value, f"{prefix}{field.name}.")
        elif value is None and "None" not in str(field.type):
            raise ConfigError(f"{prefix}{field.name} must not be null")


Rules = dict[str, tuple[object, bool, str]]
"""By a field's name: its value, whether it fits, and what it must be."""


def _model(config: Config) -> Rules:
    """What PSPNet checks itself, once the data have been read, is not here."""
    model = config.model
    return {
        "model.dropout": (model.dropout, 0 <= model.dropout < 1, "in [0, 1)"),
        "model.bins": (
            model.bins,
            min(model.bins, default=0) >= 1 or not model.use_ppm,
            "one or more positive integers",
        ),
    }


def _augment(config: Config) -> Rules:
    augment = config.augment
    low, high = augment.scale
    return {
        "augment.crop": (augment.crop, _are_sides(augment.crop), _SIDES),
        "augment.scale": (augment.scale, 0 < low <= high <= _MOST_SCALE, f"0 < lowest <= highest <= {_MOST_SCALE}"),
        "augment.degrees": (augment.degrees, 0 <= augment.degrees <= 180, "between 0 and 180"),
        "augment.base_scale": (augment.base_scale, _are_sides(augment.base_scale or (1,)), f"{_SIDES}, or null"),
        "augment.cat_max_ratio": (augment.cat_max_ratio, 0 < augment.cat_max_ratio <= 1, "in (0, 1]"),
        "augment.mean": (augment.mean, all(map(math.isfinite, augment.mean)), "finite"),
        "augment.std": (augment.std, all(0 < value < math.inf for value in augment.std), "positive and finite"),
    }


def _optim(config: Config) -> Rules:
    optim = config.optim
    return {
        "optim.lr": (optim.lr, 0 < optim.lr < math.inf, "positive and finite"),
        "optim.head_lr_factor": (optim.head_lr_factor, 0 <= optim.head_lr_factor < math.inf, "at least 0 and finite"),
        "optim.min_lr": (optim.min_lr, 0 <= optim.min_lr <= optim.lr, "between 0 and optim.lr"),
        "optim.momentum": (optim.momentum, 0 <= optim.momentum < 1, "in [0, 1)"),
        "optim.weight_decay": (optim.weight_decay, 0 <= optim.weight_decay < math.inf, "at least 0 and finite"),
        "optim.power": (optim.power, 0 <= optim.power < math.inf, "at least 0 and finite"),
        "optim.clip_grad_norm": (
            optim.clip_grad_norm,
            optim.clip_grad_norm is None or 0 < optim.clip_grad_norm < math.inf,
            "positive and finite, or null",
        ),
    }


def _train(config: Config) -> Rules:
    train = config.train
    return {
        "train.steps": (train.steps, train.steps >= 1, "at least 1"),
        "train.batch_size": (train.batch_size, train.batch_size >= 1, "at least 1"),
        "train.workers": (train.workers, train.workers >= 0, "at least 0"),
        "train.aux_weight": (train.aux_weight, 0 <= train.aux_weight < math.inf, "at least 0 and finite"),
        "train.seed": (train.seed, 0 <= train.seed < 2**63, "at least 0 and below 2**63"),
        "train.log_every": (train.log_every, train.log_every >= 1, "at least 1"),
        "train.checkpoint_every": (train.checkpoint_every, train.checkpoint_every >= 1, "at least 1"),
        "train.validate_every": (train.validate_every, train.validate_every >= 0, "at least 0"),
    }


def _eval(config: Config) -> Rules:
    evaluation = config.eval
    base_size = evaluation.base_size
    sides = (1,) if base_size is None else (base_size,) if isinstance(base_size, int) else base_size
    scales = all(0 < scale <= _MOST_SCALE for scale in evaluation.scales) and len(evaluation.scales) > 0
    return {
        "eval.crop": (evaluation.crop, _are_sides(evaluation.crop), _SIDES),
        "eval.stride": (evaluation.stride, 0 < evaluation.stride <= 1, "in (0, 1]: the window's step over its size"),
        "eval.scales": (evaluation.scales, scales, f"one or more positive numbers up to {_MOST_SCALE}"),
        "eval.base_size": (base_size, _are_sides(sides), f"{_SIDES}, or null"),
        "eval.batch_size": (evaluation.batch_size, evaluation.batch_size >= 1, "at least 1"),
    }


_SIDES = f"1 to {_MOST_PIXELS} pixels each way"


def _are_sides(sides: Sequence[int]) -> bool:
    return all(1 <= side <= _MOST_PIXELS for side in sides)


def _check_channels(config: Config) -> None:
    """What images of other than three channels rule out."""
    channels, augment = config.model.in_channels, config.augment
    if channels not in (1, 3, 4):
        raise ConfigError(f"model.in_channels must be 1 (grey), 3 (RGB) or 4 (all of four bands), got {channels}")
    for name in ("mean", "std"):
        if len(getattr(augment, name)) != channels:
            raise ConfigError(
                f"augment.{name} must have as many numbers as model.in_channels, {channels}, "
                f"got {getattr(augment, name)}"
            )
    if channels != 3 and augment.preset == "mmseg":
        raise ConfigError(
            f"augment.preset mmseg changes hues, so it needs model.in_channels 3, not {channels}: set augment.preset "
            "semseg"
        )
    if channels != 3 and config.data.dataset == "scenes":
        raise ConfigError(f"data.dataset scenes draws RGB, so it needs model.in_channels 3, not {channels}")


def _check_data(data: DataConfig) -> None:
    if not data.train_splits or not data.val_splits:
        raise ConfigError("data.train_splits and data.val_splits must name at least one split each")
    used, unused = ("list", "splits") if data.dataset == "list" else ("splits", "list")
    for name in (f"train_{unused}", f"val_{unused}"):
        if getattr(data, name) != getattr(DataConfig(), name):
            raise ConfigError(
                f"data.{name} is not read with data.dataset {data.dataset}: set data.{name.replace(unused, used)}, or "
                "another data.dataset"
            )
    if data.dataset in ("list", "folder"):
        return
    for name in ("classes", "palette", "label_ids"):
        if getattr(data, name):
            raise ConfigError(
                f"data.{name} is for data sets of your own: {data.dataset} has its own, leave it out "
                "(a checkpoint's own: convert it with --recipe)"
            )
