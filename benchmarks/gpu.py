"""What a machine with a GPU is for, in one command of under 9 minutes: build, tests, sanitizers, benchmarks, profile.

    python -m benchmarks.gpu --out DIR [--only build|tests|ops|sanitizer|models|profile]

runs each part in processes of its own and within a time budget, and leaves at most 8 files in DIR: summary.json (what
became of each part), log.txt (what they printed), the suite's results, and the profile's table, picture and traces. A
part that was ok is not run again for the same sources, so that a second call does what the first one had no time for.
All parts together run the suite with --quick, --only ops and --only models all of it. Exits with 0 if all parts are ok.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from psp_fast.errors import PspFastError
from psp_fast.files import replacing, write_text
from psp_fast.info import environment

ROOT = Path(__file__).resolve().parents[1]
SUMMARY, LOG = "summary.json", "log.txt"
SECONDS = 510.0
"""For all parts; a process that does not end when told to takes a few more."""
GRACE = 10.0
"""Seconds that a process has to end, once told to: pytest then writes what it has measured."""
LARGEST = 16 << 20
"""Every file is smaller, in bytes."""
LONGEST = 1 << 20
"""Bytes of the log of a part; of several calls together, eight times that."""
SOURCES = (
    "psp_fast/**/*.py",
    "csrc/**/*",
    "cmake/*",
    "benchmarks/*.py",
    "tests/**/*.py",
    "*.toml",
    "*.txt",
    "setup.py",
)
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
CHOICES = [*PYTEST, "tests/kernels/test_choices.py", "tests/kernels/test_conv1x1_bn_relu.py"]
Command = Sequence[str | Path]


class Part(NamedTuple):
    """A part of the work."""

    name: str
    seconds: float
    """What it may take at least; it gets what the others leave."""
    commands: Sequence[Command]
    """Run one after the other, each whatever became of the one before; all must be ok. They share the time evenly."""
    missing: Callable[[], str | None] = lambda: None
    """Why it cannot run on this machine, None where it can."""
    files: Sequence[str] = ()
    """What it writes to the folder."""
    variables: Sequence[tuple[str, str]] = ()
    """Of the environment."""
    quick: bool = False
    """Whether it measures less than it could."""
    always: bool = False
    """Whether to run it even if it was ok, and with any other part: it finds out by itself what is to do."""


def all_parts(out: Path, quick: bool) -> list[Part]:
    """The parts in their order, the suite quick or not."""
    suite = [*PYTEST, "--benchmark-only", *(["--quick"] if quick else [])]
    ops, models = "suite_gpu.json", "suite_gpu_models.json"
    model_tests = Path("benchmarks/test_models.py")
    profile = ["profile.json", "profile.png", "trace_step.json.gz", "trace_predict.json.gz"]
    run = [sys.executable, "-m"]
    every_choice = [*CHOICES, "-k", "not compile"]
    few_choices = [*CHOICES, "-k", "bfloat16 or every_config"]
    return [
        Part("build", 120, [[*run, "benchmarks.build"]], no_gpu, always=True),
        Part("tests", 90, [every_choice, [*PYTEST, "-m", "gpu", *gpu_tests()]], no_gpu),
        Part(
            "ops",
            100,
            [[*suite, "benchmarks", f"--ignore={model_tests}", f"--results={out / ops}"]],
            no_gpu,
            [ops],
            quick=quick,
        ),
        Part(
            "sanitizer",
            80,
            [
                ["compute-sanitizer", "--tool", "memcheck", "--report-api-errors", "no", *_FAILING, *few_choices],
                ["compute-sanitizer", "--tool", "racecheck", *_FAILING, *few_choices],
            ],
            no_sanitizer,
            variables=[("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")],  # else tensors share blocks, and overruns stay inside
        ),
        Part(
            "models",
            80,
            [[*suite, model_tests, f"--results={out / models}"]],
            lambda: no_gpu() or (None if (ROOT / model_tests).exists() else f"there is no {model_tests}"),
            [models],
            quick=quick,
        ),
        Part("profile", 40, [[*run, "benchmarks.profile", f"--out={out}"]], no_gpu, profile),
    ]


_FAILING = ["--error-exitcode", "1"]


def gpu_tests() -> list[Path]:
    """The files with tests that need a GPU."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path.relative_to(ROOT) for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]


def no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "needs a CUDA GPU, and torch finds none"


def no_sanitizer() -> str | None:
    return no_gpu() or (None if shutil.which("compute-sanitizer") else "there is no program compute-sanitizer")


