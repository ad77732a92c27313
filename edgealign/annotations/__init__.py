"""Annotations of recordings, in the formats of the tools that people annotate with.

audacity   label track (.txt)                        raven      selection table (.txt, .selections.txt)
eaf        ELAN (.eaf)                               textgrid   Praat (.TextGrid), long and short form
csv        a table with times, any of , ; tab        (.csv, .tsv)
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from edgealign.errors import AnnotationUnreadable, InvalidInput
from edgealign.escaping import printable

MAX_TABLE_BYTES = 256 * 2**20
EXTENSIONS = frozenset((".txt", ".csv", ".tsv", ".eaf", ".textgrid"))
FORMATS = ("audacity", "raven", "eaf", "textgrid", "csv")


@dataclass(frozen=True)
class Annotation:
    """A stretch of a recording and what is in it.

    start_s, end_s   from the start of the recording
    score            None where the format or its author gave none
    low_hz, high_hz  None where it is about the whole band
    channel          counts from 1; None is all of them
    file             of the recording as the annotations name it; None where they name none
    """

    start_s: float
    end_s: float
    label: str
    score: float | None = None
    low_hz: float | None = None
    high_hz: float | None = None
    channel: int | None = None
    file: str | None = None


@dataclass
class Table:
    """What a file of annotations holds: the usable ones in its order, and one sentence on each row that is not."""

    annotations: list[Annotation] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, where: str, annotation: Annotation) -> None:
        """Takes an annotation, or notes why it cannot be one."""
        start_s, end_s = annotation.start_s, annotation.end_s
        if not annotation.label.strip():
            return  # nothing is said of this stretch
        if not (abs(start_s) < 1e9 and abs(end_s) < 1e9):
            self.problems.append(f"{where}: times {start_s:g} and {end_s:g} are not usable")
        elif start_s < 0:
            self.problems.append(f"{where}: begins at {start_s:g} s, before the recording does")
        elif end_s == start_s:
            self.problems.append(
                f"{where}: '{printable(annotation.label)}' is a point in time: stretch it over the sound"
            )
        elif end_s < start_s:
            self.problems.append(f"{where}: ends at {end_s:g} s but begins at {start_s:g} s")
        else:
            self.annotations.append(annotation)


def read(path: str | os.PathLike, tier: str | None = None, label: str | None = None) -> Table:
    """The annotations in a file; its format is told by its name and its first line.

    tier     of an EAF or a TextGrid; needed where more than one holds annotations, unless each holds its own name
             alone, as a scan writes them
    label    of what has none, in formats without tiers: there a stretch without a text is a gap
    raises   AnnotationUnreadable for what is none of these formats, InvalidInput for a tier that is not there
    """
    path = os.fspath(path)
    from edgealign.annotations import eaf, tables, textgrid

    data = read_bytes(path)
    suffix = os.path.splitext(path)[1].lower()
    tiered: dict[str, Callable] = {".eaf": eaf.read, ".textgrid": textgrid.read}
    if suffix in tiered:
        return tiered[suffix](data, path, tier)
    if tier is not None:
        raise InvalidInput(f"'{path}' has no tiers: --tier is for EAF and TextGrid files")
    return tables.read(decoded(data, path), path, label)


def choose_tiers(path: str, holding: dict[str, list[str]], tier: str | None) -> list[str]:
    """The tiers to read: the one asked for, else the only one that holds anything, or all that a scan wrote.

    holding   name of each tier -> the texts in it, without empty ones
    returns   none where no tier holds any
    """
    listed = ", ".join(f"'{name}' ({len(texts)})" for name, texts in holding.items()) or "none"
    if tier is not None:
        if tier not in holding:
            raise InvalidInput(f"'{path}' has no tier '{tier}': it has {listed}")
        return [tier]
    full = {name: set(texts) for name, texts in holding.items() if texts}
    if len(full) > 1 and not all(map(_is_of_a_scan, full, full.values())):
        raise InvalidInput(f"'{path}' has several tiers with annotations: choose one with --tier from {listed}")
    return list(full)


def _is_of_a_scan(name: str, texts: set[str]) -> bool:
    """Whether a tier holds one label alone and is named after it, or after it and a channel: as a scan writes tiers."""
    return all(name == text or name.startswith(f"{text} (channel ") for text in texts)


def channel_of(tier: str) -> int | None:
    """The channel that a tier is about, by the end of its name, as a scan of several channels names its tiers."""
    found = re.search(r" \(channel ([1-9]\d{0,3})\)( \d+)?$", tier)
    return None if found is None else int(found[1])


def decoded(data: bytes, path: str) -> str:
    """Text of a file in UTF-8 or UTF-16 (which a byte order mark tells), with plain line ends."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AnnotationUnreadable(
            f"'{path}' is not {encoding[:6].upper().rstrip('-')} text (line {line}): save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: str) -> bytes:
    """What a file of annotations holds; AnnotationUnreadable where it cannot be read or is far too large."""
    try:
        if os.path.isdir(path):
            raise AnnotationUnreadable(f"'{path}' is a folder: a file of annotations is expected")
        with open(path, "rb") as file:
            data = file.read(MAX_TABLE_BYTES + 1)
    except OSError as error:
        raise AnnotationUnreadable(f"'{path}' cannot be read: {error.strerror}") from None
    if len(data) > MAX_TABLE_BYTES:
        raise AnnotationUnreadable(f"'{path}' has more than {MAX_TABLE_BYTES >> 20} MiB: that is no table")
    return data
