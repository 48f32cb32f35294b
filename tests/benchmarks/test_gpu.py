"""The GPU command's machinery, without a GPU: parts fail, time out, resume; logs and results stay small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import build, gpu
from benchmarks.gpu import Part, run_parts
from psp_fast.errors import PspFastError

SCRIPT = """
import sys
from pathlib import Path
from benchmarks.gpu import Part, obey_signals, run_parts
out = Path(sys.argv[1])
obey_signals()
sleep = f"import os, time; open({str(out / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
run_parts([Part("first", 9, [[sys.executable, "-c", "pass"]]), Part("second", 9, [[sys.executable, "-c", sleep]])], out)
"""


def part(name: str, *codes: str, **kind: Any) -> Part:
    """A part that runs Python programs."""
    return Part(name, kind.pop("seconds", 1), [[sys.executable, "-c", code] for code in codes], **kind)


def counted(name: str, out: Path, code: str = "") -> Part:
    """A part that leaves a letter each time that it runs."""
    return part(name, f"open({str(out / name)!r}, 'a').write('x')\n{code}")


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / gpu.SUMMARY).read_text())["parts"]


def wait_for(found: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_gone(process: int) -> bool:
    """Whether a process ended, or waits only for its parent to ask how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_part_that_fails_does_not_stop_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [
        part("bad", "print('working'); raise SystemExit('it broke')", "print('goes on')"),
        Part("absent", 1, [["no_such_program"]]),
        part("good", "print('fine')"),
        part("unfit", "print('never')", missing=lambda: "needs more"),
    ]
    assert run_parts(parts, tmp_path) == 1
    found = summary(tmp_path)
    assert [found[p.name]["status"] for p in parts] == ["failed", "failed", "ok", "skipped"]
    assert found["bad"]["reason"] == "goes on" and found["unfit"]["reason"] == "needs more"
    assert "no_such_program" in found["absent"]["reason"]
    log = (tmp_path / gpu.LOG).read_text()
    assert all(text in log for text in ("working", "it broke", "goes on", "fine")) and "never" not in log
    assert capsys.readouterr().out.endswith(f"not ok: bad, absent, unfit; see {tmp_path / gpu.LOG}\n")


def test_ok_parts_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    parts = [
        counted("a", tmp_path),
        counted("b", tmp_path, f"import os, sys; sys.exit(os.path.exists({str(broken)!r}))"),
        counted("c", tmp_path)._replace(always=True),
    ]
    assert run_parts(parts, tmp_path) == 1
    broken.unlink()
    assert run_parts(parts, tmp_path) == 0
    runs = {p.name: len((tmp_path / p.name).read_text()) for p in parts}
    assert runs == {"a": 1, "b": 2, "c": 2}
    assert run_parts(parts[:1], tmp_path) == 0 and set(summary(tmp_path)) == {"a", "b", "c"}
    monkeypatch.setattr(gpu, "sources", lambda: "others")
    assert run_parts(parts[:1], tmp_path) == 0 and (tmp_path / "a").read_text() == "xx"


def test_a_quick_run_is_not_a_whole_one(tmp_path: Path) -> None:
    whole = counted("a", tmp_path)
    for quick, runs in ((True, 1), (True, 1), (False, 2), (True, 2), (False, 2)):
        assert run_parts([whole._replace(quick=quick)], tmp_path) == 0
        assert (tmp_path / "a").read_text() == "x" * runs


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    """SIGINT as it is for what a shell starts in its foreground, and in its background."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_a_part_out_of_time_may_still_write(tmp_path: Path) -> None:
    code = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
try:
    time.sleep(60)
except KeyboardInterrupt:
    open({str(tmp_path / "results")!r}, "w").write("half")
"""
    assert run_parts([part("slow", code, seconds=1), part("next", "pass")], tmp_path, seconds=4.5) == 1
    found = summary(tmp_path)
    assert found["slow"]["status"] == "timed out" and found["next"]["status"] == "ok"
    assert 3.4 < found["slow"]["seconds"] < 8  # what the next one leaves
    assert (tmp_path / "results").read_text() == "half"
    child = next(line for line in (tmp_path / gpu.LOG).read_text().splitlines() if line.isdigit())
    wait_for(lambda: is_gone(int(child)))


def test_a_part_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.2)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf'); time.sleep(60)"
    assert run_parts([part("deaf", code)], tmp_path, seconds=1) == 1
    assert summary(tmp_path)["deaf"] | {"seconds": 0} == summary(tmp_path)["deaf"] | {
        "status": "timed out",
        "seconds": 0,
    }
    assert summary(tmp_path)["deaf"]["seconds"] < 10


