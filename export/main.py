"""`edgealign export`."""

from __future__ import annotations

import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgealign.bundle import check_target
from edgealign.cli.output import say
from edgealign.errors import InvalidInput

if TYPE_CHECKING:
    from edgealign.bundle import Bundle
    from edgealign.export.huggingface import Options

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class Modality(StrEnum):
    SPEECH = "speech"
    AUDIO = "audio"
    IMAGE = "image"
    TEXT = "text"


class Pool(StrEnum):
    MEAN = "mean"
    CLS = "cls"
    POOLER = "pooler"


class Quantize(StrEnum):
    AUTO = "auto"
    STATIC = "int8-static"
    DYNAMIC = "int8-dynamic"
    NONE = "none"


@app.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle to write.")],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="best.pt of `train text-to-speech`, spelling.pt of `spelling`, or sense.pt of `audio` or `image`."
        ),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="Of text-to-speech: the rendered corpus.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Also write the weights, in half precision.")] = None,
    data: Annotated[Path | None, typer.Option(help="Of audio and image: the packs. Default: $EDGEALIGN_DATA.")] = None,
    split: Annotated[
        Path | None, typer.Option(help="Of audio and image trained on all classes: sense.pt of a run with --fold 0.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Of audio and image: where features are kept.")] = None,
    small: Annotated[bool, typer.Option("--small", help="Of audio and image: the encoder in int8 alone.")] = False,
    hf: Annotated[
        Path | None,
        typer.Option("--hf", help="A local folder of a transformers model, in place of CHECKPOINT.", metavar="FOLDER"),
    ] = None,
    modality: Annotated[Modality | None, typer.Option(help="Of --hf: what its samples are.")] = None,
    pool: Annotated[
        Pool | None, typer.Option(help="Of --hf: how its states become one embedding. Default: the model's own.")
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(help="Of --hf: length of sound that it hears at once, in s. Speech: the word, where left out."),
    ] = None,
    hop: Annotated[float | None, typer.Option(help="Of --hf: from window to window, in s. Default: half.")] = None,
    background: Annotated[
        Path | None, typer.Option(help="Of --hf: a folder of samples of anything else, for better unknowns.")
    ] = None,
    quantize: Annotated[
        Quantize | None,
        typer.Option(help="Of --hf: an int8 encoder beside fp32; see `bundle quantize`. Default: none."),
    ] = None,
    samples: Annotated[
        list[Path] | None, typer.Option(help="Of --quantize: files or folders of what the encoder will meet.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Of --quantize: a file with a word a line, for the text encoder.")
    ] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="Of --quantize: a folder of labels, on which accuracy is compared.")
    ] = None,
) -> None:
    """Make a bundle of a checkpoint or of a transformers model; parity and drift are checked on the way."""
    if (checkpoint is None) == (hf is None):
        raise InvalidInput("name one thing to export: CHECKPOINT, or --hf FOLDER with --modality")
    if hf is not None:
        _refuse("CHECKPOINT", corpus=corpus, weights=weights, data=data, split=split, cache=cache, small=small or None)
        if modality is None:
            raise InvalidInput(f"'{hf}' needs --modality: speech, audio, image or text")
        from edgealign.export.huggingface import Options

        options = Options(modality.value, pool and pool.value, window, hop, background)
        bundle = _of_transformers(hf, output, options, quantize or Quantize.NONE, samples, texts, evaluate)
    else:
        _refuse(
            "--hf", modality=modality, pool=pool, window=window, hop=hop, background=background, quantize=quantize,
            samples=samples, texts=texts, evaluate=evaluate,
        )  # fmt: skip
        if weights is not None and not weights.parent.is_dir():
            raise InvalidInput(f"the weights cannot be written to '{weights}': '{weights.parent}' is not a folder")
        bundle = _of_checkpoint(checkpoint, output, corpus, weights, data, split, cache, small)
    print(f"{output}\t{bundle.encoder_sha256}")


def _of_transformers(
    folder: Path, output: Path, options: Options, quantize: Quantize, samples: list[Path] | None, texts: Path | None,
    evaluate: Path | None,
) -> Bundle:  # fmt: skip
    from edgealign.export.huggingface import export_huggingface
    from edgealign.export.quantize_bundle import quantize_bundle

    if quantize is Quantize.NONE:
        _refuse("--quantize", samples=samples, texts=texts, evaluate=evaluate)
        return export_huggingface(folder, output, options, say)
    if not samples and texts is None:
        raise InvalidInput(
            f"--quantize {quantize} needs --samples, files or folders of what the encoder will meet, or for words "
            f"--texts"
        )
    check_target(output)
    with tempfile.TemporaryDirectory() as whole:
        exported = export_huggingface(folder, Path(whole, output.name), options, say)
        return quantize_bundle(exported.path, samples or [], output, quantize.value, evaluate, say, texts)


def _of_checkpoint(
    checkpoint: Path, output: Path, corpus: Path | None, weights: Path | None, data: Path | None, split: Path | None,
    cache: Path | None, small: bool,
) -> Bundle:  # fmt: skip
    from edgealign.train.senses import Sense, is_sense

    if is_sense(checkpoint):
        from edgealign.export.senses import export_sense
        from edgealign.train.options import packs_folder
        from edgealign.train.research import default_cache

        if weights is not None:
            Sense.load(checkpoint).save(weights)
        return export_sense(checkpoint, packs_folder(data), cache or default_cache(), output, say, split, small)
    from edgealign.export.speech import export_speech
    from edgealign.train.text_to_speech import Checkpoint

    loaded = Checkpoint.load(checkpoint)
    if corpus is None:
        raise InvalidInput(f"'{checkpoint}' is of text-to-speech: name with --corpus what it was trained on")
    if weights is not None:
        loaded.save(weights, half=True)
    return export_speech(loaded, corpus, output, say)


def _refuse(belongs_to: str, **options: object) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise InvalidInput(f"{given[0]} is for an export of {belongs_to}: leave it out")


def main(arguments: list[str]) -> None:
    """Run with the arguments after `edgealign export`; errors are the caller's to print."""
    code = app(arguments, prog_name="edgealign export", standalone_mode=False)
    if code:  # Typer returns the code of an interrupt where it does not end the process itself
        sys.exit(code)
