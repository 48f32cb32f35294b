"""What is kept of a training run: its configuration, measures and curve, with the machine, the versions and the commit.

python -m benchmarks.records RUN docs/results/NAME    writes NAME.json and NAME_curves.png
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from psp_fast.engine.plots import save_curves
from psp_fast.files import write_text


def environment() -> dict[str, Any]:
    """The machine, the versions and the commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": commit,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        **{name: version(name) for name in ("psp_fast", "torch", "numpy", "pillow")},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def record(run: Path) -> dict[str, Any]:
    """The record of a finished run; the configuration without the paths of the machine it ran on."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["out"], config["data"]["root"]
    history = json.loads((run / "history.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    return {"environment": environment(), "config": config, "metrics": metrics, "history": history}


def main(run: str, target: str) -> None:
    content = record(Path(run))
    write_text(f"{target}.json", json.dumps(content, indent=1) + "\n")
    save_curves(Path(f"{target}_curves.png"), content["history"])


if __name__ == "__main__":
    main(*sys.argv[1:])
