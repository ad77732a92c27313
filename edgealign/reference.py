"""The numpy definition of every formula in the compiled core: its oracle, and its named fallback.

The formulas are stated once, in the docstring of `edgealign.kernels`. The code here favors being obviously right over
being fast, and computes in float64 wherever a sum is involved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgealign.kernels import Calibration

NO_DIRECTION = 1e-6  # a mean shorter than this, of unit rows, is rounding error
SMALLEST_SD = 1e-4


def log_mel(
    samples: np.ndarray, filters: np.ndarray, window_samples: int, hop_samples: int, energy_floor: float
) -> np.ndarray:
    """float32 [n_mels, n_frames] of samples float32 [n_samples] and filters float32 [n_mels, n_fft // 2 + 1]."""
    n_fft = 2 * (filters.shape[1] - 1)
    padded = np.zeros(max(len(samples), window_samples))
    padded[: len(samples)] = samples
    n_frames = 1 + (len(padded) - window_samples) // hop_samples
    starts = hop_samples * np.arange(n_frames)[:, None]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_samples) / window_samples)
    frames = padded[starts + np.arange(window_samples)] * hann
    power = np.abs(np.fft.rfft(frames, n_fft)) ** 2
    return np.log(np.maximum(power @ filters.T.astype(np.float64), energy_floor)).T.astype(np.float32)


def frame_levels_db(log_mels: np.ndarray) -> np.ndarray:
    """Level of each frame in dB, float64 [n_frames], of log_mels float32 [n_mels, n_frames]."""
    return 10 * np.log10(np.exp(log_mels.astype(np.float64)).mean(axis=0))


def sound_spans(
    log_mels: np.ndarray,
    floor_quantile: float,
    above_floor_db: float,
    below_peak_db: float,
    merge_frames: int,
    min_frames: int,
    pad_frames: int,
    max_frames: int,
) -> np.ndarray:
    """float64 [n_spans, 3] of log_mels float32 [n_mels, n_frames]: first frame, one past the last, clearness."""
    levels = frame_levels_db(log_mels)
    n_frames = len(levels)
    floor = np.sort(levels)[int(floor_quantile * (n_frames - 1))]
    threshold = max(floor + above_floor_db, levels.max() - below_peak_db)
    on = levels > threshold
    edges = np.flatnonzero(np.diff(np.concatenate([[0], on.astype(int), [0]])))
    runs: list[list[int]] = []
    for first, end in edges.reshape(-1, 2):
        if runs and first - runs[-1][1] < merge_frames:
            runs[-1][1] = end
        else:
            runs.append([first, end])
    runs = [run for run in runs if run[1] - run[0] >= min_frames]
    spans = []
    for i, (first, end) in enumerate(runs):
        clearness = np.maximum(levels[first:end] - threshold, 0).sum()
        lowest = (runs[i - 1][1] + first) // 2 if i else 0
        highest = (end + runs[i + 1][0]) // 2 if i + 1 < len(runs) else n_frames
        first, end = max(first - pad_frames, lowest), min(end + pad_frames, highest)
        if end - first > max_frames:
            energy = np.concatenate([[0.0], np.cumsum(10 ** (levels[first:end] / 10))])
            offset = int(np.argmax(energy[max_frames:] - energy[:-max_frames]))
            first, end = first + offset, first + offset + max_frames
        spans.append((first, end, clearness))
    return np.array(spans, dtype=np.float64).reshape(-1, 3)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, float64; zero rows stay."""
    rows = rows.astype(np.float64)
    lengths = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def sq_l2(queries: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    differences = queries[:, None].astype(np.float64) - prototypes[None]
    with np.errstate(over="ignore"):
        return (differences**2).sum(axis=2).astype(np.float32)


def cosine(queries: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    distances = 1 - (unit_rows(queries) @ unit_rows(prototypes).T).clip(-1, 1)
    both_zero = ~queries.any(axis=1)[:, None] & ~prototypes.any(axis=1)
    return np.where(both_zero, 0, distances).astype(np.float32)


def inner_product(queries: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return (queries.astype(np.float64) @ prototypes.T.astype(np.float64)).astype(np.float32)


def rounded_to_int8(rows: np.ndarray) -> np.ndarray:
    """Rows [n, d] rounded to 255 steps each, float64; the scales are float32, as in the core."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    # Tiny rows are scaled by a power of two first, so that no scale is out of float32's range.
    before = np.where(largest < 1e-30, np.float32(2.0**100), np.float32(1))
    scaled, largest = rows * before, largest * before
    scales = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(scaled * scales) * (largest / np.float32(127) / before).astype(np.float64)