def test_no_time_left(tmp_path: Path) -> None:
    assert run_parts([part("a", "pass"), part("b", "pass")], tmp_path, seconds=0.0) == 1
    assert [(p["status"], "again" in p["reason"]) for p in summary(tmp_path).values()] == [("skipped", True)] * 2
    assert gpu.run_command([sys.executable], tmp_path / gpu.LOG, -1.0, {}) is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_summary_survives_a_kill(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=gpu.ROOT, stdout=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    child = int((tmp_path / "pid").read_text())
    if number == signal.SIGKILL:  # which nobody can pass on
        os.kill(child, signal.SIGKILL)
    wait_for(lambda: is_gone(child))
    assert {name: entry["status"] for name, entry in summary(tmp_path).items()} == {"first": "ok"}
    assert run_parts([part("first", "raise SystemExit('again')"), part("second", "pass")], tmp_path) == 0


def test_logs_lose_their_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / gpu.LOG
    log.write_bytes(b"before" + b"a" * 50 + b"b" * 1000 + b"c" * 50)
    gpu.shorten(log, 100, begin=6)
    assert log.read_bytes() == b"before" + b"a" * 50 + b"\n[1000 bytes left out]\n" + b"c" * 50
    gpu.shorten(log, 1000)
    assert b"[1000 bytes" in log.read_bytes()
    gpu.shorten(tmp_path / "none", 100)
    monkeypatch.setattr(gpu, "LONGEST", 1000)
    for _ in range(12):
        run_parts([part("loud", "print('first'); print('x' * 100000); raise SystemExit('last')")], tmp_path)
    assert b"first" in log.read_bytes() and b"last" in log.read_bytes()
    assert log.stat().st_size < 10 * 1000 and summary(tmp_path)["loud"]["reason"] == "last"


def test_large_results_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LARGEST", 100)
    code = f"[open({str(tmp_path)!r} + '/' + n, 'w').write('x' * s) for n, s in (('large', 100), ('small', 99))]"
    (tmp_path / "another").write_text("x" * 200)
    assert run_parts([part("a", code, files=["large", "small", "unwritten"])], tmp_path) == 0
    assert summary(tmp_path)["a"]["reason"] == "large dropped: 100 bytes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", gpu.LOG, "small", gpu.SUMMARY]


def test_a_file_that_is_no_summary(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"environment": {}}'):
        (tmp_path / gpu.SUMMARY).write_text(text)
        with pytest.raises(PspFastError, match=r"not a summary of an earlier call .*; remove it"):
            run_parts([], tmp_path)


def test_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "obey_signals", lambda: None)
    assert gpu.main(["--out", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all("needs a CUDA GPU" in line for line in lines[:6]) and len(lines) == 8
    assert {entry["status"] for entry in summary(tmp_path).values()} == {"skipped"}
    assert gpu.main(["--out", str(tmp_path), "--only", "tests"]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:2]] == ["build", "tests"]


def test_the_parts_fit() -> None:
    for quick in (True, False):
        parts = gpu.all_parts(Path("out"), quick)
        assert sum(p.seconds for p in parts) <= gpu.SECONDS <= 540 - 2 * gpu.GRACE
        assert len({gpu.SUMMARY, gpu.LOG, *(name for p in parts for name in p.files)}) <= 8
        words = [str(word) for p in parts for command in p.commands for word in command]
        assert words.count("--quick") == 2 * quick
        files = [word for word in words if word.endswith(".py") and "=" not in word and "test_models" not in word]
        assert files and all((gpu.ROOT / file).exists() for file in files)
    assert Path("tests/ops/test_pyramid_pool.py") in gpu.gpu_tests()


def test_sources_tell_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    for name in ("csrc/cuda/a.cu", "README.md", "psp_fast/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = gpu.sources()
    (tmp_path / "README.md").write_text("2")
    assert gpu.sources() == before
    (tmp_path / "csrc/cuda/a.cu").write_text("2")
    assert gpu.sources() != before


def test_why_to_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, source = tmp_path / "module.so", tmp_path / "kernel.cu"
    for path, age in ((module, 0), (source, 10)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    assert build.stale(module, [source]) is None
    os.utime(source, (time.time() + 10,) * 2)
    assert build.stale(module, [module, source]) == "kernel.cu is newer than module.so"
    monkeypatch.setattr(build, "CHECK", f"print({str(module)!r})")
    os.utime(module, (time.time() + 100,) * 2)
    assert build.missing() is None and build.main() == 0
    monkeypatch.setattr(build, "CHECK", "raise SystemExit('no kernels')")
    assert build.missing() == "no kernels"
