"""Writes files so that a reader, or a crash, meets the old file or the new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from edgealign.errors import EdgealignError


@contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file beside `path` that takes its place once the block ends well, and vanishes if it does not."""
    import tempfile

    path = os.path.abspath(os.fspath(path))
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
    except OSError as error:
        raise EdgealignError(f"'{path}' cannot be written: {error.strerror}") from None
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
