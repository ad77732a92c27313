"""`edgealign bundle import`: a bundle from a third-party ONNX model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgealign.cli.options import Modality
from edgealign.cli.output import printable, say
from edgealign.errors import InvalidInput, MissingExtra


class Input(StrEnum):
    WAVEFORM = "waveform"
    LOG_MEL = "log_mel"
    IMAGE = "image"


class Pool(StrEnum):
    MEAN = "mean"
    MAX = "max"
    NONE = "none"


class Normalize(StrEnum):
    NONE = "none"
    STANDARD = "zero-mean-unit-variance"


class Fit(StrEnum):
    COVER = "cover"
    STRETCH = "stretch"


def import_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model, with samples as its only input.")],
    modality: Annotated[Modality, typer.Option("--modality", help="What the samples are.")],
    target: Annotated[
        Path | None, typer.Option("-o", help="Folder of the bundle to write.  [required]", metavar="BUNDLE")
    ] = None,
    kind: Annotated[Input | None, typer.Option("--input", help="What the model takes.")] = None,
    sample_rate: Annotated[
        int | None, typer.Option("--sample-rate", help="Sample rate of the sound that it takes.", metavar="HZ")
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            "--window", help="Length of a window, in s. Speech: the word in a clip, where left out.", metavar="S"
        ),
    ] = None,
    hop: Annotated[
        float | None, typer.Option("--hop", help="From window to window, in s. Default: half a window.", metavar="S")
    ] = None,
    min_window: Annotated[
        float | None, typer.Option("--min-window", help="The shortest sound that is not padded, in s.", metavar="S")
    ] = None,
    front_end: Annotated[
        Path | None, typer.Option("--front-end", help="JSON file that says how log_mel is made, see docs/import.md.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Of pictures, in px, where the model leaves it open.", metavar="HxW")
    ] = None,
    fit: Annotated[Fit, typer.Option("--fit", help="Crop or stretch pictures of another shape.")] = Fit.COVER,
    mean: Annotated[str, typer.Option("--mean", help="Subtracted from pixels in 0 to 1: one number, or R,G,B.")] = "0",
    std: Annotated[str, typer.Option("--std", help="What they are then divided by.")] = "1",
    normalize: Annotated[Normalize, typer.Option("--normalize", help="What is done to waveforms.")] = Normalize.NONE,
    embedding: Annotated[
        str | None,
        typer.Option("--embedding", "--output", help="The output, or inner tensor, to use.", metavar="NAME"),
    ] = None,
    pool: Annotated[
        Pool | None, typer.Option("--pool", help="How several frames become one embedding; none keeps them all.")
    ] = None,
    background: Annotated[
        Path | None, typer.Option("--background", help="Folder of samples of anything else, for better unknowns.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the bundle. Default: that of the file.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="License of the model, for the card.")] = None,
    attribution: Annotated[
        list[str] | None, typer.Option("--attribution", help="Who made the model, for the card; may be repeated.")
    ] = None,
) -> None:
    """Make a bundle of an ONNX model (needs edgealign[export]).

    Normalization, layout, pooling and the scaling to unit length become part of the graph; the result is compared with
    the model itself.
    """
    try:
        from edgealign.export.import_onnx import ImportOptions, import_onnx
    except ImportError as error:
        raise MissingExtra(
            f"importing needs {error.name}, which is not installed: pip install 'edgealign[export]'"
        ) from None
    if target is None:  # said here because --output is the folder in other commands
        given = "" if embedding is None else f", because '{embedding}' is taken for the name of a tensor here"
        raise InvalidInput(f"the folder of the bundle is missing{given}: add -o BUNDLE")
    if kind is None:
        if modality is not Modality.IMAGE:
            raise InvalidInput("what the model takes is not in the file: add --input waveform or log_mel")
        kind = Input.IMAGE
    known = {} if license_ is None else {"license": license_}
    options = ImportOptions(
        modality=modality.value,
        kind=kind.value,
        sample_rate_hz=sample_rate,
        window_s=window,
        hop_s=hop,
        min_window_s=min_window,
        front_end=front_end,
        size_px=None if size is None else _size(size),
        fit=fit.value,
        mean=_colors(mean, "--mean"),
        std=_colors(std, "--std"),
        normalize=normalize.value,
        output=embedding,
        pool=None if pool is None else pool.value,
        background=background,
        name=name,
        attribution=tuple(attribution or ()),
        **known,
    )
    bundle = import_onnx(model, target, options, say)
    print(f"wrote {printable(str(target))}: {bundle.name}, {bundle.modality}, encoder {bundle.encoder_sha256[:12]}")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise InvalidInput(f"--size is '{text}': expected height x width in px, such as 224x224")
    return int(height), int(width)


def _colors(text: str, option: str) -> tuple[float, float, float]:
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        raise InvalidInput(f"{option} is '{text}': expected a number, or three with commas between them") from None
    if len(values) not in (1, 3):
        raise InvalidInput(f"{option} is '{text}': expected a number, or three with commas between them")
    return values * 3 if len(values) == 1 else values