DISTANCES = {"cosine": cosine, "sq_l2": sq_l2}  # by metric


def nearest(queries: np.ndarray, prototypes: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    distances = DISTANCES[metric](queries, prototypes)
    indices = distances.argsort(axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, axis=1), indices.astype(np.int32)


def label_distances(
    queries: np.ndarray, prototypes: np.ndarray, labels: np.ndarray, n_labels: int, metric: str
) -> np.ndarray:
    distances = DISTANCES[metric](queries, prototypes)
    return np.stack([distances[:, labels == label].min(axis=1) for label in range(n_labels)], axis=1)


def log_softmax(queries: np.ndarray, prototypes: np.ndarray, metric: str, temperature: float) -> np.ndarray:
    distances = DISTANCES[metric](queries, prototypes).astype(np.float64)
    closest = distances.min(axis=1, keepdims=True)
    closest[np.isinf(closest)] = 0
    distances[np.isinf(distances).all(axis=1)] = 0
    logits = (closest - distances) / np.float64(np.float32(temperature))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def _direction(total: np.ndarray, weight: float) -> np.ndarray:
    """A weighted sum of unit rows scaled to unit length; zero where it has no direction."""
    length = np.sqrt((total**2).sum())
    return total / length if length > NO_DIRECTION * weight else np.zeros_like(total)


def _relative(weights: np.ndarray | None, n_rows: int) -> np.ndarray:
    if weights is None or not weights.any():
        return np.ones(n_rows) if weights is None else np.zeros(n_rows)
    return weights.astype(np.float64) / weights.max()


def prototypes(
    embeddings: np.ndarray, labels: np.ndarray, n_labels: int, weights: np.ndarray | None = None
) -> np.ndarray:
    rows, weights = unit_rows(embeddings), _relative(weights, len(embeddings))
    made = np.zeros((n_labels, embeddings.shape[1]))
    for label in np.unique(labels):
        mine = labels == label
        made[label] = _direction(weights[mine] @ rows[mine], weights[mine].sum())
    return made.astype(np.float32)


def leave_one_out(
    embeddings: np.ndarray, labels: np.ndarray, n_labels: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    rows, weights = unit_rows(embeddings), _relative(weights, len(embeddings))
    distances, valid = np.zeros(len(rows)), np.zeros(len(rows), bool)
    for i in range(len(rows)):
        others = (labels == labels[i]) & (np.arange(len(rows)) != i)
        rest = _direction(weights[others] @ rows[others], weights[others].sum())
        valid[i] = rest.any()
        if valid[i]:
            distances[i] = 1 - np.clip(rows[i] @ rest, -1, 1)
    return distances.astype(np.float32), valid


def cohort_stats(rows: np.ndarray, bank: np.ndarray, top: int) -> np.ndarray:
    closest = np.sort(cosine(rows, bank).astype(np.float64), axis=1)[:, :top]
    return np.stack([closest.mean(axis=1), closest.std(axis=1).clip(SMALLEST_SD)], axis=1).astype(np.float32)


def _weighted_stats(frames: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Mean and deviation [2 d] of frames [n, d]; factor [n, n_groups] float64 weighs groups of neighboring channels."""
    factor = np.repeat(factor, frames.shape[1] // factor.shape[1], axis=1)
    total = factor.sum(axis=0)
    share = np.divide(factor, total, out=np.zeros_like(factor), where=total > 0)
    mean = (share * frames).sum(axis=0)
    return np.concatenate([mean, np.sqrt((share * (frames - mean) ** 2).sum(axis=0))])


def window_stats(
    frames: np.ndarray, window_frames: int, hop_frames: int, weights: np.ndarray | None, profile: np.ndarray | None
) -> np.ndarray:
    n_windows = max(0, 1 + (len(frames) - window_frames) // hop_frames)
    stats = np.zeros((n_windows, 2 * frames.shape[1]), np.float32)
    for i in range(n_windows):
        window = slice(i * hop_frames, i * hop_frames + window_frames)
        factor = np.ones((window_frames, 1)) if weights is None else weights[window].astype(np.float64)
        if profile is not None:
            factor = factor * profile.T
        stats[i] = _weighted_stats(frames[window], factor)
    return stats


def span_stats(frames: np.ndarray, weights: np.ndarray, profile: np.ndarray, spans: np.ndarray) -> np.ndarray:
    n_places = profile.shape[1]
    stats = np.zeros((len(spans), 2 * frames.shape[1]), np.float32)
    for i, (first, end) in enumerate(spans.tolist()):
        places = [first + (2 * k + 1) * (end - first) // (2 * n_places) for k in range(n_places)]
        stats[i] = _weighted_stats(frames[places], weights[places].astype(np.float64) * profile.T)
    return stats


class Matcher:
    """See `edgealign.kernels.Matcher`, which checks the arguments. Calibrations are fitted on `features`."""

    FEATURES = ("w_bias", "w_z", "w_t", "w_distance", "w_margin", "w_loo", "w_shots", "w_text")

    def __init__(
        self,
        embeddings: np.ndarray,
        labels: np.ndarray,
        kinds: np.ndarray,
        n_labels: int,
        bank: np.ndarray,
        calibration: Calibration,
        text_weight: float,
    ) -> None:
        recording = kinds == 1
        self.calibration, self.bank = calibration, bank
        weights = np.where(recording, 1, text_weight).astype(np.float32)
        self.prototypes = prototypes(embeddings, labels, n_labels, weights)
        self.n_recordings = np.bincount(labels[recording], minlength=n_labels)
        distances, valid = leave_one_out(embeddings, labels, n_labels, recording.astype(np.float32))
        seen = valid & recording
        total = np.bincount(labels[seen], weights=distances[seen], minlength=n_labels)
        count = np.bincount(labels[seen], minlength=n_labels)
        prior = calibration.prior_weight
        self.loo_distances = (calibration.prior_loo * prior + total) / (prior + count)
        self.cohorts = self._cohorts(self.prototypes)

    def _cohorts(self, rows: np.ndarray) -> np.ndarray:
        """Mean and deviation [n, 2]; without a bank such that z and t are 0, see `features`."""
        if len(self.bank) == 0:
            return np.full((len(rows), 2), (np.nan, np.inf))
        return cohort_stats(rows, self.bank, self.calibration.top).astype(np.float64)

    def features(self, queries: np.ndarray) -> np.ndarray:
        """What the weights multiply, float64 [n_queries, n_labels, 8], in the order of FEATURES.

        queries   float32 [n_queries, d]
        """
        d = cosine(queries, self.prototypes).astype(np.float64)
        n_labels = d.shape[1]
        if n_labels > 1:
            closest, second = np.partition(d, 1, axis=1)[:, :2].T
            is_closest = np.arange(n_labels) == d.argmin(axis=1)[:, None]
            margin = np.where(is_closest, second[:, None], closest[:, None]) - d
        else:
            margin = np.full_like(d, self.calibration.lone_margin)
        z = t = np.zeros_like(d)
        if len(self.bank):
            query_cohorts = self._cohorts(queries)
            z = (self.cohorts[:, 0] - d) / self.cohorts[:, 1]
            t = (query_cohorts[:, :1] - d) / query_cohorts[:, 1:]
        of_label = (self.loo_distances, np.log2(1 + self.n_recordings), (self.n_recordings == 0).astype(float))
        return np.stack([np.ones_like(d), z, t, d, margin, *(np.broadcast_to(v, d.shape) for v in of_label)], axis=2)

    def classify(self, embedding: np.ndarray, top_k: int) -> list[tuple[int, bool, float, float, float, float]]:
        """Tuples in the order of `edgealign.kernels.Match`."""
        c = self.calibration
        features = self.features(embedding[None])[0]
        logits = features @ [getattr(c, name) for name in self.FEATURES]
        slopes = c.w_distance - c.w_margin - c.w_z / self.cohorts[:, 1] - c.w_t / self._cohorts(embedding[None])[:, 1]
        d = features[:, self.FEATURES.index("w_distance")]
        thresholds = d + (c.accept_logit - logits) / slopes
        with np.errstate(over="ignore"):
            probabilities = 1 / (1 + np.exp(-logits))
        return [
            (int(i), bool(logits[i] >= c.accept_logit), *map(float, (d[i], thresholds[i], probabilities[i], logits[i])))
            for i in d.argsort(kind="stable")[:top_k]
        ]
