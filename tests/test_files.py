"""Writing files: what killed and live processes leave beside them, and whose folder it is."""

import errno
import fcntl
import multiprocessing
import os

import pytest
import torch

from psp_fast import files
from psp_fast.checkpoints import save_checkpoint
from psp_fast.errors import PspFastError
from psp_fast.files import locked, replacing, write_text


def test_what_a_killed_write_left_is_gone_after_the_next(tmp_path):
    left = tmp_path / ".last.pth.part"
    left.write_text("half a checkpoint, longer than the next one")
    write_text(tmp_path / "last.pth", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]
    assert (tmp_path / "last.pth").read_text() == "whole"


def test_a_file_that_is_being_written_is_left_alone(tmp_path):
    with replacing(tmp_path / "a") as first:
        first.write(b"first")
        write_text(tmp_path / "a", "second")
        assert (tmp_path / "a").read_text() == "second"
    assert (tmp_path / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_renamed_before_it_was_locked_is_left_alone(tmp_path, monkeypatch):
    """Another process ends its write between our opening of its temporary file and our lock."""
    flock = fcntl.flock

    def late(handle, how):
        (tmp_path / ".a.part").replace(tmp_path / "a")
        flock(handle, how)

    (tmp_path / ".a.part").write_text("the other's")
    monkeypatch.setattr(fcntl, "flock", late)
    with replacing(tmp_path / "a") as file:
        assert (tmp_path / "a").read_text() == "the other's"
        file.write(b"ours")
    assert (tmp_path / "a").read_text() == "ours"


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "no locks"])
def test_only_a_plain_file_of_ours_is_written_over(tmp_path, monkeypatch, kind):
    mine, temporary = tmp_path / "mine.txt", tmp_path / ".a.part"
    mine.write_text("mine")
    if kind == "link":
        temporary.symlink_to(mine)
    elif kind == "hard link":
        os.link(mine, temporary)
    elif kind == "pipe":
        os.mkfifo(temporary)
    else:
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "")))
    write_text(tmp_path / "a", "text")
    assert mine.read_text() == "mine" and (tmp_path / "a").read_text() == "text"


def _ask(folder, answers):
    try:
        with locked(folder):
            answers.put("had it")
    except PspFastError as error:
        answers.put(str(error))


def test_a_folder_is_one_processes(tmp_path):
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()

    def answer():
        process = fork.Process(target=_ask, args=(tmp_path / "run", answers))
        process.start()
        process.join()
        return answers.get()

    with locked(tmp_path / "run"):
        assert answer() == (
            f"another process is writing to {tmp_path / 'run'}: wait until it ends, or choose another folder"
        )
        child = fork.Process(target=os.read, args=(os.pipe()[0], 1))  # as one that loads images, and outlives us
        child.start()
    try:
        assert answer() == "had it"
    finally:
        child.kill()
        child.join()


def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(files.fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "")))
    with locked(tmp_path):
        pass


def test_an_interrupt_while_saving_is_an_interrupt(tmp_path, monkeypatch):
    """torch.save ends with another error of its own."""
    save_checkpoint({"a": torch.zeros(3)}, tmp_path / "last.pth")
    before = (tmp_path / "last.pth").read_bytes()

    class Interrupted:
        def __init__(self, file):
            self.file, self.writes = file, 0

        def write(self, data):
            self.writes += 1
            if self.writes == 3:
                raise KeyboardInterrupt
            return self.file.write(data)

        def flush(self):
            self.file.flush()

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: save(content, Interrupted(file)))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"a": torch.ones(300000)}, tmp_path / "last.pth")
    assert (tmp_path / "last.pth").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]
