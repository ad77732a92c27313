"""The method against its baselines and ablations: trains what is not trained, asks all the same episodes, writes rows.

    python -m benchmarks.paper --task text-to-image --quick

Rows go to rows/paper.jsonl (rows/paper_quick.jsonl); tables and plots are made of them: PAPER.md (PAPER_QUICK.md).
Stopped, it goes on with the run, or the measurement, where it was. A quick row says nothing about the methods, only
that all works.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import rows
from benchmarks.episodes import mean_and_ci95
from benchmarks.tables import interval, table
from edgealign import machine
from edgealign.train import research
from edgealign.train.evaluation import Cell, Evaluation, Retrieval, retrieval
from edgealign.train.loop import Loop, load_best
from edgealign.train.methods import METHODS, STRONG, LoopConfig
from edgealign.train.paired import Paired

FOLDER = Path(__file__).parent
NOISES = (0.0, 0.1, 0.2, 0.3, 0.4)
NOISE_METHODS = ("scratch", "source-meta", "align-classify", "croma-weak-nce")  # whose phi is asked with wrong labels
COMPARED = ("croma-weak-nce", "croma-strong-nce")  # minus every other method; with and without alignment steps first
QUICK_METHODS = (
    "scratch",
    "source-meta",
    "align-classify",
    "croma-weak",
    "croma-weak-nce",
    "croma-strong-nce",
    "oracle",
)
QUICK_STEPS = 60
OUTER_RATES = (1e-3, 3e-4, 1e-4)  # that validation labels choose from
TUNED = {True: "croma-weak-nce", False: "align-classify"}  # who chooses for methods with Reptile, and without
N_FOLDS = {"image-to-audio": 3}  # seed s tests fold s of the concepts
SHOTS = (1, 5, 10)
N_QUERIES = 10


class Plan(NamedTuple):
    """What one command measures."""

    task: research.Task
    data: Path
    cache: Path
    methods: Sequence[str]
    seeds: Sequence[int]
    n_episodes: int
    n_phi_episodes: int
    phi_methods: Sequence[str]
    phi_seeds: Sequence[int]
    phi_noises: Sequence[float]
    quick: bool
    steps: int | None  # of every run; None for the defaults


class Answered(NamedTuple):
    """One run of a method, asked."""

    method: str
    seed: int
    fold: int
    cells: list[Cell]
    ranked: list[Retrieval]
    data: Paired
    episodes_sha256: str
    config: LoopConfig
    trained_s: float


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure(plan: Plan) -> list[dict]:
    """Train and ask every method with every seed; the rows of the task."""
    answered = []
    loaded: dict[int, tuple[Paired, dict[bool, float]]] = {}
    for seed in plan.seeds:
        fold = seed % N_FOLDS.get(plan.task.name, 1)
        if fold not in loaded:
            data = research.load(plan.task, plan.data, plan.cache / "features", fold)
            loaded[fold] = data, {} if plan.quick else rates(plan, data, fold)
        data, chosen = loaded[fold]
        for method in plan.methods:
            if len(data.pairs) or not any(stage.task in STRONG for stage in METHODS[method].stages):
                answered.append(answer(plan, data, method, seed, fold, chosen))
    return to_rows(plan, answered)


def rates(plan: Plan, data: Paired, fold: int) -> dict[bool, float]:
    """The outer rates for methods with Reptile (True) and without: those with which the method of TUNED answers
    validation labels best after half the steps, with seed 0. The inner one, which adapts phi at meta-test, is the
    default for all."""
    chosen = {}
    for by_reptile, method in TUNED.items():
        config = research.defaults(plan.task, method, 0, plan.quick, plan.steps)
        config = replace(config, steps=max(1, config.steps // 2))
        name = f"rate-{method}-{fold}"
        scores = {rate: trained(plan, data, config, rate, f"{name}-{rate:g}").best for rate in OUTER_RATES}
        chosen[by_reptile] = max(scores, key=scores.get)
        report(f"{plan.task.name} fold {fold}, {method}: {scores}")
    return chosen


def trained(plan: Plan, data: Paired, config: LoopConfig, rate: float | None, name: str) -> Loop:
    """A finished run with an outer rate (None: that of the configuration); trained where that is not done yet."""
    validate_every = max(1, min(config.validate_every, config.steps // 2))
    config = replace(config, validate_every=validate_every, outer_learning_rate=rate or config.outer_learning_rate)
    folder = plan.cache / "paper" / ("quick" if plan.quick else "full") / plan.task.name / f"{config.steps}" / name
    report(f"{plan.task.name} {name} in {folder}")
    loop = Loop(data, config, folder)
    loop.run(report)
    return loop


def answer(plan: Plan, data: Paired, method: str, seed: int, fold: int, chosen: dict[bool, float]) -> Answered:
    """Train one method with one seed where that is not done yet, and ask it."""
    config = research.defaults(plan.task, method, seed, plan.quick, plan.steps)
    rate = chosen.get(any(stage.meta for stage in METHODS[method].stages))
    loop = trained(plan, data, config, rate, f"{method}-{seed}")
    config, folder = loop.config, loop.folder
    model = load_best(data, config, folder)
    evaluation = Evaluation(data, "test", plan.n_episodes, N_QUERIES, SHOTS)
    kept = Kept(folder / "cells", f"{data.sha256} {evaluation.sha256} {config}")
    cells = list(evaluation.prototype_cells(model, NOISES))
    for k, noise, align in phi_questions(method, seed, plan):
        name = f"phi {plan.n_phi_episodes} {k} {noise} {align}"
        ask = partial(evaluation.phi_cells, model, config, (k,), plan.n_phi_episodes, (noise,), align, report)
        cells += kept.get(name, ask)
    return Answered(
        method, seed, fold, cells, retrieval(data, model), data, evaluation.sha256, config, loop.trained_s
    )  # fmt: skip


def phi_questions(method: str, seed: int, plan: Plan) -> Iterable[tuple[int, float, str | None]]:
    """(k, noise, alignment steps) that the adapted classifier is asked: dear, so not all."""
    if not plan.n_phi_episodes or method not in plan.phi_methods or seed not in plan.phi_seeds:
        return
    for k in (0, 1, 5):
        yield k, 0.0, None
    if method in COMPARED and seed == 0 and not plan.quick:
        yield from ((k, 0.0, METHODS[method].align) for k in (1, 5))
    if method in NOISE_METHODS and seed == 0 and not plan.quick:
        yield from ((5, noise, None) for noise in plan.phi_noises)


class Kept:
    """Cells that were measured before, by everything that decides about them."""

    def __init__(self, folder: Path, depends_on: str) -> None:
        self.folder, self.depends_on = folder, depends_on

    def get(self, name: str, make: Callable[[], Iterable[Cell]]) -> list[Cell]:
        path = self.folder / f"{hashlib.sha256(f'{name} {self.depends_on}'.encode()).hexdigest()[:16]}.npz"
        if not path.exists():
            made = make()
            self.folder.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(".partial.npz")
            np.savez(half, **{"|".join(map(str, cell[:-1])): cell[-1] for cell in map(_fields, made)})
            os.replace(half, path)
        found = []
        with np.load(path) as arrays:
            for key in arrays.files:
                protocol, head, k, noise, n_way = key.split("|")
                found.append(Cell(protocol, head, int(k), float(noise), int(n_way), arrays[key]))
        return found


def _fields(cell: Cell) -> tuple:
    return cell.protocol, cell.head, cell.k, cell.noise, cell.n_way, cell.accuracies


Question = tuple[str, str, int, float, int]  # protocol, head, k, noise, way
# What a row answers: measured again, it takes the place of the earlier one, and the rows of other methods stay.
ANSWERS = ("task", "what", "method", "minus", "protocol", "head", "k", "noise", "role", "of", "direction")


def pooled(answered: Sequence[Answered]) -> dict[str, dict[Question, np.ndarray]]:
    """Accuracies of each method and question: the mean over the seeds of a fold, episode by episode, the folds one
    after the other. Methods that answered with the same seeds are paired."""
    methods = dict.fromkeys(one.method for one in answered)
    return {method: _of_runs([one for one in answered if one.method == method]) for method in methods}


def _of_runs(runs: Sequence[Answered]) -> dict[Question, np.ndarray]:
    by_question: dict[Question, dict[int, list[np.ndarray]]] = {}
    for one in runs:
        for cell in one.cells:
            by_question.setdefault(_fields(cell)[:-1], {}).setdefault(one.fold, []).append(cell.accuracies)
    return {
        question: np.concatenate([np.mean(of_fold[fold], axis=0) for fold in sorted(of_fold)])
        for question, of_fold in by_question.items()
    }


def to_rows(plan: Plan, answered: Sequence[Answered]) -> list[dict]:
    """Means and paired differences in percent, recalls and median ranks; with what is needed to measure them again."""
    made = []
    accuracies = pooled(answered)
    for method, of_method in accuracies.items():
        runs = [one for one in answered if one.method == method]
        about = {
            "task": plan.task.name, "quick": plan.quick, "method": method, "seeds": [one.seed for one in runs],
            "steps": runs[0].config.steps, "tasks_per_step": runs[0].config.tasks_per_step,
            "learning_rates": [[one.config.inner_learning_rate, one.config.outer_learning_rate] for one in runs],
            "trained_s": [round(one.trained_s, 1) for one in runs],
            "episodes_sha256": sorted({one.episodes_sha256 for one in runs}),
            "split_sha256": sorted({one.data.split_sha256 for one in runs}),
            "synthetic_speech": plan.task.name == "text-to-speech-languages",
            "machine": machine.describe() | {"torch": torch.__version__}, "commit": rows.commit(),
            "command": rows.command("paper"),
        }  # fmt: skip
        for question, values in of_method.items():
            asked = dict(zip(("protocol", "head", "k", "noise", "way"), question, strict=True))
            askers = [one for one in runs if any(_fields(cell)[:-1] == question for cell in one.cells)]
            asked["seeds"] = [one.seed for one in askers]
            made.append({"what": "accuracy", **about, **asked, **_mean(values), **_fall(askers, question, values)})
            for other in accuracies if method in COMPARED and asked["noise"] == 0 else ():
                theirs = accuracies[other].get(question)
                if other != method and theirs is not None and len(theirs) == len(values):
                    made.append({"what": "difference", **about, **asked, "minus": other, **_mean(values - theirs)})
        for role, what, direction in dict.fromkeys((r.role, r.what, r.direction) for one in runs for r in one.ranked):
            same = [r for one in runs for r in one.ranked if (r.role, r.what, r.direction) == (role, what, direction)]
            recalls = {f"r{k}": round(100 * float(np.mean([r.recall(k) for r in same])), 2) for k in (1, 5, 10)}
            chance = {f"r{k}_by_chance": round(100 * same[0].recall_by_chance(k), 2) for k in (1, 5, 10)}
            made.append({
                "what": "retrieval", **about, "role": role, "of": what, "direction": direction,
                "gallery": same[0].n_gallery, "queries": len(same[0].ranks), **recalls, **chance,
                "median_rank": float(np.mean([r.median_rank for r in same])),
                "median_rank_by_chance": same[0].median_rank_by_chance,
            })  # fmt: skip
    return made


def _fall(askers: Sequence[Answered], question: Question, values: np.ndarray) -> dict[str, float]:
    """What wrong labels take from the same runs in the same episodes, in percent; nothing where none are wrong."""
    protocol, head, k, noise, way = question
    clean = _of_runs(askers).get((protocol, head, k, 0.0, way)) if noise else None
    if clean is None or len(clean) != len(values):
        return {}
    fall = _mean(values - clean)
    return {"minus_clean": fall["mean"], "minus_clean_ci95": fall["ci95"]}


def _mean(values: np.ndarray) -> dict[str, float]:
    mean, ci95 = mean_and_ci95(100 * values)
    return {"mean": round(mean, 3), "ci95": round(ci95, 3), "episodes": len(values)}


# ---- tables and plots ----


def markdown(found: list[dict]) -> str:
    """Every table of the rows: accuracy by shots, differences, label noise, retrieval."""
    quick = found[0]["quick"]
    parts = ["# The method and its baselines" + (", quick runs" if quick else "")]
    if quick:
        parts.append(
            f"Quick runs: {found[0]['steps']} steps, few episodes. They show that every part works; they say **nothing "
            f"about the methods**."
        )
    parts.append("Mean over episodes with its 95 % interval, in %. Made by `python -m benchmarks.paper` from its rows.")
    for task in dict.fromkeys(row["task"] for row in found):
        here = [row for row in found if row["task"] == task]
        parts.append(f"## {task}: {research.TASKS[task].what}")
        for protocol, way, head in dict.fromkeys(
            (r["protocol"], r["way"], r["head"]) for r in here if r["what"] == "accuracy"
        ):
            asked = [r for r in here if (r.get("protocol"), r.get("way"), r.get("head")) == (protocol, way, head)]
            counts = _range(r["episodes"] for r in asked), _range(len(r["seeds"]) for r in asked)
            title = f"{protocol}, {way}-way, {head} (episodes: {counts[0]}, seeds: {counts[1]})"
            clean = [r for r in asked if r["what"] == "accuracy" and r["noise"] == 0]
            parts.append(f"### {title}\n\n" + _grid(clean, "method", "k", "k="))
            noisy = [r for r in asked if r["what"] == "accuracy" and r["k"] == 5]
            if len({r["noise"] for r in noisy}) > 1:
                parts.append(f"### {title}: k=5, share of wrong labels\n\n" + _grid(noisy, "method", "noise", ""))
                falls = [
                    r | {"mean": r["minus_clean"], "ci95": r["minus_clean_ci95"]} for r in noisy if "minus_clean" in r
                ]
                if falls:
                    parts.append(f"### {title}: what they take\n\n" + _grid(falls, "method", "noise", "", sign=True))
            for method in COMPARED:
                minus = [r for r in asked if r["what"] == "difference" and r["method"] == method]
                if minus:
                    parts.append(f"### {title}: {method} minus\n\n" + _grid(minus, "minus", "k", "k=", sign=True))
        ranked = [r for r in here if r["what"] == "retrieval"]
        if ranked:
            parts.append("### retrieval (by chance)\n\n" + _retrieval(ranked))
        first = here[0]
        commits = sorted({str(r["commit"])[:12] for r in here})
        commands = ", ".join(f"`{command}`" for command in dict.fromkeys(r["command"] for r in here))
        parts.append(
            f"Seeds {first['seeds']}, {first['steps']} steps; split {first['split_sha256'][0][:12]}; commit "
            f"{', '.join(commits)}; {first['machine']['cpu']}; {commands}"
        )
    return "\n\n".join(parts) + "\n"


def _range(values: Iterable[int]) -> str:
    ordered = sorted(set(values))
    return "–".join(map(str, dict.fromkeys((ordered[0], ordered[-1]))))


def _grid(found: list[dict], line: str, column: str, prefix: str, sign: bool = False) -> str:
    columns = sorted({row[column] for row in found})
    cells: dict[str, dict] = {}
    for row in found:
        cells.setdefault(row[line], {})[row[column]] = interval(row["mean"], row["ci95"], sign)
    body = [[name, *(of.get(value, "–") for value in columns)] for name in METHODS if (of := cells.get(name))]
    return table([line, *(f"{prefix}{value}" for value in columns)], body)


def _retrieval(found: list[dict]) -> str:
    body = [
        [
            r["method"], f"{r['role']} {r['of']}, {r['direction']}", str(r["gallery"]),
            *(f"{r[f'r{k}']:.1f} ({r[f'r{k}_by_chance']:.1f})" for k in (1, 5, 10)),
            f"{r['median_rank']:.0f} ({r['median_rank_by_chance']})",
        ]
        for method in METHODS for r in found if r["method"] == method
    ]  # fmt: skip
    return table(["method", "of", "gallery", "R@1", "R@5", "R@10", "median rank"], body)


def plot(found: list[dict], task: str, path: Path) -> None:
    """Accuracy by shots, and by wrong labels at k = 5, with the prototype head; one panel each per protocol."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = task  # the same rows give the same file
    own = [r for r in found if r["task"] == task and r["what"] == "accuracy" and r["head"] == "prototype"]
    protocols = list(dict.fromkeys(r["protocol"] for r in own))
    figure, axes = plt.subplots(len(protocols), 2, figsize=(10, 3.6 * len(protocols)), squeeze=False)
    for (by_shots, by_noise), protocol in zip(axes, protocols, strict=True):
        for method in (name for name in METHODS if any(r["method"] == name for r in own)):
            mine = [r for r in own if (r["protocol"], r["method"]) == (protocol, method)]
            for axis, column, chosen in (
                (by_shots, "k", [r for r in mine if r["noise"] == 0]),
                (by_noise, "noise", [r for r in mine if r["k"] == 5]),
            ):
                chosen.sort(key=lambda r, column=column: r[column])
                axis.errorbar(
                    [r[column] for r in chosen], [r["mean"] for r in chosen], [r["ci95"] for r in chosen], label=method
                )
        by_shots.set(title=protocol, xlabel="k, target samples per label", ylabel="accuracy, %")
        by_noise.set(title=f"{protocol}, k = 5", xlabel="share of wrong labels")
    axes[0][1].legend(fontsize=6)
    figure.suptitle(task + (" (quick runs: they show that all works)" if found[0]["quick"] else ""))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=[*research.TASKS, "all"], required=True)
    parser.add_argument("--quick", action="store_true", help="few methods and steps, one seed: does all work")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all, or some with --quick")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2, or 0 with --quick")
    parser.add_argument("--episodes", type=int, help="with the prototype head; default 600, or 200 with --quick")
    parser.add_argument("--phi-episodes", type=int, help="default 600, or 10 with --quick")
    parser.add_argument("--phi-methods", nargs="+", choices=METHODS, help="adapted to the episodes; default: all")
    parser.add_argument("--phi-seeds", nargs="+", type=int, help="of those of --seeds; default: all")
    parser.add_argument(
        "--phi-noises", nargs="*", type=float, default=NOISES[1:], help="shares of wrong labels; default: %(default)s"
    )
    parser.add_argument(
        "--steps", type=int, help=f"of every run; default as the command's, or {QUICK_STEPS} with --quick"
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGEALIGN_DATA"), help="$EDGEALIGN_DATA")
    parser.add_argument("--cache", type=Path, default=rows.default_cache(), help="for features, runs and measurements")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the tables and plots, rows/ in it")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("where the packs are is not known: set EDGEALIGN_DATA or give --data")
    torch.set_num_threads(1)
    quick = arguments.quick
    tasks = list(research.TASKS.values()) if arguments.task == "all" else [research.TASKS[arguments.task]]
    path = arguments.output / "rows" / ("paper_quick.jsonl" if quick else "paper.jsonl")
    seeds = arguments.seeds or ((0,) if quick else (0, 1, 2))
    for task in tasks:
        plan = Plan(
            task, arguments.data, arguments.cache, arguments.methods or (QUICK_METHODS if quick else tuple(METHODS)),
            seeds, arguments.episodes or (200 if quick else 600),
            (10 if quick else 600) if arguments.phi_episodes is None else arguments.phi_episodes,
            arguments.phi_methods or tuple(METHODS), arguments.phi_seeds or seeds, arguments.phi_noises, quick,
            arguments.steps or (QUICK_STEPS if quick else None),
        )  # fmt: skip
        rows.replace(path, measure(plan), ANSWERS)
        found = rows.read(path)
        name = "PAPER_QUICK.md" if quick else "PAPER.md"
        (arguments.output / name).write_text(markdown(found), encoding="utf-8")
        plot(found, task.name, arguments.output / f"paper{'_quick' if quick else ''}_{task.name}.svg")
        report(f"{task.name}: {path}, {arguments.output / name}")


if __name__ == "__main__":
    main()
