"""The commands of the research tasks: `edgealign train text-to-image` and its like."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_type_hints

import typer

from edgealign.cli.output import say
from edgealign.train.options import (
    Cache,
    Data,
    Episodes,
    LoopSettings,
    MethodName,
    Minutes,
    Queries,
    Run,
    Seed,
    Shots,
    Threads,
    chosen_settings,
    given_packs,
    parse_shots,
)

Pairs = Annotated[Path | None, typer.Option(help="Your own pairs: CSV with source,target,label,pairing,split.")]
Steps = Annotated[int | None, typer.Option(min=0, help="Updates of the whole schedule.")]
Fold = Annotated[int, typer.Option(min=0, max=2, help="Which third of the concepts is tested.")]
Quick = Annotated[bool, typer.Option("--quick", help="A short schedule: minutes, not hours.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
PhiEpisodes = Annotated[int, typer.Option(min=0, help="Episodes in which the classifier is adapted; 0 for none.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Also write event files for TensorBoard.")]


def _train(
    task: str,
    folders: dict[str, Path],
    run: Run,
    data: Data = None,
    pairs: Pairs = None,
    method: MethodName = "croma-weak-nce",
    steps: Steps = None,
    minutes: Minutes = None,
    seed: Seed = 0,
    fold: Fold = 0,
    quick: Quick = False,
    settings: LoopSettings = "",
    device: Device = "cpu",
    threads: Threads = 1,
    shots: Shots = "1,5,10",
    queries: Queries = 10,
    episodes: Episodes = 600,
    phi_episodes: PhiEpisodes = 0,
    cache: Cache = None,
    tensorboard: TensorBoard = False,
) -> None:
    """Data, training, meta-test, table.

    folders   of a published data set, by the name of its option; empty for the packs or the user's own pairs
    """
    import torch

    from edgealign.train import processes, research
    from edgealign.train.evaluation import Evaluation, retrieval
    from edgealign.train.loop import Loop, load_best
    from edgealign.writing import replace_file

    torch.set_num_threads(threads)
    processes.device(device)
    chosen_shots = parse_shots(shots)
    chosen = research.TASKS[task]
    data = given_packs(data)
    own = research.own_data(chosen, pairs, folders)
    config = research.defaults(chosen, method, seed, quick, steps)
    config = replace(config, **chosen_settings(settings, type(config)))
    paired = research.load(chosen, data, cache or research.default_cache(), fold, own)
    if own is not None:
        paired.check(chosen_shots, queries)
    loop = Loop(paired, config, run, device, tensorboard)
    loop.run(say, minutes)
    if loop.step == config.steps and processes.rank() == 0:
        model = load_best(paired, config, run)
        evaluation = Evaluation(paired, "test", episodes, queries, chosen_shots)
        cells = list(evaluation.prototype_cells(model))
        if phi_episodes:
            few = [k for k in chosen_shots if k <= 5] or list(chosen_shots[:1])
            cells += evaluation.phi_cells(model, config, few, phi_episodes, report=say)
        ranked = retrieval(paired, model)
        with replace_file(run / "results.json") as file:
            file.write(research.results_json(paired, evaluation, cells, ranked).encode())
        print(research.results_table(cells))
        if ranked:
            print(research.retrieval_table(ranked))
    processes.leave()


def _command(task: str, doc: str, published: dict[str, str]) -> Callable[..., None]:
    """A command with the options of `_train`, and one for each folder of a published data set (option -> help)."""
    hints = get_type_hints(_train, include_extras=True)
    shared = list(inspect.signature(_train).parameters.values())[2:]
    parameters = [parameter.replace(annotation=hints[parameter.name]) for parameter in shared]
    parameters += [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[Path | None, typer.Option(help=text)],
        )
        for name, text in published.items()
    ]

    def command(**given: object) -> None:
        named = {name: given.pop(name) for name in published}
        _train(task, {name: folder for name, folder in named.items() if folder is not None}, **given)

    command.__doc__ = doc
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def methods() -> None:
    """What --method can be: CroMA, its baselines, ablations and controls."""
    from edgealign.train.methods import METHODS

    for method in METHODS.values():
        print(f"{method.name:28}{method.what}")


COMMANDS = {
    "text-to-image": _command(
        "text-to-image", "Texts (names, keywords, recipes) to images.", {"yummly": "Folder of Yummly-28K."}
    ),
    "image-to-audio": _command(
        "image-to-audio", "Images to sounds of the same concept; weak pairs only.",
        {
            "cifar10": "Folder of CIFAR-10, binary version.",
            "cifar100": "Folder of CIFAR-100, binary version.",
            "esc50": "Folder ESC-50-master.",
        },
    ),
    "text-to-speech-words": _command(
        "text-to-speech-words", "Spelled words to spoken ones: synthetic for training, recorded for the test.", {}
    ),
    "text-to-speech-languages": _command(
        "text-to-speech-languages", "Texts to the language they are spoken in; the packs give synthetic speech.",
        {"wilderness": "Folder of LANGID/aligned of CMU Wilderness."},
    ),
    "methods": methods,
}  # fmt: skip
