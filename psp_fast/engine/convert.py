"""From any project's checkpoints to psp_fast's, which say all that is needed to use them, or to semseg's or mmseg's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from psp_fast.checkpoints import Weights, read_weights, save_checkpoint
from psp_fast.checkpoints.exporting import to_mmseg, to_semseg
from psp_fast.configs import Config, config_from_dict
from psp_fast.data import LAYOUTS, default_palette
from psp_fast.errors import CheckpointError, ConfigError
from psp_fast.models import PSPNet
from psp_fast.normalisation import MEAN, STD

TARGETS = ("psp_fast", "semseg", "mmseg")


def convert(paths: Sequence[str], out: Path, target: str, config: Config | None, overrides: Mapping[str, Any]) -> str:
    """Read a checkpoint of any layout and write it as `target` names it.

    Args:
        paths: the file, or mit-semseg's encoder and decoder.
        out: .pth, or .safetensors.
        target: one of `TARGETS`.
        config: the configuration whose data, transforms and evaluation a psp_fast checkpoint shall name; None: the
            file's own.
        overrides: PSPNet's arguments in place of what the file and its layout tell.

    Returns:
        What was read and written, for the user.

    Raises:
        CheckpointError: a file that cannot be read, a network the target's project does not have, or out is there.
        ConfigError: the configuration's classes are not as many as the file's.
    """
    if out.suffix.lower() not in (".pth", ".safetensors"):
        raise CheckpointError(f"{out}: the name must end in .pth or .safetensors")
    if out.exists():
        raise CheckpointError(f"{out} is there already: choose another name, or remove it first")
    weights = read_weights(paths)
    read = f"{weights.source}: {weights.layout}'s layout"
    if not weights.whole:
        if target != "psp_fast":
            raise CheckpointError(f"{weights.source} holds a backbone alone: it is written as psp_fast's only")
        save_checkpoint({"config": {"model": dict(weights.options)}, "state_dict": weights.state}, out)
        return f"{read}, a backbone\nwritten to {out}: PSPNet(pretrained={str(out)!r}, {_arguments(weights.options)})"
    model = PSPNet.from_weights(weights, **overrides)
    read = f"{read}, PSPNet({_arguments({**weights.options, **overrides})})"
    if target == "mmseg":
        state, needed = to_mmseg(model)
        save_checkpoint({"meta": {"cfg": needed}, "state_dict": state}, out)
        return f"{read}\nwritten to {out}, for mmsegmentation's\n{needed}"
    if target == "semseg":
        if not np.allclose((weights.mean, weights.std), (MEAN, STD), rtol=1e-3):
            raise CheckpointError(f"semseg normalises by {MEAN} and {STD}, not by {weights.mean} and {weights.std}")
        save_checkpoint({"state_dict": to_semseg(model)}, out)
        return f"{read}\nwritten to {out}"
    save_checkpoint(_described(model, weights, config), out)
    named = config is not None or weights.config is not None
    uses = "evaluate, predict and export" if named else "predict and export; evaluate takes its data from --recipe"
    return f"{read}\nwritten to {out}, for psp-fast {uses}"


def _described(model: PSPNet, weights: Weights, config: Config | None) -> dict[str, Any]:
    """The weights with what `psp-fast train` writes beside them."""
    saved = (
        Config() if weights.config is None else config_from_dict(weights.config, f"{weights.source}: its configuration")
    )
    base = saved if config is None else config
    options = {name: value for name, value in model.options.items() if hasattr(base.model, name)}
    network = dataclasses.replace(base.model, **{**options, "bins": list(options["bins"]), "pretrained": False})
    if network.layers < 50:  # which have no blocks that could be computed again
        network = dataclasses.replace(network, recompute=False)
    data, named = base.data, LAYOUTS.get(base.data.dataset)
    known = named.classes if named else data.classes or weights.classes
    classes = list(known or [f"class {i}" for i in range(model.options["classes"])])
    if len(classes) != model.options["classes"]:
        raise ConfigError(f"{weights.source} has {model.options['classes']} classes, not {len(classes)}")
    if weights.classes is not None and list(weights.classes) != classes and set(weights.classes) == set(classes):
        raise ConfigError(f"{weights.source} has the recipe's classes in another order: {list(weights.classes)}")
    palette = named.palette.tolist() if named else data.palette or weights.palette or default_palette(len(classes))
    if data.dataset in ("list", "folder"):
        data = dataclasses.replace(data, classes=classes)
    augment = dataclasses.replace(base.augment, mean=weights.mean, std=weights.std)
    config = dataclasses.replace(base, model=network, data=data, augment=augment)
    return {
        "config": dataclasses.asdict(config),
        "classes": classes,
        "palette": np.asarray(palette).tolist(),
        "state_dict": model.state_dict(),
    }


def _arguments(options: Mapping[str, Any]) -> str:
    """The number of layers and of classes, and those of PSPNet's arguments that are not its defaults."""
    defaults = {name: parameter.default for name, parameter in signature(PSPNet).parameters.items()}
    told = [name for name, value in options.items() if name in ("layers", "classes") or value != defaults[name]]
    return ", ".join(f"{name}={options[name]!r}" for name in told)
