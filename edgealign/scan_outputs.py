"""What a scan leaves behind: two tables over all recordings (CSV, JSON lines) and a file per recording for each tool.

detections.csv, detections.jsonl     the rows of docs/formats.md
<name>.txt                           Audacity label track
<name>.Table.1.selections.txt        Raven selection table
<name>.eaf                           ELAN; an EAF of the same name gains tiers
<name>.TextGrid                      Praat
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from edgealign import __version__, annotations
from edgealign.annotations import Annotation, eaf, tables, textgrid
from edgealign.errors import AnnotationUnreadable, EdgealignError, InvalidInput
from edgealign.escaping import csv_row, json_line
from edgealign.scan_journal import FOLDER
from edgealign.timestamps import utc_text
from edgealign.writing import replace_file

COMBINED = {"csv": "detections.csv", "jsonl": "detections.jsonl"}
SUFFIXES = {"audacity": ".txt", "raven": ".Table.1.selections.txt", "eaf": ".eaf", "textgrid": ".TextGrid"}
KINDS = (*COMBINED, *SUFFIXES)
FAILED = "failed.csv"
_DATE = re.compile(rb' DATE="[^"]*"')  # of an EAF: when it was made
FORMAT, FORMAT_VERSION = "edgealign-detections", 1
COLUMNS = (
    "file", "channel", "start_s", "end_s", "start_utc", "label", "score", "probability", "threshold", "accepted",
    "rank", "margin", "low_hz", "high_hz", "store_sha256", "encoder_sha256", "version",
)  # fmt: skip


@dataclass(frozen=True)
class Outputs:
    """Where a scan writes, and what.

    source   store_sha256 and encoder_sha256, which every row names
    """

    folder: str
    kinds: tuple[str, ...]
    source: dict[str, str]

    def targets(self, name: str) -> list[str]:
        return [os.path.join(self.folder, name + SUFFIXES[kind]) for kind in self.kinds if kind in SUFFIXES]

    def check_free(self, name: str) -> None:
        """InvalidInput where a file of the user's would be replaced; an EAF never is."""
        for target in self.targets(name):
            if os.path.lexists(target) and not target.endswith(SUFFIXES["eaf"]):
                raise InvalidInput(f"'{target}' exists and is not of this scan: name another folder with --output")

    def lacking(self, name: str) -> list[str]:
        """Which files of a recording that is done were not written. What is there may have been corrected since."""
        return [kind for kind in self.kinds if kind in SUFFIXES and not self._is_written(name, kind)]

    def _is_written(self, name: str, kind: str) -> bool:
        target, base = os.path.join(self.folder, name + SUFFIXES[kind]), self._base(name)
        if kind != "eaf" or not os.path.exists(target):
            return os.path.exists(target)
        return os.path.exists(base) and not filecmp.cmp(base, target, shallow=False)  # else it is the user's own

    def check_own(self, name: str, recording: str, result: dict[str, Any]) -> None:
        """InvalidInput where a file of a recording that has changed is not as it was written of this earlier result."""
        for kind in self.kinds:
            if kind not in SUFFIXES or not self._is_written(name, kind):
                continue
            target = os.path.join(self.folder, name + SUFFIXES[kind])
            with open(target, "rb") as file:
                found = file.read()
            made = self._eaf(name, target, recording, result) if kind == "eaf" else _text(kind, recording, result)
            if _DATE.sub(b"", found, count=1) != _DATE.sub(b"", made, count=1):
                raise InvalidInput(
                    f"'{target}' is not as the scan wrote it, and '{recording}' has changed since: move the former "
                    f"away, or name another folder with --output"
                )

    def discard(self, name: str) -> None:
        """Takes away what was written of a recording that has changed, so that none of it is taken for newer."""
        for kind in set(self.kinds) & SUFFIXES.keys():
            if self._is_written(name, kind):
                os.unlink(os.path.join(self.folder, name + SUFFIXES[kind]))

    def write_recording(
        self, name: str, recording: str, result: dict[str, Any], kinds: Sequence[str] | None = None
    ) -> None:
        """The files of one recording, or those of some kinds; AnnotationUnreadable where an EAF cannot be added to, and
        the others are written."""
        problem: AnnotationUnreadable | None = None
        for kind in self.kinds if kinds is None else kinds:
            if kind not in SUFFIXES:
                continue
            target = os.path.join(self.folder, name + SUFFIXES[kind])
            try:
                os.makedirs(os.path.dirname(target), exist_ok=True)
            except OSError as error:
                raise EdgealignError(f"'{os.path.dirname(target)}' cannot be made: {error.strerror}") from None
            try:
                data = self._eaf(name, target, recording, result) if kind == "eaf" else _text(kind, recording, result)
            except AnnotationUnreadable as error:
                problem = error
                continue
            with replace_file(target) as file:
                file.write(data)
        if problem is not None:
            raise problem

    def _base(self, name: str) -> str:
        """The EAF that there was before tiers were added; empty where there was none."""
        return os.path.join(self.folder, FOLDER, name + SUFFIXES["eaf"])

    def _eaf(self, name: str, target: str, recording: str, result: dict[str, Any]) -> bytes:
        base = self._base(name)
        places = (base, target, os.path.splitext(recording)[0] + SUFFIXES["eaf"])
        found = next((path for path in places if os.path.isfile(path)), None)
        before = b"" if found is None else annotations.read_bytes(found)
        tiers = _tiers(result)
        made = eaf.add_tiers(before, tiers, found) if found is not None and before else eaf.new(tiers, recording)
        if found != base:
            os.makedirs(os.path.dirname(base), exist_ok=True)
            with replace_file(base) as file:
                file.write(before)
        return made

    def write_combined(self, results: Iterable[tuple[str, dict[str, Any]]], parameters: dict[str, Any]) -> int:
        """The tables over all recordings, one row at a time; returns how many rows."""
        from contextlib import ExitStack

        n_rows = 0
        with ExitStack() as stack:
            files = {
                kind: stack.enter_context(replace_file(os.path.join(self.folder, COMBINED[kind])))
                for kind in self.kinds
                if kind in COMBINED
            }
            if "csv" in files:
                files["csv"].write(csv_row(COLUMNS).encode())
            if "jsonl" in files:
                head = {"format": FORMAT, "format_version": FORMAT_VERSION, **self.source, **parameters}
                files["jsonl"].write(json_line(head).encode() + b"\n")
            for recording, result in results:
                for row in self.rows(recording, result):
                    n_rows += 1
                    if "csv" in files:
                        files["csv"].write(csv_row(_plain(row[column]) for column in COLUMNS).encode())
                    if "jsonl" in files:
                        files["jsonl"].write(json_line(row).encode() + b"\n")
        return n_rows

    def rows(self, recording: str, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """One dict of COLUMNS per detection and rank."""
        low_hz, high_hz = result["band_hz"]
        start = datetime.fromisoformat(result["start_utc"]) if result["start_utc"] else None
        for found in result["detections"]:
            moment = None if start is None else utc_text(start + timedelta(seconds=found["start_s"]))
            for rank, (label, score, threshold, probability) in enumerate(found["ranked"], start=1):
                yield {
                    "file": recording,
                    "channel": found["channel"],
                    "start_s": found["start_s"],
                    "end_s": found["end_s"],
                    "start_utc": moment,
                    "label": label,
                    "score": score,
                    "probability": probability,
                    "threshold": threshold,
                    "accepted": found["accepted"] and rank == 1,
                    "rank": rank,
                    "margin": found["margin"] if rank == 1 else None,
                    "low_hz": low_hz,
                    "high_hz": high_hz,
                    **self.source,
                    "version": __version__,
                }

    def write_failures(self, failures: Sequence[tuple[str, str]]) -> None:
        """failed.csv: each recording that could not be finished, and why."""
        with replace_file(os.path.join(self.folder, FAILED)) as file:
            file.write(csv_row(("file", "reason")).encode())
            for path, reason in failures:
                file.write(csv_row((path, reason)).encode())


def _plain(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _annotations(result: dict[str, Any]) -> list[tuple[int | None, Annotation]]:
    """(channel or None, annotation) of each detection, without the band: it is the whole scan's, not the sound's."""
    made = []
    for found in result["detections"]:
        channel = found["channel"] if isinstance(found["channel"], int) else None
        label, _, _, probability = found["ranked"][0]
        made.append((channel, Annotation(found["start_s"], found["end_s"], label, probability, channel=channel)))
    return made


def _text(kind: str, recording: str, result: dict[str, Any]) -> bytes:
    if kind == "textgrid":
        return textgrid.write(_tiers(result), result["duration_s"]).encode()
    entries = [found for _, found in _annotations(result)]
    if kind == "raven":
        path = os.path.abspath(recording)
        return tables.write_raven(entries, os.path.basename(path), path, tuple(result["band_hz"])).encode()
    return tables.write_audacity(entries).encode()


def _tiers(result: dict[str, Any]) -> dict[str, list[Annotation]]:
    """A tier per label (and channel, where several were searched), in time order, without overlaps."""
    tiers: dict[str, list[Annotation]] = {}
    several = result["n_searched"] > 1
    for channel, found in _annotations(result):
        name = f"{found.label} (channel {channel})" if several else found.label
        tier = tiers.setdefault(name, [])
        start_s = max(found.start_s, tier[-1].end_s) if tier else found.start_s
        if found.end_s - start_s >= 1e-3:
            tier.append(Annotation(start_s, found.end_s, found.label, found.score))
    return dict(sorted(tiers.items())) or {"edgealign": []}
