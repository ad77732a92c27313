"""Writes files so that a reader, or a crash, meets the old file or the new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from edgealign.errors import EdgealignError, InvalidInput


@contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file beside `path` that takes its place once the block ends well, and vanishes if it does not.

    Of a link, the file that it names is replaced. A device or a pipe is written as it is.
    """
    import tempfile

    path = os.path.abspath(os.fspath(path))
    if _is_special(path):
        try:
            with open(path, "wb") as file:
                yield file
        except OSError as error:
            raise EdgealignError(f"'{path}' cannot be written: {error.strerror}") from None
        return
    path = os.path.realpath(path)
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{os.path.basename(path)}-", dir=os.path.dirname(path))
    except OSError as error:
        raise EdgealignError(f"'{path}' cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644 & ~_umask())  # mkstemp makes it private
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        # Where a write fails, torch.save goes on to fail at the end of its file, and says only that.
        failed = error if isinstance(error, OSError) else error.__context__
        if not isinstance(failed, OSError):
            raise
        raise EdgealignError(f"'{path}' cannot be written: {failed.strerror}") from None
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def check_place(path: str | os.PathLike) -> None:
    """InvalidInput where no file can be written at `path`: to be asked before the work that would be lost."""
    path = os.path.abspath(os.fspath(path))
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise InvalidInput(f"'{path}' is a folder: name a file to write")
    if not os.path.isdir(folder):
        raise InvalidInput(f"'{path}' cannot be written: there is no folder '{folder}', make it first")
    if not os.access(path if _is_special(path) else folder, os.W_OK):
        raise InvalidInput(f"'{path}' cannot be written: permission denied, name another place")


def _is_special(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
