"""`edgealign train`."""

from __future__ import annotations

import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import typer

from edgealign.errors import InvalidInput
from edgealign.train import sense_commands
from edgealign.train.projection_command import projection
from edgealign.train.research_commands import COMMANDS

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def train() -> None:
    """Meta-align encoders of two modalities. `edgealign export` makes a bundle of the checkpoint."""


for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
for _command in (sense_commands.audio, sense_commands.image):
    app.command()(_command)
app.command("projection")(projection)


@app.command("text-to-speech")
def text_to_speech(
    run: Annotated[Path, typer.Argument(help="Folder of the run; one that exists is resumed.")],
    corpus: Annotated[Path, typer.Option(help="Folder of the rendered corpus; made where it does not exist.")],
    data: Annotated[Path | None, typer.Option(help="Folder of recorded packs. Default: $EDGEALIGN_DATA.")] = None,
    recipe: Annotated[str, typer.Option(help="joint or croma, the paper's loop.")] = "joint",
    steps: Annotated[int, typer.Option(min=1, help="Updates of the whole schedule.")] = 3000,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after so long; the same line goes on.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights, the words and the field conditions.")] = 0,
    languages: Annotated[str, typer.Option(help="espeak-ng voices, with commas. Default: all usable ones.")] = "",
    words: Annotated[int, typer.Option(min=20, help="Synthetic words of each language.")] = 600,
    start_from: Annotated[Path | None, typer.Option(help="Checkpoint whose weights a new run begins with.")] = None,
    leave_out: Annotated[
        str,
        typer.Option(help="Recorded packs whose test words and speakers training must not hear, with commas, or none."),
    ] = "arabic_sc,dspspeech20,fsdd",
    settings: Annotated[str, typer.Option("--set", help="Fields of TrainConfig: name=number, with commas.")] = "",
    threads: Annotated[int, typer.Option(min=1, help="Of torch; drawing the next batches takes one more.")] = 1,
) -> None:
    """Strong pairs of spelled and spoken words: from synthesizers, and from recordings where there are some."""
    import torch

    from edgealign.train.config import TrainConfig
    from edgealign.train.corpus import Corpus, CorpusConfig, build
    from edgealign.train.text_to_speech import Trainer

    torch.set_num_threads(threads)
    data = data or (Path(os.environ["EDGEALIGN_DATA"]) if os.environ.get("EDGEALIGN_DATA") else None)
    if data is not None and not data.is_dir():
        raise InvalidInput(f"'{data}' is not a folder: --data names the folder that holds the recorded packs")
    chosen = tuple(name.strip() for name in languages.split(",") if name.strip())
    corpus_config = CorpusConfig(seed=seed, languages=chosen, words_per_language=words)
    build(corpus, corpus_config, data, workers=os.cpu_count() or 1, report=_report)
    left_out = () if leave_out == "none" else tuple(name.strip() for name in leave_out.split(",") if name.strip())
    config = TrainConfig(recipe=recipe, seed=seed, steps=steps, left_out=left_out)
    config = replace(config, **chosen_settings(settings, TrainConfig))
    trainer = Trainer(Corpus(corpus), config, run)
    if start_from is not None and trainer.step == 0:
        trainer.start_from(start_from)
    trainer.run(_report, minutes)
    if trainer.step >= config.steps:
        print(run / "best.pt")


def chosen_settings(text: str, config: type) -> dict[str, float | int]:
    """name=number,... as keyword arguments of a config; InvalidInput names the fields that may be set."""
    defaults = {f.name: f.default for f in fields(config) if type(f.default) in (int, float)}
    chosen = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if name not in defaults:
            raise InvalidInput(f"'{name}' cannot be set: expected one of {', '.join(defaults)}")
        try:
            chosen[name] = type(defaults[name])(value)
        except ValueError:
            expected = "a whole number" if type(defaults[name]) is int else "a number"
            raise InvalidInput(f"'{item}': expected {name}= and {expected}") from None
    return chosen


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    """Run with the arguments after `edgealign train`; errors are the caller's to print."""
    code = app(arguments, prog_name="edgealign train", standalone_mode=False)
    if code:  # Typer returns the code of an interrupt where it does not end the process itself
        sys.exit(code)
