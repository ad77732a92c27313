"""The stretches of recordings that a user's annotations mean, and the label of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from urllib.parse import unquote_to_bytes, urlsplit

from edgealign import annotations
from edgealign.audio import CONVERTED_WITH, EXTENSIONS
from edgealign.errors import AnnotationUnreadable, EdgealignError, InputUnreadable, InvalidInput
from edgealign.scan_runs import find_recordings
from edgealign.sources import checked_label, is_audio_name

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
    """The stretches that tables name, and what of them cannot be used. A table without rows says that nothing is there.

    recordings   files that the tables are about, or folders that are searched to any depth: each by its name, unless
                 there is one of each. Without any, a table tells: by the names in it, seen from its own folder or
                 the current one, or by its own name (tape.eaf is about tape.wav beside it)
    label        for all stretches, instead of what the tables say
    """
    label = None if label is None else checked_label(label)
    given = find_recordings(recordings)
    known = [recording.path for recording in given.recordings]
    found: list[Excerpt] = []
    problems: list[EdgealignError] = [InputUnreadable(f"'{path}' {reason}") for path, reason in given.failures]
    if recordings and not known:
        return found, problems
    tables = list(map(os.fspath, tables))
    for table in tables:
        try:
            read = annotations.read(table, tier, label)
        except (InputUnreadable, InvalidInput) as error:
            problems.append(error)
            continue
        problems += [AnnotationUnreadable(text) for text in read.problems[:MAX_PROBLEMS]]
        if len(read.problems) > MAX_PROBLEMS:
            problems.append(AnnotationUnreadable(f"'{table}' has {len(read.problems) - MAX_PROBLEMS} more such rows"))
        names = dict.fromkeys(entry.file for entry in read.annotations)
        places: dict[str | None, str] = {}
        for name in names:
            try:
                if len(names) == len(tables) == len(known) == 1:
                    places[name] = known[0]  # whatever its name was when it was annotated
                elif known:
                    places[name] = _recording_given(name, table, known)
                else:
                    places[name] = _recording_beside(name, len(names) == 1, table)
            except InputUnreadable as error:
                problems.append(error)
        unusable: set[str] = set()
        for entry in read.annotations:
            try:
                name = label if label is not None else checked_label(entry.label)
            except InvalidInput as error:
                if str(error) not in unusable:
                    problems.append(error)
                unusable.add(str(error))
                continue
            if entry.file in places:
                found.append(Excerpt(name, places[entry.file], entry.start_s, entry.end_s, entry.channel))
    return found, problems


def _recording_given(name: str | None, table: str, known: Sequence[str]) -> str:
    """The one of the recordings that has the name in the table, or that of the table where none is in it."""
    wanted = _stem(table) if name is None else _path(name)
    fits = _alike(wanted, name is not None, known)
    if len(fits) != 1:
        hint = "name only one of them" if fits else "name it too, or rename it back"
        raise InputUnreadable(
            f"'{table}' is about '{wanted}': {len(fits) or 'none'} of the recordings given have that name; {hint}"
        )
    return fits[0]


def _recording_beside(name: str | None, is_only: bool, table: str) -> str:
    """The file that annotations are about, where none was given.

    name      as the table has it; None where it has none
    is_only   the table is about no other recording: then that may have the table's name by now
    """
    named = None if name is None else _path(name)
    folder = os.path.dirname(table)
    tries = [] if named is None else [os.path.join(folder, named), named, os.path.join(folder, os.path.basename(named))]
    sounds = [path for path in tries if is_audio_name(os.path.basename(path))]
    if is_only:
        beside = os.path.join(folder, _stem(table))
        extensions = [*sorted(EXTENSIONS - CONVERTED_WITH.keys()), *CONVERTED_WITH]
        sounds += [beside + form for extension in extensions for form in (extension, extension.upper())]
    found = next(filter(os.path.isfile, [*sounds, *tries]), None)
    if found is None:
        missing = os.path.basename(named) if named is not None else f"{_stem(table)}.wav"
        raise InputUnreadable(
            f"the recording '{missing}' of '{table}' is not beside it: name it, or a folder with it, before --table"
        )
    return found


def _alike(wanted: str, is_file: bool, known: Sequence[str]) -> list[str]:
    """The files with a name, in the folders most like those that are named with it.

    is_file   the name has an extension, which counts where any file has it: tape.mp4 may be about tape.wav
    """
    stem = os.path.splitext(os.path.basename(wanted))[0] if is_file else wanted
    fits = [path for path in known if os.path.basename(path) == os.path.basename(wanted)]
    fits = fits or [path for path in known if os.path.splitext(os.path.basename(path))[0] == stem]
    alike = [_n_common_folders(path, wanted) for path in fits]
    return [path for path, n_common in zip(fits, alike, strict=True) if n_common == max(alike)]


def _n_common_folders(path: str, other: str) -> int:
    """How many folders two files have in common, from the innermost on."""
    folders = (os.path.dirname(os.path.abspath(name)).replace(os.sep, "/").split("/")[::-1] for name in (path, other))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*folders, strict=False)))


def _path(name: str) -> str:
    """A file name from a path of any system, or from a file: URL as ELAN writes it."""
    if name.startswith("file:"):
        # ELAN leaves these as they are in the name of a file.
        path = urlsplit(name.replace("#", "%23").replace("?", "%3F")).path
        return os.fsdecode(unquote_to_bytes(path))  # old memory cards hold names that are not UTF-8
    return name if os.path.exists(name) else name.replace("\\", "/")


def _stem(table: str) -> str:
    """tape for tape.eaf, and for Raven's tape.Table.1.selections.txt."""
    name = os.path.basename(table)
    return name.split(".Table.")[0] if ".Table." in name else os.path.splitext(name)[0]
