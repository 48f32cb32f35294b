"""Compile a Triton kernel for GPUs that this machine does not have, and report what it needs of one.

Run as a program in a process of its own (the interpreter must be off, and it must start before triton is imported):
reads one JSON object a line from standard input, writes one a line to standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90, 100)
SHARED_MEMORY = {80: 166912, 90: 232448, 100: 232448}
"""Bytes of shared memory a block may use (CUDA programming guide, compute capabilities)."""
STACK = 16
"""Bytes a thread may keep on the stack: ptxas of some Triton releases leaves up to four words there (3.6 and 3.8, not
3.9), mostly with registers to spare. A tile that is too large for its warps spills more."""


def assert_fit(requests: list[dict[str, Any]]) -> None:
    """All compile without spilling registers and within the GPU's shared memory."""
    for asked, needed in zip(requests, resources(requests), strict=True):
        what = f"{asked['kernel']} {asked['constexprs']} on sm_{asked['arch']}: {needed}"
        assert needed["spills"] <= STACK, what
        assert needed["shared"] <= SHARED_MEMORY[asked["arch"]], what


def resources(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each request needs: {registers, spills, shared}, a thread's registers and the others in bytes.

    A request has module, kernel, signature, constexprs, arch, and where they matter num_warps, num_stages, aligned:
    signature maps an argument's name to its type ("*fp32", "i32", ..., "constexpr"), constexprs a name to its value.
    the arguments named in aligned are divisible by 16 (pointers of fresh tensors are).
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    lines = "\n".join(json.dumps(request) for request in requests)
    done = subprocess.run(
        [sys.executable, __file__], input=lines, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(request["module"]), request["kernel"])
    while not isinstance(function, triton.JITFunction):  # under autotune or heuristics
        function = function.fn
    names = function.arg_names
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in request.get("aligned", ())}
    constexprs = dict(request["constexprs"].items())
    source = ASTSource(function, request["signature"], constexprs, attributes)
    arch = request["arch"]
    options = {"num_warps": request.get("num_warps", 4), "num_stages": request.get("num_stages", 3)}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return {"shared": compiled.metadata.shared, **_registers(compiled.asm["cubin"])}


def _registers(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes of stack (spills) as the binary itself declares them, through cuobjdump."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", path], capture_output=True, text=True, check=True
        ).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", text)}
    return {"registers": found["REG"], "spills": found["STACK"]}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_compile(json.loads(line))), flush=True)
