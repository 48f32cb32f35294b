"""What is kept of a training run: configuration, measures and curve, with the machine, the versions and the commit.

python -m benchmarks.records RUN docs/results/NAME    writes NAME.json and NAME_curves.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from psp_fast.engine.plots import save_curves
from psp_fast.files import write_text


def record(run: Path) -> dict[str, Any]:
    """The record of a finished run; the configuration without the paths of the machine it ran on."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    del config["out"], config["data"]["root"]
    history = json.loads((run / "history.json").read_text(encoding="utf-8"))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return {"environment": environment, "config": config, "metrics": metrics, "history": history}


def main(run: str, target: str) -> None:
    content = record(Path(run))
    write_text(f"{target}.json", json.dumps(content, indent=1) + "\n")
    save_curves(Path(f"{target}_curves.png"), content["history"])


if __name__ == "__main__":
    main(*sys.argv[1:])
