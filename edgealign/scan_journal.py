"""The journal of a scan: what was found in every recording that is done, so that a run can be cut off at any moment.

A line is appended and synced to the disk when a recording is done, before any output is written. What a crash may leave
is half a line at the end, which the next run cuts off. docs/formats.md specifies it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from edgealign.errors import EdgealignError, InvalidInput

FORMAT = "edgealign-scan-journal"
FORMAT_VERSION = 1
FOLDER = ".edgealign-scan"


class Journal:
    """Results by key; later lines replace earlier ones. One process at a time has a journal open.

    n_resumed   how many results it held when it was opened
    """

    def __init__(self, output: str, fingerprint: str, parameters: dict[str, Any]):
        """Opens the journal in the folder `output`, or begins one; InvalidInput where it is of another scan, or
        no folder can be made."""
        folder = os.path.join(output, FOLDER)
        self.path = os.path.join(folder, "journal.jsonl")
        try:
            os.makedirs(folder, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115  held open for the life of the run
        except OSError as error:
            raise InvalidInput(
                f"'{folder}' cannot be written: {error.strerror}; name another folder, or make room"
            ) from None
        try:
            self._lock()
            self._begin(fingerprint, parameters)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, fingerprint: str, parameters: dict[str, Any]) -> None:
        self._at: dict[str, tuple[int, tuple[int, int]]] = {}
        size = self._read(fingerprint)
        if size == 0:
            head = {"format": FORMAT, "format_version": FORMAT_VERSION, "fingerprint": fingerprint, **parameters}
            self._append(head)
        self.n_resumed = len(self._at)

    def __contains__(self, key: str) -> bool:
        return key in self._at

    def is_done(self, key: str, stamp: tuple[int, int]) -> bool:
        """Whether a result is there for a recording as it is now; stamp is its size and time of change."""
        return key in self._at and self._at[key][1] == stamp

    def put(self, key: str, stamp: tuple[int, int], result: dict[str, Any]) -> None:
        at = self._append({"key": key, "stamp": list(stamp), "result": result})
        self._at[key] = at, stamp

    def get(self, key: str) -> dict[str, Any]:
        with open(self.path, "rb") as file:  # self._file, which is written past its buffer, may not know the new lines
            file.seek(self._at[key][0])
            return json.loads(file.readline())["result"]

    def close(self) -> None:
        self._file.close()

    def _append(self, line: dict[str, Any]) -> int:
        """Where the line begins. All of it is on the disk, or nothing."""
        # Past the buffer of the file, which would be tried again whenever it is used.
        descriptor = self._file.fileno()
        at = os.fstat(descriptor).st_size
        left = json.dumps(line, allow_nan=False).encode("ascii") + b"\n"
        try:
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(descriptor, at)
            raise EdgealignError(
                f"'{self.path}' cannot be written ({error.strerror}): make room and run the same command again, "
                f"it goes on where it stopped"
            ) from None
        return at

    def _read(self, fingerprint: str) -> int:
        """Takes in all whole lines, cuts off half a line at the end, and returns the size."""
        size = 0
        is_other = False
        for line in self._whole_lines():
            try:
                entry = json.loads(line)
                if size == 0:
                    found = entry["format"], entry["format_version"]
                    if found != (FORMAT, FORMAT_VERSION):
                        raise InvalidInput(
                            f"'{self.path}' has the format {found}: this edgealign knows {FORMAT_VERSION}"
                        )
                    is_other = entry["fingerprint"] != fingerprint
                else:
                    first, second = entry["stamp"]
                    self._at[entry["key"]] = size, (first, second)
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, InvalidInput):
                    raise
                raise EdgealignError(
                    f"'{self.path}' is damaged at byte {size}: delete the folder and scan anew"
                ) from None
            size += len(line)
        if is_other and self._at:
            raise InvalidInput(
                f"'{os.path.dirname(os.path.dirname(self.path))}' holds a scan with other settings, labels or "
                f"thresholds: name another folder, or delete this one to begin anew"
            )
        if is_other:
            size = 0  # it came to nothing, and binds nobody
        self._file.truncate(size)
        return size

    def _whole_lines(self) -> Iterator[bytes]:
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                return
            yield line

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two scans into one folder are not told apart there
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InvalidInput(
                f"another scan is writing into '{os.path.dirname(self.path)}': wait for it to end"
            ) from None
