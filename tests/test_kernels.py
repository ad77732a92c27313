"""One table of cases for every kernel; every backend computes every row and is compared with an oracle in float64.

The oracles are scipy, a plain discrete Fourier transform and loops: none of them is `edgealign.reference`, which is the
backend "numpy" here. Run: python -m pytest tests/test_kernels.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import log_softmax as scipy_log_softmax

from edgealign import kernels, reference
from edgealign.kernels import RECORDING, TEXT, Calibration
from edgealign.train import ops

ROOT = Path(__file__).parents[1]
HEADER = ROOT / "cpp_ext" / "include" / "edgealign.h"
ULP = 2.0**-24  # half a unit in the last place of float32 at 1
BACKENDS = ("native", "numpy", "torch_cpu")
DTYPES = ("float16", "float32", "float64")
TORCH_OPS = {"sq_l2", "cosine", "nearest", "prototypes"}
EPISODIC_OPS = {"episodic_step", "episodic_step_backward"}  # their table is in tests/test_torch_ops.py
CALIBRATION = Calibration(
    w_bias=-1, w_z=0.5, w_t=0.25, w_distance=-3, w_margin=4, w_loo=1, w_shots=0.3, w_text=-0.5, accept_logit=0.2,
    top=5, prior_loo=0.3, prior_weight=3, lone_margin=0.2,
)  # fmt: skip


# ---- the oracles ----


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(lengths > 0, rows / np.where(lengths > 0, lengths, 1), 0)


def oracle_sq_l2(queries: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    return cdist(queries.astype(np.float64), prototypes.astype(np.float64), "sqeuclidean")


def oracle_cosine(queries: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    distances = cdist(unit(queries), unit(prototypes), "sqeuclidean") / 2  # of unit vectors
    for i, q in enumerate(queries):
        for j, p in enumerate(prototypes):
            if not q.any() or not p.any():
                distances[i, j] = float(bool(q.any() or p.any()))
    return distances


def oracle_inner_product(queries: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    return (queries.astype(np.float64)[:, None] * prototypes.astype(np.float64)).sum(axis=2)


def in_steps(rows: np.ndarray) -> np.ndarray:
    """Rows rounded to int8 and back, as the docstring of `edgealign.kernels` says."""
    out = np.zeros(rows.shape)
    for row, target in zip(rows.astype(np.float32), out, strict=True):
        largest = np.abs(row).max()
        if largest == 0:
            continue
        power = 2.0**100 if largest < 1e-30 else 1.0  # a scale must not be beyond float32
        row, largest = row * np.float32(power), largest * np.float32(power)
        target[:] = np.rint(row * (np.float32(127) / largest)) * float(largest / np.float32(127) / np.float32(power))
    return out


def oracle_packed_distances(
    queries: np.ndarray, prototypes: np.ndarray, metric: str, storage: str, _threads: int
) -> np.ndarray:
    if storage == "int8":
        queries, prototypes = in_steps(queries), in_steps(prototypes)
    return {"sq_l2": oracle_sq_l2, "cosine": oracle_cosine, "inner_product": oracle_inner_product}[metric](
        queries, prototypes
    )


def oracle_packed_nearest(
    queries: np.ndarray, prototypes: np.ndarray, k: int, metric: str, storage: str, _threads: int
) -> np.ndarray:
    return np.sort(oracle_packed_distances(queries, prototypes, metric, storage, 1), axis=1)[:, :k]


def oracle_packed_label_distances(
    queries: np.ndarray, prototypes: np.ndarray, labels: np.ndarray, n_labels: int, metric: str, storage: str
) -> np.ndarray:
    distances = oracle_packed_distances(queries, prototypes, metric, storage, 1)
    out = np.full((len(queries), n_labels), np.inf)
    for row, label in enumerate(labels):
        out[:, label] = np.minimum(out[:, label], distances[:, row])
    return out


def oracle_packed_log_softmax(
    queries: np.ndarray, prototypes: np.ndarray, metric: str, temperature: float, storage: str
) -> np.ndarray:
    return scipy_log_softmax(-oracle_packed_distances(queries, prototypes, metric, storage, 1) / temperature, axis=1)


def oracle_window_stats(
    frames: np.ndarray, window: int, hop: int, weights: np.ndarray | None, profile: np.ndarray | None
) -> np.ndarray:
    frames = frames.astype(np.float64)
    n_groups = weights.shape[1] if weights is not None else profile.shape[0] if profile is not None else 1
    out = []
    for first in range(0, len(frames) - window + 1, hop):
        means, deviations = [], []
        for c in range(frames.shape[1]):
            g = c // (frames.shape[1] // n_groups)
            factor = np.ones(window) if weights is None else weights[first : first + window, g].astype(np.float64)
            factor = factor if profile is None else factor * profile[g]
            values = frames[first : first + window, c]
            seen = factor.sum() > 0
            mean = np.average(values, weights=factor) if seen else 0.0
            means.append(mean)
            deviations.append(np.sqrt(np.average((values - mean) ** 2, weights=factor)) if seen else 0.0)
        out.append(means + deviations)
    return np.array(out).reshape(-1, 2 * frames.shape[1])


def oracle_span_stats(frames: np.ndarray, weights: np.ndarray, profile: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """A sequence that is made of what a span has at its places is one window of as many frames."""
    n_places = profile.shape[1]
    rows = [np.zeros((0, 2 * frames.shape[1]))]
    for first, end in spans:
        at = np.floor(first + (np.arange(n_places) + 0.5) * (end - first) / n_places).astype(int)
        rows.append(oracle_window_stats(frames[at], n_places, 1, weights[at], profile))
    return np.concatenate(rows)


def oracle_nearest(queries: np.ndarray, prototypes: np.ndarray, k: int, metric: str) -> np.ndarray:
    """The distances alone; the rows are checked against them."""
    return np.sort((oracle_cosine if metric == "cosine" else oracle_sq_l2)(queries, prototypes), axis=1)[:, :k]


def oracle_prototypes(
    embeddings: np.ndarray, labels: np.ndarray, n_labels: int, weights: np.ndarray | None
) -> np.ndarray:
    rows = unit(embeddings)
    weights = np.ones(len(rows)) if weights is None else weights.astype(np.float64)
    made = np.zeros((n_labels, rows.shape[1]))
    for row, label, weight in zip(rows, labels, weights, strict=True):
        made[label] += weight * row
    lengths = np.linalg.norm(made, axis=1, keepdims=True)
    totals = np.bincount(labels, weights, minlength=n_labels)[:, None]
    return np.where(lengths > 1e-6 * totals, made / np.where(lengths > 0, lengths, 1), 0)


def oracle_leave_one_out(
    embeddings: np.ndarray, labels: np.ndarray, n_labels: int, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    distances, valid = np.zeros(len(embeddings)), np.zeros(len(embeddings), bool)
    for i in range(len(embeddings)):
        rest = np.arange(len(embeddings)) != i
        made = oracle_prototypes(embeddings[rest], labels[rest], n_labels, None if weights is None else weights[rest])
        valid[i] = made[labels[i]].any()
        if valid[i]:
            distances[i] = oracle_cosine(embeddings[i : i + 1], made[labels[i]][None])[0, 0]
    return distances, valid


def oracle_cohort_stats(rows: np.ndarray, bank: np.ndarray, top: int) -> np.ndarray:
    closest = np.sort(oracle_cosine(rows, bank), axis=1)[:, :top]
    mean = closest.sum(axis=1) / closest.shape[1]
    sd = np.sqrt(((closest - mean[:, None]) ** 2).sum(axis=1) / closest.shape[1])
    return np.stack([mean, np.maximum(sd, 1e-4)], axis=1)


def oracle_log_mel(
    samples: np.ndarray, filters: np.ndarray, window_samples: int, hop_samples: int, energy_floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Energies [n_mels, n_frames], and the sum of squares of each windowed frame."""
    n_fft = 2 * (filters.shape[1] - 1)
    samples = np.pad(samples.astype(np.float64), (0, max(0, window_samples - len(samples))))
    position = np.arange(window_samples)
    window = np.sin(np.pi * position / window_samples) ** 2
    frames = np.lib.stride_tricks.sliding_window_view(samples, window_samples)[::hop_samples] * window
    spectrum = frames @ np.exp(-2j * np.pi * np.outer(position, np.arange(n_fft // 2 + 1)) / n_fft)
    energies = (spectrum.real**2 + spectrum.imag**2) @ filters.astype(np.float64).T
    return np.maximum(energies, energy_floor).T, (frames**2).sum(axis=1)


def oracle_classify(
    embeddings: np.ndarray,
    labels: np.ndarray,
    kinds: np.ndarray,
    n_labels: int,
    bank: np.ndarray,
    c: Calibration,
    text_weight: float,
    query: np.ndarray,
) -> np.ndarray:
    """[n_labels, 3]: distance, threshold, logit of every label, as the docstring of `edgealign.kernels` says."""
    made = oracle_prototypes(embeddings, labels, n_labels, np.where(kinds == RECORDING, 1, text_weight))
    distances = oracle_cosine(query[None], made)[0]
    out = np.zeros((n_labels, 3))
    for label, d in enumerate(distances):
        own = embeddings[(labels == label) & (kinds == RECORDING)]
        loo, valid = oracle_leave_one_out(own, np.zeros(len(own), int), 1, None)
        loo = (c.prior_loo * c.prior_weight + loo[valid].sum()) / (c.prior_weight + valid.sum())
        others = np.delete(distances, label)
        margin = others.min() - d if len(others) else c.lone_margin
        logit = c.w_bias + c.w_distance * d + c.w_margin * margin + c.w_loo * loo + c.w_shots * np.log2(1 + len(own))
        logit += c.w_text * (len(own) == 0)
        slope = c.w_distance - c.w_margin
        if len(bank):
            of_label, of_query = oracle_cohort_stats(np.stack([made[label], query]), bank, c.top)
            logit += c.w_z * (of_label[0] - d) / of_label[1] + c.w_t * (of_query[0] - d) / of_query[1]
            slope -= c.w_z / of_label[1] + c.w_t / of_query[1]
        out[label] = d, d + (c.accept_logit - logit) / slope, logit
    return out


# ---- comparisons: (result, oracle's result, arguments) ----


def close_sq_l2(have: np.ndarray, want: np.ndarray, queries: np.ndarray, *_: object) -> None:
    with np.errstate(over="ignore"):
        want = want.astype(have.dtype)
    assert np.array_equal(np.isinf(have), np.isinf(want))
    finite = np.isfinite(want)
    error = (queries.shape[1] / 16 + 6) * ULP
    np.testing.assert_allclose(have[finite], want[finite], rtol=error, atol=1e-44)


def close_cosine(have: np.ndarray, want: np.ndarray, queries: np.ndarray, *_: object) -> None:
    assert have.min(initial=0) >= 0 and have.max(initial=0) <= 2
    np.testing.assert_allclose(have, want, rtol=0, atol=(queries.shape[1] / 8 + 16) * ULP)


def close_inner_product(have: np.ndarray, want: np.ndarray, queries: np.ndarray, prototypes: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        want = want.astype(np.float64 if have.dtype == np.float64 else np.float32)
    infinite = np.isinf(want)
    assert np.array_equal(have[infinite], want[infinite])
    # Products are added in some order: what is left over may be less than any of them.
    lengths = np.linalg.norm(queries.astype(float), axis=1)[:, None] * np.linalg.norm(prototypes.astype(float), axis=1)
    allowed = (queries.shape[1] / 2 + 8) * ULP * lengths + 1e-44
    assert (np.abs(have[~infinite] - want[~infinite]) <= allowed[~infinite]).all()


def close_packed_distances(
    have: np.ndarray, want: np.ndarray, queries: np.ndarray, prototypes: np.ndarray, metric: str, *_: object
) -> None:
    assert have.dtype == np.float32
    error = (queries.shape[1] / 2 + 8) * ULP
    if metric == "inner_product":
        return close_inner_product(have, want, queries, prototypes)
    if metric == "cosine":
        assert have.min(initial=0) >= 0 and have.max(initial=0) <= 2
        return np.testing.assert_allclose(have, want, rtol=0, atol=error)
    with np.errstate(over="ignore"):
        want = want.astype(np.float32)
    assert np.array_equal(np.isinf(have), np.isinf(want))
    finite = np.isfinite(want)
    squares = (queries.astype(float) ** 2).sum(axis=1)[:, None] + (prototypes.astype(float) ** 2).sum(axis=1)
    assert (np.abs(have[finite] - want[finite]) <= 1.01 * error * squares[finite] + 1e-44).all()


def close_packed_nearest(
    have: tuple, want: np.ndarray, queries: np.ndarray, prototypes: np.ndarray, k: int, metric: str, storage: str, *_
) -> None:
    distances, rows = have
    close_packed_distances(distances, want, queries, prototypes[:k], metric)
    assert all(len(set(row)) == k for row in rows.tolist())
    every = oracle_packed_distances(queries, prototypes, metric, storage, 1)
    close_packed_distances(
        distances, np.take_along_axis(every, rows.astype(np.int64), 1), queries, prototypes[:k], metric
    )
    for i, j in np.argwhere(distances[:, 1:] == distances[:, :-1]):
        assert rows[i, j] < rows[i, j + 1], "of equals, the lowest row comes first"


def close_packed_label_distances(have: np.ndarray, want: np.ndarray, *_: object) -> None:
    assert have.dtype == np.float32
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


def close_packed_log_softmax(
    have: np.ndarray, want: np.ndarray, _queries: object, _prototypes: object, _metric: str, temperature: float, *_
) -> None:
    assert have.dtype == np.float32
    # float32 distances are behind it, whose error grows with the largest.
    atol = 2e-5 / min(temperature, 1) + 2e-6 * np.abs(want).max(initial=0)
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=atol)
    np.testing.assert_allclose(np.exp(have.astype(np.float64)).sum(axis=1), 1, atol=2 * atol)


def close_window_stats(have: np.ndarray, want: np.ndarray, frames: np.ndarray, *_: object) -> None:
    assert have.shape == want.shape and have.dtype == np.float32
    largest = np.abs(frames).max(initial=0)
    np.testing.assert_allclose(have, want, rtol=4 * ULP, atol=1e-6 * largest + 1e-44)


def close_nearest(
    have: tuple, want: np.ndarray, queries: np.ndarray, prototypes: np.ndarray, k: int, metric: str
) -> None:
    distances, rows = have
    (close_cosine if metric == "cosine" else close_sq_l2)(distances, want, queries)
    # Rows that are distinct and as close as the closest are right; which of two that differ by rounding is free.
    assert all(len(set(row)) == k for row in rows.tolist())
    all_distances = (oracle_cosine if metric == "cosine" else oracle_sq_l2)(queries, prototypes)
    chosen = np.take_along_axis(all_distances, rows.astype(np.int64), axis=1)
    (close_cosine if metric == "cosine" else close_sq_l2)(distances, chosen, queries)
    for i, j in np.argwhere(distances[:, 1:] == distances[:, :-1]):
        assert rows[i, j] < rows[i, j + 1], "of equals, the lowest row comes first"


def close_rows(have: np.ndarray, want: np.ndarray, *_: object) -> None:
    np.testing.assert_allclose(have, want, rtol=0, atol=4e-7)
    np.testing.assert_allclose(np.linalg.norm(have, axis=1), want.any(axis=1), atol=1e-6)


def close_leave_one_out(have: tuple, want: tuple, *_: object) -> None:
    assert np.array_equal(have[1], want[1])
    np.testing.assert_allclose(have[0], want[0], rtol=0, atol=2 * ULP)


def close_cohort_stats(have: np.ndarray, want: np.ndarray, rows: np.ndarray, *_: object) -> None:
    np.testing.assert_allclose(have, want, rtol=0, atol=(rows.shape[1] / 8 + 16) * ULP)


def close_log_mel(have: np.ndarray, want: tuple, _samples: object, filters: np.ndarray, *_: object) -> None:
    energies, squares = want
    assert have.shape == energies.shape
    n_fft = 2 * (filters.shape[1] - 1)
    allowed = 5e-8 * np.sqrt(n_fft * filters.sum(axis=1)[:, None] * squares)
    error = np.abs(np.exp(have.astype(np.float64) / 2) - np.sqrt(energies))
    assert (error <= 2e-6 * np.sqrt(energies) + allowed).all()


def close_spans(have: np.ndarray, want: np.ndarray, *_: object) -> None:
    assert have.shape == want.shape and have.dtype == np.float64
    assert np.array_equal(have[:, :2], want[:, :2])
    np.testing.assert_allclose(have[:, 2], want[:, 2], rtol=1e-5)


def close_classify(have: list, want: np.ndarray, *_: object) -> None:
    assert [match.label for match in have] == want[:, 0].argsort(kind="stable").tolist()
    for match in have:
        distance, threshold, logit = want[match.label]
        assert match.distance == pytest.approx(distance, abs=1e-6)
        assert match.logit == pytest.approx(logit, abs=2e-3, rel=1e-4)  # z and t divide by deviations of about 0.01
        assert match.threshold == pytest.approx(threshold, abs=1e-5)
        assert match.probability == pytest.approx(1 / (1 + np.exp(-match.logit)), rel=1e-9)
        assert match.accepted == (match.logit >= CALIBRATION.accept_logit)
        assert match.accepted == (match.distance <= match.threshold)


# ---- the table ----


@dataclass(frozen=True)
class Case:
    name: str
    arguments: tuple
    dtypes: tuple[str, ...] = DTYPES
    expected: object = None  # where it can be said without an oracle


def rng(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def pairs() -> Iterator[Case]:
    for dim in (1, 7, 127, 128, 129, 1024):
        generator = rng(f"dim {dim}")
        yield Case(f"dim {dim}", (generator.normal(size=(5, dim)), generator.normal(size=(70, dim))))
    rows = rng("rows").normal(size=(6, 20))
    zeros = rows * (np.arange(6) % 2)[:, None]
    yield Case("one row", (rows[:1], rows[1:2]))
    yield Case("no query", (rows[:0], rows))
    yield Case("the same rows", (rows, rows))
    yield Case("zero vectors", (zeros, zeros))
    yield Case("opposite rows", (rows, -2 * rows))
    yield Case("denormals", (rows * 1e-40, rows[::-1] * 1e-40), ("float32", "float64"))
    yield Case("huge values", (rows * 5e37, rows[::-1] * 5e37), ("float32", "float64"))
    yield Case("huge against tiny", (rows * 5e37, rows[::-1] * 1e-38), ("float32", "float64"))


def packed_cases() -> Iterator[Case]:
    many = rng("many").normal(size=(230, 48))
    for case in (*pairs(), Case("many of both", (many, many[:150][::-1])), Case("no prototype", (many, many[:0]))):
        for metric in ("sq_l2", "cosine", "inner_product"):
            for storage in kernels.STORAGES:
                for threads in (1, 3) if "many" in case.name else (1,):
                    name = f"{case.name}, {metric}, {storage}, {threads} threads"
                    dtypes = tuple(dtype for dtype in case.dtypes if dtype != "float64")
                    yield Case(name, (*case.arguments, metric, storage, threads), dtypes)


def packed_nearest_cases() -> Iterator[Case]:
    many = rng("many").normal(size=(230, 48))
    for case in (*nearest_cases(), Case("many, cosine", (many, many[:150], 5, "cosine"), ("float32",))):
        for storage in kernels.STORAGES:
            threads = 3 if "many" in case.name else 1
            dtypes = tuple(dtype for dtype in case.dtypes if dtype != "float64")
            # Distances to the k closest are bounded by the lengths of all of them, which "close" takes to be alike.
            yield replace(
                case, name=f"{case.name}, {storage}", arguments=(*case.arguments, storage, threads), dtypes=dtypes
            )


def label_cases() -> Iterator[Case]:
    generator = rng("several prototypes")
    rows, queries = generator.normal(size=(9, 20)), generator.normal(size=(5, 20))
    labels = np.array([2, 0, 0, 1, 2, 2, 3, 0, 1])
    for metric in kernels.METRICS:
        for storage in kernels.STORAGES:
            yield Case(f"uneven, {metric}, {storage}", (queries, rows, labels, 4, metric, storage), DTYPES[:2])
            yield Case(f"ties, {metric}, {storage}", (queries, rows[[0, 0, 1]], labels[[1, 3, 0]], 3, metric, storage))
    yield Case("one row", (queries, rows[:1], np.zeros(1, int), 1, "cosine", "float32"))
    yield Case("no query", (queries[:0], rows, labels, 4, "cosine", "float32"))


def softmax_cases() -> Iterator[Case]:
    generator = rng("softmax")
    for dim in (1, 7, 127, 128, 129):
        queries, rows = generator.normal(size=(5, dim)) / dim**0.5, generator.normal(size=(70, dim)) / dim**0.5
        for metric in kernels.METRICS:
            yield Case(f"dim {dim}, {metric}", (queries, rows, metric, 0.5, "float32"))
    yield Case("int8", (queries, rows, "sq_l2", 1.0, "int8"), ("float32",))
    yield Case("one prototype", (queries, rows[:1], "sq_l2", 1.0, "float32"))
    yield Case("no query", (queries[:0], rows, "sq_l2", 1.0, "float32"))
    yield Case("far apart", (queries * 100, rows * 100, "sq_l2", 1.0, "float32"), DTYPES[1:])
    yield Case("equal distances", (queries, rows[[0] * 33], "cosine", 2.0, "float32"))


def window_cases() -> Iterator[Case]:
    generator = rng("windows")
    frames, weights = generator.normal(size=(41, 12)), generator.random(size=(41, 3))
    yield Case("sliding", (frames, 10, 3, None, None))
    yield Case("one frame", (frames, 1, 1, None, None))
    yield Case("all frames", (frames, 41, 5, None, None))
    yield Case("too few frames", (frames, 42, 5, None, None))
    yield Case("hop beyond the window", (frames, 4, 9, None, None))
    yield Case("one channel", (frames[:, :1], 6, 2, None, None))
    yield Case("weights", (frames, 10, 3, weights, None))
    yield Case("profile", (frames, 10, 3, None, generator.random(size=(4, 10))))
    yield Case("weights and profile", (frames, 10, 3, weights, generator.random(size=(3, 10))))
    yield Case("frames that weigh nothing", (frames, 5, 5, weights * (np.arange(41) > 20)[:, None], None))
    yield Case("constant", (np.full((20, 2), 3.0), 7, 2, None, None))
    yield Case("far from zero", (frames + 1e3, 10, 3, None, None), DTYPES[1:])
    yield Case("huge values", (frames * 5e37, 10, 3, None, None), DTYPES[1:])
    yield Case("denormals", (frames * 1e-40, 10, 3, None, None), DTYPES[1:])


def part_cases() -> Iterator[Case]:
    generator = rng("spans of frames")
    frames, weights = generator.normal(size=(41, 12)), generator.random(size=(41, 3))
    profile = generator.random(size=(3, 16))
    spans = np.array([(0, 41), (3, 4), (40, 41), (5, 13), (5, 37), (0, 16), (7, 30)], np.int32)
    yield Case("spans of all lengths", (frames, weights, profile, spans))
    yield Case("one group", (frames, weights[:, :1], profile[:1], spans))
    yield Case("one channel a group", (frames[:, :3], weights, profile, spans))
    yield Case("one place", (frames, weights, profile[:, :1], spans))
    yield Case("three places", (frames, weights, profile[:, :3], spans))
    yield Case("as many places as there may be", (frames, weights, generator.random(size=(3, 64)), spans))
    yield Case("no span", (frames, weights, profile, spans[:0]))
    yield Case("frames that weigh nothing", (frames, weights * (np.arange(41) > 20)[:, None], profile, spans))
    yield Case("places that weigh nothing", (frames, weights, profile * (np.arange(3) > 0)[:, None], spans))
    yield Case("constant", (np.full((41, 3), 3.0), weights, profile, spans))
    yield Case("far from zero", (frames + 1e3, weights, profile, spans), DTYPES[1:])


def nearest_cases() -> Iterator[Case]:
    for case in pairs():
        for metric in kernels.METRICS:
            # Beyond float32 all squared distances are infinite, and nothing is nearest.
            if metric == "cosine" or "huge" not in case.name:
                k = min(3, len(case.arguments[1]))
                yield replace(case, name=f"{case.name}, {metric}", arguments=(*case.arguments, k, metric))
    rows = rng("ties").normal(size=(4, 20))
    tied = rows[[2, 0, 1, 0, 3, 0, 2]]
    yield Case("ties", (rows[:3], tied, 7, "cosine"))
    yield Case("ties, sq_l2", (rows[:3], tied, 7, "sq_l2"))


def labeled() -> Iterator[Case]:
    for dim in (1, 7, 128, 129, 1024):
        generator = rng(f"labeled {dim}")
        yield Case(f"dim {dim}", (generator.normal(size=(12, dim)), np.arange(12) % 4, 4, None))
    generator = rng("labeled")
    rows = generator.normal(size=(9, 20))
    uneven = np.array([3, 3, 0, 3, 1, 3, 3, 1, 3])
    yield Case("uneven shots and a label without rows", (rows, uneven, 5, None))
    yield Case("weights", (rows, uneven, 5, generator.random(9) + 0.01))
    yield Case("tiny weights", (rows, uneven, 5, 1e-38 * (1 + np.arange(9))), ("float32", "float64"))
    yield Case("some weights are zero", (rows, uneven, 5, np.array([0, 1, 0, 2, 0, 1, 1, 1, 0.0])))
    yield Case("all weights are zero", (rows, uneven, 5, np.zeros(9)))
    yield Case("one row", (rows[:1], np.zeros(1, int), 1, None))
    yield Case("no row", (rows[:0], np.zeros(0, int), 2, None))
    yield Case("zero rows among others", (rows * (np.arange(9) % 2)[:, None], uneven, 5, None))
    yield Case("rows that cancel", (np.concatenate([rows, -rows]), np.tile(np.arange(9), 2), 9, None))
    yield Case("lengths do not count", (rows * 10.0 ** np.arange(-4, 5)[:, None], uneven, 5, None), DTYPES[1:])
    yield Case("denormals", (rows * 1e-40, uneven, 5, None), DTYPES[1:])
    yield Case("huge values", (rows * 5e37, uneven, 5, None), DTYPES[1:])


def cohorts() -> Iterator[Case]:
    for dim in (1, 7, 128, 129):
        generator = rng(f"cohort {dim}")
        yield Case(f"dim {dim}", (generator.normal(size=(4, dim)), generator.normal(size=(50, dim)), 9))
    rows = rng("cohort").normal(size=(5, 20))
    bank = rng("large cohort").normal(size=(1500, 20))
    yield Case("a large bank", (rows, bank, 40))
    yield Case("a large bank, the nearest first", (rows[:1], bank[np.argsort(-bank @ rows[0])], 40))
    yield Case("a large bank of one row", (rows, np.tile(bank[:1], (1100, 1)), 40))
    near_where_no_sample_is = np.where(np.arange(1500)[:, None] % 5 == 1, rows[:1] + bank / 100, bank)
    yield Case("a large bank with all near rows between samples", (rows[:1], near_where_no_sample_is, 150))
    yield Case("top beyond the bank", (rows, rows[:3], 100))
    yield Case("top 1 has no spread", (rows, rows, 1))
    yield Case("zero vectors", (np.zeros((2, 20)), rows * (np.arange(5) % 2)[:, None], 3))


def triangles(n_mels: int, n_fft: int) -> np.ndarray:
    corners = np.linspace(1, n_fft // 2 - 1, n_mels + 2)
    bins = np.arange(n_fft // 2 + 1)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))


def sounds() -> Iterator[Case]:
    noise = rng("sound").normal(size=4000) / 8
    front_end = (triangles(24, 512), 400, 160, 1e-10)
    yield Case("noise", (noise, *front_end))
    yield Case("a tone beside silence", (np.sin(np.arange(4000) / 9) * (np.arange(4000) > 2000), *front_end))
    yield Case("full scale square", (np.sign(np.sin(np.arange(4000) / 30)), *front_end))
    yield Case("an impulse", (np.eye(1, 4000, 900)[0], *front_end))
    yield Case("silence", (np.zeros(4000), *front_end))
    yield Case("no sample", (np.zeros(0), *front_end))
    yield Case("shorter than a window", (noise[:399], *front_end))
    yield Case("one window", (noise[:400], *front_end))
    yield Case("seventeen frames", (noise[: 400 + 16 * 160], *front_end))
    yield Case("n_fft 4", (noise[:50], np.ones((2, 3)), 3, 1, 1e-10))
    yield Case("n_fft 64, full window", (noise[:999], triangles(5, 64), 64, 7, 1e-10))
    yield Case("n_fft 2048", (noise, triangles(30, 2048), 1200, 500, 1e-10))
    yield Case("denormals", (noise * 1e-40, *front_end[:3], 1e-37), DTYPES[1:])


def levels(*runs: tuple[int, float]) -> np.ndarray:
    """Log-mels [2, n_frames] with the given (number of frames, level in dB)."""
    decibels = np.concatenate([np.full(n, level) for n, level in runs])
    return np.tile(decibels * np.log(10) / 10, (2, 1))


def spans() -> Iterator[Case]:
    return (replace(case, dtypes=DTYPES[1:]) for case in span_cases())


def span_cases() -> Iterator[Case]:
    policy = (0.05, 6, 32, 20, 6, 10, 300)
    word = levels((40, -60), (50, -20), (60, -60))
    # The threshold is 32 dB below the peak here, as that is above floor + 6.
    yield Case("one word", (word, *policy), expected=[[30, 100, 50 * 32]])
    soft = levels((40, -60), (50, -40), (60, -60))
    yield Case("6 dB above the floor is on", (soft, *policy), expected=[[30, 100, 50 * 14]])
    far = levels((40, -60), (30, -20), (30, -60), (30, -20), (40, -60))
    yield Case("two words", (far, *policy), expected=[[30, 80, 30 * 32], [90, 140, 30 * 32]])
    near = levels((40, -60), (30, -20), (12, -60), (30, -20), (40, -60))
    yield Case("joined over a short gap", (near, *policy), expected=[[30, 122, 60 * 32]])
    touching = (*policy[:3], 5, *policy[4:])
    yield Case("padding meets in the gap", (near, *touching), expected=[[30, 76, 30 * 32], [76, 122, 30 * 32]])
    yield Case("steady noise", (levels((100, -50)), *policy), expected=np.zeros((0, 3)))
    yield Case("one frame", (levels((1, -50)), *policy), expected=np.zeros((0, 3)))
    click = levels((40, -60), (5, -20), (60, -60))
    yield Case("a click is too short", (click, *policy), expected=np.zeros((0, 3)))
    edges = levels((20, -20), (60, -60), (20, -20))
    yield Case("at both ends", (edges, *policy), expected=[[0, 30, 20 * 32], [70, 100, 20 * 32]])
    quiet = levels((40, -90), (20, -20), (60, -60), (20, -20), (40, -90))
    loud = [[30, 70, 20 * 32], [110, 150, 20 * 32]]
    yield Case("32 dB below the peak is off", (quiet, *policy), expected=loud)
    long = levels((50, -60), (200, -30), (100, -20), (100, -30), (50, -60))
    longest = (*policy[:6], 100)
    yield Case("a long run keeps its loudest part", (long, *longest), expected=[[250, 350, 300 * 22 + 100 * 32]])


def decisions() -> Iterator[Case]:
    generator = rng("decision")
    rows, bank = generator.normal(size=(14, 24)), generator.normal(size=(40, 24))
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 3, 4, 4, 0])
    kinds = np.full(14, RECORDING)
    mixed = np.where(np.isin(np.arange(14), (5, 4, 11, 12)), TEXT, RECORDING)  # labels 2 and 4 have only text
    query = unit(rows)[0] + 0.4 * unit(rows)[8] + 0.02 * generator.normal(size=24)
    for name, given in (
        ("recordings", (rows, labels, kinds, 5, bank, CALIBRATION, 1.5)),
        ("text beside recordings", (rows, labels, mixed, 5, bank, CALIBRATION, 1.5)),
        ("no bank", (rows, labels, mixed, 5, bank[:0], CALIBRATION, 0.5)),
        ("one label", (rows, np.zeros(14, int), mixed, 1, bank, CALIBRATION, 1.5)),
        ("two equal labels", (rows[[0, 1, 0, 1]], np.array([1, 1, 0, 0]), kinds[:4], 2, bank, CALIBRATION, 1.0)),
        ("one recording each", (rows[:5], np.arange(5), kinds[:5], 5, bank, CALIBRATION, 1.0)),
        ("a bank smaller than top", (rows, labels, kinds, 5, bank[:3], CALIBRATION, 1.0)),
    ):
        yield Case(name, (*given, query), DTYPES[1:])


@dataclass(frozen=True)
class Op:
    cases: Callable[[], Iterator[Case]]
    oracle: Callable | None
    compare: Callable


TABLE = {
    "sq_l2": Op(pairs, oracle_sq_l2, close_sq_l2),
    "cosine": Op(pairs, oracle_cosine, close_cosine),
    "inner_product": Op(pairs, oracle_inner_product, close_inner_product),
    "packed_distances": Op(packed_cases, oracle_packed_distances, close_packed_distances),
    "packed_nearest": Op(packed_nearest_cases, oracle_packed_nearest, close_packed_nearest),
    "packed_label_distances": Op(label_cases, oracle_packed_label_distances, close_packed_label_distances),
    "packed_log_softmax": Op(softmax_cases, oracle_packed_log_softmax, close_packed_log_softmax),
    "window_stats": Op(window_cases, oracle_window_stats, close_window_stats),
    "span_stats": Op(part_cases, oracle_span_stats, close_window_stats),
    "nearest": Op(nearest_cases, oracle_nearest, close_nearest),
    "prototypes": Op(labeled, oracle_prototypes, close_rows),
    "leave_one_out": Op(labeled, oracle_leave_one_out, close_leave_one_out),
    "cohort_stats": Op(cohorts, oracle_cohort_stats, close_cohort_stats),
    "log_mel": Op(sounds, oracle_log_mel, close_log_mel),
    "sound_spans": Op(spans, None, close_spans),
    "classify": Op(decisions, oracle_classify, close_classify),
    "classify_many": Op(decisions, oracle_classify, close_classify),
}


def table_rows() -> list:
    return [
        pytest.param(op, backend, dtype, case, id=f"{op}-{backend}-{dtype}-{case.name}")
        for op, entry in TABLE.items()
        for case in entry.cases()
        for backend in BACKENDS
        if backend != "torch_cpu" or op in TORCH_OPS
        for dtype in case.dtypes
        if backend != "torch_cpu" or dtype != "float16"
    ]


def typed(arguments: tuple, dtype: str) -> tuple:
    """Every array of floats in the given type; the oracle and the backends get the same values."""
    return tuple(a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arguments)


def compute(op: str, backend: str, arguments: tuple) -> object:
    if op == "classify":
        *made_of, query = arguments
        return kernels.Matcher(*made_of).classify(query, top_k=100)
    if op == "classify_many":
        *made_of, query = arguments
        rows = np.concatenate(
            [made_of[0][:5], query[None], made_of[0][:2]]
        )  # the query's turn comes in a second pass over the bank
        matcher = kernels.Matcher(*made_of)
        together = matcher.classify_many(rows, top_k=100)
        assert together == [matcher.classify(row, top_k=100) for row in rows]
        return together[-3]
    if op == "packed_distances":
        queries, prototypes, metric, storage, threads = arguments
        return getattr(kernels, metric)(queries, kernels.pack(prototypes, storage), threads=threads)
    if op == "packed_nearest":
        queries, prototypes, k, metric, storage, threads = arguments
        return kernels.nearest(queries, kernels.pack(prototypes, storage), k, metric, threads)
    if op in ("packed_label_distances", "packed_log_softmax"):
        queries, prototypes, *options, storage = arguments
        return getattr(kernels, op.removeprefix("packed_"))(queries, kernels.pack(prototypes, storage), *options)
    if backend != "torch_cpu":
        return getattr(kernels, op)(*arguments)
    tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments]
    result = getattr(ops, op)(*tensors)
    return tuple(t.numpy() for t in result) if isinstance(result, tuple) else result.numpy()


@pytest.mark.parametrize(("op", "backend", "dtype", "case"), table_rows())
def test_backend_agrees_with_oracle(
    op: str, backend: str, dtype: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "numpy":
        monkeypatch.setattr(kernels, "_core", None)
    entry = TABLE[op]
    arguments = typed(case.arguments, dtype)
    # What the core computes with is float32, so the oracle starts from that; only the torch operators know float64.
    exact = arguments if backend == "torch_cpu" and dtype == "float64" else typed(arguments, "float32")
    want = np.asarray(case.expected, float) if entry.oracle is None else entry.oracle(*exact)
    entry.compare(compute(op, backend, arguments), want, *exact)


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize(("n_queries", "n_prototypes"), [(400, 300), (3, 40_000)], ids=["queries", "prototypes"])
def test_threads_change_no_bit(n_queries: int, n_prototypes: int, storage: str) -> None:
    """Enough distances for several threads, which divide the queries or, of few queries, the prototypes."""
    queries, prototypes = (rng("threads").normal(size=(n, 64)).astype(np.float32) for n in (n_queries, n_prototypes))
    packed = kernels.pack(prototypes, storage)
    for metric in ("sq_l2", "cosine", "inner_product"):
        alone, together = (getattr(kernels, metric)(queries, packed, threads=n) for n in (1, 3))
        assert alone.tobytes() == together.tobytes()
    found = [kernels.nearest(queries, packed, 5, threads=n) for n in (1, 3)]
    for alone, together in zip(*found, strict=True):
        assert alone.tobytes() == together.tobytes()


def declared_kernels() -> set[str]:
    return set(re.findall(r"EA_KERNEL ea_status ea_(\w+)\(", HEADER.read_text()))


def test_every_declared_op_is_in_the_table() -> None:
    assert declared_kernels() == set(TABLE)
    assert {schema.partition("(")[0] for schema in ops.SCHEMAS} == TORCH_OPS | EPISODIC_OPS


SIZES = {f"dim {dim}" for dim in (1, 7, 127, 128, 129, 1024)}
NEEDED = {
    ("sq_l2", "cosine", "inner_product", "packed_distances", "nearest"): SIZES
    | {"one row", "zero vectors", "denormals", "huge values", "no query"},
    ("nearest",): {"ties"},
    ("prototypes", "leave_one_out"): {"uneven shots and a label without rows", "one row", "denormals", "huge values"},
}


@pytest.mark.parametrize("ops_needing", NEEDED)
def test_no_case_is_missing(ops_needing: tuple[str, ...]) -> None:
    for op in ops_needing:
        have = {case.name for case in TABLE[op].cases()}
        for name in NEEDED[ops_needing]:
            assert any(case == name or case.startswith(f"{name}, ") for case in have), f"{op} has no case '{name}'"


def test_the_table_was_computed_by_the_core() -> None:
    assert kernels.backend() == "native"
    assert kernels.instruction_set() in ("avx512vnni", "avx512", "avx2", "baseline", "neon")
    assert ops.backend() == "native"


INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512vnni", "neon")
ASK = "from edgealign import kernels; print(kernels.instruction_set())"


def python(*words: str, instruction_set: str) -> subprocess.CompletedProcess:
    environ = os.environ | {"EDGEALIGN_INSTRUCTION_SET": instruction_set}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=environ, cwd=ROOT)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set_passes_the_table(instruction_set: str) -> None:
    """The library picks the widest set when it is loaded; the others are forced, each in a process of its own."""
    if instruction_set == kernels.instruction_set():
        return  # the table above was its
    asked = python("-c", ASK, instruction_set=instruction_set)
    if "does not have" in asked.stderr:
        pytest.skip(f"this processor or this build has no {instruction_set}")
    assert asked.stdout == f"{instruction_set}\n", asked.stderr
    words = (
        "tests/test_kernels.py",
        "-q",
        "-k",
        "agrees_with_oracle and native and float32 or neighbors",
        "-p",
        "no:cacheprovider",
    )
    done = python("-m", "pytest", *words, instruction_set=instruction_set)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


def test_an_instruction_set_that_is_not_there_is_an_error() -> None:
    asked = python("-c", ASK, instruction_set="sse9")
    assert asked.returncode == 1
    assert "EDGEALIGN_INSTRUCTION_SET asks for 'sse9'" in asked.stderr and "the widest is" in asked.stderr


def test_without_the_core_numpy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_core", None)
    assert kernels.backend() == "numpy"
    assert kernels.instruction_set() is None


# ---- properties and refusals, of both backends that the runtime has ----


@pytest.fixture(params=["native", "numpy"])
def runtime_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "_core", None)
    return request.param


POISONED = {
    "sq_l2": lambda rows: kernels.sq_l2(rows, np.ones((2, 20))),
    "sq_l2 prototypes": lambda rows: kernels.sq_l2(np.ones((2, 20)), rows),
    "sq_l2 no query": lambda rows: kernels.sq_l2(np.ones((0, 20)), rows),
    "cosine": lambda rows: kernels.cosine(rows, np.ones((2, 20))),
    "cosine prototypes": lambda rows: kernels.cosine(np.ones((2, 20)), rows),
    "cosine no prototype": lambda rows: kernels.cosine(rows, np.ones((0, 20))),
    "inner_product": lambda rows: kernels.inner_product(rows, np.ones((2, 20))),
    "inner_product prototypes": lambda rows: kernels.inner_product(np.ones((2, 20)), rows),
    "packed_distances": lambda rows: kernels.sq_l2(rows, kernels.pack(np.ones((2, 20)))),
    "packed_distances cosine": lambda rows: kernels.cosine(rows, kernels.pack(np.ones((2, 20)))),
    "packed_distances inner": lambda rows: kernels.inner_product(rows, kernels.pack(np.ones((2, 20)))),
    "packed_distances int8": lambda rows: kernels.cosine(rows, kernels.pack(np.ones((2, 20)), "int8")),
    "packed_distances no prototype": lambda rows: kernels.cosine(rows, kernels.pack(np.ones((0, 20)))),
    "packed_distances prototypes": lambda rows: kernels.pack(rows),
    "packed_distances int8 prototypes": lambda rows: kernels.pack(rows, "int8"),
    "packed_nearest": lambda rows: kernels.nearest(rows, kernels.pack(np.ones((2, 20)))),
    "packed_label_distances": lambda rows: kernels.label_distances(rows, np.ones((2, 20)), [0, 0], 1),
    "packed_label_distances prototypes": lambda rows: kernels.label_distances(np.ones((2, 20)), rows, [0] * 9, 1),
    "packed_log_softmax": lambda rows: kernels.log_softmax(rows, np.ones((2, 20))),
    "packed_log_softmax prototypes": lambda rows: kernels.log_softmax(np.ones((2, 20)), rows),
    "window_stats": lambda rows: kernels.window_stats(rows, 3, 2),
    "window_stats weights": lambda rows: kernels.window_stats(np.ones((9, 40)), 3, 2, rows),
    "window_stats profile": lambda rows: kernels.window_stats(np.ones((50, 18)), 20, 2, None, rows),
    "span_stats": lambda rows: kernels.span_stats(rows, np.ones((9, 4)), np.ones((4, 3)), [[0, 9], [2, 3]]),
    "span_stats weights": lambda rows: kernels.span_stats(np.ones((9, 40)), rows, np.ones((20, 3)), [[0, 9]]),
    "span_stats profile": lambda rows: kernels.span_stats(np.ones((9, 18)), np.ones((9, 9)), rows, [[0, 9]]),
    "nearest": lambda rows: kernels.nearest(rows, np.ones((2, 20))),
    "nearest sq_l2": lambda rows: kernels.nearest(np.ones((2, 20)), rows, metric="sq_l2"),
    "prototypes": lambda rows: kernels.prototypes(rows, np.zeros(9, int), 1),
    "prototypes weights": lambda rows: kernels.prototypes(np.ones((9, 20)), np.zeros(9, int), 1, rows[:, 3]),
    "leave_one_out": lambda rows: kernels.leave_one_out(rows, np.zeros(9, int), 1),
    "cohort_stats": lambda rows: kernels.cohort_stats(rows, np.ones((2, 20)), 1),
    "cohort_stats bank": lambda rows: kernels.cohort_stats(np.ones((2, 20)), rows, 1),
    "log_mel": lambda rows: kernels.log_mel(rows.ravel(), np.ones((2, 9)), 16, 4, 1e-10),
    "log_mel filters": lambda rows: kernels.log_mel(np.ones(50), rows[:, :17], 16, 4, 1e-10),
    "sound_spans": lambda rows: kernels.sound_spans(rows, 0.05, 6, 32, 20, 6, 10, 300),
    "matcher": lambda rows: kernels.Matcher(
        rows, np.zeros(9, int), np.full(9, RECORDING), 1, np.ones((2, 20)), CALIBRATION
    ),
    "matcher bank": lambda rows: kernels.Matcher(
        np.ones((2, 20)), np.zeros(2, int), np.full(2, RECORDING), 1, rows, CALIBRATION
    ),
    "classify": lambda rows: kernels.Matcher(
        np.ones((2, 20)), np.zeros(2, int), np.full(2, RECORDING), 1, np.ones((2, 20)), CALIBRATION
    ).classify(rows[4]),
    "classify_many": lambda rows: kernels.Matcher(
        np.ones((2, 20)), np.zeros(2, int), np.full(2, RECORDING), 1, np.ones((2, 20)), CALIBRATION
    ).classify_many(rows),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", POISONED)
def test_nan_and_infinity_are_refused(name: str, value: float, runtime_backend: str) -> None:
    rows = rng(name).random(size=(9, 20))
    POISONED[name](rows)
    rows[4, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        POISONED[name](rows)


def test_every_op_of_the_table_is_poisoned() -> None:
    assert {name.split()[0] for name in POISONED} - {"matcher"} == set(TABLE)


WRONG = {
    "widths differ": (lambda: kernels.cosine(np.ones((2, 3)), np.ones((2, 4))), "elements a row"),
    "one dimension": (lambda: kernels.sq_l2(np.ones(3), np.ones((2, 3))), "has 1 dimensions, expected 2"),
    "empty rows": (lambda: kernels.sq_l2(np.ones((2, 0)), np.ones((2, 0))), "rows without elements"),
    "k of 0": (lambda: kernels.nearest(np.ones((1, 3)), np.ones((2, 3)), 0), "k is 0, expected 1 to 2"),
    "k too large": (lambda: kernels.nearest(np.ones((1, 3)), np.ones((2, 3)), 3), "k is 3, expected 1 to 2"),
    "storage": (lambda: kernels.pack(np.ones((1, 3)), "int4"), "unknown storage 'int4'"),
    "packed widths differ": (lambda: kernels.sq_l2(np.ones((1, 4)), kernels.pack(np.ones((1, 3)))), "elements a row"),
    "threads": (lambda: kernels.sq_l2(np.ones((1, 3)), kernels.pack(np.ones((1, 3))), threads=0), "threads is 0"),
    "out shape": (
        lambda: kernels.sq_l2(np.ones((1, 3)), kernels.pack(np.ones((2, 3))), np.ones((1, 3), np.float32)),
        r"out is float32 \(1, 3\), expected a float32 array of the shape \(1, 2\)",
    ),
    "out type": (lambda: kernels.cosine(np.ones((1, 3)), np.ones((1, 3)), np.ones((1, 1))), "out is float64"),
    "out read-only": (
        lambda: kernels.cosine(np.ones((1, 3)), kernels.pack(np.ones((1, 3))), np.frombuffer(b"1234", "f4")[:, None]),
        "writeable",
    ),
    "label without prototype": (
        lambda: kernels.label_distances(np.ones((1, 3)), np.ones((1, 3)), [1], 2),
        "label 0 has no prototype",
    ),
    "temperature": (lambda: kernels.log_softmax(np.ones((1, 3)), np.ones((1, 3)), "cosine", 0), "temperature is 0"),
    "no prototype": (lambda: kernels.log_softmax(np.ones((1, 3)), np.ones((0, 3))), "no prototype"),
    "window of 0": (lambda: kernels.window_stats(np.ones((5, 3)), 0, 1), "at least 1"),
    "groups": (lambda: kernels.window_stats(np.ones((5, 3)), 2, 1, np.ones((5, 2))), "does not fit"),
    "weight of a frame below 0": (lambda: kernels.window_stats(np.ones((5, 3)), 2, 1, -np.ones((5, 1))), "negative"),
    "span beyond": (
        lambda: kernels.span_stats(np.ones((5, 3)), np.ones((5, 1)), np.ones((1, 2)), [[2, 6]]),
        "does not lie within the 5 frames",
    ),
    "span beyond int32": (
        lambda: kernels.span_stats(np.ones((5, 3)), np.ones((5, 1)), np.ones((1, 2)), [[2, 2**32 + 3]]),
        "does not lie within the 5 frames",
    ),
    "span of floats": (
        lambda: kernels.span_stats(np.ones((5, 3)), np.ones((5, 1)), np.ones((1, 2)), [[1, 2.5]]),
        "expected integers",
    ),
    "span of no frame": (
        lambda: kernels.span_stats(np.ones((5, 3)), np.ones((5, 1)), np.ones((1, 2)), [[2, 2]]),
        "does not lie within the 5 frames",
    ),
    "span of three": (
        lambda: kernels.span_stats(np.ones((5, 3)), np.ones((5, 1)), np.ones((1, 2)), [[1, 2, 3]]),
        r"expected \[n_spans, 2\]",
    ),
    "groups of spans": (
        lambda: kernels.span_stats(np.ones((5, 3)), np.ones((5, 2)), np.ones((2, 2)), [[1, 2]]),
        "do not fit frames",
    ),
    "too many places": (
        lambda: kernels.span_stats(np.ones((5, 3)), np.ones((5, 1)), np.ones((1, 65)), [[1, 2]]),
        "a profile of 65 places: at most 64",
    ),
    "place below 0": (
        lambda: kernels.span_stats(np.ones((5, 3)), np.ones((5, 1)), -np.ones((1, 2)), [[1, 2]]),
        "negative",
    ),
    "embeddings of another width": (
        lambda: kernels.Matcher(
            np.ones((2, 20)), np.zeros(2, int), np.full(2, RECORDING), 1, np.ones((2, 20)), CALIBRATION
        ).classify_many(np.ones((3, 19))),
        "19 elements a row, the matcher 20",
    ),
    "metric": (lambda: kernels.nearest(np.ones((1, 3)), np.ones((2, 3)), 1, "l2"), "unknown metric 'l2'"),
    "label beyond": (lambda: kernels.prototypes(np.ones((1, 3)), [2], 2), "outside 0 to 1"),
    "label beyond int32": (lambda: kernels.prototypes(np.ones((1, 3)), [2**32], 2), "outside 0 to 1"),
    "label below": (lambda: kernels.leave_one_out(np.ones((1, 3)), [-1], 2), "outside 0 to 1"),
    "label of floats": (lambda: kernels.prototypes(np.ones((1, 3)), [0.5], 2), "expected integers"),
    "too few labels": (lambda: kernels.prototypes(np.ones((2, 3)), [0], 2), r"shape \(1,\), expected \(2,\)"),
    "weight below 0": (lambda: kernels.prototypes(np.ones((1, 3)), [0], 1, [-1.0]), "none of them negative"),
    "top of 0": (lambda: kernels.cohort_stats(np.ones((1, 3)), np.ones((1, 3)), 0), "at least 1"),
    "empty bank": (lambda: kernels.cohort_stats(np.ones((1, 3)), np.ones((0, 3)), 1), "at least 1"),
    "n_fft": (lambda: kernels.log_mel(np.ones(9), np.ones((2, 4)), 4, 2, 1e-10), "power of two"),
    "window": (lambda: kernels.log_mel(np.ones(9), np.ones((2, 5)), 9, 2, 1e-10), "power of two"),
    "hop": (lambda: kernels.log_mel(np.ones(9), np.ones((2, 5)), 8, 0, 1e-10), "power of two"),
    "floor": (lambda: kernels.log_mel(np.ones(9), np.ones((2, 5)), 8, 2, 0), "power of two"),
    "no audio": (lambda: kernels.log_mel(np.full(9, 2e6), np.ones((2, 5)), 8, 2, 1e-10), r"beyond|no sense"),
    "no frame": (lambda: kernels.sound_spans(np.ones((2, 0)), 0.05, 6, 32, 20, 6, 10, 300), "without elements"),
    "quantile": (lambda: kernels.sound_spans(np.ones((2, 9)), 1.5, 6, 32, 20, 6, 10, 300), "make no sense"),
    "no span": (lambda: kernels.sound_spans(np.ones((2, 9)), 0.5, 6, 32, 20, 6, 10, 0), "make no sense"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name: str, runtime_backend: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


def matcher(**changes: object) -> kernels.Matcher:
    rows = rng("matcher").normal(size=(6, 8))
    values = {
        "embeddings": rows,
        "labels": [0, 0, 1, 1, 2, 2],
        "kinds": [RECORDING] * 6,
        "n_labels": 3,
        "bank": rows,
        "calibration": CALIBRATION,
        "text_weight": 1.0,
    }
    return kernels.Matcher(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_labels": 4}, "4 labels, of which 3 have rows"),
        ({"labels": [0, 0, 1, 1, 2, 3]}, "outside 0 to 2"),
        ({"kinds": [9] * 6}, "kinds must be 6 of"),
        ({"text_weight": 0}, "text_weight is 0"),
        ({"bank": np.ones((2, 9))}, "elements a row"),
        ({"calibration": replace(CALIBRATION, w_z=-1)}, "w_z, w_t, w_margin >= 0"),
        ({"calibration": replace(CALIBRATION, w_distance=1)}, "w_distance <= 0"),
        ({"calibration": replace(CALIBRATION, w_bias=np.nan)}, "NaN or infinity"),
        ({"calibration": replace(CALIBRATION, prior_weight=0)}, "prior_weight > 0"),
        ({"calibration": replace(CALIBRATION, top=0)}, "top >= 1"),
        (
            {"calibration": replace(CALIBRATION, w_distance=0, w_margin=0), "bank": np.ones((0, 8))},
            "looks at the distance",
        ),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(changes: dict, message: str, runtime_backend: str) -> None:
    matcher()
    with pytest.raises(ValueError, match=message):
        matcher(**changes)


def test_the_core_refuses_a_calibration_as_python_does() -> None:
    """Programs in C have only the core's own check."""
    rows = rng("core").normal(size=(6, 8)).astype(np.float32)
    arrays = (rows, np.arange(6, dtype=np.int32) // 2, np.ones(6, np.int32), 3, rows)
    values = np.array([-1, 0.5, 0.25, -3, 4, 1, 0.3, -0.5, 0.2, 5, 0.3, 3, 0.2])
    kernels._core.matcher(*arrays, values, 1.0)
    for position, value in ((1, -1), (2, -1), (3, 1), (4, -1), (0, np.nan), (9, 0), (11, 0)):
        wrong = values.copy()
        wrong[position] = value
        with pytest.raises(ValueError, match="calibration"):
            kernels._core.matcher(*arrays, wrong, 1.0)


@pytest.mark.skipif(kernels.backend() != "native", reason="the core was not compiled")
def test_the_core_packs_for_no_storage_that_is_not_a_number() -> None:
    with pytest.raises(TypeError, match="str"):
        kernels._core.pack(np.ones((2, 3), np.float32), "float32")


def test_calibration_reads_exactly_its_own_keys() -> None:
    values = {name: getattr(CALIBRATION, name) for name in Calibration.__dataclass_fields__}
    assert Calibration.from_dict(values) == CALIBRATION
    with pytest.raises(ValueError, match=r"unknown keys \['w_mood'\]"):
        Calibration.from_dict(values | {"w_mood": 1.0})
    with pytest.raises(ValueError, match=r"missing keys \['w_z'\]"):
        Calibration.from_dict({name: value for name, value in values.items() if name != "w_z"})
    with pytest.raises(ValueError, match="expected a number"):
        Calibration.from_dict(values | {"w_z": "1"})


def test_order_of_samples_does_not_matter(runtime_backend: str) -> None:
    generator = rng("order")
    rows, labels, order = generator.normal(size=(12, 30)), np.arange(12) % 3, generator.permutation(12)
    np.testing.assert_allclose(
        kernels.prototypes(rows, labels, 3), kernels.prototypes(rows[order], labels[order], 3), atol=2e-7
    )


def test_distances_are_symmetric_and_zero_to_oneself(runtime_backend: str) -> None:
    rows = rng("symmetric").normal(size=(9, 33)).astype(np.float32)
    for metric in (kernels.cosine, kernels.sq_l2):
        distances = metric(rows, rows)
        assert np.array_equal(distances, distances.T)
        assert np.abs(distances.diagonal()).max() <= 4 * ULP


def test_text_makes_up_its_stated_share_of_a_prototype(runtime_backend: str) -> None:
    """text_weight / (text_weight + k): with orthogonal samples the share can be read off the prototype."""
    rows = np.eye(4, dtype=np.float32)  # three recordings, one text
    for text_weight in (0.5, 1.5):
        decide = kernels.Matcher(rows, [0] * 4, [RECORDING] * 3 + [TEXT], 1, np.zeros((0, 4)), CALIBRATION, text_weight)
        to_text, to_recording = (decide.classify(rows[i])[0].distance for i in (3, 0))
        share = (1 - to_text) / ((1 - to_text) + 3 * (1 - to_recording))
        assert share == pytest.approx(text_weight / (text_weight + 3), abs=1e-6)


def test_any_buffer_of_float32_is_read_where_it_lies(runtime_backend: str) -> None:
    rows = rng("buffer").normal(size=(4, 6)).astype(np.float32)
    lent = memoryview(rows.tobytes()).cast("f", (4, 6))
    assert np.shares_memory(kernels._float32(lent, 2, "rows"), np.asarray(lent))
    np.testing.assert_array_equal(kernels.cosine(lent, lent), kernels.cosine(rows, rows))


def test_out_is_filled_and_returned_whatever_the_type_of_the_queries(runtime_backend: str) -> None:
    rows = rng("out").normal(size=(4, 6))
    packed, out = kernels.pack(rows), np.empty((4, 4), np.float32)
    for queries in (rows, rows.astype(np.float32), rows.astype(np.float32)[:, ::-1]):
        assert kernels.sq_l2(queries, packed, out=out) is out
        np.testing.assert_array_equal(out, kernels.sq_l2(queries, packed))


@pytest.mark.parametrize(
    "kind", ["a subclass", "another byte order", "strided", "read-only", "misaligned", "not an array"]
)
def test_out_that_cannot_be_filled_is_refused(kind: str, runtime_backend: str) -> None:
    rows = rng("out").normal(size=(4, 6)).astype(np.float32)
    out = {
        "a subclass": np.ma.zeros((4, 4), np.float32),
        "another byte order": np.zeros((4, 4), ">f4"),
        "strided": np.zeros((4, 8), np.float32)[:, ::2],
        "read-only": np.frombuffer(bytes(64), np.float32).reshape(4, 4),
        "misaligned": misaligned(np.zeros((4, 4), np.float32)),
        "not an array": bytearray(64),
    }[kind]
    for prototypes in (rows, kernels.pack(rows)):
        if kind == "a subclass":  # has memory like any other
            np.testing.assert_array_equal(kernels.sq_l2(rows, prototypes, out), kernels.sq_l2(rows, prototypes))
            continue
        with pytest.raises(ValueError, match="out "):
            kernels.sq_l2(rows, prototypes, out)


def test_a_front_end_made_ready_gives_the_same_and_sees_changed_filters(runtime_backend: str) -> None:
    samples = rng("front end").normal(size=700)
    filters = np.abs(rng("filters").normal(size=(3, 65)).astype(np.float32))
    ready = kernels.LogMel(filters, 100, 40, 1e-10)
    first = kernels.log_mel(samples, filters, 100, 40, 1e-10)
    np.testing.assert_array_equal(kernels.log_mel(samples, ready), first)
    filters *= 2
    np.testing.assert_array_equal(kernels.log_mel(samples, ready), first)
    second = kernels.log_mel(samples, filters, 100, 40, 1e-10)
    np.testing.assert_allclose(second, first + np.log(2), atol=1e-5)


def test_labels_say_how_many_prototypes_there_are(runtime_backend: str) -> None:
    rows = rng("labels").normal(size=(5, 4))
    np.testing.assert_array_equal(
        kernels.prototypes(rows, [2, 0, 0, 2, 1]), kernels.prototypes(rows, [2, 0, 0, 2, 1], 3)
    )
    assert kernels.prototypes(rows[:0], np.zeros(0, int)).shape == (0, 4)


def test_several_prototypes_find_the_ways_in_which_a_label_sounds(runtime_backend: str) -> None:
    generator = rng("ways")
    ways = unit(generator.normal(size=(5, 16)))  # three of label 0, two of label 1
    order = np.repeat(np.arange(5), 7)[generator.permutation(35)]
    rows = ways[order] + generator.normal(size=(35, 16)) / 50
    made, owners = kernels.several_prototypes(rows, (order > 2).astype(int), 3)
    assert owners.tolist() == [0, 0, 0, 1, 1, 1]
    closest = kernels.cosine(ways, made)
    assert (closest[:3, :3].min(axis=1) < 0.01).all() and (closest[3:, 3:].min(axis=1) < 0.01).all()
    two, _ = kernels.several_prototypes(rows[order > 2], np.zeros(14, int), 2)
    for way in (3, 4):
        want = oracle_prototypes(rows[order == way], np.zeros(7, int), 1, None)
        assert np.abs(two - want).max(axis=1).min() < 4e-7
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)


def test_several_prototypes_are_no_more_than_there_are_different_rows(runtime_backend: str) -> None:
    rows = rng("few").normal(size=(3, 8))[[0, 0, 1, 2]]
    made, owners = kernels.several_prototypes(rows, [0, 0, 0, 1], 5)
    assert owners.tolist() == [0, 0, 1]
    single, _ = kernels.several_prototypes(rows, [0, 0, 0, 1], 1)
    np.testing.assert_array_equal(single, kernels.prototypes(rows, [0, 0, 0, 1]))
    shuffled = kernels.several_prototypes(rows[[3, 2, 1, 0]], [1, 0, 0, 0], 5)[0]
    assert kernels.cosine(made, shuffled).min(axis=1).max() < 1e-6
    assert kernels.several_prototypes(rows[:0], np.zeros(0, int), 2)[0].shape == (0, 8)
    with pytest.raises(ValueError, match="label 1 has no row"):
        kernels.several_prototypes(rows, [0, 0, 2, 2], 2)
    with pytest.raises(ValueError, match="per_label is 0"):
        kernels.several_prototypes(rows, [0, 0, 0, 0], 0)


def test_a_packed_distance_does_not_depend_on_its_neighbors() -> None:
    rows = rng("neighbors").normal(size=(70, 33)).astype(np.float32)
    for storage in kernels.STORAGES:
        whole = kernels.cosine(rows, kernels.pack(rows, storage))
        for i in (0, 31, 69):
            np.testing.assert_array_equal(kernels.cosine(rows[i : i + 1], kernels.pack(rows, storage))[0], whole[i])
            np.testing.assert_array_equal(
                kernels.cosine(rows, kernels.pack(rows[i : i + 1], storage))[:, 0], whole[:, i]
            )


@pytest.mark.parametrize(("storage", "n_prototypes"), [("float32", 34_000), ("int8", 135_000)])
def test_a_packed_distance_does_not_depend_on_neighbors_beyond_the_caches(storage: str, n_prototypes: int) -> None:
    """More than 16 MiB are read in another order."""
    rows = rng("beyond the caches").normal(size=(n_prototypes, 127)).astype(np.float32)
    far = kernels.sq_l2(rows[7:8], kernels.pack(rows, storage))[0]
    for part in (slice(0, 40), slice(3200, 3300), slice(n_prototypes - 35, n_prototypes)):
        near = kernels.sq_l2(rows[7:8], kernels.pack(rows[part], storage))[0]
        np.testing.assert_array_equal(far[part], near)


@pytest.mark.parametrize("op", ["sq_l2", "cosine", "inner_product"])
def test_a_distance_to_rows_as_they_lie_does_not_depend_on_its_neighbors(op: str) -> None:
    """Of both there is more than one block, and the rows are more than a cache near the core holds."""
    rows = rng("neighbors as they lie").normal(size=(520, 1100)).astype(np.float32)
    queries, measure = rows[::-1][:131].copy(), getattr(kernels, op)
    whole = measure(queries, rows)
    for i in (0, 127, 130):
        np.testing.assert_array_equal(measure(queries[i : i + 1], rows)[0], whole[i])
    for j in (0, 33, 519):
        np.testing.assert_array_equal(measure(queries, rows[j : j + 1])[:, 0], whole[:, j])


def test_a_small_distance_keeps_its_digits() -> None:
    """|q|^2 + |p|^2 - 2 q.p alone would lose all of them."""
    rows = rng("near").normal(size=(40, 64)).astype(np.float32)
    near = (rows * (1 + 1e-4 * rng("nearer").normal(size=rows.shape))).astype(np.float32)
    have = kernels.sq_l2(near, kernels.pack(rows)).diagonal()
    np.testing.assert_allclose(have, oracle_sq_l2(near, rows).diagonal(), rtol=1e-5)


def test_a_noncontiguous_array_is_read_right(runtime_backend: str) -> None:
    rows = rng("strided").normal(size=(10, 40)).astype(np.float32)
    strided = rows[::2, ::-1]
    np.testing.assert_array_equal(kernels.cosine(strided, strided), kernels.cosine(strided.copy(), strided.copy()))


def misaligned(array: np.ndarray) -> np.ndarray:
    """The same, one byte behind where the processor would have it, as in a file after a header of odd length."""
    moved = np.frombuffer(bytearray(b"_" + array.tobytes()), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    assert not moved.flags.aligned
    return moved


def test_a_misaligned_array_is_read_right(runtime_backend: str) -> None:
    rows = rng("misaligned").normal(size=(5, 12)).astype(np.float32)
    labels = np.array([0, 1, 0, 1, 1], np.int32)
    moved, prototypes = misaligned(rows), kernels.prototypes(rows, labels)
    np.testing.assert_array_equal(kernels.prototypes(moved, misaligned(labels)), prototypes)
    for given in (prototypes, kernels.pack(prototypes)):
        np.testing.assert_array_equal(kernels.cosine(moved, given), kernels.cosine(rows, given))
        np.testing.assert_array_equal(kernels.nearest(moved, given)[1], kernels.nearest(rows, given)[1])


def test_numpys_whole_numbers_count_as_pythons(runtime_backend: str) -> None:
    rows = rng("whole").normal(size=(5, 12)).astype(np.float32)
    packed, out = kernels.pack(rows), np.empty((5, 5), np.float32)
    assert kernels.cosine(rows, packed, out, threads=np.int64(2)) is out
    np.testing.assert_array_equal(kernels.nearest(rows, rows, k=np.int32(2))[1], kernels.nearest(rows, rows, k=2)[1])
    matches = matcher().classify(np.ones(8), top_k=np.int64(2))
    assert matches == matcher().classify(np.ones(8), top_k=2)
    with pytest.raises(TypeError):
        matcher().classify(np.ones(8), top_k=1.5)


def test_features_are_what_the_weights_multiply() -> None:
    """Calibrations are fitted on `reference.Matcher.features`, and must mean there what they mean on the device."""
    *made_of, query = next(decisions()).arguments
    arrays = [np.asarray(a, np.float32) if isinstance(a, np.ndarray) and a.dtype == float else a for a in made_of]
    fitted = reference.Matcher(*arrays)
    weights = [getattr(CALIBRATION, name) for name in reference.Matcher.FEATURES]
    logits = fitted.features(query[None].astype(np.float32))[0] @ weights
    for match in kernels.Matcher(*made_of).classify(query, top_k=5):
        assert match.logit == pytest.approx(logits[match.label], abs=1e-3)
