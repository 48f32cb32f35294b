"""What the types of the configuration do not say: ranges, and fields that have to fit each other."""

from __future__ import annotations

from psp_fast.configs.schema import Config, DataConfig
from psp_fast.errors import ConfigError


def check(config: Config) -> None:
    """Raise ConfigError for the first field whose value cannot work."""
    train, optim, evaluation, augment = config.train, config.optim, config.eval, config.augment
    base_size = evaluation.base_size
    shortest = 1 if base_size is None else base_size if isinstance(base_size, int) else min(base_size)
    rules: dict[str, tuple[object, bool, str]] = {
        "train.steps": (train.steps, train.steps >= 1, "at least 1"),
        "train.batch_size": (train.batch_size, train.batch_size >= 1, "at least 1"),
        "train.workers": (train.workers, train.workers >= 0, "at least 0"),
        "train.seed": (train.seed, train.seed >= 0, "at least 0"),
        "train.log_every": (train.log_every, train.log_every >= 1, "at least 1"),
        "train.checkpoint_every": (train.checkpoint_every, train.checkpoint_every >= 1, "at least 1"),
        "train.validate_every": (train.validate_every, train.validate_every >= 0, "at least 0"),
        "optim.lr": (optim.lr, optim.lr > 0, "positive"),
        "optim.min_lr": (optim.min_lr, 0 <= optim.min_lr <= optim.lr, "between 0 and optim.lr"),
        "optim.momentum": (optim.momentum, 0 <= optim.momentum < 1, "in [0, 1)"),
        "optim.weight_decay": (optim.weight_decay, optim.weight_decay >= 0, "at least 0"),
        "optim.clip_grad_norm": (optim.clip_grad_norm, (optim.clip_grad_norm or 1) > 0, "positive, or null"),
        "augment.cat_max_ratio": (augment.cat_max_ratio, 0 < augment.cat_max_ratio <= 1, "in (0, 1]"),
        "augment.std": (augment.std, min(augment.std) > 0, "positive"),
        "eval.crop": (evaluation.crop, min(evaluation.crop) >= 1, "at least 1 pixel each way"),
        "eval.stride": (evaluation.stride, 0 < evaluation.stride <= 1, "in (0, 1]: the window's step over its size"),
        "eval.scales": (evaluation.scales, min(evaluation.scales, default=0) > 0, "one or more positive numbers"),
        "eval.base_size": (base_size, shortest >= 1, "at least 1 pixel, or null"),
        "eval.batch_size": (evaluation.batch_size, evaluation.batch_size >= 1, "at least 1"),
    }
    for name, (value, fits, wanted) in rules.items():
        if not fits:
            raise ConfigError(f"{name} must be {wanted}, got {value}")
    _check_channels(config)
    _check_data(config.data)


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
