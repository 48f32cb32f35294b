"""What a checkpoint must hold, besides the weights, to continue a run from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, optim

from psp_fast.checkpoints.fields import Field, check_fields, has_names, is_count, is_number

_NUMBERS = Field("numbers by name", lambda value: has_names(value) and all(map(is_number, value.values())))
_FIELDS = {
    "step": Field("a number of steps", is_count),
    "best": Field("a number", is_number),
    "seconds": Field("a number of seconds", lambda value: is_number(value) and value >= 0),
    "validated": Field("true or false", lambda value: isinstance(value, bool)),
    "history": Field("a list of points", lambda value: isinstance(value, list) and all(map(_is_point, value))),
    "scaler": _NUMBERS,
    "optimizer": Field("a dictionary by names", has_names),
}


def check_counters(content: Mapping[str, Any], path: str | Path) -> None:
    """Raise CheckpointError with the file and the field where content is not the state of a run."""
    check_fields(content, _FIELDS, path)


def check_optimizer(content: Mapping[str, Any], optimizer: optim.Optimizer, path: str | Path) -> None:
    """Raise CheckpointError with the file and the field where content's optimizer is not that of such a run.

    Args:
        content: of the checkpoint.
        optimizer: a new one of the run.
        path: of the checkpoint.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    expected = {
        "param_groups": Field(
            f"{len(groups)} groups of the model's {len(parameters)} parameters",
            lambda value: _are_groups(value, groups),
        ),
        "state": Field("momentum of the parameters' shapes", lambda value: _are_momenta(value, parameters)),
    }
    check_fields(content["optimizer"], expected, f"{path}: optimizer")


def _is_point(value: Any) -> bool:
    """Whether value is a point of the curves; a mean over no class is NaN."""
    return has_names(value) and all(isinstance(number, int | float) for number in value.values())


def _are_groups(value: Any, wanted: list[dict[str, Any]]) -> bool:
    """Whether value is groups of the same parameters, with numbers where these have numbers."""
    if not isinstance(value, list) or len(value) != len(wanted):
        return False
    return all(
        has_names(group)
        and group.get("params") == ours["params"]
        and all(is_number(group.get(name)) for name in ours if is_number(ours[name]))
        for group, ours in zip(value, wanted, strict=True)
    )


def _are_momenta(value: Any, parameters: list[Tensor]) -> bool:
    """Whether value is the parameters' momentum, as SGD keeps it, by their positions."""
    return isinstance(value, Mapping) and all(
        is_count(i) and i < len(parameters) and has_names(state) and _is_momentum(state, parameters[i])
        for i, state in value.items()
    )


def _is_momentum(state: Mapping[str, Any], parameter: Tensor) -> bool:
    momentum = state.get("momentum_buffer")
    return momentum is None or (
        isinstance(momentum, Tensor)
        and momentum.shape == parameter.shape
        and momentum.is_floating_point()
        and bool(momentum.isfinite().all())
    )
