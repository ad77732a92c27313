"""Which stretches of which recordings a user's annotations mean, and which label each of them has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from edgealign import annotations
from edgealign.annotations import Annotation
from edgealign.audio import CONVERTED_WITH, EXTENSIONS
from edgealign.errors import AnnotationUnreadable, EdgealignError, InputUnreadable, InvalidInput
from edgealign.sources import audio_files, checked_label

MAX_PROBLEMS = 100  # of a table are listed one by one


@dataclass(frozen=True)
class Excerpt:
    """channel counts from 1; None is the mean of all."""

    label: str
    path: str
    start_s: float
    end_s: float
    channel: int | None


def collect_excerpts(
    tables: Sequence[str | os.PathLike], recordings: Sequence[str], tier: str | None, label: str | None
) -> tuple[list[Excerpt], list[EdgealignError]]:
    """The stretches that tables name, and what of them cannot be used.

    recordings   files, or folders of them, that the tables are about. Without any, a table tells: by the names in it,
                 seen from its own folder, or by its own name (tape.eaf is about tape.wav beside it)
    label        for all stretches, instead of what the tables say
    """
    label = None if label is None else checked_label(label)
    known = [file for path in recordings for file in (audio_files(path) if os.path.isdir(path) else [path])]
    found: list[Excerpt] = []
    problems: list[EdgealignError] = []
    for table in map(os.fspath, tables):
        try:
            read = annotations.read(table, tier)
        except InputUnreadable as error:
            problems.append(error)
            continue
        if not read.annotations and not read.problems:
            problems.append(AnnotationUnreadable(f"'{table}' holds no annotations"))
        problems += [AnnotationUnreadable(text) for text in read.problems[:MAX_PROBLEMS]]
        if len(read.problems) > MAX_PROBLEMS:
            problems.append(AnnotationUnreadable(f"'{table}' has {len(read.problems) - MAX_PROBLEMS} more such rows"))
        missing: set[str] = set()
        for entry in read.annotations:
            try:
                name = label if label is not None else checked_label(entry.label)
                path = _recording(entry, table, known)
            except (InputUnreadable, InvalidInput) as error:
                if str(error) not in missing:
                    problems.append(error)
                missing.add(str(error))
                continue
            found.append(Excerpt(name, path, entry.start_s, entry.end_s, entry.channel if entry.channel != 1 else None))
    return found, problems


def _recording(entry: Annotation, table: str, known: Sequence[str]) -> str:
    """The file that an annotation is about."""
    named = None if entry.file is None else _path(entry.file)
    if known:
        if len(known) == 1:
            return known[0]
        wanted = _stem(table) if named is None else os.path.basename(named)
        names = [(os.path.basename(path), os.path.splitext(os.path.basename(path))[0]) for path in known]
        fits = [path for path, of_path in zip(known, names, strict=True) if wanted in of_path]
        if len(fits) != 1:
            raise InputUnreadable(f"'{table}' is about '{wanted}': {len(fits)} of the recordings given have that name")
        return fits[0]
    folder = os.path.dirname(table)
    if named is not None:
        for path in (os.path.join(folder, named), os.path.join(folder, os.path.basename(named))):
            if os.path.isfile(path):
                return path
    beside = os.path.join(folder, _stem(table))
    for extension in [*sorted(EXTENSIONS - CONVERTED_WITH.keys()), *CONVERTED_WITH]:
        for path in (beside + extension, beside + extension.upper()):
            if os.path.isfile(path):
                return path
    missing = os.path.basename(named) if named is not None else f"{_stem(table)}.wav"
    raise InputUnreadable(f"the recording '{missing}' of '{table}' is not beside it: name it before --table")


def _path(name: str) -> str:
    """A file name from a path of any system, or from a file: URL as ELAN writes it."""
    if name.startswith("file:"):
        return unquote(urlsplit(name).path)
    return name if os.path.exists(name) else name.replace("\\", "/")


def _stem(table: str) -> str:
    """tape for tape.eaf, and for Raven's tape.Table.1.selections.txt."""
    name = os.path.basename(table)
    return name.split(".Table.")[0] if ".Table." in name else os.path.splitext(name)[0]
