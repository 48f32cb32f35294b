"""What can go wrong with a file that is read, in the words of a DataError."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psp_fast.errors import DataError
from psp_fast.files import open_regular


@contextmanager
def decoding(path: str | Path, failure: str) -> Iterator[None]:
    """Turn every way in which opening and decoding a file can fail inside into a DataError that names it.

    failure: what the message says of anything else than a file that cannot be opened, or a lack of memory.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the name and the folder it is relative to") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, not a file; give the path of a file") from error
    except PermissionError as error:
        raise DataError(f"{path}: cannot be opened; check its permissions") from error
    except MemoryError as error:
        raise DataError(
            f"{path}: there is not enough memory to read it; free some, set a smaller train.workers, or cut the image "
            "into tiles"
        ) from error
    except Exception as error:  # decoders of damaged files raise almost anything
        number = getattr(error, "errno", None)
        if number not in (None, errno.EINVAL):  # EINVAL: a damaged file names a place that it does not have
            raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from error
        raise DataError(f"{path}: {failure} ({error}); copy or export it again") from error


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file; DataError, which calls it `what`, where there is none."""
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {what} cannot be read (it is not UTF-8 text); check its path") from error
    except OSError as error:
        raise DataError(f"{path}: {what} cannot be read ({error.strerror}); check its path") from error
    if "\0" in text:
        raise DataError(f"{path}: {what} cannot be read (it is not UTF-8 text); check its path")
    return text.splitlines()
