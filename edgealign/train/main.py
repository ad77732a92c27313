"""`edgealign train`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edgealign.cli.output import say
from edgealign.errors import InvalidInput
from edgealign.machine import usable_processors
from edgealign.train import sense_commands
from edgealign.train.options import Data, Minutes, Run, Threads, chosen_settings, given_packs
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
    run: Run,
    corpus: Annotated[Path, typer.Option(help="Folder of the rendered corpus; made where it does not exist.")],
    data: Data = None,
    recipe: Annotated[str, typer.Option(help="joint or croma, the paper's loop.")] = "joint",
    steps: Annotated[int, typer.Option(min=1, help="Updates of the whole schedule.")] = 3000,
    minutes: Minutes = None,
    seed: Annotated[int, typer.Option(help="Of the weights, the words and the field conditions.")] = 0,
    languages: Annotated[str, typer.Option(help="espeak-ng voices, with commas. Default: all usable ones.")] = "",
    words: Annotated[int, typer.Option(min=20, help="Synthetic words of each language.")] = 600,
    start_from: Annotated[Path | None, typer.Option(help="Checkpoint whose weights a new run begins with.")] = None,
    leave_out: Annotated[
        str,
        typer.Option(help="Recorded packs whose test words and speakers training must not hear, with commas, or none."),
    ] = "arabic_sc,dspspeech20,fsdd",
    teacher: Annotated[
        bool, typer.Option("--teacher", help="A larger speech encoder for `distill` to learn from; no bundle holds it.")
    ] = False,
    settings: Annotated[str, typer.Option("--set", help="Fields of TrainConfig: name=number, with commas.")] = "",
    threads: Annotated[int, typer.Option(min=1, help="Of torch; drawing the next batches takes one more.")] = 1,
) -> None:
    """Strong pairs of spelled and spoken words: from synthesizers, and from recordings where there are some."""
    import torch

    from edgealign.train.config import TrainConfig
    from edgealign.train.corpus import Corpus, CorpusConfig, build
    from edgealign.train.encoders import TEACHER, EncoderConfig
    from edgealign.train.text_to_speech import Trainer

    torch.set_num_threads(threads)
    data = given_packs(data)
    if data is not None and not data.is_dir():
        raise InvalidInput(f"'{data}' is not a folder: --data names the folder that holds the recorded packs")
    chosen = tuple(name.strip() for name in languages.split(",") if name.strip())
    corpus_config = CorpusConfig(seed=seed, languages=chosen, words_per_language=words)
    build(corpus, corpus_config, data, workers=usable_processors(), report=say)
    encoders = TEACHER if teacher else EncoderConfig()
    config = TrainConfig(recipe=recipe, seed=seed, steps=steps, left_out=_packs(leave_out), encoders=encoders)
    config = replace(config, **chosen_settings(settings, TrainConfig))
    trainer = Trainer(Corpus(corpus), config, run)
    if start_from is not None and trainer.step == 0:
        trainer.start_from(start_from)
    trainer.run(say, minutes)
    if trainer.step >= config.steps:
        print(run / "best.pt")


@app.command("distill")
def distill(
    run: Run,
    teacher: Annotated[
        list[Path], typer.Option(help="Checkpoint of text-to-speech, or student.pt; several are heard as one.")
    ],
    corpus: Annotated[Path, typer.Option(help="Folder of the corpus that they were trained on.")],
    start_from: Annotated[
        Path | None, typer.Option(help="Checkpoint whose weights the student begins with. Default: the last teacher.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates of the whole schedule.")] = 900,
    minutes: Minutes = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the words and the field conditions.")] = 0,
    settings: Annotated[
        str, typer.Option("--set", help="Fields of DistillationConfig: name=number, with commas.")
    ] = "",
    threads: Threads = 1,
) -> None:
    """A speech encoder that hears what its teachers hear on average, whoever says it. Before `spelling`."""
    import torch

    from edgealign.train.corpus import Corpus
    from edgealign.train.distillation import Distillation, DistillationConfig
    from edgealign.train.text_to_speech import Checkpoint

    torch.set_num_threads(threads)
    config = replace(DistillationConfig(seed=seed, steps=steps), **chosen_settings(settings, DistillationConfig))
    teachers = [Checkpoint.load(path) for path in teacher]
    start = Checkpoint.load(start_from) if start_from else teachers[-1]
    trainer = Distillation(run, start, teachers, Corpus(corpus), config, say)
    trainer.run(say, minutes)
    if trainer.step >= config.steps:
        print(run / "student.pt")


@app.command("spelling")
def spelling(
    run: Run,
    checkpoint: Annotated[
        Path, typer.Option(help="best.pt of `train text-to-speech`, or spelling.pt; its speech encoder stays.")
    ],
    corpus: Annotated[Path, typer.Option(help="Folder of the corpus that it was trained on.")],
    steps: Annotated[int, typer.Option(min=1, help="Updates of the whole schedule.")] = 4500,
    minutes: Minutes = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the words.")] = 0,
    leave_out: Annotated[
        str | None,
        typer.Option(
            help="Recorded packs, or none: while there are any, no word that accuracy is measured on is read. Default: "
            "those that the checkpoint left out."
        ),
    ] = None,
    settings: Annotated[str, typer.Option("--set", help="Fields of SpellingConfig: name=number, with commas.")] = "",
    threads: Threads = 1,
) -> None:
    """The last stage of text-to-speech: how all words of the word lists are spelled."""
    import torch

    from edgealign.train.spelling import SpellingConfig, SpellingTrainer
    from edgealign.train.text_to_speech import Checkpoint

    torch.set_num_threads(threads)
    given = Checkpoint.load(checkpoint)
    left_out = given.left_out if leave_out is None else _packs(leave_out)
    config = SpellingConfig(seed=seed, steps=steps, left_out=left_out)
    config = replace(config, **chosen_settings(settings, SpellingConfig))
    trainer = SpellingTrainer(run, given, corpus, config, usable_processors(), say)
    trainer.run(say, minutes)
    if trainer.step >= config.steps:
        print(run / "spelling.pt")


def _packs(leave_out: str) -> tuple[str, ...]:
    return () if leave_out == "none" else tuple(name.strip() for name in leave_out.split(",") if name.strip())


def main(arguments: list[str]) -> None:
    """Run with the arguments after `edgealign train`; errors are the caller's to print."""
    code = app(arguments, prog_name="edgealign train", standalone_mode=False)
    if code:  # Typer returns the code of an interrupt where it does not end the process itself
        sys.exit(code)
