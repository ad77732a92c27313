"""Options that several commands share, so that each is worded once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgealign.errors import InvalidInput


class Modality(StrEnum):
    SPEECH = "speech"


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


StoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="Store file. Default: one per modality in $EDGEALIGN_STORE or your user-data folder."),
]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", help="Bundle folder. Default: $EDGEALIGN_BUNDLE, else the one that is shipped."),
]
ModalityOption = Annotated[Modality, typer.Option("--modality", help="What the samples are.")]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="auto is the CPU; cuda is an error where ONNX Runtime lacks it.")
]
ChannelOption = Annotated[
    str, typer.Option("--channel", help="mix for the mean of all channels, or a number from 1.", metavar="mix|K")
]


def store_path(store: Path | None, modality: Modality) -> str:
    """Where the store is: as given, else the default place."""
    from edgealign.recognizer import default_store_path

    path = str(store) if store is not None else default_store_path(modality)
    if Path(path).is_dir():
        raise InvalidInput(f"'{path}' is a folder: --store names a file, such as '{Path(path) / 'words.store'}'")
    return path
