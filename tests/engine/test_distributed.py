"""Joining other processes, and what is made of their end."""

import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
import torch

from psp_fast.cli import main
from psp_fast.engine import distributed
from psp_fast.errors import ConfigError

OTHER = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
print("joined", flush=True)
input()
"""


MEETING = """
import os, torch
from psp_fast.engine import distributed
assert distributed.start("cpu").sum(torch.ones(1)) == 2
os._exit(0)  # as a process that fails leaves its addresses in the store
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSTOP])
def test_another_processes_end_or_silence_is_a_sentence(monkeypatch, capsys, ending):
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=20))
    store = torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    for name, value in {**ranks, "RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER],
        env={**os.environ, "RANK": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        ours = distributed.start("cpu")
        ours.sum(torch.ones(1))
        assert process.stdout.readline() == "joined\n"
        process.send_signal(ending)
        if ending == signal.SIGKILL:
            process.wait()
        monkeypatch.setattr("psp_fast.info.report", lambda: waiting(ours))
        assert main(["info"]) == 1
        error = capsys.readouterr().err
        assert "psp-fast: error: another process of this run has ended or does not answer" in error
        assert "Traceback" not in error
    finally:
        process.kill()
        process.wait()
        distributed.stop()


def test_processes_started_again_do_not_meet_those_that_ended(monkeypatch):
    store = torch.distributed.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    environment = {**os.environ, **given, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for restart in ("0", "1"):
        command = [sys.executable, "-c", MEETING]
        started = [
            subprocess.Popen(command, env={**environment, "RANK": rank, "TORCHELASTIC_RESTART_COUNT": restart})
            for rank in ("0", "1")
        ]
        assert [process.wait(timeout=120) for process in started] == [0, 0]


def waiting(ranks):
    group = torch.distributed.group.WORLD
    group._get_backend(torch.device("cpu"))._set_default_timeout(timedelta(seconds=1))
    return ranks.sum(torch.ones(1))


def test_a_wrong_environment_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "x")
    with pytest.raises(ConfigError, match="the environment variable WORLD_SIZE must be a whole number, got 'x'"):
        distributed.start("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT is not set: start the"):
        distributed.start("cpu")
