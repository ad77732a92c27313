"""A scan over many recordings: which ones, with how many processes, resumed where an earlier run stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import tzinfo
from itertools import count
from typing import Any

import numpy as np

from edgealign import __version__, kernels
from edgealign.audio import MIX, AudioFile
from edgealign.errors import AnnotationUnreadable, EdgealignError, InputUnreadable, InvalidInput
from edgealign.inputs import ClipWindows, ImageInput
from edgealign.recognizer import Recognizer
from edgealign.scan import WINDOW_S, Detection, Scanner, ScanOptions
from edgealign.scan_journal import Journal
from edgealign.scan_outputs import Outputs
from edgealign.scan_windows import WindowScanner
from edgealign.sources import is_audio_name
from edgealign.store import RECORDING
from edgealign.timestamps import recorded_at, utc_text
from edgealign.workers import end_with_parent

ALL = "all"

AnyScanner = Scanner | WindowScanner


@dataclass(frozen=True)
class Recording:
    """path as given; name of its outputs, below the output folder and without a suffix; size for the progress."""

    path: str
    name: str
    size_bytes: int

    @property
    def key(self) -> str:
        return os.path.abspath(self.path)

    def stamp(self) -> tuple[int, int]:
        """Size and time of change: a recording that has others is searched again."""
        status = os.stat(self.path)
        return status.st_size, status.st_mtime_ns


@dataclass
class Found:
    """Recordings to search, in a stable order, and what could not be looked at."""

    recordings: list[Recording] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """n_done counts recordings with results, those of earlier runs too; n_seconds the sound that this run searched."""

    n_done: int
    n_resumed: int
    n_rows: int
    n_seconds: float
    elapsed_s: float
    failures: list[tuple[str, str]]


def find_recordings(paths: Iterable[str | os.PathLike]) -> Found:
    """The recordings behind files and folders; folders are searched to any depth, links to folders are not followed."""
    found = Found()
    seen: set[str] = set()
    places: list[tuple[str, str, int]] = []

    def add(path: str, below: str) -> None:
        if os.path.abspath(path) in seen:
            return
        seen.add(os.path.abspath(path))
        try:
            size_bytes = os.stat(path).st_size
        except OSError as error:
            found.failures.append((path, f"cannot be read: {error.strerror}"))
            return
        places.append((path, below, size_bytes))

    for path in map(os.fspath, paths):
        if not os.path.isdir(path):
            if os.path.lexists(path):
                add(path, os.path.dirname(path) or ".")
            else:
                found.failures.append((path, "does not exist: check the path"))
            continue
        n_before = len(places)

        def unreadable(error: OSError) -> None:
            found.failures.append((error.filename, f"cannot be read: {error.strerror}"))

        for folder, folders, files in os.walk(path, onerror=unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if is_audio_name(name):
                    add(os.path.join(folder, name), path)
            for name in folders:
                if is_audio_name(name):
                    found.failures.append((os.path.join(folder, name), "is a folder: a recording is expected"))
        if len(places) == n_before and not any(name.startswith(path) for name, _ in found.failures):
            found.failures.append((path, "holds no recordings"))
    names = _names([(path, below) for path, below, _ in places])
    found.recordings += [Recording(path, name, size) for (path, _, size), name in zip(places, names, strict=True)]
    return found


def _names(places: Sequence[tuple[str, str]]) -> list[str]:
    """A name for the outputs of each recording that no other has, whatever their order: its path below the folder that
    it was found in, without its extension where that is enough.

    Where two folders hold recordings of one path, the names of both begin with those of the folders, and of as many
    above them as it takes.

    places   path, and the folder that was named
    """
    folders = [tuple(os.path.abspath(below).strip(os.sep).split(os.sep)) for _, below in places]
    whole = [os.path.relpath(path, below) for path, below in places]
    stems = [os.path.splitext(name)[0] for name in whole]
    n_above = dict.fromkeys(folders, 0)

    def named(folder: tuple[str, ...], name: str) -> str:
        return os.path.join(*folder[len(folder) - n_above[folder] :], name)

    while True:
        owners: dict[str, set[tuple[str, ...]]] = {}
        for folder, stem in zip(folders, stems, strict=True):
            owners.setdefault(named(folder, stem).casefold(), set()).add(folder)
        alike = {folder for several in owners.values() if len(several) > 1 for folder in several}
        alike = {folder for folder in alike if n_above[folder] < len(folder)}
        if not alike:
            break
        for folder in alike:
            n_above[folder] += 1
    short = [named(folder, stem) for folder, stem in zip(folders, stems, strict=True)]
    times = Counter(name.casefold() for name in short)
    names = [
        name if times[name.casefold()] == 1 else named(folder, own)
        for folder, name, own in zip(folders, short, whole, strict=True)
    ]
    taken: set[str] = set()
    for i, name in enumerate(names):  # what differs in case alone is one file on some disks
        tries = (f"{name}-{number}" if number > 1 else name for number in count(1))
        names[i] = next(one for one in tries if one.casefold() not in taken)
        taken.add(names[i].casefold())
    return names


def channels_of(source: AudioFile, channel: str) -> list[int | None]:
    """The channels to search one after the other; None is their mean."""
    if channel == MIX:
        return [None]
    if channel == ALL:
        return list(range(1, source.n_channels + 1))
    return [int(channel)]


def check_channel(channel: str) -> str:
    if channel in (MIX, ALL) or (channel.isdecimal() and int(channel) >= 1):
        return channel
    raise InvalidInput(f"channel is '{channel}': expected mix, all, or a number from 1")


def scan_recording(
    scanner: AnyScanner, path: str, channel: str, zone: tzinfo | None, heard: Callable[[float], None]
) -> dict[str, Any]:
    """What the journal keeps of one recording; `heard` is told the share that is done.

    A recording that breaks off keeps what was found until then, and says why in "error". InputUnreadable where nothing
    of it can be read.
    """
    options = scanner.options
    source = AudioFile(path, None, options.audio_speed)
    todo = channels_of(source, channel)
    rate_hz = source.sample_rate_hz / options.audio_speed
    expected_s = max(source.n_expected / rate_hz, 1e-3)
    detections: list[dict[str, Any]] = []
    error = None
    heard_s = 0.0
    for i, number in enumerate(todo):
        source = AudioFile(path, number, options.audio_speed)

        def report(seconds: float, done: int = i) -> None:
            heard((done + min(seconds / expected_s, 1.0)) / len(todo))

        try:
            for found in scanner.scan(source, report):
                detections.append(_as_dict(found, MIX if number is None else number))
        except InputUnreadable as problem:
            if source.duration_s <= 0:
                raise
            error = _reason(problem, path)
        heard_s = max(heard_s, source.duration_s * options.audio_speed)
    if error is None and (missing_s := source.missing_s() * options.audio_speed):
        error = f"breaks off at {heard_s:.1f} s: its header announces {heard_s + missing_s:.1f} s"
    detections.sort(key=lambda found: (found["start_s"], found["end_s"]))
    clock = recorded_at(path, zone)
    low_hz, high_hz = scanner.band_hz
    return {
        "duration_s": heard_s,
        "sample_rate_hz": rate_hz,
        "n_searched": len(todo),
        "start_utc": None if clock is None else utc_text(clock.start),
        "clock": None if clock is None else clock.source,
        "band_hz": [round(low_hz, 3), round(min(high_hz, rate_hz / 2), 3)],
        "error": error,
        "detections": detections,
    }


def _as_dict(found: Detection, channel: int | str) -> dict[str, Any]:
    return {
        "channel": channel,
        "start_s": round(found.start_s, 6),
        "end_s": round(found.end_s, 6),
        "margin": None if found.margin is None else round(found.margin, 6),
        "accepted": found.accepted,
        "ranked": [
            [item.label, round(item.similarity, 6), round(item.threshold, 6), round(item.probability, 6)]
            for item in found.ranked
        ],
    }


@dataclass(frozen=True)
class ScanJob:
    """All that a worker process needs to search recordings as this one would."""

    bundle_path: str
    variant: str
    device: str
    store_path: str
    store_sha256: str
    options: ScanOptions
    channel: str
    zone: tzinfo | None

    @classmethod
    def of(cls, recognizer: Recognizer, options: ScanOptions, channel: str, zone: tzinfo | None) -> ScanJob:
        bundle = recognizer.bundle
        return cls(
            bundle.path, bundle.variant, bundle.device, recognizer.store_path, recognizer.store.sha256, options,
            check_channel(channel), zone,
        )  # fmt: skip

    def fingerprint(self, encoder_sha256: str, decision: Any) -> str:
        """Hex sha256 of everything that changes what is found, or how it is named."""
        made_of = {
            "version": __version__,
            "store": self.store_sha256,
            "encoder": encoder_sha256,
            "variant": self.variant,
            "decision": decision,
            "options": asdict(self.options),
            "channel": self.channel,
            "timezone": None if self.zone is None else str(self.zone),
        }
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def run(
    recognizer: Recognizer,
    found: Found,
    outputs: Outputs,
    options: ScanOptions,
    *,
    channel: str = MIX,
    zone: tzinfo | None = None,
    workers: int = 1,
    progress: Callable[[float, int], None] = lambda share, n_done: None,
) -> Summary:
    """Searches recordings and writes what was found; the same call goes on where an earlier one was cut off.

    progress   told the share of all bytes that is done and how many recordings are
    raises     KeyboardInterrupt after the tables of what is done were written
    """
    began = time.monotonic()
    scanner = make_scanner(recognizer, options)  # before anything is written: it says what is wrong with the options
    job = ScanJob.of(recognizer, options, channel, zone)
    bundle = recognizer.bundle
    decision = [bundle.manifest["calibration"], bundle.manifest["files"][bundle.manifest["bank"]["file"]]["sha256"]]
    windows = getattr(bundle.input, "windows", None)
    window_s = windows.window_s if isinstance(windows, ClipWindows) else WINDOW_S
    parameters = {"parameters": {**asdict(options), "channel": channel, "window_s": window_s}, "version": __version__}
    journal = Journal(outputs.folder, job.fingerprint(bundle.encoder_sha256, decision), parameters)
    failures = list(found.failures)
    n_seconds = 0.0
    try:
        todo, stamps = _to_do(found.recordings, journal, outputs, failures)
        total_bytes = max(1, sum(recording.size_bytes for recording in todo))
        done_bytes = n_done = 0

        def show(bytes_in_hand: float) -> None:
            progress((done_bytes + bytes_in_hand) / total_bytes, n_done)

        try:
            for recording, result in _results(scanner, job, todo, workers, show):
                done_bytes += recording.size_bytes
                n_done += 1
                if isinstance(result, EdgealignError):
                    failures.append((recording.path, _reason(result, recording.path)))
                else:
                    n_seconds += result["duration_s"]
                    if recording.key in journal:
                        outputs.discard(recording.name)
                    journal.put(recording.key, stamps[recording.path], result)
                    _write(outputs, recording, result, None, failures)
                show(0)
        finally:
            done = [recording for recording in found.recordings if recording.key in journal]
            results = ((recording.path, journal.get(recording.key)) for recording in done)
            n_rows = outputs.write_combined(_noting_errors(results, failures), parameters)
            order = {recording.path: place for place, recording in enumerate(found.recordings)}
            failures.sort(key=lambda failure: order.get(failure[0], -1))  # not as processes happened to end
            outputs.write_failures(failures)
    finally:
        journal.close()
    n_resumed = len(done) - sum(recording.path in stamps and recording.key in journal for recording in todo)
    return Summary(len(done), n_resumed, n_rows, n_seconds, time.monotonic() - began, failures)


def _noting_errors(
    results: Iterable[tuple[str, dict[str, Any]]], failures: list[tuple[str, str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Passes results on, and lists those that broke off."""
    for path, result in results:
        if result["error"] is not None:
            failures.append((path, result["error"]))
        yield path, result


