"""int8 encoders that are checked: as few layers in fp32 as the noise asks for, and gates that they must pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from edgealign import kernels
from edgealign.episodes import Clip, Episode, TooFewClips, draw, mean_and_ci95
from edgealign.errors import InvalidInput
from edgealign.export.int8 import Dynamic, Static
from edgealign.export.quantize import (
    MIN_SNR_DB,
    Drift,
    QuantizationLost,
    embeddings_of,
    measure_drift,
    session_of,
    snr_db,
)
from edgealign.export.sensitivity import Choice, Layers, Report, least_excluded
from edgealign.first_load import load_apart

METHODS = (Static.method, Dynamic.method)
MAX_ACCURACY_LOSS = 0.5  # points
SPARE_DB = 1.0  # that the search asks for beyond the gate, whose samples it does not see
BUDGET_S = 120.0  # of the search for layers that stay in fp32, per method
MIN_SAMPLES, MAX_SAMPLES, MAX_SEARCHED = 8, 600, 24
MAX_SIZE_RATIO = 0.9
N_EPISODES, SHOTS, SEED = 600, 5, 0
N_TIMED, N_WARM_UP = 40, 5

Embed = Callable[[bytes], np.ndarray]  # a model -> float32 [n_clips, dim], unit rows, of the clips of an evaluation


class Evaluation(Protocol):
    """Labeled samples that decide what quantization may cost."""

    def shares_right(self, model: bytes) -> np.ndarray:
        """Share of right answers with a model, of each of the questions that every model is asked: float64 [n]."""
        ...


@dataclass(frozen=True)
class SampleEvaluation:
    """Of an encoder of samples: nearest prototypes of 5 samples each, or of as many as the labels have, in episodes.

    embed    the embeddings of all clips with a model
    labels   the label of each clip
    """

    embed: Embed
    labels: Sequence[str]

    @cached_property
    def episodes(self) -> list[Episode]:
        clips = [Clip("", "", label, "") for label in self.labels]
        for n_shot in range(SHOTS, 0, -1):
            try:
                return draw(clips, "same speaker", n_shot, N_EPISODES, SEED)
            except TooFewClips:
                continue
        raise InvalidInput(
            "the evaluation clips have no two labels of two clips each: an episode asks for one and is taught by one"
        )

    def shares_right(self, model: bytes) -> np.ndarray:
        episodes, embeddings = self.episodes, self.embed(model)
        shares = np.empty(len(episodes))
        for at, episode in enumerate(episodes):
            n_way, n_shot = episode.support.shape
            labels = np.repeat(np.arange(n_way, dtype=np.int32), n_shot)
            prototypes = kernels.prototypes(embeddings[episode.support.ravel()], labels, n_way)
            shares[at] = _are_right(embeddings[episode.queries], prototypes, episode.query_labels).mean()
        return shares


@dataclass(frozen=True)
class SourceEvaluation:
    """Of an encoder that labels start from: samples are asked for the nearest label that nothing else has taught.

    embed    the embeddings of all texts or pictures with a model;  labels   the label of each
    queries  float32 [n, dim], embeddings of samples;  query_labels  the label of each
    """

    embed: Embed
    labels: Sequence[str]
    queries: np.ndarray
    query_labels: Sequence[str]

    def shares_right(self, model: bytes) -> np.ndarray:
        names, rows = np.unique(self.labels, return_inverse=True)
        known = np.isin(self.query_labels, names)
        if len(set(np.array(self.query_labels)[known])) < 2:
            raise InvalidInput(
                f"of the labels {', '.join(sorted(set(self.query_labels)))} of the evaluation clips fewer than two are "
                f"among those that can be started: {', '.join(names[:20])}"
            )
        prototypes = kernels.prototypes(self.embed(model), rows.astype(np.int32), len(names))
        wanted = np.searchsorted(names, np.array(self.query_labels)[known])
        return _are_right(self.queries[known], prototypes, wanted).astype(np.float64)


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers in percent, and of the same episodes how many points more the fp32 encoder has."""

    percent: float
    loss: float
    loss_ci95: float


@dataclass(frozen=True)
class Candidate:
    """An encoder that passed; times are medians of this machine, one thread."""

    method: str
    data: bytes
    in_fp32: frozenset[str]
    drift: Drift
    accuracy: Accuracy | None
    latency_ms: float
    fp32_latency_ms: float


