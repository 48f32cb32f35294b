"""Build psp_fast in place for this machine's GPU, unless its CUDA kernels are there and newer than their sources.

python -m benchmarks.build
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALL = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."]
SOURCES = ("csrc/**/*", "cmake/*", "CMakeLists.txt", "setup.py")
CHECK = """
from psp_fast.ops import backend
reason = backend.missing_cuda()
if reason:
    raise SystemExit(reason)
print(backend.native().__file__)
"""


def missing() -> str | None:
    """Why psp_fast must be built; None where it need not be."""
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it cannot be imported"])[-1]
    sources = [path for pattern in SOURCES for path in ROOT.glob(pattern)]
    return stale(Path(done.stdout.strip()), sources)


def stale(module: Path, sources: Iterable[Path]) -> str | None:
    """The first source that is newer than the module, in words."""
    built = module.stat().st_mtime
    return next((f"{path.name} is newer than {module.name}" for path in sources if path.stat().st_mtime > built), None)


def main() -> int:
    reason = missing()
    if reason is None:
        print("psp_fast is built with its CUDA kernels")
        return 0
    import torch

    print(f"building psp_fast: {reason}", flush=True)
    major, minor = torch.cuda.get_device_capability()
    environment = {"PSP_FAST_CUDA_ARCHS": f"{major}{minor}", **os.environ}
    subprocess.run(INSTALL, cwd=ROOT, env=environment, check=True)
    reason = missing()
    print(f"the build is of no use: {reason}" if reason else "psp_fast is built with its CUDA kernels")
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