def _to_do(
    recordings: list[Recording], journal: Journal, outputs: Outputs, failures: list[tuple[str, str]]
) -> tuple[list[Recording], dict[str, tuple[int, int]]]:
    """The recordings that are not done, with their stamps; outputs of done ones that are missing are written."""
    todo: list[Recording] = []
    stamps: dict[str, tuple[int, int]] = {}
    for recording in recordings:
        try:
            stamp = recording.stamp()
        except OSError as error:
            failures.append((recording.path, f"cannot be read: {error.strerror}"))
            continue
        if not journal.is_done(recording.key, stamp):
            if recording.key not in journal:
                outputs.check_free(recording.name)
            else:
                outputs.check_own(recording.name, recording.path, journal.get(recording.key))
            todo.append(recording)
            stamps[recording.path] = stamp
        elif kinds := outputs.lacking(recording.name):
            _write(outputs, recording, journal.get(recording.key), kinds, failures)
    return todo, stamps


def _write(
    outputs: Outputs,
    recording: Recording,
    result: dict[str, Any],
    kinds: list[str] | None,
    failures: list[tuple[str, str]],
) -> None:
    try:
        outputs.write_recording(recording.name, recording.path, result, kinds)
    except AnnotationUnreadable as error:  # of the user's; when it is mended, the same command goes on with it
        failures.append((recording.path, f"was searched, but {error}"))


