"""The least accepted probability of each label, fitted to recordings like the user's, and what to expect of it.

`calibrate` searches recordings in which it is known where the labels are, or that they are nowhere, and raises each
label's probability until its false alarms are rare enough. The result lies beside the store, as
<store>.thresholds.json; docs/formats.md specifies it. Counts are few, so rates and shares are `intervals`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgealign import kernels
from edgealign.annotations import Annotation
from edgealign.bundle import Bundle
from edgealign.errors import InputUnreadable, InvalidInput, StoreUnreadable
from edgealign.intervals import CONFIDENCE, Interval, rate_interval, share_interval
from edgealign.store import RECORDING, Store
from edgealign.writing import replace_file

if TYPE_CHECKING:
    import os

    from edgealign.recognizer import Recognizer
    from edgealign.scan_runs import Found

FORMAT, FORMAT_VERSION = "edgealign-thresholds", 1
MAX_BYTES = 64 * 2**20
LEAST_LISTENED = 0.02  # least probability of the detections that thresholds are made from
MIN_HIT = 0.5  # of the shorter of annotation and detection must be shared, for one to be the other


@dataclass(frozen=True)
class LabelThreshold:
    """The least accepted probability of one label, and what it was fitted on.

    probability    the least that is accepted
    false_alarms   per hour, at this probability, in the recordings that it was made with
    own_clips      share of the label's enrolled recordings that would be accepted if each were left out in turn; None
                   with fewer than two
    heard          share of the annotated occurrences that are found; None without annotations
    """

    label: str
    probability: float
    false_alarms: Interval
    own_clips: Interval | None
    heard: Interval | None


@dataclass(frozen=True)
class Heard:
    """What a scan of one recording with everything above LEAST_LISTENED found.

    detections   (start_s, end_s, label, probability)
    truth        where the labels are; empty for a recording that holds none
    """

    duration_s: float
    detections: Sequence[tuple[float, float, str, float]]
    truth: Sequence[Annotation] = ()


def hear(
    recognizer: Recognizer,
    found: Found,
    tables: Sequence[str | os.PathLike] = (),
    tier: str | None = None,
    *,
    low_hz: float | None = None,
    high_hz: float | None = None,
    audio_speed: float = 1.0,
    progress: Callable[[float, int], None] = lambda share, n_done: None,
) -> tuple[list[Heard], list[str]]:
    """Everything that might be a label in recordings, with what their tables say is in them; and what failed.

    found        the recordings, see `scan_runs.find_recordings`
    tables, tier   where the labels are, see `excerpts.collect_excerpts`; without any, they are nowhere
    low_hz, high_hz, audio_speed   see `scan.ScanOptions`
    progress     told the share of all bytes that is done, and how many recordings are
    raises       InputUnreadable where no recording can be read; the first problem of the tables where there is one
    """
    from edgealign.excerpts import collect_excerpts
    from edgealign.scan import ScanOptions
    from edgealign.scan_runs import make_scanner, scan_recording

    if tier is not None and not tables:
        raise InvalidInput("--tier was given without --table: it says which tier of a table is meant")
    failures = [f"'{path}' {reason}" for path, reason in found.failures]
    excerpts, problems = collect_excerpts(tables, [recording.path for recording in found.recordings], tier, None)
    if problems:
        more = f" ({len(problems) - 1} more like this)" if len(problems) > 1 else ""
        raise type(problems[0])(
            f"{problems[0]}{more}: mend the tables, because what they do not say is a label counts as a false alarm"
        )
    truth: dict[str, list[Annotation]] = {}
    for entry in excerpts:
        truth.setdefault(entry.path, []).append(Annotation(entry.start_s, entry.end_s, entry.label))
    options = ScanOptions(min_probability=LEAST_LISTENED, low_hz=low_hz, high_hz=high_hz, audio_speed=audio_speed)
    scanner = make_scanner(recognizer, options)
    heard: list[Heard] = []
    total_bytes = max(1, sum(recording.size_bytes for recording in found.recordings))
    done_bytes = 0
    for recording in found.recordings:

        def report(share: float, before: int = done_bytes, size: int = recording.size_bytes) -> None:
            progress((before + share * size) / total_bytes, len(heard))

        try:
            result = scan_recording(scanner, recording.path, "mix", None, report)
        except InputUnreadable as error:
            failures.append(str(error))
            continue
        finally:
            done_bytes += recording.size_bytes
        if result["error"]:
            failures.append(f"'{recording.path}' {result['error']}")
        detections = [
            (entry["start_s"], entry["end_s"], entry["ranked"][0][0], entry["ranked"][0][3])
            for entry in result["detections"]
        ]
        heard.append(Heard(result["duration_s"], detections, truth.get(recording.path, ())))
    if not heard:
        raise InputUnreadable(f"none of the recordings could be read; the first: {failures[0] if failures else 'none'}")
    return heard, failures


def sort_out(heard: Iterable[Heard]) -> tuple[dict[str, list[float]], dict[str, list[float]], float]:
    """What was a false alarm, and what an occurrence.

    returns   per label the probabilities of its false alarms; per label that of each annotated occurrence, 0 where it
              was not found; the hours searched. A detection is an occurrence where it shares MIN_HIT with an annotation
              of its label that no more probable one has taken.
    """
    false: dict[str, list[float]] = {}
    hits: dict[str, list[float]] = {}
    seconds = 0.0
    for recording in heard:
        seconds += recording.duration_s
        free = dict(enumerate(recording.truth))
        for start_s, end_s, label, probability in sorted(recording.detections, key=lambda found: -found[3]):
            match = next(
                (
                    i
                    for i, found in free.items()
                    if found.label == label
                    and min(end_s, found.end_s) - max(start_s, found.start_s)
                    >= MIN_HIT * min(end_s - start_s, found.end_s - found.start_s)
                ),
                None,
            )
            if match is None:
                false.setdefault(label, []).append(probability)
            else:
                del free[match]
                hits.setdefault(label, []).append(probability)
        for found in free.values():
            hits.setdefault(found.label, []).append(0.0)
    return false, hits, seconds / 3600


def check_per_hour(per_hour: float) -> None:
    """InvalidInput for what is no rate of false alarms: to be asked before hours are listened to."""
    if not 0 <= per_hour < math.inf:
        raise InvalidInput(f"per-hour is {per_hour:g}: expected 0 or more")


def calibrate(
    heard: Iterable[Heard],
    labels: Sequence[str],
    own_clips: Mapping[str, Sequence[float]],
    accept: float,
    per_hour: float,
) -> tuple[list[LabelThreshold], float]:
    """For each label the least probability, `accept` or more, with at most `per_hour` false alarms per hour.

    own_clips   per label the probabilities of its own recordings, see leave_one_out_probabilities
    accept      the least that the bundle accepts: calibration makes labels stricter, never laxer
    returns     the thresholds, and the hours that they rest on
    """
    check_per_hour(per_hour)
    false, hits, hours = sort_out(heard)
    made = []
    for label in labels:
        alarms = sorted(false.get(label, ()), reverse=True)
        allowed = int(per_hour * hours)
        strictest = alarms[allowed] if allowed < len(alarms) else 0.0
        probability = max(accept, math.nextafter(strictest, 2.0))
        made.append(measure(label, probability, alarms, hits.get(label, ()), own_clips.get(label, ()), hours))
    return made, hours


def simulate(
    heard: Iterable[Heard],
    labels: Sequence[str],
    own_clips: Mapping[str, Sequence[float]],
    accept: float | Mapping[str, float],
) -> tuple[list[LabelThreshold], Interval, float]:
    """What the least accepted probabilities `accept`, one for all labels or one per label, would let through.

    own_clips   as for `calibrate`
    returns     each label, false alarms per hour of all together, and the hours searched
    """
    false, hits, hours = sort_out(heard)
    made = []
    for label in labels:
        probability = accept[label] if isinstance(accept, Mapping) else accept
        own = own_clips.get(label, ())
        made.append(measure(label, probability, false.get(label, ()), hits.get(label, ()), own, hours))
    n_false = sum(value >= found.probability for found in made for value in false.get(found.label, ()))
    return made, rate_interval(n_false, hours), hours


def measure(
    label: str, probability: float, alarms: Sequence[float], hits: Sequence[float], own: Sequence[float], hours: float
) -> LabelThreshold:
    """What a least accepted probability lets through of one label."""

    def accepted(values: Sequence[float]) -> int:
        return sum(value >= probability for value in values)

    return LabelThreshold(
        label,
        probability,
        rate_interval(accepted(alarms), hours),
        share_interval(accepted(own), len(own)) if own else None,
        share_interval(accepted(hits), len(hits)) if hits else None,
    )


def leave_one_out_probabilities(store: Store, bundle: Bundle) -> dict[str, list[float]]:
    """Per label with two recordings or more: how probable each would be, had the label been learned without it.

    The probability is that of its own label; it is 0 where another label is closer.
    """
    rows, embeddings = store.rows(), store.embeddings()
    labels = store.labels()
    is_recording = rows["kind"] == RECORDING
    found: dict[str, list[float]] = {}
    for i, label in enumerate(labels):
        own = np.flatnonzero((rows["label"] == i) & is_recording)
        if len(own) < 2:
            continue
        for row in own:
            kept = np.arange(len(rows)) != row
            matcher = kernels.Matcher(
                embeddings[kept], rows["label"][kept], rows["kind"][kept], len(labels), bundle.bank,
                bundle.calibration, bundle.text_weight,
            )  # fmt: skip
            best = matcher.classify(embeddings[row])[0]
            found.setdefault(label, []).append(best.probability if best.label == i else 0.0)
    return found


def path_of(store_path: str) -> str:
    return store_path + ".thresholds.json"


def save(store: Store, store_path: str, thresholds: Sequence[LabelThreshold], hours: float, per_hour: float) -> None:
    """Puts the thresholds beside the store, for as long as its labels stay as they are but for their names."""
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "store_sha256": store.sha256,
        "encoder_sha256": store.encoder_sha256,
        "hours": hours,
        "per_hour": per_hour,
        "confidence": CONFIDENCE,
        "labels": {found.label: {k: v for k, v in asdict(found).items() if k != "label"} for found in thresholds},
    }
    _write(store_path, document)


def rename(store: Store, store_path: str, former_sha256: str, label: str, new_label: str) -> None:
    """Keeps the thresholds of a store of which one label, and nothing else, was given a name that no other had.

    Thresholds that were not those of the store before, whose sha256 that was, stay as they are.
    """
    try:
        with open(path_of(store_path), "rb") as file:
            document: Any = json.loads(file.read(MAX_BYTES))
        if document["store_sha256"] != former_sha256:
            return
        labels = document["labels"]
        document["labels"] = {new_label if name == label else name: entry for name, entry in labels.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # none, or none that could be used: `load` says why
    _write(store_path, document | {"store_sha256": store.sha256})


def _write(store_path: str, document: dict[str, Any]) -> None:
    with replace_file(path_of(store_path)) as file:
        file.write(json.dumps(document, ensure_ascii=False, indent=1).encode("utf-8") + b"\n")


def in_use(recognizer: Recognizer) -> float | dict[str, float]:
    """The least accepted probabilities in use: what `calibrate` found, else what the bundle says."""
    found = load(recognizer.store, recognizer.store_path)
    return recognizer.accept_probability if found is None else found


def load(store: Store, store_path: str) -> dict[str, float] | None:
    """Label -> least accepted probability; None where there are no thresholds.

    StoreUnreadable for a file that cannot be used, and for one that was made before the store was changed.
    """
    path = path_of(store_path)
    try:
        with open(path, "rb") as file:
            document: Any = json.loads(file.read(MAX_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreUnreadable(f"'{path}' cannot be read ({error}): calibrate again, or delete it") from None
    try:
        found = document["format"], document["format_version"]
        if found != (FORMAT, FORMAT_VERSION):
            raise StoreUnreadable(f"'{path}' has the format {found}, expected {FORMAT_VERSION}: calibrate again")
        if document["store_sha256"] != store.sha256:
            raise StoreUnreadable(f"'{path}' was made before '{store_path}' was changed: calibrate again, or delete it")
        thresholds = {label: float(entry["probability"]) for label, entry in document["labels"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreUnreadable(f"'{path}' is not usable ({error!r}): calibrate again, or delete it") from None
    if set(thresholds) != set(store.labels()) or not all(0 <= value <= 2 for value in thresholds.values()):
        raise StoreUnreadable(f"'{path}' does not fit the labels of the store: calibrate again, or delete it")
    return thresholds
