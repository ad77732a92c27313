"""Which clips or pictures a user means, and which label each has: the folder's name, unless a label is given."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from edgealign import audio, images
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


def collect_clips(paths: Iterable[str | os.PathLike], label: str | None, modality: str = "speech") -> Collected:
    """The clips, or with the modality "image" the pictures, behind files and folders.

    A file has the given label, else the name of its folder. A folder has the given label for all clips directly in it;
    without one, each of its folders is a label, and a folder of clips alone is one label itself. Of a folder, only
    names with an extension of `audio.EXTENSIONS` or `images.EXTENSIONS` are taken, and hidden files are not.
    """
    label = None if label is None else checked_label(label)
    found = Collected([], [], [])
    for path in map(os.fspath, paths):
        try:
            if os.path.isdir(path):
                _collect_folder(path, label, modality, found)
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
    return sample_files(folder, "speech")


def sample_files(folder: str, modality: str) -> list[str]:
    """Paths of the clips, or with the modality "image" of the pictures, that lie directly in a folder, by name."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputUnreadable(f"'{folder}' cannot be read: {error.strerror}") from None
    return [os.path.join(folder, name) for name in names if _is_sample(name, modality) and _is_file(folder, name)]


def is_audio_name(name: str) -> bool:
    return _is_sample(name, "speech")


def is_image_name(name: str) -> bool:
    return _is_sample(name, "image")


def _is_sample(name: str, modality: str) -> bool:
    # A leading dot also marks the "._name.wav" files that macOS leaves on memory cards; they hold no audio.
    extensions = images.EXTENSIONS if modality == "image" else audio.EXTENSIONS
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions


def are_pictures(paths: Iterable[str | os.PathLike]) -> bool:
    """Whether the first path is a picture by its name, or a folder with pictures, or folders of them, and no clips."""
    for path in map(os.fspath, paths):
        if not os.path.isdir(path):
            return is_image_name(os.path.basename(path))
        try:
            folders = [path, *_folders(path)]
            if any(audio_files(folder) for folder in folders):
                return False
            return any(sample_files(folder, "image") for folder in folders)
        except (InputUnreadable, OSError):
            return False  # whoever collects the samples says what cannot be read
    return False


def _folders(folder: str) -> list[str]:
    """Paths of the folders in a folder, sorted; a link that leads nowhere, or in a circle, is none."""
    return sorted(entry.path for entry in os.scandir(folder) if os.path.isdir(entry.path))


def _is_file(folder: str, name: str) -> bool:
    return not os.path.isdir(os.path.join(folder, name))


def _clip_of_file(path: str, label: str | None) -> Clip:
    if not os.path.lexists(path):
        raise InputUnreadable(f"'{path}' does not exist: check the path")
    folder = os.path.basename(os.path.dirname(path))
    if label is None and folder in ("", ".", ".."):
        raise InvalidInput(
            f"'{path}' has no folder that names its label: move it into one, or say with --label when you enroll it"
        )
    return Clip(label if label is not None else checked_label(folder), path)


def _collect_folder(folder: str, label: str | None, modality: str, found: Collected) -> None:
    what = "pictures" if modality == "image" else "clips"
    files = "picture files" if modality == "image" else "audio files"
    direct = sample_files(folder, modality)
    nested: dict[str, list[str]] = {}
    if label is None:
        for subfolder in _folders(folder):
            if os.path.basename(subfolder)[0] == ".":
                continue
            try:
                nested[subfolder] = sample_files(subfolder, modality)
            except InputUnreadable as error:
                found.problems.append(error)
    if direct and any(nested.values()):
        raise InputUnreadable(
            f"'{folder}' holds both {what} and folders of {what}, so its labels are unclear: move the {what} into a "
            f"folder of their own, or say with --label what they are when you enroll them"
        )
    if direct:
        direct_label = checked_label(os.path.basename(os.path.abspath(folder))) if label is None else label
        found.clips.extend(Clip(direct_label, path) for path in direct)
        return
    if not any(nested.values()):
        where = "directly in it" if label is not None else "in it, or in one folder per label in it"
        raise InputUnreadable(f"'{folder}' holds no {files}: {what} are expected {where}")
    for subfolder, inside in nested.items():
        if not inside:
            found.notes.append(f"'{subfolder}' holds no {files} and was passed over")
        found.clips.extend(Clip(checked_label(os.path.basename(subfolder)), path) for path in inside)
