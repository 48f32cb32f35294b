"""Writing files so that a crash, a full disk or a kill leaves the old file or the whole new one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from psp_fast.errors import PspFastError


def expanded(path: str) -> str:
    """The path with the home folder for ~; as it is if there is no such home."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading. Pipes and devices are refused: reading them can block, or never end.

    Raises OSError: FileNotFoundError also for a name that no file can have, IsADirectoryError for a folder.
    """
    try:
        mode = Path(path).stat().st_mode
    except ValueError as error:  # a NUL
        raise FileNotFoundError(errno.ENOENT, str(error), str(path)) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EOPNOTSUPP, "it is not a regular file but a pipe, socket or device", str(path))
    return Path(path).open("rb")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """An open file that becomes `path` when the block ends without an error, and leaves no trace when it does not.

    Raises OSError where the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _temporary(path)
    with os.fdopen(handle, "wb") as file:  # open, and so locked, until it has its name
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def _temporary(path: Path) -> tuple[int, Path]:
    """An empty file beside path: .<name>.part, which what a killed process left of it does not outlive.

    While another process is writing path, it is a file of another name.
    """
    fixed = path.with_name(f".{path.name}.part")
    with contextlib.suppress(OSError):  # a file of somebody else's, a link, or a file system without locks
        handle = os.open(fixed, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(handle)
            # Another process may have renamed or removed the file before it was locked.
            ours = os.path.samestat(found, fixed.lstat()) and found.st_uid == os.getuid() and found.st_nlink == 1
            if ours and stat.S_ISREG(found.st_mode):
                os.ftruncate(handle, 0)
                return handle, fixed
            os.close(handle)
        except OSError:
            os.close(handle)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    return handle, Path(name)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep folder, made when missing, from every other process that asks for it, until the block or the process ends.

    Raises PspFastError where another process has it, or it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise PspFastError(f"{folder} cannot be written: {error.strerror}; choose another folder") from error
    with file:
        try:
            # lockf: the processes that load data do not inherit it, so that it ends with this one, however it ends.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # others: a file system without locks
                raise PspFastError(
                    f"another process is writing to {folder}: wait until it ends, or choose another folder"
                ) from error
        yield


def free_name(path: Path) -> Path:
    """The path, or the first of <stem>-2, <stem>-3, ... beside it that no file has."""
    number, free = 1, path
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def check_folder(folder: str | Path) -> None:
    """Raise PspFastError where results could not be written into folder, made when missing: before they are computed.

    Makes nothing.
    """
    path = Path(folder).absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise PspFastError(f"{folder} cannot be written: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PspFastError(f"{folder} cannot be written: {there} is not yours to write in; choose another folder")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write content as `replacing` does; PspFastError where it cannot be written."""
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise PspFastError(
            f"cannot write {path}: {error.strerror}; free disk space or choose another folder"
        ) from error


def read_text(path: str | Path) -> str:
    """UTF-8 text, what is none of it replaced; raises OSError as `open_regular` does."""
    with open_regular(path) as file:
        return file.read().decode(errors="replace")


def write_text(path: str | Path, text: str) -> None:
    """Write text, with file names that are not UTF-8 escaped, as `replacing` does; PspFastError where it cannot be."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def _umask() -> int:
    """The process's umask; reading it means setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
