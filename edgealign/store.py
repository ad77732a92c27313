"""The store: what was enrolled, in one file. The compiled core reads, writes and changes it; see docs/formats.md."""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from edgealign import kernels
from edgealign.errors import BundleMismatch, EdgealignError, InvalidInput, StoreUnreadable, StoreUnwritable
from edgealign.escaping import printable
from edgealign.kernels import PICTURE, RECORDING, TEXT, Calibration

try:
    from edgealign import _core
except ImportError:
    _core = None

__all__ = ["PICTURE", "RECORDING", "TEXT", "Matcher", "Store"]

# What to do with a store after its encoder was replaced: embeddings of two encoders mean nothing to each other.
ANOTHER_ENCODER = (
    "use the bundle it was made with, or enroll the samples again into another store (--store, or move this one away)"
)
LOCK_WAIT_S = 60.0  # an enrollment holds the lock for milliseconds; longer than this is a stuck process
LOCK_POLL_S = 0.01
ROW = np.dtype([("label", np.int32), ("kind", np.int32), ("name", object)])
ID_DIGITS = 8  # of the SHA-256 of a sample's source


@contextmanager
def _errors(otherwise: type[EdgealignError]) -> Iterator[None]:
    """What the core refuses, as an error of edgealign: `otherwise` unless the status has one of its own."""
    if _core is None:
        raise EdgealignError(
            "a store needs the compiled core, which is missing from this installation: install edgealign with pip, "
            "from a wheel or on a machine with a C++ compiler"
        )
    try:
        yield
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    except _core.Error as error:
        status, message = error.args
        raise (BundleMismatch if status == _core.EA_STORE_MISMATCH else otherwise)(message) from None


@contextmanager
def _locked(path: bytes) -> Iterator[object]:
    """The only right to write a path, for as long as the block runs. Waits for others to finish."""
    deadline = time.monotonic() + LOCK_WAIT_S
    with _errors(StoreUnwritable):
        while True:
            try:
                lock = _core.store_lock(path)
                break
            except _core.Error as error:
                if error.args[0] != _core.EA_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(LOCK_POLL_S)
    try:
        yield lock
    finally:
        _core.store_unlock(lock)


def _short_name(name: str) -> str:
    """A name as the store keeps it: for people to read, so what UTF-8 cannot write is replaced and a long one cut."""
    return name.encode(errors="replace")[: _core.EA_MAX_NAME_BYTES].decode(errors="ignore").replace("\0", "?")