def quantize_checked(
    data: bytes,
    name: str,
    samples: Sequence[np.ndarray],
    method: str = "auto",
    evaluation: Evaluation | None = None,
    report: Report = lambda line: None,
) -> Candidate:
    """The int8 encoder of a method, or of "auto" the fastest that passes every gate.

    data       ONNX bytes in fp32, whose output is `embedding`
    name       of the input
    samples    inputs as they will come, each with a batch dimension: half of them give the ranges, a quarter decides
               which layers stay in fp32, a quarter is kept for the gate
    raises     QuantizationLost, which says what was tried, where nothing passes
    """
    if method not in ("auto", *METHODS):
        raise InvalidInput(f"the method is '{method}': expected auto or one of {', '.join(METHODS)}")
    if len(samples) < MIN_SAMPLES:
        raise InvalidInput(f"{len(samples)} quantization samples were found: at least {MIN_SAMPLES} are needed")
    order = np.random.default_rng(SEED).permutation(len(samples))[:MAX_SAMPLES]
    shuffled = [samples[i] for i in order]
    half, quarter = len(shuffled) // 2, len(shuffled) // 4
    ranges, searched, held_out = shuffled[:half], shuffled[half : half + quarter], shuffled[half + quarter :]
    gate = _Gate(data, name, held_out, evaluation, report)
    passed, tried = [], []
    for each in METHODS if method == "auto" else (method,):
        report(f"{each}: quantizing")
        made = Static(data, name, ranges) if each == Static.method else Dynamic(data)
        if not made.layers:
            tried.append(f"{each}: it has no layer that this way can quantize")
            continue
        choice = _search(made, data, name, searched[:MAX_SEARCHED], report)
        candidate = gate.check(each, choice, len(made.layers))
        if isinstance(candidate, str):
            tried.append(f"{each}: {candidate}")
            report(tried[-1])
        else:
            passed.append(candidate)
    if not passed:
        raise QuantizationLost(
            f"no int8 encoder passes ({'; '.join(tried)}): give more and more varied samples, or keep fp32"
        )
    return min(passed, key=lambda candidate: candidate.latency_ms)


def _search(made: Static | Dynamic, data: bytes, name: str, samples: Sequence[np.ndarray], report: Report) -> Choice:
    """Layers by themselves first; where these are not enough, with those that they hand a rounded activation to."""
    reference = embeddings_of(data, name, samples)

    def quality(model: bytes) -> float:
        return snr_db(reference, embeddings_of(model, name, samples))

    singles = [frozenset([layer]) for layer in made.layers]
    best: Choice | None = None
    for candidates in filter(None, (singles, made.groups)):
        found = least_excluded(
            made.without, quality, _from_the_ends(candidates), MIN_SNR_DB + SPARE_DB, BUDGET_S / 2, report
        )
        if best is None or found.snr_db > best.snr_db:
            best = found
        if best.snr_db >= MIN_SNR_DB + SPARE_DB:
            break
    return best


class _Gate:
    """What a quantized encoder is compared with."""

    def __init__(
        self, data: bytes, name: str, held_out: Sequence[np.ndarray], evaluation: Evaluation | None, report: Report
    ) -> None:
        self.data, self.name, self.held_out, self.report = data, name, held_out, report
        self.evaluation = evaluation
        if evaluation is not None:
            self.reference = evaluation.shares_right(data)

    def check(self, method: str, choice: Choice, n_layers: int) -> Candidate | str:
        """The candidate that passed, or why it did not."""
        kept = f"{len(choice.excluded)} of {n_layers} layers in fp32"
        try:
            load_apart(choice.data)  # a graph that ends the process ends that one
        except ValueError as error:
            return f"{error}"
        drift = measure_drift(self.data, choice.data, self.name, list(self.held_out))
        if not drift.snr_db >= MIN_SNR_DB:
            return f"{drift.snr_db:.1f} dB of the {MIN_SNR_DB:.0f} dB that are asked for, with {kept}"
        ratio = len(choice.data) / len(self.data)
        if ratio > MAX_SIZE_RATIO:
            return f"{ratio:.0%} of the size of fp32, with {kept}"
        accuracy = None
        if self.evaluation is not None:
            shares = self.evaluation.shares_right(choice.data)
            loss, ci95 = mean_and_ci95(100 * (self.reference - shares))
            accuracy = Accuracy(float(100 * shares.mean()), loss, ci95)
            if loss > MAX_ACCURACY_LOSS:
                return (
                    f"{loss:.2f} ± {ci95:.2f} points of accuracy lost, at most {MAX_ACCURACY_LOSS} are "
                    f"allowed, with {kept}"
                )
        fp32_ms, int8_ms = latency_ms([self.data, choice.data], self.name, self.held_out)
        lost = "" if accuracy is None else f", {accuracy.loss:+.2f} points of accuracy lost"
        self.report(
            f"{method} passes: {drift.snr_db:.1f} dB{lost}, {kept}, {ratio:.0%} of the size, {int8_ms:.3f} ms where "
            f"fp32 takes {fp32_ms:.3f} ms"
        )
        return Candidate(method, choice.data, choice.excluded, drift, accuracy, int8_ms, fp32_ms)


def latency_ms(models: Sequence[bytes], name: str, inputs: Sequence[np.ndarray]) -> list[float]:
    """Median time of one run of each model, which take turns; one thread."""
    sessions = [session_of(model) for model in models]
    times = np.empty((N_TIMED, len(models)))
    for at in range(-N_WARM_UP, N_TIMED):
        feed = {name: inputs[at % len(inputs)]}
        for column, session in enumerate(sessions):
            started = time.perf_counter()
            session.run(None, feed)
            times[max(at, 0), column] = (time.perf_counter() - started) * 1e3
    return [float(value) for value in np.median(times, axis=0)]


def _from_the_ends(candidates: Sequence[Layers]) -> list[Layers]:
    """The first and the last first, which cost most in most networks."""
    order = sorted(range(len(candidates)), key=lambda at: min(at, len(candidates) - 1 - at))
    return [candidates[at] for at in order]


def _are_right(queries: np.ndarray, prototypes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the prototype nearest to each query is that of its label: bool [n]."""
    _, nearest = kernels.nearest(queries, prototypes)
    return nearest[:, 0] == labels
