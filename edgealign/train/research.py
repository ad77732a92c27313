"""The research tasks: data, features, what is asked, defaults of a run. Shared by the commands and benchmarks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgealign.episodes import mean_and_ci95
from edgealign.errors import InvalidInput
from edgealign.train import packs, pairs_table, processes, published
from edgealign.train.evaluation import Cell, Evaluation, Retrieval
from edgealign.train.features import FeatureConfig
from edgealign.train.listing import Listing
from edgealign.train.methods import LoopConfig
from edgealign.train.paired import Paired, Protocol

Loader = Callable[[int], Listing]  # by fold


@dataclass(frozen=True)
class Task:
    """
    load       the listing of the packs in a folder, by fold
    protocols  what is asked of the packs; a user's own pairs and published sets are asked `OWN`
    """

    name: str
    what: str
    kinds: tuple[str, str]
    load: Callable[[Path, int], Listing]
    protocols: tuple[Protocol, ...]
    features: FeatureConfig = field(default_factory=FeatureConfig)


OWN = (Protocol("labels", 5, True),)
CONCEPT_PROTOCOLS = (Protocol("concepts", 3, True), Protocol("sounds", 5, False))

# Options that name the folders of a published data set, and its loader.
PUBLISHED = {
    "text-to-image": (("yummly",), published.yummly),
    "image-to-audio": (("cifar10", "cifar100", "esc50"), published.cifar_esc50),
    "text-to-speech-languages": (("wilderness",), published.wilderness),
}

TASKS = {
    task.name: task
    for task in (
        Task(
            "text-to-image", "names and keywords to pictures", ("text", "image"), packs.text_to_image,
            (Protocol("photographs", 5, True, "photograph "), Protocol("emoji", 3, True, "emoji ")),
        ),
        Task(
            "image-to-audio", "pictures to sounds of the same concept", ("image", "sound"), packs.image_to_audio,
            CONCEPT_PROTOCOLS,
        ),
        Task(
            "text-to-speech-words", "spelled words to speech", ("text", "sound"), packs.words,
            (
                Protocol("English digits", 5, True, "fsdd "),
                Protocol("Mandarin and English words", 5, True, "dspspeech20 "),
                Protocol("Arabic words", 5, False, "arabic_sc "),
            ),
            FeatureConfig(frames_pooled=3),
        ),
        Task(
            "text-to-speech-languages", "texts to the language that is spoken (synthetic speech)", ("text", "sound"),
            packs.languages, (Protocol("languages", 5, True),), FeatureConfig(frames_pooled=8),
        ),
    )
}  # fmt: skip


def load(task: Task, data: Path | None, cache: Path | None, fold: int = 0, own: Loader | None = None) -> Paired:
    """The data of a task with its features: the packs in `data`, or what `own` lists instead.

    Of several processes the first computes what is not cached.
    """
    if own is None and data is None:
        raise InvalidInput("where the packs are is not known: give --data or set $EDGEALIGN_DATA, or give --pairs")
    processes.join()
    if processes.rank():
        processes.wait()
    listing = task.load(data, fold) if own is None else own(fold)
    protocols = task.protocols
    if own is not None:
        protocols = CONCEPT_PROTOCOLS if listing.name == "cifar-esc50" else OWN
    paired = listing.paired(task.features, cache, protocols)
    if not processes.rank():
        processes.wait()
    return paired


def own_data(task: Task, table: Path | None, folders: dict[str, Path]) -> Loader | None:
    """What takes the place of the packs: a user's table of pairs, or a published data set; None for the packs.

    folders   of the data set, by the name of its option
    """
    if table is not None and folders:
        raise InvalidInput(f"--pairs and --{next(iter(folders))} are two sources of data: give one")
    if table is not None:
        return lambda _fold: pairs_table.read(table, f"pairs-{table.stem}", task.kinds)
    if not folders:
        return None
    needed, load_published = PUBLISHED[task.name]
    missing = [f"--{name}" for name in needed if name not in folders]
    if missing:
        raise InvalidInput(f"this data set also needs {' and '.join(missing)}: name the folders")
    return lambda fold: load_published(*(folders[name] for name in needed), fold)


def defaults(task: Task, method: str, seed: int, quick: bool, steps: int | None = None) -> LoopConfig:
    """Configuration of a run; quick: a tenth of the steps, for trying whether all works."""
    # Of four pairs those that served croma-weak-nce best on the validation labels of image-to-audio, after 30 steps.
    rates = {"inner_learning_rate": 3e-4, "outer_learning_rate": 3e-4}
    config = LoopConfig(method=method, seed=seed, features=task.features, tasks_per_step=1, **rates)
    if quick:
        config = replace(config, steps=120, inner_steps=4, validate_every=40)
    return replace(config, steps=steps) if steps is not None else config


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgealign" / "features"


def results_table(cells: Sequence[Cell]) -> str:
    """Accuracies in percent with 95 % intervals, a line per protocol and head, a column per shot."""
    shots = sorted({cell.k for cell in cells})
    lines = [f"{'accuracy, %':44}" + "".join(f"{f'k={k}':>14}" for k in shots)]
    for key in dict.fromkeys((cell.protocol, cell.n_way, cell.head) for cell in cells):
        by_k = {c.k: c for c in cells if (c.protocol, c.n_way, c.head) == key and c.noise == 0}
        line = f"{f'{key[0]}, {key[1]}-way, {key[2]}':44}"
        for k in shots:
            mean, ci95 = mean_and_ci95(100 * by_k[k].accuracies) if k in by_k else (0, 0)
            line += f"{f'{mean:.1f} ± {ci95:.1f}' if k in by_k else '–':>14}"
        lines.append(line)
    return "\n".join(lines)


def retrieval_table(found: Sequence[Retrieval]) -> str:
    """Recall and median rank, with chance in brackets."""
    lines = [f"{'retrieval (by chance)':44}" + "".join(f"{head:>16}" for head in ("R@1", "R@5", "R@10", "median rank"))]
    for one in found:
        name = f"{one.role} {one.what}, {one.direction} ({one.n_gallery})"
        values = [f"{100 * one.recall(k):.1f} ({100 * one.recall_by_chance(k):.1f})" for k in (1, 5, 10)]
        values.append(f"{one.median_rank:.0f} ({one.median_rank_by_chance})")
        lines.append(f"{name:44}" + "".join(f"{value:>16}" for value in values))
    return "\n".join(lines) if found else ""


def results_json(data: Paired, evaluation: Evaluation, cells: Sequence[Cell], found: Sequence[Retrieval]) -> str:
    """The same for other programs."""
    accuracies = []
    for cell in cells:
        mean, ci95 = mean_and_ci95(100 * cell.accuracies)
        accuracies.append({
            "protocol": cell.protocol, "head": cell.head, "way": cell.n_way, "k": cell.k, "noise": cell.noise,
            "episodes": len(cell.accuracies), "mean": round(mean, 3), "ci95": round(ci95, 3),
        })  # fmt: skip
    ranked = [
        {
            "role": one.role, "what": one.what, "direction": one.direction, "gallery": one.n_gallery,
            **{f"r{k}": round(100 * one.recall(k), 3) for k in (1, 5, 10)},
            **{f"r{k}_by_chance": round(100 * one.recall_by_chance(k), 3) for k in (1, 5, 10)},
            "median_rank": one.median_rank, "median_rank_by_chance": one.median_rank_by_chance,
        }
        for one in found
    ]  # fmt: skip
    whole = {
        "data": data.name, "data_sha256": data.sha256, "split_sha256": data.split_sha256,
        "episodes_sha256": evaluation.sha256, "accuracies": accuracies, "retrieval": ranked,
    }  # fmt: skip
    return json.dumps(whole, ensure_ascii=False, indent=1)
