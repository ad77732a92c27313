"""`edgealign export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgealign.errors import InvalidInput

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="best.pt of `train text-to-speech`, or sense.pt of `train audio` or `image`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle to write.")],
    corpus: Annotated[Path | None, typer.Option(help="Of text-to-speech: the rendered corpus.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Also write the weights, in half precision.")] = None,
    data: Annotated[Path | None, typer.Option(help="Of audio and image: the packs. Default: $EDGEALIGN_DATA.")] = None,
    split: Annotated[
        Path | None, typer.Option(help="Of audio and image trained on all classes: sense.pt of a run with --fold 0.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Of audio and image: where features are kept.")] = None,
) -> None:
    """Checkpoint to ONNX, to int8, to a bundle; parity and drift are checked on the way."""
    from edgealign.train.senses import Sense, is_sense

    if weights is not None and not weights.parent.is_dir():
        raise InvalidInput(f"the weights cannot be written to '{weights}': '{weights.parent}' is not a folder")
    if is_sense(checkpoint):
        from edgealign.export.senses import export_sense
        from edgealign.train.research import default_cache
        from edgealign.train.sense_commands import packs_folder

        if weights is not None:
            Sense.load(checkpoint).save(weights)
        bundle = export_sense(checkpoint, packs_folder(data), cache or default_cache(), output, _report, split)
    else:
        from edgealign.export.graph import Checkpoint
        from edgealign.export.speech import export_speech

        if corpus is None:
            raise InvalidInput(f"'{checkpoint}' is of text-to-speech: name with --corpus what it was trained on")
        if weights is not None:
            Checkpoint.load(checkpoint).save_half(weights)
        bundle = export_speech(checkpoint, corpus, output, _report)
    print(f"{output}\t{bundle.encoder_sha256}")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    """Run with the arguments after `edgealign export`; errors are the caller's to print."""
    code = app(arguments, prog_name="edgealign export", standalone_mode=False)
    if code:  # Typer returns the code of an interrupt where it does not end the process itself
        sys.exit(code)
