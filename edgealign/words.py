"""Finds the word in a clip, so that it is not averaged with the silence around it.

`kernels.sound_spans` marks the sounds that stand out of a clip's own noise floor; the clearest of them is the word.
A long recording is searched in windows of 60 s that overlap by 3 s, with the floor of each window its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from edgealign import kernels
from edgealign.inputs import FrontEnd, Windows

SEARCH_WINDOW_S = 60
SEARCH_OVERLAP_S = 3


@dataclass(frozen=True)
class Word:
    """What the encoder sees of a clip.

    log_mels   float32 [n_mels, n_frames], n_frames ≥ windows.min_frames
    start_s, end_s   where it lies in the clip
    clearness  dB x frames above the threshold of its surroundings
    n_sounds   how many sounds the clip has
    samples    float32 [n_samples] that the frames are made of, with zeros where the clip lacks them; None unless asked
    """

    log_mels: np.ndarray
    start_s: float
    end_s: float
    clearness: float
    n_sounds: int
    samples: np.ndarray | None = None


def find_word(
    blocks: Iterator[np.ndarray],
    front_end: FrontEnd,
    windows: Windows,
    filters: np.ndarray,
    *,
    with_samples: bool = False,
) -> Word | None:
    """The clearest sound of a clip, or None where nothing stands out of its noise floor.

    blocks    float32 [n_samples] each, mono, at front_end.sample_rate_hz
    filters   float32 [n_mels, n_fft // 2 + 1]
    """
    best: Word | None = None
    n_sounds = 0
    for window_start_s, lowest_s, highest_s, samples in search_windows(blocks, front_end):
        log_mels = log_mel(samples, front_end, filters)
        for span_first, span_end, clearness in sound_spans(log_mels, windows).tolist():
            first, end = int(span_first), int(span_end)
            # A sound in the overlap of two windows belongs to the one that holds its middle.
            if not lowest_s <= front_end.seconds((first + end) / 2) < highest_s:
                continue
            n_sounds += 1
            if best is None or clearness > best.clearness:
                frames = at_least(log_mels, first, end, windows.min_frames, front_end.energy_floor)
                heard = samples_of(samples, first, end, windows.min_frames, front_end) if with_samples else None
                start_s = window_start_s + front_end.seconds(first)
                best = Word(frames, start_s, start_s + front_end.seconds(end - first), clearness, n_sounds, heard)
    return None if best is None else replace(best, n_sounds=n_sounds)


def whole_sound(
    blocks: Iterator[np.ndarray],
    front_end: FrontEnd,
    windows: Windows,
    filters: np.ndarray,
    *,
    with_samples: bool = False,
) -> Word | None:
    """A stretch that was marked as one word: all of it, or its clearest sound where it is too long.

    returns   None where a stretch that is too long has no sound that stands out
    """
    held = list(blocks)
    samples = np.concatenate(held)
    log_mels = log_mel(samples, front_end, filters)
    n_frames = log_mels.shape[1]
    if n_frames > windows.max_frames:
        return find_word(iter(held), front_end, windows, filters, with_samples=with_samples)
    frames = at_least(log_mels, 0, n_frames, windows.min_frames, front_end.energy_floor)
    heard = samples_of(samples, 0, n_frames, windows.min_frames, front_end) if with_samples else None
    return Word(frames, 0.0, front_end.seconds(n_frames), 0.0, 1, heard)


def log_mel(samples: np.ndarray, front_end: FrontEnd, filters: np.ndarray) -> np.ndarray:
    """`kernels.log_mel` with the front end of a bundle: float32 [n_mels, n_frames]."""
    return kernels.log_mel(samples, filters, front_end.window_samples, front_end.hop_samples, front_end.energy_floor)


def sound_spans(log_mels: np.ndarray, windows: Windows) -> np.ndarray:
    """`kernels.sound_spans` with the window policy of a bundle: float64 [n_spans, 3]."""
    return kernels.sound_spans(
        log_mels,
        windows.floor_quantile,
        windows.above_floor_db,
        windows.below_peak_db,
        windows.merge_frames,
        windows.min_span_frames,
        windows.pad_frames,
        windows.max_frames,
    )


def search_windows(
    blocks: Iterator[np.ndarray], front_end: FrontEnd
) -> Iterator[tuple[float, float, float, np.ndarray]]:
    """Start of each window in s, the middles of sounds that belong to it in s from its start, and its samples."""
    # Whole hops, so that a window of a long recording has the frames that the recording itself would have.
    window_samples = SEARCH_WINDOW_S * front_end.sample_rate_hz // front_end.hop_samples * front_end.hop_samples
    stride_samples = window_samples - (
        SEARCH_OVERLAP_S * front_end.sample_rate_hz // front_end.hop_samples * front_end.hop_samples
    )
    held: list[np.ndarray] = []
    n_held = start = 0
    for block in blocks:
        held.append(block)
        n_held += len(block)
        while n_held > window_samples:
            samples = np.concatenate(held)
            lowest_s = SEARCH_OVERLAP_S / 2 if start else 0.0
            yield (
                start / front_end.sample_rate_hz,
                lowest_s,
                stride_samples / front_end.sample_rate_hz + SEARCH_OVERLAP_S / 2,
                samples[:window_samples],
            )
            held = [samples[stride_samples:].copy()]
            n_held -= stride_samples
            start += stride_samples
    if held:
        lowest_s = SEARCH_OVERLAP_S / 2 if start else 0.0
        yield start / front_end.sample_rate_hz, lowest_s, float("inf"), np.concatenate(held)


def at_least(log_mels: np.ndarray, first: int, end: int, min_frames: int, energy_floor: float) -> np.ndarray:
    """Frames first to end, widened evenly within the clip to min_frames; what the clip lacks is silence.

    log_mels  float32 [n_mels, n_frames]
    returns   float32 [n_mels, max(min_frames, end - first)]
    """
    first, end = _widened(first, end, min_frames, log_mels.shape[1])
    frames = np.full((len(log_mels), max(min_frames, end - first)), np.log(energy_floor), dtype=np.float32)
    before = (frames.shape[1] - (end - first)) // 2
    frames[:, before : before + end - first] = log_mels[:, first:end]
    return frames


def _widened(first: int, end: int, min_frames: int, n_frames: int) -> tuple[int, int]:
    missing = min_frames - (end - first)
    if missing <= 0:
        return first, end
    first = max(0, min(first - missing // 2, n_frames - min_frames))
    return first, min(n_frames, first + min_frames)


def samples_of(samples: np.ndarray, first: int, end: int, min_frames: int, front_end: FrontEnd) -> np.ndarray:
    """The samples under the frames that `at_least` gives, with zeros where it has silence: float32 [n_samples]."""
    hop = front_end.hop_samples
    n_frames = max(1, 1 + (len(samples) - front_end.window_samples) // hop)
    first, end = _widened(first, end, min_frames, n_frames)
    before = (max(min_frames, end - first) - (end - first)) // 2
    heard = np.zeros((max(min_frames, end - first) - 1) * hop + front_end.window_samples, dtype=np.float32)
    inside = samples[first * hop : (end - 1) * hop + front_end.window_samples]
    heard[before * hop : before * hop + len(inside)] = inside
    return heard