def sources() -> str:
    """A digest of all that results depend on: equal for the same commit, also where there is no git."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file()}):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def run_parts(parts: Sequence[Part], out: Path, seconds: float = SECONDS) -> int:
    """Run the parts that are not yet ok, and write after each what became of it; 0 if all are ok."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell, and so by the parts
        signal.signal(signal.SIGINT, signal.default_int_handler)
    end, source = time.monotonic() + seconds, sources()
    done = _read(out / SUMMARY)
    pending = [part for part in parts if not _is_done(part, done, source)]
    for part in parts:
        if part not in pending:
            print(f"{part.name}: ok before", flush=True)
            continue
        pending.remove(part)
        status, reason, took = _run(part, out, end - time.monotonic() - sum(other.seconds for other in pending))
        done[part.name] = {"status": status, "reason": reason, "seconds": took, "quick": part.quick, "sources": source}
        write_text(out / SUMMARY, json.dumps({"environment": environment(), "parts": done}, indent=1) + "\n")
        print(f"{part.name}: {status} after {took:.0f} s{reason and f' ({reason})'}", flush=True)
    bad = [part.name for part in parts if done[part.name]["status"] != "ok"]
    print(f"not ok: {', '.join(bad)}; see {out / LOG}" if bad else "all parts are ok")
    return 1 if bad else 0


def _read(path: Path) -> dict[str, Any]:
    """The parts of an earlier call's summary."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PspFastError(f"{path}: not a summary of an earlier call ({error}); remove it") from error


def _is_done(part: Part, done: dict[str, Any], source: str) -> bool:
    """Whether it was ok with these sources, and as thoroughly."""
    before = done.get(part.name, {})
    same = before.get("status") == "ok" and before["sources"] == source
    return not part.always and same and (part.quick or not before["quick"])


def _run(part: Part, out: Path, seconds: float) -> tuple[str, str, float]:
    """Status, reason and seconds of a part; what it prints goes to the end of the log."""
    reason = part.missing()
    if reason is not None:
        return "skipped", reason, 0.0
    if seconds <= 0:
        return "skipped", "no time was left for it: run the command again", 0.0
    out.mkdir(parents=True, exist_ok=True)
    log, start = out / LOG, time.monotonic()
    shorten(log, 8 * LONGEST)
    begin = log.stat().st_size if log.exists() else 0
    statuses = []
    for i, command in enumerate(part.commands):
        left = (start + seconds - time.monotonic()) / (len(part.commands) - i)
        code = run_command(command, log, left, {**os.environ, **dict(part.variables)})
        statuses.append("ok" if code == 0 else "timed out" if code is None else "failed")
    dropped = drop_large(out, part.files)
    shorten(log, LONGEST, begin)
    status = next((s for s in ("failed", "timed out") if s in statuses), "ok")
    reason = "; ".join([*dropped, *([] if status == "ok" else [last_line(log)])])
    return status, reason, time.monotonic() - start


def run_command(command: Command, log: Path, seconds: float, variables: dict[str, str]) -> int | None:
    """The exit status of a command, None where its time is up; it and all that it started are gone then."""
    with log.open("ab", buffering=0) as file:
        file.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        if seconds <= 0:
            file.write(b"no time was left for it\n")
            return None
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**variables, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                preexec_fn=os.setpgrp,  # a group of its own, to end as a whole, but of this session
            )
        except OSError as error:
            file.write(f"{error}\n".encode())
            return 127
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            file.write(f"\ntimed out after {seconds:.0f} s\n".encode())
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group: politely, then not."""
    if process.poll() is None:
        _signal(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def shorten(path: Path, limit: int, begin: int = 0) -> None:
    """Leave out the middle of what follows the first `begin` bytes of a file where that is longer than `limit`."""
    size = path.stat().st_size if path.exists() else 0
    if size - begin <= limit:
        return
    with path.open("rb") as source, replacing(path) as target:
        target.write(source.read(begin + limit // 2))
        target.write(f"\n[{size - begin - limit} bytes left out]\n".encode())
        source.seek(size - limit // 2)
        shutil.copyfileobj(source, target)


def drop_large(out: Path, names: Sequence[str]) -> list[str]:
    """Remove those of these files that are too large, and say so."""
    large = [out / name for name in names if (out / name).exists() and (out / name).stat().st_size >= LARGEST]
    lines = [f"{path.name} dropped: {path.stat().st_size} bytes" for path in large]
    for path in large:
        path.unlink()
    return lines


def last_line(log: Path) -> str:
    """The last line that is not empty."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def obey_signals() -> None:
    """Let SIGINT and SIGTERM end what runs, too."""
    # A shell that runs this in the background has it ignore SIGINT, which its processes would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def main(arguments: Sequence[str] | None = None) -> int:
    names = [part.name for part in all_parts(Path(), True)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", choices=names, help="one part, with all the time, and the build's check")
    options = parser.parse_args(arguments)
    obey_signals()
    quick, out = options.only is None, options.out.resolve()
    parts = [part for part in all_parts(out, quick) if part.always or options.only in (None, part.name)]
    code = run_parts(parts, out)
    if no_gpu():
        print(f"this command is for a machine with a GPU: it {no_gpu()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
