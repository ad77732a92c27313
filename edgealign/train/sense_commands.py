"""`edgealign train audio` and `edgealign train image`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgealign.cli.output import say
from edgealign.train.options import Cache, Data, Minutes, Run, Threads, chosen_settings, packs_folder

if TYPE_CHECKING:
    from edgealign.train.sense_encoders import SenseConfig

Fold = Annotated[int, typer.Option(min=-1, max=2, help="Which classes are kept for the test; -1 trains on all.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Updates of the whole schedule.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the weights and of what is drawn.")]
Settings = Annotated[str, typer.Option("--set", help="Fields of SensesConfig: name=number, with commas.")]

Pictures = Annotated[
    Path | None, typer.Option(help="sense.pt of `train image`: sounds can start from pictures and words then.")
]
WordSteps = Annotated[int, typer.Option(min=1, help="Updates of the text source.")]

STEPS = {"audio": 800, "image": 1400}


def audio(
    run: Run, data: Data = None, fold: Fold = 0, steps: Steps = None, minutes: Minutes = None, seed: Seed = 0,
    settings: Settings = "", cache: Cache = None, threads: Threads = 1, pictures: Pictures = None,
    word_steps: WordSteps = 2500,
) -> None:  # fmt: skip
    """The encoder of environmental and animal sounds: free clips of ESC-50, recordings of animals, made sounds."""
    _train("audio", run, data, fold, steps, minutes, seed, settings, cache, threads, pictures, word_steps)


def image(
    run: Run, data: Data = None, fold: Fold = 0, steps: Steps = None, minutes: Minutes = None, seed: Seed = 0,
    settings: Settings = "", cache: Cache = None, threads: Threads = 1, word_steps: WordSteps = 2500,
) -> None:  # fmt: skip
    """The encoder of pictures: photographs of Caltech-101, emoji, dishes; and its words, in every language of CLDR."""
    _train("image", run, data, fold, steps, minutes, seed, settings, cache, threads, None, word_steps)


def _train(
    modality: str, run: Path, data: Path | None, fold: int, steps: int | None, minutes: float | None, seed: int,
    settings: str, cache: Path | None, threads: int, pictures: Path | None, word_steps: int,
) -> None:  # fmt: skip
    import torch

    from edgealign.train.research import default_cache
    from edgealign.train.sense_data import SenseData
    from edgealign.train.senses import Sense, SensesConfig, SenseTrainer

    torch.set_num_threads(threads)
    config = SensesConfig(seed=seed, fold=fold, steps=steps or STEPS[modality], encoder=encoder_config(modality))
    config = replace(config, **chosen_settings(settings, SensesConfig))
    shown_by = None if pictures is None else Sense.load(pictures, "image")
    data = SenseData(packs_folder(data), cache or default_cache(), config.fold, say)
    trainer = SenseTrainer(data.batches(modality, seed, config.steps), data.validation(modality), config, run)
    trainer.run(say, minutes)
    if trainer.step >= config.steps:
        sense = data.described(Sense.of_run(run))
        if modality == "image":
            sense = data.with_words(sense, seed, say, word_steps)
        elif shown_by is not None:
            sense = data.with_sources(sense, shown_by, seed, say, word_steps)
        sense.save(run / "sense.pt")
        print(run / "sense.pt")


def encoder_config(modality: str) -> SenseConfig:
    """The sizes of the encoder that ships."""
    from edgealign.train.sense_encoders import SenseConfig

    if modality == "audio":
        return SenseConfig()
    return SenseConfig("image", n_rows=64, widths=(32, 64, 128, 192))
