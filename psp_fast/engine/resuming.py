"""What may change in the configuration of a resumed run: how it goes on, not what it already is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psp_fast.configs import Config, config_from_dict
from psp_fast.errors import ConfigError

# The network, what its outputs mean, and which samples every step sees.
_FIXED = (
    "model",
    "data.dataset",
    "data.classes",
    "data.label_ids",
    "data.train_list",
    "data.train_splits",
    "data.scenes",
    "augment",
    "train.batch_size",
    "train.seed",
)
_FREE = ("out", "model.recompute")  # the folder may have moved; computed again, values are the same


def changes(saved: dict[str, Any], config: Config, step: int, path: Path) -> list[str]:
    """What differs between the configuration saved in the checkpoint `path` and the run's now, a line a field.

    Raises:
        ConfigError: a difference in what the steps up to `step` were computed with, or fewer steps than were done.
    """
    before, after = (dict(_fields(dataclasses.asdict(c))) for c in (config_from_dict(saved), config))
    names = [name for name in before if before[name] != after[name] and name not in _FREE]
    fixed = [f"{name} {before[name]}, not {after[name]}" for name in names if _within(name, _FIXED)]
    if fixed:
        raise ConfigError(
            f"{path} was trained with {'; '.join(fixed)}: set that back in the run's config.yaml, or start another run"
        )
    if config.train.steps < step:
        raise ConfigError(
            f"train.steps is {config.train.steps}, but {path} is at step {step}: raise it in the run's config.yaml"
        )
    return [f"{name} {before[name]} -> {after[name]}" for name in names]


def _fields(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _within(name: str, sections: tuple[str, ...]) -> bool:
    return any(name == section or name.startswith(f"{section}.") for section in sections)
