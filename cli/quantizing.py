"""`edgealign bundle quantize`: encoders of a bundle in int8."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgealign.cli.artifacts import BundleArgument
from edgealign.cli.output import printable, say
from edgealign.errors import MissingExtra


class Method(StrEnum):
    AUTO = "auto"
    STATIC = "int8-static"
    DYNAMIC = "int8-dynamic"


def quantize(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle to write.")],
    bundle: BundleArgument = None,
    samples: Annotated[
        list[Path] | None,
        typer.Option("--samples", help="Files or folders of what the encoder will meet, 30 or more; may be repeated."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option("--texts", help="For the text encoder that labels start from: a file with a word a line."),
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option("--pictures", help="For the picture encoder that labels start from: files or folders."),
    ] = None,
    method: Annotated[
        Method, typer.Option("--quantize", help="auto takes the fastest that passes on this device.")
    ] = Method.AUTO,
    evaluate: Annotated[
        Path | None,
        typer.Option("--evaluate", help="Folder of labels: at most 0.5 points of episode accuracy may be lost."),
    ] = None,
) -> None:
    """Make encoders int8, where that costs little (needs edgealign[export]).

    An encoder of samples is added to those that the bundle has; those of texts and pictures are replaced. Layers that
    cost too much stay in fp32. Less than 20 dB of signal to quantization noise is refused.
    """
    from importlib.util import find_spec

    if find_spec("onnx") is None:
        raise MissingExtra("quantizing needs onnx, which is not installed: pip install 'edgealign[export]'")
    from edgealign.export.quantize_bundle import quantize_bundle

    made = quantize_bundle(bundle, samples or [], output, str(method), evaluate, say, texts, pictures or [])
    print(f"{printable(str(output))}\t{made.encoder_sha256}")
