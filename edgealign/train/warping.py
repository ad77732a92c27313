"""Takes of one word, aligned in time: which moment of a take is which moment of the word.

People say the parts of a word at their own pace, so that shares of its length do not mark the same sound in two takes:
within the word, the two are a tenth of the length apart on average. Each take is warped to the mean of all
(DTW barycenter averaging: Petitjean, Ketterlin and Gancarski 2011).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

KNOTS = np.linspace(0, 1, 33)  # moments of the word
FRAMES_AT_ONCE = 2  # of 10 ms
FLOOR_NEPERS = 8.0  # below the loudest energy, nothing counts
MEAN_OF = 60  # takes that the mean is made of
ITERATIONS = 3


def warped(takes: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """Where in each take, as a share of its length, the moments KNOTS of the word are: float64 [n_takes, len(KNOTS)].

    takes   log-mels of one word, each [n_frames, n_mels] with n_frames >= 1
    """
    rows = [_directions(take) for take in takes]
    chosen = random.Random(seed).sample(range(len(rows)), min(MEAN_OF, len(rows)))
    mean = sorted((rows[i] for i in chosen), key=len)[len(chosen) // 2]
    for _ in range(ITERATIONS if len(rows) > 1 else 0):
        sums = np.zeros_like(mean)
        for i in chosen:
            of_mean, of_take = _path(1 - mean @ rows[i].T)
            np.add.at(sums, of_mean, rows[i][of_take])
        mean = _unit(sums)
    return np.stack([_moments(mean, row) for row in rows])


def _moments(mean: np.ndarray, take: np.ndarray) -> np.ndarray:
    of_mean, of_take = _path(1 - mean @ take.T)
    n = np.bincount(of_mean, minlength=len(mean))
    share = np.bincount(of_mean, (of_take + 0.5) / len(take), minlength=len(mean)) / n
    middles = (np.arange(len(mean)) + 0.5) / len(mean)
    return np.interp(KNOTS, np.r_[0, middles, 1], np.r_[0, share, 1])


def _directions(log_mel: np.ndarray) -> np.ndarray:
    """Unit rows [n, n_mels] of a take: what stands out of its mean, at 20 ms."""
    x = np.maximum(log_mel, log_mel.max() - FLOOR_NEPERS)
    n = max(1, len(x) // FRAMES_AT_ONCE)
    x = np.stack([part.mean(axis=0) for part in np.array_split(x, n)])
    return _unit(x - x.mean(axis=0))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def _path(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest monotonous path from the first corner of [n, m] to the last: row and column of its steps."""
    n, m = distances.shape
    costs = np.full((n + 1, m + 1), np.inf)
    costs[0, 0] = 0
    # Diagonal after diagonal: all cells of one are known when the two before it are.
    for total in range(2, n + m + 1):
        i = np.arange(max(1, total - m), min(n, total - 1) + 1)
        j = total - i
        before = np.minimum(np.minimum(costs[i - 1, j - 1], costs[i - 1, j]), costs[i, j - 1])
        costs[i, j] = distances[i - 1, j - 1] + before
    i, j, path = n, m, [(n - 1, m - 1)]
    while i > 1 or j > 1:
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda at: costs[at])
        path.append((i - 1, j - 1))
    rows, columns = np.array(path[::-1]).T
    return rows, columns
