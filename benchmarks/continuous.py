"""Long recordings with known words in them: clips of held-back words in real noise, with gaps and other words."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.episodes import Clip

SAMPLE_RATE_HZ = 16_000
EDGE_DB = 30.0  # below its loudest 20 ms, a clip's word has not begun or is over
EDGE_WINDOW_S = 0.02
BACKGROUNDS = ("rain", "airplane", "engine", "vacuum_cleaner", "crackling_fire", "insects", "pouring_water")
EVENTS = ("dog", "door_wood_knock", "coughing", "crow", "can_opening", "clock_tick", "keyboard_typing", "water_drops")


@dataclass(frozen=True)
class Event:
    """A sound that was laid into a recording; label None for other words and noises."""

    start_s: float
    end_s: float
    label: str | None


@dataclass(frozen=True)
class Recording:
    """samples float32 [n] at SAMPLE_RATE_HZ, and the words in it in time order; support: label -> clips to enroll."""

    name: str
    samples: np.ndarray
    events: list[Event]
    support: dict[str, list[Path]]


def compose(
    data: Path,
    clips: Sequence[Clip],
    *,
    n_way: int,
    n_shot: int,
    duration_s: float,
    gap_s: tuple[float, float],
    snr_db: tuple[float, float],
    speaker_heard: str,
    seed: int,
    idle: bool = False,
) -> Recording:
    """One recording: n_way labels of one speaker are enrolled, all labels of the pack are heard.

    speaker_heard   "same": other clips of the enrolled speaker; "other": of one other speaker
    gap_s, snr_db   drawn evenly; the gap between two sounds, and each word's level over the background
    idle            the background is white noise, as of a recorder at which nothing happens, not one of ESC-50's
    Every eighth sound is a noise instead of a word. Enrolled words are half of the words heard.
    """
    rng = random.Random(f"{seed}/{n_way}/{n_shot}/{speaker_heard}")
    by_speaker: dict[str, dict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        by_speaker[clip.speaker][clip.label].append(clip)
    able = [s for s, labels in sorted(by_speaker.items()) if sum(len(c) > n_shot for c in labels.values()) >= n_way]
    teacher = rng.choice(able)
    labels = sorted(label for label, found in by_speaker[teacher].items() if len(found) > n_shot)
    enrolled = sorted(rng.sample(labels, n_way))
    support = {label: rng.sample(by_speaker[teacher][label], n_shot) for label in enrolled}
    heard = teacher if speaker_heard == "same" else rng.choice([s for s in sorted(by_speaker) if s != teacher])
    words = {
        label: [clip for clip in found if heard != teacher or clip not in support.get(label, ())]
        for label, found in sorted(by_speaker[heard].items())
    }
    others = [label for label in words if label not in enrolled]
    esc = data / "esc50"
    n_samples = int(duration_s * SAMPLE_RATE_HZ)
    if idle:
        samples = (0.01 * np.random.default_rng(seed).normal(size=n_samples)).astype(np.float32)
    else:
        samples = _background(esc, rng, n_samples)
    background_rms = float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))
    events = []
    at_s = rng.uniform(*gap_s)
    while True:
        if rng.random() < 1 / 8:
            label, path = None, rng.choice(sorted((esc / rng.choice(EVENTS)).glob("*.ogg")))
        else:
            label = rng.choice(enrolled if rng.random() < 0.5 or not others else others)
            clip = rng.choice(words[label])
            path = data / clip.pack / clip.file
        sound, first, end = _trimmed(_read(path))
        if label is None:
            sound, first, end = sound[: 2 * SAMPLE_RATE_HZ], first, min(end, 2 * SAMPLE_RATE_HZ)
        if at_s + len(sound) / SAMPLE_RATE_HZ > duration_s:
            break
        level = float(np.sqrt(np.mean(sound[first:end].astype(np.float64) ** 2)))
        gain = background_rms * 10 ** (rng.uniform(*snr_db) / 20) / max(level, 1e-6)
        start = int(at_s * SAMPLE_RATE_HZ)
        samples[start : start + len(sound)] += np.float32(gain) * sound
        truth = label if label in enrolled else None
        events.append(Event((start + first) / SAMPLE_RATE_HZ, (start + end) / SAMPLE_RATE_HZ, truth))
        at_s += len(sound) / SAMPLE_RATE_HZ + rng.uniform(*gap_s)
    samples *= np.float32(0.5 / np.abs(samples).max())
    paths = {label: [data / clip.pack / clip.file for clip in found] for label, found in support.items()}
    return Recording(f"{clips[0].pack} {teacher}>{heard} {seed}", samples, events, paths)


def _read(path: Path) -> np.ndarray:
    samples, rate_hz = soundfile.read(path, dtype="float32")
    if rate_hz != SAMPLE_RATE_HZ or samples.ndim != 1:
        raise ValueError(f"'{path}' is not mono at {SAMPLE_RATE_HZ} Hz")
    return samples


def _trimmed(samples: np.ndarray) -> tuple[np.ndarray, int, int]:
    """A clip with 20 ms of what surrounds its sound at most, faded in and out, and where the sound is in it."""
    window = int(EDGE_WINDOW_S * SAMPLE_RATE_HZ)
    power = np.convolve(samples.astype(np.float64) ** 2, np.ones(window) / window, "same")
    loud = np.flatnonzero(power > power.max() * 10 ** (-EDGE_DB / 10))
    first, end = max(0, int(loud[0]) - window), min(len(samples), int(loud[-1]) + 1 + window)
    cut = samples[first:end].copy()
    fade = np.linspace(0, 1, window, dtype=np.float32)
    cut[:window] *= fade[: len(cut)]
    cut[-window:] *= fade[::-1][-len(cut) :]
    return cut, int(loud[0]) - first, int(loud[-1]) + 1 - first


def _background(esc: Path, rng: random.Random, n_samples: int) -> np.ndarray:
    """Recorded noise of one kind, its pieces joined by crossfades of 0.5 s, at a level of its own."""
    pieces = sorted((esc / rng.choice(BACKGROUNDS)).glob("*.ogg"))
    samples = np.zeros(n_samples, dtype=np.float32)
    overlap = SAMPLE_RATE_HZ // 2
    ramp = np.linspace(0, 1, overlap, dtype=np.float32)
    at = -overlap
    while at < n_samples:
        piece = _read(rng.choice(pieces))
        level = float(np.sqrt(np.mean(piece.astype(np.float64) ** 2)))
        if level < 1e-5 or len(piece) < 2 * overlap:
            continue
        piece = piece / np.float32(level)
        piece[:overlap] *= ramp
        piece[-overlap:] *= ramp[::-1]
        first, end = max(0, at), min(n_samples, at + len(piece))
        samples[first:end] += piece[first - at : end - at]
        at += len(piece) - overlap
    return samples * np.float32(0.01)
