"""Finds the enrolled labels in recordings of any length, in bounded memory.

A recording is searched in windows of 60 s that overlap by 3 s. Where sounds stand out of the noise floor there are
three kinds of candidates:

    the sound itself, as `classify` would cut it out of a clip
    parts of a longer sound, between the places where its level dips: words that were said in one breath
    windows of 1 s on a regular grid

What hardly stands out of the second around it is dropped, and most windows and parts are after a first look at many at
once (edgealign.sieve): what is far from every label, and what overlaps with likelier ones. Sounds are encoded alone, so
that they get the embedding that `classify` would give them. Of windows and parts, the first layers of the encoder are
shared by all that lie close together; what then falls just short of being accepted is encoded alone, too. Candidates
that overlap compete: the most probable one is the detection. Its boundaries are then drawn to the sound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from edgealign import kernels
from edgealign.audio import AudioSource
from edgealign.bundle import Bundle
from edgealign.errors import InputUnreadable, InvalidInput
from edgealign.inputs import FrontEnd
from edgealign.samples import log_mel
from edgealign.sieve import ROUNDS, FirstLook, Sieve, sieve_of
from edgealign.words import at_least, samples_of, search_windows, sound_spans

WINDOW_S = 1.0
OVERLAP = 0.75  # of a window, unless the user says how much
MAX_PART_S = 1.5  # parts of a sound longer than that are no words
DIP_DB = 3.0  # a dip of the level that may part two words
SMOOTHING_FRAMES = 5  # of the level in which dips are looked for
MIN_SOUND_S = 0.2  # of a window of the grid must be sound, or most of a shorter sound
EDGE_DB = 25.0  # below its loudest frame, a detection has not begun or is over
MAX_SHARED = 0.3  # of the shorter of two detections may overlap
JUST_SHORT = 0.5  # of the probability that is accepted; from there on a candidate is encoded alone, too
BATCH = 16
TOGETHER = 8  # search windows whose candidates are encoded together
STANDS_OUT_DB = 8.0  # the loudest place of a candidate above the quiet ones around it
AROUND_S = 1.0
QUIET_QUANTILE = 0.1  # of the levels around
LEVEL_STEP, LEVEL_FRAMES = 4, 9  # between the places at which levels are compared, and how many are averaged there
LEAST_PLACES = 4  # of a candidate must stand out, 0.16 s in all: clicks and crackle do not
FEW = 2  # candidates of a stretch are encoded without a first look
SHORT_S = 0.24  # parts up to this length get none: what surrounds them outweighs them in it
LONGER = 0.1  # a candidate longer by a second must be so much nearer to be encoded as early: it costs more
BETWEEN_STRETCHES_S = 0.5
LENGTH_STEP = 4  # lengths of parts are rounded up to it, so that there are batches of equal length


@dataclass(frozen=True)
class Ranked:
    """A label that a detection may be: `similarity` is 1 - cosine distance; threshold the least accepted one."""

    label: str
    similarity: float
    threshold: float
    probability: float


@dataclass(frozen=True)
class Detection:
    """A label heard in a recording.

    ranked     the likeliest labels first
    margin     how much further away the second is in cosine distance; None with one label
    accepted   whether the first is probable enough
    """

    start_s: float
    end_s: float
    ranked: tuple[Ranked, ...]
    margin: float | None
    accepted: bool

    @property
    def label(self) -> str:
        return self.ranked[0].label

    @property
    def probability(self) -> float:
        return self.ranked[0].probability


@dataclass(frozen=True)
class ScanOptions:
    """What changes the detections, beside the store and the bundle.

    overlap_s    of the windows of the grid, less than a window; None is three quarters of one
    merge        overlapping candidates compete; False keeps all that are probable enough
    accept       from which probability on a label is accepted; a number, or one per label
    min_probability   below which nothing is kept; None keeps what is accepted
    low_hz, high_hz   where sounds are looked for, in the recording; None is the front end's own limit
    audio_speed  the recording is heard this many times as fast; times and frequencies are given as recorded
    top_k        labels to name per detection
    sieve        overlapping candidates share what they can; False encodes every one alone, as does merge=False
    """

    overlap_s: float | None = None
    merge: bool = True
    accept: float | dict[str, float] = 0.5
    min_probability: float | None = None
    low_hz: float | None = None
    high_hz: float | None = None
    audio_speed: float = 1.0
    top_k: int = 1
    sieve: bool = True

    def check(self, window_s: float) -> None:
        if self.overlap_s is not None and not 0 <= self.overlap_s < window_s:
            raise InvalidInput(f"overlap is {self.overlap_s:g} s: expected 0 to less than {window_s:g}, the window")
        if self.min_probability is not None and not 0 <= self.min_probability <= 1:
            raise InvalidInput(f"min-probability is {self.min_probability:g}: expected auto, or 0 to 1")
        if not 0.01 <= self.audio_speed <= 100:
            raise InvalidInput(f"audio-speed is {self.audio_speed:g}: expected 0.01 to 100")
        if self.low_hz is not None and self.low_hz < 0:
            raise InvalidInput(f"fmin is {self.low_hz:g} Hz: expected 0 or more")
        if self.low_hz is not None and self.high_hz is not None and self.low_hz >= self.high_hz:
            raise InvalidInput(f"fmin is {self.low_hz:g} Hz and fmax {self.high_hz:g} Hz: fmin must be the smaller")
        if self.top_k < 1:
            raise InvalidInput(f"top-k is {self.top_k}: expected at least 1")

    def overlap_of(self, window_s: float) -> float:
        return OVERLAP * window_s if self.overlap_s is None else self.overlap_s

    def accepted_from(self, label: str) -> float:
        return self.accept[label] if isinstance(self.accept, dict) else self.accept


@dataclass(frozen=True)
class Found:
    """A candidate that is probable enough; frames count from the start of the recording."""

    first: int
    end: int
    tight: bool  # its ends follow the sound, not the grid
    edges: tuple[int, int]  # the first frame of its sound and one past the last
    matches: list[kernels.Match]

    @property
    def probability(self) -> float:
        return self.matches[0].probability

    @property
    def label(self) -> int:
        return self.matches[0].label


@dataclass(frozen=True)
class Searched:
    """A search window that begins at frame `offset`; spans are (first frame, one past the last) in it.

    log_mels     float32 [n_mels, n_frames]
    samples      float32 [n_samples], where the encoder takes samples
    levels       dB of each frame; below quiet_db a detection has not begun or is over
    candidates   span -> whether its ends follow the sound
    at_once      what is encoded alone, whatever a first look says
    looks        at each stretch of the others
    """

    offset: int
    log_mels: np.ndarray
    samples: np.ndarray | None
    levels: np.ndarray
    quiet_db: float
    candidates: dict[tuple[int, int], bool]
    at_once: list[tuple[int, int]]
    looks: list[FirstLook]

    @cached_property
    def look_at(self) -> dict[tuple[int, int], FirstLook]:
        return {span: look for look in self.looks for span in (*look.spans, *look.also)}

    def choose(self, n_rivals: int) -> list[tuple[int, int]]:
        """What is to be embedded next, see `FirstLook.choose`; what needs no look comes first."""
        chosen = [span for look in self.looks for span in look.choose(n_rivals)]
        if n_rivals == ROUNDS[0]:
            return [*self.at_once, *(span for look in self.looks for span in look.also), *chosen]
        return chosen

    def hear(self, span: tuple[int, int], probability: float) -> None:
        if span in self.look_at:
            self.look_at[span].hear(span, probability)

    def values(self, first: int, end: int, least: int, front_end: FrontEnd) -> np.ndarray:
        """What the encoder takes of a span, widened to `least` frames."""
        if self.samples is not None:
            return samples_of(self.samples, first, end, least, front_end)
        if end - first >= least:
            return self.log_mels[:, first:end]
        return at_least(self.log_mels, first, end, least, front_end.energy_floor)

    def found(self, span: tuple[int, int], matches: list[kernels.Match]) -> Found:
        first, last = sound_edges(self.levels, *span, self.quiet_db)
        at = self.offset
        return Found(at + span[0], at + span[1], self.candidates[span], (at + first, at + last), matches)


class Scanner:
    """Finds the labels of a matcher in recordings. One thread at a time may use one.

    prototypes   float32 [n_labels, dim], for the first look
    """

    def __init__(
        self,
        bundle: Bundle,
        matcher: kernels.Matcher,
        labels: Sequence[str],
        prototypes: np.ndarray,
        options: ScanOptions,
    ):
        options.check(WINDOW_S)
        self._prototypes = prototypes
        self.bundle, self.matcher, self.labels, self.options = bundle, matcher, list(labels), options
        self._accept = [options.accepted_from(label) for label in self.labels]
        self._least = self._accept if options.min_probability is None else [options.min_probability] * len(self.labels)
        self._bands = _bands(bundle.front_end, options)
        front_end = bundle.front_end
        self._window = round(WINDOW_S * front_end.sample_rate_hz / front_end.hop_samples)
        self._hop = max(
            1, self._window - round(options.overlap_of(WINDOW_S) * front_end.sample_rate_hz / front_end.hop_samples)
        )
        self._max_part = round(MAX_PART_S * front_end.sample_rate_hz / front_end.hop_samples)
        self._min_sound = round(MIN_SOUND_S * front_end.sample_rate_hz / front_end.hop_samples)
        # A sound of any length is searched; what `classify` would cut it to does not apply.
        self._sounds = replace(bundle.windows, max_frames=2**30)

    @cached_property
    def _sieve(self) -> Sieve | None:
        return sieve_of(self.bundle)

    @property
    def band_hz(self) -> tuple[float, float]:
        """Lowest and highest frequency that is heard, as it was recorded."""
        options, front_end = self.options, self.bundle.front_end
        low_hz = front_end.low_hz / options.audio_speed if options.low_hz is None else options.low_hz
        return low_hz, front_end.high_hz / options.audio_speed if options.high_hz is None else options.high_hz

    def scan(self, source: AudioSource, heard: Callable[[float], None] | None = None) -> Iterator[Detection]:
        """The detections of a recording in the order in which they begin.

        heard   told the seconds that have been searched, as the scan goes on
        raises  AudioUnreadable where the recording cannot be decoded further; what was yielded until then holds
        """
        front_end = self.bundle.front_end
        waiting: list[Found] = []
        broken: list[InputUnreadable] = []

        def blocks() -> Iterator[np.ndarray]:
            """Ends where the recording breaks off, so that what precedes it is searched."""
            try:
                yield from source.blocks(front_end.sample_rate_hz, hashed=False)
            except InputUnreadable as error:
                broken.append(error)

        searched: list[Searched] = []
        for start_s, lowest_s, highest_s, samples in search_windows(blocks(), front_end):
            if (window := self._looked_at(start_s, lowest_s, highest_s, samples)) is not None:
                searched.append(window)
            if heard is not None:
                heard((start_s + len(samples) / front_end.sample_rate_hz) * self.options.audio_speed)
            is_last = highest_s == math.inf
            if len(searched) == TOGETHER or is_last:
                waiting += self._search(searched)
                searched = []
                # No candidate of a later window begins before this frame.
                settled = (
                    math.inf if is_last else round((start_s + highest_s) * self._frames_per_s) - self._longest // 2
                )
                done, waiting = self._settle(waiting, settled)
                yield from done
        if broken:
            raise broken[0]

    @property
    def _frames_per_s(self) -> float:
        return self.bundle.front_end.sample_rate_hz / self.bundle.front_end.hop_samples

    @property
    def _longest(self) -> int:
        """The longest candidate, in frames."""
        return max(self.bundle.windows.max_frames, self._window, self._max_part) + LENGTH_STEP

    def _search(self, searched: Sequence[Searched]) -> list[Found]:
        """What is probable enough in some search windows."""
        found: list[Found] = []
        for n_rivals in ROUNDS:
            spans = [(one, span) for one in searched for span in one.choose(n_rivals)]
            # All are embedded before any is compared: the weights and then the bank stay in the processor's cache.
            decisions = self._decided(self._embed(spans))
            again = [i for i, (one, span) in enumerate(spans) if span in one.look_at and self._just_short(decisions[i])]
            for i, matches in zip(again, self._decided(self._encode([spans[i] for i in again])), strict=True):
                decisions[i] = matches
            for (one, span), matches in zip(spans, decisions, strict=True):
                probability = matches[0].probability
                one.hear(span, probability)
                if probability >= self._least[matches[0].label]:
                    found.append(one.found(span, matches))
        return found

    def _decided(self, embeddings: np.ndarray) -> list[list[kernels.Match]]:
        return self.matcher.classify_many(embeddings, max(2, self.options.top_k))

    def _just_short(self, matches: list[kernels.Match]) -> bool:
        """Whether a candidate would not be accepted, but might be if it were encoded alone."""
        accept = self._accept[matches[0].label]
        return JUST_SHORT * accept <= matches[0].probability < accept

    def _looked_at(self, start_s: float, lowest_s: float, highest_s: float, samples: np.ndarray) -> Searched | None:
        """The candidates of a search window after a first look; None where there are none."""
        front_end, policy = self.bundle.front_end, self._sounds
        log_mels = log_mel(self.bundle, samples)
        heard = log_mels[self._bands]
        spans = sound_spans(heard, policy)[:, :2].astype(np.int64)
        if not len(spans):
            return None
        offset = round(start_s * self._frames_per_s)
        levels = 10 * np.log10(np.exp(heard).mean(axis=0))
        candidates = self._candidates(levels, spans, offset)
        # Those whose middle is the window's own, not that of a neighbor.
        lowest, highest = 2 * lowest_s * self._frames_per_s, 2 * highest_s * self._frames_per_s
        at_once = [span for span in candidates if lowest <= span[0] + span[1] < highest]
        looks: list[FirstLook] = []
        if self.options.sieve and self.options.merge:
            sounds = set(map(tuple, spans.tolist()))
            longest = SHORT_S * self._frames_per_s
            short = {span for span in at_once if candidates[span] and span[1] - span[0] <= longest} - sounds
            at_once, looks = self._first_looks(log_mels, at_once, sounds, short, _stands_out(levels, front_end))
        rank = int(policy.floor_quantile * (len(levels) - 1))
        quiet_db = float(np.partition(levels, rank)[rank]) + policy.above_floor_db
        kept = samples if self.bundle.input.kind == "waveform" else None
        return Searched(offset, log_mels, kept, levels, quiet_db, candidates, at_once, looks)

    def _candidates(self, levels: np.ndarray, spans: np.ndarray, offset: int) -> dict[tuple[int, int], bool]:
        """(first frame, one past the last) -> whether its ends follow the sound."""
        n_frames = len(levels)
        shortest, longest = self.bundle.windows.min_frames, self.bundle.windows.max_frames
        candidates: dict[tuple[int, int], bool] = {}
        is_sound = np.zeros(n_frames + 1, dtype=np.int64)
        for first, end in spans.tolist():
            is_sound[first + 1 : end + 1] = 1
            cuts = [first, *(first + cut for cut in dips(levels[first:end])), end]
            for i, start in enumerate(cuts[:-1]):
                for stop in cuts[i + 1 :]:
                    if start == first and stop == end:
                        if stop - start <= longest:
                            candidates[start, stop] = True
                    elif shortest <= stop - start <= self._max_part:
                        candidates[start, min(n_frames, start + _rounded_up(stop - start))] = True
        before = np.cumsum(is_sound)
        start = -offset % self._hop
        for first in range(start, n_frames - self._window + 1, self._hop):
            n_sound = before[first + self._window] - before[first]
            if n_sound >= self._min_sound:
                candidates.setdefault((first, first + self._window), False)
        return candidates

    def _first_looks(
        self,
        log_mels: np.ndarray,
        spans: list[tuple[int, int]],
        sounds: set[tuple[int, int]],
        short: set[tuple[int, int]],
        stands_out: np.ndarray,
    ) -> tuple[list[tuple[int, int]], list[FirstLook]]:
        """Of the spans that stand out, those to encode alone at once, and a first look at each stretch of the others.

        sounds, short   those that need no first look, only to stand out somewhere
        """
        until = np.cumsum(np.concatenate([[0], stands_out]))
        first, end = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        n_places = until[np.minimum(len(stands_out), -(-end // LEVEL_STEP))] - until[first // LEVEL_STEP]
        spans = sorted(
            span
            for span, n in zip(spans, n_places.tolist(), strict=True)
            if n >= (1 if span in sounds or span in short else LEAST_PLACES)
        )
        gap = round(BETWEEN_STRETCHES_S * self._frames_per_s)
        stretches: list[list[tuple[int, int]]] = []
        reached = -math.inf
        for span in spans:
            if span[0] > reached + gap:
                stretches.append([])
            stretches[-1].append(span)
            reached = max(reached, span[1])
        at_once: list[tuple[int, int]] = []
        looks: list[FirstLook] = []
        for stretch in stretches:
            at_once += [span for span in stretch if span in sounds]
            also = [span for span in stretch if span in short]
            others = [span for span in stretch if span not in sounds and span not in short]
            if len(others) <= FEW or self._sieve is None:
                at_once += also + others
            else:
                looks.append(self._first_look(log_mels, others, also))
        return at_once, looks

    def _first_look(
        self, log_mels: np.ndarray, stretch: list[tuple[int, int]], also: list[tuple[int, int]]
    ) -> FirstLook:
        start, stop = min(first for first, _ in stretch + also), max(end for _, end in stretch + also)
        spans = np.array(stretch, dtype=np.int64)
        bands = self._sieve.hear(log_mels[:, start:stop])
        distances = kernels.nearest(self._sieve.look(bands, spans - start), self._prototypes)[0][:, 0]
        lengths_s = (spans[:, 1] - spans[:, 0]).astype(np.float32) / self._frames_per_s
        return FirstLook(stretch, distances + LONGER * lengths_s, also, bands, start)

    def _embed(self, spans: Sequence[tuple[Searched, tuple[int, int]]]) -> np.ndarray:
        """float32 [n, dim]: of what lies in a stretch that was looked at, by what is shared there; else alone."""
        shared = [(i, one.look_at[span].part(span)) for i, (one, span) in enumerate(spans) if span in one.look_at]
        alone = [i for i, (one, span) in enumerate(spans) if span not in one.look_at]
        embeddings = np.empty((len(spans), self.bundle.dim), np.float32)
        embeddings[alone] = self._encode([spans[i] for i in alone])
        if shared:
            rows, parts = zip(*shared, strict=True)
            embeddings[list(rows)] = self._sieve.embed(parts)
        return embeddings

    def _encode(self, spans: Sequence[tuple[Searched, tuple[int, int]]]) -> np.ndarray:
        """float32 [n, dim]; spans of one length go through the encoder together, whichever window they are from."""
        least, front_end = self.bundle.windows.min_frames, self.bundle.front_end
        by_length: dict[int, list[int]] = {}
        for i, (_, (first, end)) in enumerate(spans):
            by_length.setdefault(max(least, end - first), []).append(i)
        embeddings = np.empty((len(spans), self.bundle.dim), np.float32)
        for members in by_length.values():
            for at in range(0, len(members), BATCH):
                rows = members[at : at + BATCH]
                embeddings[rows] = self.bundle.encode(
                    np.stack([one.values(*span, least, front_end) for one, span in (spans[i] for i in rows)])
                )
        return embeddings

    def _settle(self, waiting: list[Found], settled: float) -> tuple[list[Detection], list[Found]]:
        """Detections from groups of overlapping candidates that end before the frame `settled`, and the rest."""
        waiting = sorted(waiting, key=lambda found: (found.first, found.end))
        done: list[Detection] = []
        group: list[Found] = []
        end = -1
        for i, found in enumerate(waiting):
            if found.first >= end and group:
                done += self._detections(group)
                group = []
            end = max(end, found.end)
            if end > settled:
                group += waiting[i:]
                break
            group.append(found)
        else:
            done += self._detections(group)
            group = []
        return done, group

    def _detections(self, group: list[Found]) -> list[Detection]:
        chosen = strongest(group) if self.options.merge else group
        made = [self._detection(found, group) for found in chosen]
        return sorted(made, key=lambda detection: (detection.start_s, detection.end_s))

    def _detection(self, found: Found, group: list[Found]) -> Detection:
        edges = found.edges
        if self.options.merge and not found.tight:
            # A window of the grid says that the label is in it, a part of the sound that says the same says where.
            inside = [
                other
                for other in group
                if other.tight
                and other.label == found.label
                and _shared(found, other) > 0.5 * (other.end - other.first)
            ]
            if inside:
                edges = max(inside, key=lambda other: other.probability).edges
        seconds, speed = self.bundle.front_end.seconds, self.options.audio_speed
        overhang = self.bundle.front_end.window_samples / self.bundle.front_end.hop_samples - 1
        ends_s = seconds(edges[0]) * speed, seconds(edges[1] + overhang) * speed
        return detection(*ends_s, found.matches, self.labels, self._accept, self.bundle, self.options)


def detection(
    start_s: float,
    end_s: float,
    matches: Sequence[kernels.Match],
    labels: Sequence[str],
    accept: Sequence[float],
    bundle: Bundle,
    options: ScanOptions,
) -> Detection:
    """What a decision says of a stretch of a recording; accept[i] is the least probability of labels[i]."""
    accept_logit = bundle.calibration.accept_logit
    ranked = tuple(
        Ranked(
            labels[match.label],
            1 - match.distance,
            1 - _threshold(match, accept[match.label], accept_logit),
            match.probability,
        )
        for match in matches[: options.top_k]
    )
    best = matches[0]
    margin = matches[1].distance - best.distance if len(matches) > 1 else None
    return Detection(start_s, end_s, ranked, margin, best.probability >= accept[best.label])


def _threshold(match: kernels.Match, accept: float, accept_logit: float) -> float:
    """The distance at which the probability is `accept`: the logit is linear in the distance, see kernels."""
    if match.distance == match.threshold:
        return match.threshold
    slope = (accept_logit - match.logit) / (match.threshold - match.distance)
    clipped = min(max(accept, 1e-6), 1 - 1e-6)
    return match.distance + (math.log(clipped / (1 - clipped)) - match.logit) / slope


def strongest(group: Sequence[Found]) -> list[Found]:
    """The most probable of the candidates that overlap by more than MAX_SHARED of the shorter one."""
    kept: list[Found] = []
    for found in sorted(group, key=lambda found: (-found.probability, found.first, found.end)):
        if all(_shared(found, other) <= MAX_SHARED * min(_frames(found), _frames(other)) for other in kept):
            kept.append(found)
    return kept


def dips(levels_db: np.ndarray) -> list[int]:
    """Frames at which a sound dips by DIP_DB or more from both sides: where one word may end and another begin."""
    if len(levels_db) < SMOOTHING_FRAMES:
        return []
    padded = np.pad(levels_db, SMOOTHING_FRAMES // 2, mode="edge")
    smooth = np.convolve(padded, np.ones(SMOOTHING_FRAMES) / SMOOTHING_FRAMES, "valid")
    rises = np.sign(np.diff(smooth))
    moving = np.flatnonzero(rises)
    turns = moving[:-1][rises[moving[:-1]] != rises[moving[1:]]] + 1  # highest and lowest; of equal ones the first
    found: list[int] = []
    highest = lowest = float(smooth[0])
    falling, at = False, 0
    for frame in (*turns.tolist(), len(smooth) - 1):
        level = float(smooth[frame])
        if not falling:
            highest = max(highest, level)
            if level < highest - DIP_DB:
                falling, lowest, at = True, level, frame
        elif level < lowest:
            lowest, at = level, frame
        elif level > lowest + DIP_DB:
            found.append(at)
            falling, highest = False, level
    return found


def sound_edges(levels_db: np.ndarray, first: int, end: int, quiet_db: float) -> tuple[int, int]:
    """Where, within frames first to end, the sound begins and is over."""
    inside = levels_db[first:end]
    on = np.flatnonzero(inside > max(quiet_db, float(inside.max()) - EDGE_DB))
    if not len(on):
        return first, end
    return first + int(on[0]), first + int(on[-1]) + 1


def _stands_out(levels_db: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Whether the level stands out of the quiet places around, for every LEVEL_STEP frames."""
    power = np.cumsum(np.concatenate([[0.0], 10 ** (levels_db / 10)]))
    places = np.arange(0, len(levels_db), LEVEL_STEP)
    ends = np.minimum(len(levels_db), places + LEVEL_FRAMES)
    smooth = 10 * np.log10((power[ends] - power[places]) / (ends - places) + front_end.energy_floor)
    around = round(AROUND_S * front_end.sample_rate_hz / front_end.hop_samples / LEVEL_STEP)
    rank = int(QUIET_QUANTILE * 2 * around)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(smooth, around, mode="edge"), 2 * around + 1)
    return smooth > np.partition(windows, rank, axis=1)[:, rank] + STANDS_OUT_DB