def _results(
    scanner: AnyScanner, job: ScanJob, todo: list[Recording], workers: int, show: Callable[[float], None]
) -> Iterator[tuple[Recording, dict[str, Any] | EdgealignError]]:
    """Each recording with what was found, as they are finished."""
    if min(workers, len(todo)) > 1:
        yield from _with_processes(job, todo, min(workers, len(todo)), show)
        return
    for recording in todo:
        yield (
            recording,
            _guarded(scanner, recording.path, job, lambda share, size=recording.size_bytes: show(share * size)),
        )


def make_scanner(recognizer: Recognizer, options: ScanOptions) -> AnyScanner:
    """A scanner for what the recognizer's bundle hears, words or whole windows."""
    bundle = recognizer.bundle
    if isinstance(bundle.input, ImageInput):
        raise InvalidInput(f"the bundle '{bundle.name}' takes pictures: recordings cannot be scanned with it")
    matcher, labels = recognizer.current_matcher()
    if isinstance(bundle.input.windows, ClipWindows):
        return WindowScanner(bundle, matcher, labels, options)
    rows, embeddings = recognizer.store.rows(), recognizer.store.embeddings()
    weights = np.where(rows["kind"] == RECORDING, 1, bundle.text_weight).astype(np.float32)
    prototypes = kernels.prototypes(embeddings, rows["label"], len(labels), weights)
    return Scanner(bundle, matcher, labels, prototypes, options)


