"""The numpy definition of every formula in the compiled core: its oracle, and its named fallback.

The formulas are stated once, in the docstring of `edgealign.kernels`. The code here favors being obviously right over
being fast, and computes in float64 wherever a sum is involved.
"""

from __future__ import annotations

import numpy as np


def log_mel(
    samples: np.ndarray, filters: np.ndarray, window_samples: int, hop_samples: int, energy_floor: float
) -> np.ndarray:
    """Log-mel energies of one clip.

    samples   float32 [n_samples], mono, in [-1, 1]
    filters   float32 [n_mels, n_fft // 2 + 1], from the bundle
    returns   float32 [n_mels, n_frames], natural log of energies clamped from below at energy_floor

    n_frames is 1 + (n_samples - window_samples) // hop_samples; a clip shorter than one window is zero-padded on the
    right to one frame. Frames are weighted with a periodic Hann window and zero-padded on the right to n_fft.
    """
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
    """Level of each frame in dB: ten times the decimal log of the mean mel energy.

    log_mels  float32 [n_mels, n_frames]
    returns   float64 [n_frames]
    """
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
    """Where the sounds of a clip are: stretches that stand out of its own noise floor.

    log_mels  float32 [n_mels, n_frames]
    returns   float64 [n_spans, 3]: first frame, one past the last frame, clearness in dB x frames; in time order

    A frame is on where its level is above max(floor + above_floor_db, peak - below_peak_db); the floor is the level at
    rank int(floor_quantile * (n_frames - 1)) of the sorted levels. Runs closer than merge_frames are joined, runs
    shorter than min_frames dropped, the rest padded on both sides within the clip and within the middle of the gap to
    the next run; a run longer than max_frames keeps its loudest max_frames. Clearness is the sum of level - threshold
    over the frames of the run that are on, before padding.
    """
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