def _shared(a: Found, b: Found) -> int:
    return min(a.end, b.end) - max(a.first, b.first)


def _frames(found: Found) -> int:
    return found.end - found.first


def _rounded_up(n_frames: int) -> int:
    return -(-n_frames // LENGTH_STEP) * LENGTH_STEP


def _bands(front_end: FrontEnd, options: ScanOptions) -> slice:
    """The mel bands, by their centers, in which sounds are looked for."""

    def mel(hz: float) -> float:
        return math.log1p(hz / 700)

    low, high = mel(front_end.low_hz), mel(front_end.high_hz)
    centers = np.linspace(low, high, front_end.n_mels + 2)[1:-1]
    wanted_low = -math.inf if options.low_hz is None else mel(options.low_hz * options.audio_speed)
    wanted_high = math.inf if options.high_hz is None else mel(options.high_hz * options.audio_speed)
    inside = np.flatnonzero((centers >= wanted_low) & (centers <= wanted_high))
    if not len(inside):
        raise InvalidInput(
            f"no frequency that the encoder hears lies between fmin and fmax: it hears "
            f"{front_end.low_hz / options.audio_speed:g} to {front_end.high_hz / options.audio_speed:g} Hz"
        )
    return slice(int(inside[0]), int(inside[-1]) + 1)
