"""What `psp-fast info` prints: versions, this machine, what was built, and what each op would run here and why."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import psp_fast
from psp_fast.errors import PspFastError
from psp_fast.ops import backend

_PACKAGES = ("triton", "numpy", "pillow")
_TESTED = ("2.11", "2.15")
"""The oldest and the newest torch that the tests pass with: docs/versions.md."""


def report() -> str:
    """The whole text: one section a topic, one fact a line."""
    sections = {
        "versions": [*versions(), ("torch tested", tested(torch.__version__))],
        "machine": machine(),
        "native module": native_module(),
        "ops": [(f"{row.op} ({row.device})", f"{row.implementation}: {row.reason}") for row in backend.explain()],
    }
    width = max(len(name) for rows in sections.values() for name, _ in rows)
    blocks = [
        "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows)]) for title, rows in sections.items()
    ]
    return "\n\n".join(blocks)


def versions() -> list[tuple[str, str]]:
    """(package, version) of psp_fast, Python and what numbers depend on."""
    own = [("python", platform.python_version()), ("torch", torch.__version__), ("psp_fast", psp_fast.__version__)]
    return [*own, *((name, _version(name)) for name in _PACKAGES)]


def tested(version: str) -> str:
    """The range of torch versions that psp_fast is tested with, and a warning where `version` is outside it."""
    oldest, newest = _TESTED
    found = _minor(version)
    text = f"{oldest} to {newest}"
    if found > _minor(newest):
        return f"{text}; warning: {version} is newer: run psp_fast's tests before you rely on it"
    return f"{text}; warning: {version} is older: install torch>={oldest}" if found < _minor(oldest) else text


def _minor(version: str) -> tuple[int, ...]:
    """(2, 11) of "2.11.0+cpu"."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def machine() -> list[tuple[str, str]]:
    """(name, value): platform, threads, GPUs."""
    rows = [
        ("platform", platform.platform()),
        ("CPUs", str(os.cpu_count())),
        ("threads", str(torch.get_num_threads())),
        ("CUDA in torch", torch.version.cuda or "none: a CPU build"),
    ]
    if not torch.cuda.is_available():
        return [*rows, ("GPU", "none that torch can use")]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        rows.append((f"GPU {index}", f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}"))
    return rows


def environment() -> dict[str, str]:
    """What a result depends on besides its configuration: versions, machine, and the commit of a source checkout."""
    kind = {"platform": f"{platform.system()} {platform.machine()}", "CPU": _cpu_name(), "commit": _commit()}
    return {**dict(versions()), **dict(machine()), **kind}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """The commit this source is at, with "+" where it was changed since; "none" for an installed wheel."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        tracked = [*git, "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "."], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return head + ("+" if changed.stdout.strip() else "")


def native_module() -> list[tuple[str, str]]:
    """(name, value): what psp_fast._native was built with and what its CPU kernels use; or why it is missing."""
    try:
        module = backend.native()
        in_use = f"{module.cpu_capability()} (of {', '.join(module.cpu_capabilities())})"
    except PspFastError as error:
        return [("error", str(error))]
    info = module.build_info()
    cuda = f"{info['cuda_architectures']}, nvcc {info['nvcc']}" if info["cuda"] else f"not built: {info['cuda_reason']}"
    return [
        ("CPU kernels", f"{info['cpu']}; {info['openmp']}; {info['compiler']}"),
        ("CPU kernels in use", in_use),
        ("CUDA kernels", cuda),
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