def _guarded(
    scanner: AnyScanner, path: str, job: ScanJob, heard: Callable[[float], None]
) -> dict[str, Any] | EdgealignError:
    try:
        return scan_recording(scanner, path, job.channel, job.zone, heard)
    except InputUnreadable as error:
        return error


def _with_processes(
    job: ScanJob, todo: list[Recording], workers: int, show: Callable[[float], None]
) -> Iterator[tuple[Recording, dict[str, Any] | EdgealignError]]:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    searched_bytes, stop = context.Value("d", 0.0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (job, searched_bytes, stop))
    waiting = iter(todo)
    running: dict[Any, Recording] = {}
    finished_bytes = 0
    try:
        while True:
            # No more in the queue than can be begun soon, whatever the length of the list.
            while len(running) < 2 * workers and (recording := next(waiting, None)) is not None:
                running[pool.submit(_work, recording.path, recording.size_bytes)] = recording
            if not running:
                return
            finished, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in finished:
                recording = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    raise EdgealignError(
                        f"a worker process died, at or before '{recording.path}' (out of memory?): run the same "
                        f"command again with fewer --workers, it goes on where it stopped"
                    ) from None
                finished_bytes += recording.size_bytes
                yield recording, result
            show(max(0.0, searched_bytes.value - finished_bytes))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
    """The run is over; what this worker has in hand is dropped."""


_worker: dict[str, Any] = {}


def _start_worker(job: ScanJob, searched_bytes: Any, stop: Any) -> None:
    import signal

    from edgealign.bundle import Bundle

    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which tells the workers
    bundle = Bundle.open(job.bundle_path, variant=job.variant, device=job.device)
    recognizer = Recognizer(bundle, job.store_path)
    if recognizer.store.sha256 != job.store_sha256:
        raise EdgealignError(f"'{job.store_path}' was changed while the scan began: run it again")
    _worker.update(job=job, scanner=make_scanner(recognizer, job.options), searched=searched_bytes, stop=stop)


def _work(path: str, size_bytes: int) -> dict[str, Any] | EdgealignError:
    counted = 0.0

    def heard(share: float) -> None:
        nonlocal counted
        if _worker["stop"].is_set():
            raise _Stopped
        with _worker["searched"].get_lock():
            _worker["searched"].value += share * size_bytes - counted
        counted = share * size_bytes

    with suppress(_Stopped):
        result = _guarded(_worker["scanner"], path, _worker["job"], heard)
        heard(1.0)
        return result
    return EdgealignError("stopped")


def _reason(error: EdgealignError, path: str) -> str:
    """The sentence of an error without the path, which has a column of its own."""
    return str(error).removeprefix(f"'{path}' ")
