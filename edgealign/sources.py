"""Which clips a user means, and which label each of them has: the folder's name, unless a label is given."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from edgealign.audio import EXTENSIONS
from edgealign.errors import InputUnreadable, InvalidInput

MAX_LABEL_BYTES = 1024  # of UTF-8; the store's limit, checked before any clip is read


@dataclass(frozen=True)
class Clip:
    label: str
    path: str


@dataclass(frozen=True)
class Collected:
    """clips in a stable order, what could not be used at all, and what was passed over."""

    clips: list[Clip]
    problems: list[InputUnreadable]
    notes: list[str]


def collect_clips(paths: Iterable[str | os.PathLike], label: str | None) -> Collected:
    """The clips behind files and folders.

    A file has the given label, else the name of its folder. A folder has the given label for all clips directly in it;
    without one, each of its folders is a label, and a folder of clips alone is one label itself. Of a folder, only
    names with an extension of `audio.EXTENSIONS` are taken, and hidden files are not.
    """
    label = None if label is None else checked_label(label)
    found = Collected([], [], [])
    for path in map(os.fspath, paths):
        try:
            if os.path.isdir(path):
                _collect_folder(path, label, found)
            else:
                found.clips.append(_clip_of_file(path, label))
        except InputUnreadable as error:
            found.problems.append(error)
    return found


def checked_label(label: str) -> str:
    """The label in NFC without white space at its ends; InvalidInput where a store cannot hold it."""
    label = unicodedata.normalize("NFC", label).strip()
    shown = label if len(label) <= 40 else label[:40] + "…"
    if not label:
        raise InvalidInput("the label is empty: name what the clips hold")
    if "\0" in label:
        raise InvalidInput("the label holds a NUL character: choose another")
    try:
        size_bytes = len(label.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidInput(f"the label '{shown}' is not valid Unicode: rename the folder or use --label") from None
    if size_bytes > MAX_LABEL_BYTES:
        raise InvalidInput(f"the label '{shown}' has {size_bytes} bytes of UTF-8: at most {MAX_LABEL_BYTES} are kept")
    return label


def audio_files(folder: str) -> list[str]:
    """Paths of the clips that lie directly in a folder, sorted by name."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputUnreadable(f"'{folder}' cannot be read: {error.strerror}") from None
    return [os.path.join(folder, name) for name in names if is_audio_name(name) and _is_file(folder, name)]


def is_audio_name(name: str) -> bool:
    # A leading dot also marks the "._name.wav" files that macOS leaves on memory cards; they hold no audio.
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _is_file(folder: str, name: str) -> bool:
    return not os.path.isdir(os.path.join(folder, name))


def _clip_of_file(path: str, label: str | None) -> Clip:
    if not os.path.lexists(path):
        raise InputUnreadable(f"'{path}' does not exist: check the path")
    folder = os.path.basename(os.path.dirname(path))
    if label is None and folder in ("", ".", ".."):
        raise InvalidInput(f"'{path}' has no folder that names its label: add --label")
    return Clip(label if label is not None else checked_label(folder), path)


def _collect_folder(folder: str, label: str | None, found: Collected) -> None:
    direct = audio_files(folder)
    subfolders = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    nested = {} if label is not None else {subfolder: audio_files(subfolder) for subfolder in subfolders}
    if direct and any(nested.values()):
        raise InputUnreadable(
            f"'{folder}' holds both clips and folders of clips, so its labels are unclear: move the clips into a "
            f"folder of their own, or add --label"
        )
    if direct:
        direct_label = checked_label(os.path.basename(os.path.abspath(folder))) if label is None else label
        found.clips.extend(Clip(direct_label, path) for path in direct)
        return
    if not any(nested.values()):
        where = "directly in it" if label is not None else "in it, or in one folder per label in it"
        raise InputUnreadable(f"'{folder}' holds no audio files: clips are expected {where}")
    for subfolder, files in nested.items():
        if not files:
            found.notes.append(f"'{subfolder}' holds no audio files and was passed over")
        found.clips.extend(Clip(checked_label(os.path.basename(subfolder)), path) for path in files)
