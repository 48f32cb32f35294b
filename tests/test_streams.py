"""Output that nobody reads, that a disk has no room for, or that the terminal's encoding lacks."""

import os
import subprocess
import sys
import threading

import pytest

from psp_fast import streams

PROGRAM = """
import runpy, sys, threading
runpy.run_path(sys.argv[1])["forgive_lost_output"]()  # without torch, whose import takes seconds
for _ in range(3):
    print("Stra\\u00dfe " * 9999, flush=True)
def full():
    raise OSError(28, "No space left on device")
threading.Thread(target=full).start()
print("went on", file=sys.stderr)
"""


@pytest.mark.parametrize("output", ["nobody reads", "full", "closed", "ascii"])
def test_lost_output_stops_nothing(output, tmp_path):
    reader, writer = os.pipe()
    if output == "nobody reads":
        os.close(reader)
    if output == "full":
        writer = os.open("/dev/full", os.O_WRONLY)
    if output == "ascii":
        writer = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    command = [sys.executable, "-c", PROGRAM, streams.__file__]
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *command] if output == "closed" else command
    done = subprocess.run(
        command,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    told = "psp-fast: output is lost: No space left on device\n" if output == "full" else ""
    assert (done.returncode, done.stderr) == (0, f"{told}went on\n")
    if output == "ascii":
        assert (tmp_path / "out").read_text() == 3 * ("Stra\\xdfe " * 9999 + "\n")


@pytest.mark.parametrize(("option", "lines"), [("-u", b"in partsnow"), ("-B", b"now")])
def test_python_u_writes_at_once(option, lines):
    program = [*PROGRAM.splitlines()[:2], "import os; print('in parts', end=''); os.write(1, b'now'); os._exit(0)"]
    command = [sys.executable, option, "-c", "\n".join(program), streams.__file__]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.stdout == lines


def test_other_errors_of_threads_are_still_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    streams.forgive_lost_output()

    def wrong():
        raise ValueError("a mistake")

    thread = threading.Thread(target=wrong)
    thread.start()
    thread.join()
    assert [str(given.exc_value) for given in shown] == ["a mistake"]