class Store:
    """Labels and the embeddings that they were enrolled with. One thread at a time may use one.

    Changes happen in memory until `save`. Each call that changes something is one operation, which `undo` takes back;
    what `operation` or `update` encloses is a single one. Labels are compared in Unicode's normal form NFC.
    """

    def __init__(self, native: object) -> None:
        """For the class methods only: `create`, `load` and `update` make stores."""
        self._native = native
        self._grouped = False
        self._changed = False
        self._rows: tuple[np.ndarray, np.ndarray] | None = None
        with _errors(StoreUnreadable):
            self.modality, fingerprint, self.dim, *_ = _core.store_info(native)
        self.encoder_sha256 = fingerprint.hex()

    @classmethod
    def create(cls, modality: str, encoder_sha256: str, dim: int) -> Store:
        """An empty store for the embeddings of one encoder.

        encoder_sha256   the fingerprint of its bundle, 64 hexadecimal digits
        dim              elements of an embedding, 1 to 4096
        """
        with _errors(InvalidInput):
            return cls(_core.store_create(modality, bytes.fromhex(encoder_sha256), dim))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Store:
        """The store in a file. StoreUnreadable where there is none, or none that this version can read."""
        with _errors(StoreUnreadable):
            return cls(_core.store_load(os.fsencode(path)))

    @classmethod
    @contextmanager
    def update(
        cls,
        path: str | os.PathLike,
        modality: str | None = None,
        encoder_sha256: str | None = None,
        dim: int | None = None,
    ) -> Iterator[Store]:
        """Change the store in a file, as one operation that loses nothing of what others write meanwhile.

        With modality, encoder_sha256 and dim a store that does not exist is created, and one of another encoder is a
        BundleMismatch; without them it must exist. The file is written at the end of the block if anything changed, and
        not if the block raises.
        """
        name = os.fsencode(path)
        with _locked(name) as lock:
            if encoder_sha256 is not None and not os.path.exists(path):
                store = cls.create(modality, encoder_sha256, dim)
            else:
                store = cls.load(path)
            expected = (modality, encoder_sha256, dim)
            found = (store.modality, store.encoder_sha256, store.dim)
            if encoder_sha256 is not None and found != expected:
                raise BundleMismatch(
                    f"'{os.fspath(path)}' holds {found[0]} of encoder {found[1][:12]}, but what is to be added is "
                    f"{modality} of encoder {encoder_sha256[:12]}: {ANOTHER_ENCODER}"
                )
            with store.operation():
                yield store
            if store._changed:
                store._write(name, lock)

    def save(self, path: str | os.PathLike) -> None:
        """Replace a file by this store: a crash leaves the old file or the new one, readable by its owner only."""
        name = os.fsencode(path)
        with _locked(name) as lock:
            self._write(name, lock)

    def _write(self, name: bytes, lock: object) -> None:
        with _errors(StoreUnwritable):
            _core.store_save(self._native, name, lock)
        self._changed = False

    @contextmanager
    def operation(self) -> Iterator[None]:
        """All changes in the block are one operation."""
        _core.store_begin_op(self._native)
        outer, self._grouped = self._grouped, True
        try:
            yield
        finally:
            self._grouped = outer

    @contextmanager
    def _change(self) -> Iterator[None]:
        if not self._grouped:
            _core.store_begin_op(self._native)
        self._rows = None
        with _errors(InvalidInput):
            yield
        self._changed = True

    def add(self, label: str, embeddings: np.ndarray, kind: int, sha256s: Sequence[bytes], names: Sequence[str]) -> int:
        """Enroll samples under a label, new or known. Returns how many; those that were there already do not count.

        label        1 to 1024 bytes of UTF-8
        embeddings   float32 [n, dim], finite
        kind         RECORDING, TEXT or PICTURE
        sha256s      32 bytes for each sample, of what it was made from: equal ones are the same sample
        names        for people: the file or the text
        """
        embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise InvalidInput(f"embeddings have the shape {embeddings.shape}, expected [n, {self.dim}]")
        if not len(embeddings) == len(sha256s) == len(names) or any(len(digest) != 32 for digest in sha256s):
            raise InvalidInput(f"{len(embeddings)} embeddings need as many sha256s of 32 bytes and as many names")
        label = unicodedata.normalize("NFC", label)
        try:
            label.encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"the label {label!r} cannot be written as UTF-8: rename its folder") from None
        with self._change():
            short_names = [_short_name(name) for name in names]
            return _core.store_add(self._native, label, kind, embeddings, b"".join(sha256s), short_names)

    def remove(self, label: str, sample: str | None = None) -> int:
        """Take a label out, or one of its samples. Returns of how many samples.

        sample   its name, which a terminal may have shown escaped, or its id, see `ids`
        raises   InvalidInput where there is no such label or sample, or several are named so
        """
        label = unicodedata.normalize("NFC", label)
        row = None if sample is None else self._row_of(label, sample)
        with self._change():
            if row is None:
                return _core.store_remove(self._native, label)
            _core.store_remove_row(self._native, row)
            return 1

    def _row_of(self, label: str, sample: str) -> int:
        own, rows, ids = self.rows_of(label), self.rows(), self.ids()
        if not len(own):
            raise InvalidInput(f"the store has no label '{label}'")
        fits = [int(row) for row in own if sample in (rows["name"][row], printable(rows["name"][row]))]
        fits = fits or [int(row) for row in own if sample == ids[row]]
        if len(fits) > 1:
            which = ", ".join(ids[row] for row in fits)
            raise InvalidInput(f"{len(fits)} samples of '{label}' are named '{sample}': name one by its id, of {which}")
        if not fits:
            raise InvalidInput(f"'{label}' has no sample '{sample}': `edgealign store list '{label}'` names them")
        return fits[0]

    def rename(self, label: str, new_label: str) -> int:
        """Give the samples of a label to another one, where they come last. Returns how many.

        A label that is there already is joined; of what both have, one is kept, and is not counted. InvalidInput where
        there is no such label, and for a new one that is the old one or no label at all.
        """
        label, new_label = (unicodedata.normalize("NFC", name) for name in (label, new_label))
        with self._change():
            return _core.store_rename(self._native, label, new_label)

    def merge(self, other: Store) -> int:
        """Add what another store of the same encoder holds beyond this one. Returns how many samples."""
        with self._change():
            return _core.store_merge(self._native, other._native)

    def undo(self) -> None:
        """Take the last operation back. InvalidInput where there is none, or it is too long ago."""
        with self._change():
            _core.store_undo(self._native)

    def labels(self) -> list[str]:
        """In the order of their first enrollment."""
        return _core.store_labels(self._native)

    def rows(self) -> np.ndarray:
        """Structured [n]: `label` int32, position in `labels`; `kind` int32; `name` str."""
        return self._view()[0]

    def rows_of(self, label: str) -> np.ndarray:
        """Where the rows of a label are in `rows`; empty where it is not in the store."""
        labels, name = self.labels(), unicodedata.normalize("NFC", label)
        return np.flatnonzero(self.rows()["label"] == (labels.index(name) if name in labels else -1))

    def ids(self) -> list[str]:
        """What tells rows of the same name apart, as in `rows`: the first digits of the SHA-256 of their sources."""
        digests = _core.store_sources(self._native)
        return [digests[at : at + ID_DIGITS // 2].hex() for at in range(0, len(digests), 32)]

    def embeddings(self) -> np.ndarray:
        """float32 [n, dim], as in `rows`."""
        return self._view()[1]

    def _view(self) -> tuple[np.ndarray, np.ndarray]:
        if self._rows is None:
            n_rows = _core.store_info(self._native)[4]
            labels, kinds = np.empty(n_rows, np.int32), np.empty(n_rows, np.int32)
            embeddings = np.empty((n_rows, self.dim), np.float32)
            rows = np.empty(n_rows, ROW)
            rows["name"] = _core.store_rows(self._native, labels, kinds, embeddings)
            rows["label"], rows["kind"] = labels, kinds
            self._rows = rows, embeddings
        return self._rows

    @property
    def n_ops(self) -> int:
        """How many operations made the store what it is, those undone not counted."""
        return _core.store_info(self._native)[3]

    @property
    def sha256(self) -> str:
        """The checksum at the end of the file that this store is, or would be: it covers all bytes before."""
        return _core.store_sha256(self._native).hex()


class Matcher(kernels.Matcher):
    """Decides between the labels of a store as they are now and unknown; its labels count as in `Store.labels`."""

    def __init__(self, store: Store, bank: np.ndarray, calibration: Calibration, text_weight: float = 1.0) -> None:
        rows = store.rows()
        n_labels = len(store.labels())
        super().__init__(store.embeddings(), rows["label"], rows["kind"], n_labels, bank, calibration, text_weight)
