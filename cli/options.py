"""Options that several commands share, so that each is worded once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgealign.errors import InvalidInput

if TYPE_CHECKING:
    from edgealign.recognizer import Recognizer


class Modality(StrEnum):
    SPEECH = "speech"
    AUDIO = "audio"
    IMAGE = "image"


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"
    CSV = "csv"


class ReportFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


# readable=False leaves it to those who open a file to say what is wrong with it.
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="Store file. Default: one per modality in $EDGEALIGN_STORE or your user-data folder.",
        readable=False,
    ),
]
BUNDLE_HELP = "Bundle folder. Default: $EDGEALIGN_BUNDLE, else the one that is shipped."
BundleOption = Annotated[Path | None, typer.Option("--bundle", help=BUNDLE_HELP, readable=False)]
ModalityOption = Annotated[
    Modality | None,
    typer.Option(
        "--modality",
        help="What the samples are. Default: what the bundle or store named is for, else the only store there is for "
        "such files, else image for pictures and speech for recordings.",
    ),
]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="auto is the CPU; cuda is an error where ONNX Runtime lacks it.")
]
VariantOption = Annotated[
    str | None,
    typer.Option(
        "--variant",
        help="Which encoder of the bundle. Default: the fastest here, once `bundle info --measure` has found it, else "
        "the bundle's own.",
    ),
]
ChannelOption = Annotated[
    str, typer.Option("--channel", help="mix for the mean of all channels, or a number from 1.", metavar="mix|K")
]
TierOption = Annotated[str | None, typer.Option("--tier", help="Which tier of an EAF or TextGrid.")]
RecordingsArgument = Annotated[
    list[str], typer.Argument(metavar="RECORDINGS...", help="Recordings, or folders that are searched to any depth.")
]
SpeedOption = Annotated[
    float,
    typer.Option("--audio-speed", help="Listen this many times as fast: 0.1 brings bats down to speech.", metavar="X"),
]
LowOption = Annotated[float | None, typer.Option("--fmin", help="Lowest frequency of sounds.", metavar="HZ")]
HighOption = Annotated[float | None, typer.Option("--fmax", help="Highest frequency of sounds.", metavar="HZ")]


def split_tables(recordings: Sequence[str], tables: Sequence[Path] | None) -> tuple[list[str], list[Path]]:
    """Recordings and tables: `--table *.eaf` leaves all but the first table among the recordings."""
    from edgealign.annotations import EXTENSIONS

    if not tables:
        return list(recordings), []
    more = [Path(name) for name in recordings if Path(name).suffix.lower() in EXTENSIONS]
    return [name for name in recordings if Path(name) not in more], [*tables, *more]


def store_path(store: Path | None, modality: Modality | None) -> str:
    """Where the store is: as given, else the default place, in which it must be the only one without a modality."""
    from edgealign.recognizer import default_store_path, modality_of_only_store

    if store is None:
        return default_store_path(modality or modality_of_only_store(Modality) or Modality.SPEECH)
    if store.is_dir():
        raise InvalidInput(f"'{store}' is a folder: --store names a file, such as '{store / 'words.store'}'")
    return str(store)


def open_recognizer(
    store: Path | None,
    bundle: Path | None,
    modality: Modality | None,
    device: Device,
    *,
    variant: str | None = None,
    files: Iterable[str | os.PathLike] = (),
    enrolling: bool = False,
) -> Recognizer:
    """The recognizer that the options mean.

    files       what it is for: pictures, or recordings
    enrolling   a store in the default place does not decide: the samples may be for another
    """
    from edgealign.recognizer import Recognizer, modality_of_only_store

    if store is not None:
        return Recognizer.open(store_path(store, modality), bundle, modality=modality, variant=variant, device=device)
    if modality is None and bundle is None and not os.environ.get("EDGEALIGN_BUNDLE"):
        from edgealign.sources import are_pictures

        fitting = (Modality.IMAGE,) if are_pictures(files) else (Modality.SPEECH, Modality.AUDIO)
        modality = (None if enrolling else modality_of_only_store(fitting)) or fitting[0]
    return Recognizer.open(None, bundle, modality=modality, variant=variant, device=device)
