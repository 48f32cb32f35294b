"""Training runs of a benchmark, each a process of `psp-fast train`; a killed benchmark goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import record
from psp_fast.configs import config_parser, config_to_yaml, parse_config, recipe_file
from psp_fast.errors import PspFastError
from psp_fast.files import write_text


def train(
    folder: Path, options: Sequence[str], seed: int, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The record of one run of the scenes recipe, trained unless its folder already holds just this run.

    Args:
        folder: of the run; what the process prints goes to <folder>.log, the record of a finished run to <folder>.json.
        options: of the command line.
        seed: of the weights and the order of the samples.
        variables: of the environment.
    """
    wanted = [f"--out={folder}", f"--train.seed={seed}", *options]
    begun = folder / "config.yaml"
    if begun.exists() and begun.read_text(encoding="utf-8") != _config(wanted):
        raise PspFastError(f"{folder} holds a run with another configuration: remove it, or choose another --runs")
    kept = Path(f"{folder}.json")
    if not (begun.exists() and kept.exists()):
        command = ["train", "--resume", str(folder)] if begun.exists() else ["train", "scenes", *wanted]
        psp_fast(command, Path(f"{folder}.log"), variables)
        write_text(kept, json.dumps(record(folder)))
    return json.loads(kept.read_text(encoding="utf-8"))


def psp_fast(arguments: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> None:
    """Run a command of psp-fast, what it prints going to `log`; raises PspFastError with its end where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        command = [sys.executable, "-m", "psp_fast", *arguments]
        code = subprocess.call(command, stdout=output, stderr=output, env={**os.environ, **(variables or {})})
    if code:
        end = log.read_text(encoding="utf-8")[-2000:]
        raise PspFastError(f"psp-fast {' '.join(arguments)} failed; {log} ends with:\n{end}")


def same_environment(runs: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """What all runs were trained on; raises PspFastError where they differ."""
    environments = [run["environment"] for run in runs]
    if any(other != environments[0] for other in environments):
        raise PspFastError(f"the runs in {folder} are of different commits, versions or machines: remove them")
    return environments[0]


def _config(options: Sequence[str]) -> str:
    parser = config_parser("benchmark", "", "")
    return config_to_yaml(parse_config(parser, ["--config", str(recipe_file("scenes")), *options]))
