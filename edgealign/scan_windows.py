"""Finds the enrolled labels in long recordings with an encoder that hears whole windows, not words.

Windows of the length that the bundle states are encoded in batches, with no work shared between them: what an encoder
of another make does with the sound around a window is not known. Neighbors that are named alike are one detection,
whose ends are then drawn to the sound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np

from edgealign import kernels
from edgealign.audio import AudioSource
from edgealign.bundle import Bundle
from edgealign.errors import InputUnreadable, InvalidInput
from edgealign.inputs import LogMelInput
from edgealign.samples import log_mel
from edgealign.scan import Detection, Found, ScanOptions, detection, sound_edges, strongest

BATCH = 16
LEVEL_S = 0.01
FLOOR_S, FLOOR_QUANTILE, ABOVE_FLOOR_DB = 60.0, 0.05, 6.0  # what the noise is, and how far a sound stands out of it
LEAST_POWER = 1e-10
LIKELY = 0.5  # of the probability of a detection's likeliest window: windows below it do not say where the sound is
MAX_WAITING = 2400  # windows; a sound that goes on for longer is more than one detection


class WindowScanner:
    """Finds the labels of a matcher in recordings. One thread at a time may use one."""

    def __init__(self, bundle: Bundle, matcher: kernels.Matcher, labels: Sequence[str], options: ScanOptions):
        windows = bundle.input.windows
        options.check(windows.window_s)
        if options.low_hz is not None or options.high_hz is not None:
            raise InvalidInput(f"the encoder of '{bundle.name}' hears all of a window: fmin and fmax cannot narrow it")
        self.bundle, self.matcher, self.labels, self.options = bundle, matcher, list(labels), options
        self._accept = [options.accepted_from(label) for label in self.labels]
        self._least = self._accept if options.min_probability is None else [options.min_probability] * len(self.labels)
        self._rate_hz = bundle.input.sample_rate_hz
        self._window, _, self._shortest = windows.in_samples(self._rate_hz)
        self._hop = max(1, self._window - round(options.overlap_of(windows.window_s) * self._rate_hz))
        self._level = max(1, round(LEVEL_S * self._rate_hz))

    @property
    def band_hz(self) -> tuple[float, float]:
        """Lowest and highest frequency that is heard, as it was recorded."""
        return 0.0, self._rate_hz / 2 / self.options.audio_speed

    def scan(self, source: AudioSource, heard: Callable[[float], None] | None = None) -> Iterator[Detection]:
        """The detections of a recording in the order in which they begin; arguments as of `Scanner.scan`."""
        broken: list[InputUnreadable] = []
        recent: deque[float] = deque(maxlen=round(FLOOR_S / LEVEL_S))  # levels, for the noise floor
        waiting: list[Found] = []
        for first, windows in self._batches(source, broken):
            if isinstance(self.bundle.input, LogMelInput):
                values = np.stack([log_mel(self.bundle, window) for window in windows])
            else:
                values = np.stack(windows)
            for i, embedding in enumerate(self.bundle.encode(values)):
                start = first + i * self._hop
                levels = self._levels(windows[i])
                recent.extend(levels[-max(1, self._hop // self._level) :] if recent else levels)
                matches = self.matcher.classify(embedding, max(2, self.options.top_k))
                if matches[0].probability < self._least[matches[0].label]:
                    continue
                if waiting and (start > waiting[-1].first + self._window or len(waiting) >= MAX_WAITING):
                    yield from self._detections(waiting)
                    waiting = []
                floor_db = float(np.quantile(recent, FLOOR_QUANTILE)) + ABOVE_FLOOR_DB
                edges = tuple(start + at * self._level for at in sound_edges(levels, 0, len(levels), floor_db))
                waiting.append(Found(start, start + self._window, False, edges, matches))
            if heard is not None:
                heard((first + len(windows) * self._hop) / self._rate_hz * self.options.audio_speed)
        yield from self._detections(waiting)
        if broken:
            raise broken[0]

    def _batches(self, source: AudioSource, broken: list[InputUnreadable]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Up to BATCH windows, one every hop, and where the first begins; what is left at the end makes one more.

        A recording that breaks off is searched as far as it goes; why goes into `broken`.
        """
        held, start = np.zeros(0, np.float32), 0
        full = self._window + (BATCH - 1) * self._hop
        try:
            for block in source.blocks(self._rate_hz, hashed=False):
                held = np.concatenate([held, block])
                while len(held) >= full:
                    yield start, [held[i * self._hop :][: self._window] for i in range(BATCH)]
                    held, start = held[BATCH * self._hop :], start + BATCH * self._hop
        except InputUnreadable as error:
            broken.append(error)
        n_left = max(0, 1 + (len(held) - self._window) // self._hop)
        if n_left:
            yield start, [held[i * self._hop :][: self._window] for i in range(n_left)]
        rest = len(held) - ((n_left - 1) * self._hop + self._window if n_left else 0)
        if rest > 0 and (start or n_left):
            at = max(0, len(held) - self._window)
            if len(held) >= self._window:
                yield start + at, [held[at:]]
        elif rest > 0:  # the recording is shorter than a window
            yield 0, [np.concatenate([held, np.zeros(max(0, self._shortest - len(held)), np.float32)])]

    def _levels(self, window: np.ndarray) -> np.ndarray:
        """dB of each LEVEL_S of a window."""
        pieces = window[: max(1, len(window) // self._level) * self._level].astype(np.float64)
        pieces = pieces.reshape(-1, min(self._level, len(pieces)))
        return 10 * np.log10(np.mean(pieces * pieces, axis=1) + LEAST_POWER)

    def _detections(self, waiting: list[Found]) -> list[Detection]:
        """From windows that follow each other without a gap."""
        found = waiting
        if self.options.merge:
            runs = [list(run) for _, run in groupby(waiting, key=lambda window: window.label)]
            found = strongest([_merged(run) for run in runs])
        speed = self.options.audio_speed / self._rate_hz
        made = [
            detection(
                *(edge * speed for edge in one.edges), one.matches, self.labels, self._accept, self.bundle, self.options
            )
            for one in found
        ]
        return sorted(made, key=lambda one: (one.start_s, one.end_s))


def _merged(run: list[Found]) -> Found:
    """Neighbors with one label as one: where its likely windows have sound."""
    best = max(run, key=lambda window: window.probability)
    likely = [window for window in run if window.probability >= LIKELY * best.probability]
    edges = min(window.edges[0] for window in likely), max(window.edges[1] for window in likely)
    return Found(*edges, False, edges, best.matches)
