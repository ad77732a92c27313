"""The benchmark of the method: rows of paired questions, tables and plots; stopped, it measures nothing twice."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_pairs import tiny_loop, tiny_paired

# Benchmarks are not installed; they are run from the root of the repository.
sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import paper
from edgealign.train import research
from edgealign.train.loop import Loop


@pytest.fixture
def plan(tmp_path, monkeypatch) -> paper.Plan:
    data = tiny_paired(n_each=20)
    monkeypatch.setattr(research, "load", lambda *_: data)
    monkeypatch.setattr(
        research, "defaults", lambda _task, method, seed, *_: tiny_loop(method=method, seed=seed, steps=2, n_shot=2)
    )
    task = research.TASKS["text-to-image"]
    methods = ("scratch", "croma-weak-nce")
    return paper.Plan(task, tmp_path, tmp_path, methods, (0, 1), 8, 2, methods[1:], (1,), (), True, 2)


def test_rows_hold_means_of_seeds_and_paired_differences(plan, tmp_path, monkeypatch):
    answered = []
    whole = paper.to_rows
    monkeypatch.setattr(paper, "to_rows", lambda _plan, found: answered.extend(found) or whole(_plan, found))
    made = paper.measure(plan)
    asked = {"protocol": "labels", "head": "prototype", "k": 5, "noise": 0.0}

    def cells(method: str) -> np.ndarray:
        return np.mean([
            cell.accuracies for one in answered if one.method == method for cell in one.cells
            if (cell.head, cell.k, cell.noise) == ("prototype", 5, 0.0)
        ], axis=0)  # fmt: skip

    def row(what: str, **fields: object) -> dict:
        fields |= asked
        (found,) = [r for r in made if r["what"] == what and all(r.get(k) == v for k, v in fields.items())]
        return found

    mine, other = 100 * cells("croma-weak-nce"), 100 * cells("scratch")
    assert row("accuracy", method="croma-weak-nce")["mean"] == pytest.approx(mine.mean(), abs=1e-3)
    difference = row("difference", method="croma-weak-nce", minus="scratch")
    assert difference["mean"] == pytest.approx((mine - other).mean(), abs=1e-3)
    assert difference["ci95"] == pytest.approx(1.96 * (mine - other).std(ddof=1) / 8**0.5, abs=1e-3)
    assert {r["noise"] for r in made if r.get("k") == 5 and r["head"] == "prototype"} == set(paper.NOISES)
    clean, noisy = (
        [r for r in made if r.get("k") == 5 and r["head"] == "prototype" and r["noise"] == n] for n in (0, 0.4)
    )
    by_question = {(r["what"], r["method"], r["protocol"]): r["mean"] for r in clean}
    for r in noisy:
        before = by_question[r["what"], r["method"], r["protocol"]]
        assert r["minus_clean"] == pytest.approx(r["mean"] - before, abs=2e-3)
    assert noisy
    assert not any("minus_clean" in r for r in clean)
    assert all({"machine", "commit", "command", "split_sha256", "seeds", "quick"} <= set(r) for r in made)
    assert any(r["what"] == "retrieval" for r in made)
    json.dumps(made)
    assert {r["method"] for r in made if r.get("head") == "phi"} == {"croma-weak-nce"}  # as the plan says
    assert all(r["seeds"] == ([1] if r.get("head") == "phi" else [0, 1]) for r in made)
    # A later run of some methods takes the place of its own rows alone.
    assert len({tuple(r.get(field) for field in paper.ANSWERS) for r in made}) == len(made)

    text = paper.markdown(made)
    assert "labels, 3-way, prototype (episodes: 8, seeds: 2)" in text and "phi (episodes: 2, seeds: 1)" in text
    assert "nothing about the methods" in text and "croma-weak-nce minus" in text and "R@10" in text
    paper.plot(made, "text-to-image", tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")

    def again(*_arguments: object) -> None:
        raise AssertionError("what was measured is measured again")

    monkeypatch.setattr(paper.Evaluation, "phi_cells", again)
    assert [r["mean"] for r in paper.measure(plan) if "mean" in r] == [r["mean"] for r in made if "mean" in r]


def test_rates_are_those_that_answer_validation_labels_best_whatever_the_test_labels_are(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "OUTER_RATES", (1e-7, 1e-2))
    monkeypatch.setattr(
        research, "defaults", lambda _, method, seed, *__: tiny_loop(method=method, seed=seed, steps=80, inner_steps=4)
    )
    scores: dict[str, dict[float, float]] = {}
    train = paper.trained

    def recorded(*arguments: object) -> Loop:
        loop = train(*arguments)
        assert loop.step == loop.config.steps == 40
        scores.setdefault(loop.config.method, {})[loop.config.outer_learning_rate] = loop.best
        return loop

    monkeypatch.setattr(paper, "trained", recorded)
    data = tiny_paired(n_each=20)
    chosen = paper.rates(plan, data, 0)
    assert set(scores) == {"croma-weak-nce", "align-classify"}
    for by_reptile, method in paper.TUNED.items():
        assert len(scores[method]) == 2
        assert chosen[by_reptile] == max(scores[method], key=scores[method].get)
    assert chosen[False] == 1e-2  # a rate at which nothing is learned is not the best

    tested = np.flatnonzero(np.isin(data.target.labels, data.with_role("test")))
    labels = data.target.labels.copy()
    labels[tested] = np.random.default_rng(0).permutation(labels[tested])
    other = replace(data, target=replace(data.target, labels=labels))
    assert paper.rates(plan._replace(cache=tmp_path / "other"), other, 0) == chosen


def test_folds_are_put_one_after_the_other_and_seeds_are_averaged():
    def one(seed: int, fold: int, *values: float) -> paper.Answered:
        cell = paper.Cell("p", "prototype", 1, 0.0, 3, np.array(values))
        return paper.Answered("m", seed, fold, [cell], [], None, "", None, 0.0)

    found = paper.pooled([one(0, 0, 0.0, 1.0), one(1, 1, 0.5, 0.5), one(2, 0, 1.0, 1.0)])
    assert found["m"]["p", "prototype", 1, 0.0, 3].tolist() == [0.5, 1.0, 0.5, 0.5]
