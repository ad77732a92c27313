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
    checkpoint: Annotated[Path, typer.Argument(help="best.pt or last.pt of `edgealign train text-to-speech`.")],
    corpus: Annotated[Path, typer.Option(help="The rendered corpus that it was trained on.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle to write.")],
    weights: Annotated[Path | None, typer.Option(help="Also write the weights, in half precision.")] = None,
) -> None:
    """Checkpoint to ONNX, to int8, to a bundle; parity and drift are checked on the way."""
    from edgealign.export.graph import Checkpoint
    from edgealign.export.speech import export_speech

    if weights is not None:
        if not weights.parent.is_dir():
            raise InvalidInput(f"the weights cannot be written to '{weights}': '{weights.parent}' is not a folder")
        Checkpoint.load(checkpoint).save_half(weights)
    bundle = export_speech(checkpoint, corpus, output, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{output}\t{bundle.encoder_sha256}")


def main(arguments: list[str]) -> None:
    """Run with the arguments after `edgealign export`; errors are the caller's to print."""
    app(arguments, prog_name="edgealign export", standalone_mode=False)
