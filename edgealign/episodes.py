"""Few-shot episodes over labeled clips: drawn from a seed, so that every method is asked the same.

Speaker rules: in "same speaker" episodes support and queries are different clips of one speaker; in "other speaker"
episodes one speaker gives the support and only other speakers ask. In an "open set" episode further queries have labels
that were never enrolled.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_QUERIES_PER_LABEL = 15
MAX_WAY = 10
OPEN_SET_WAY = 5
CONDITIONS = ("same speaker", "other speaker", "several speakers", "open set")


class TooFewClips(ValueError):
    """The clips cannot give a single episode of what was asked."""


@dataclass(frozen=True)
class Clip:
    """One recording of a pack; `file` is relative to the folder of the pack."""

    pack: str
    file: str
    label: str
    speaker: str


@dataclass(frozen=True)
class Episode:
    """Row numbers into the clip list that the episode was drawn from.

    labels        the enrolled labels, in the order of the rows of support
    support       int [n_way, n_shot]
    queries       int [n_queries]
    query_labels  int [n_queries], the position in labels, or -1 where the label of the query was never enrolled
    """

    labels: tuple[str, ...]
    support: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray


def draw(clips: Sequence[Clip], condition: str, n_shot: int, n_episodes: int, seed: int) -> list[Episode]:
    """Draw episodes; the same arguments always give the same ones.

    condition  one of CONDITIONS
    n_shot     recordings of each enrolled label

    An episode has min(MAX_WAY, labels of the speaker) labels (OPEN_SET_WAY in the open set) and up to
    MAX_QUERIES_PER_LABEL queries of each. A speaker can give the support only with enough labels of enough clips.
    """
    if condition not in CONDITIONS:
        raise ValueError(f"condition {condition!r} is none of {', '.join(CONDITIONS)}")
    rng = random.Random(f"{seed}/{condition}/{n_shot}")  # seeding by text does not depend on the hash of the process
    by_speaker: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, clip in enumerate(clips):
        by_speaker[clip.speaker][clip.label].append(row)
    n_labels = len({clip.label for clip in clips})
    n_way = OPEN_SET_WAY if condition == "open set" else min(MAX_WAY, n_labels)
    if condition == "open set" and n_labels <= OPEN_SET_WAY:
        raise TooFewClips(f"an open set needs more than {OPEN_SET_WAY} labels, found {n_labels}")
    spare = {"same speaker": 1, "several speakers": 1 - n_shot}.get(condition, 0)  # several give one clip each
    able = {
        speaker: sorted(label for label, rows in labels.items() if len(rows) >= n_shot + spare)
        for speaker, labels in sorted(by_speaker.items())
    }
    speakers = [speaker for speaker, labels in able.items() if len(labels) >= n_way]
    if not speakers:
        raise TooFewClips(f"no speaker has {n_way} labels of at least {n_shot + spare} clips")
    if condition == "several speakers" and min(len(able[speaker]) for speaker in able) < n_labels:
        raise TooFewClips(f"not every speaker has all {n_labels} labels")
    if condition == "several speakers" and len(able) <= n_shot:
        raise TooFewClips(f"{len(able)} speakers, of whom {n_shot} teach, leave nobody to ask")

    return [_draw_one(rng, by_speaker, able, speakers, condition, n_way, n_shot) for _ in range(n_episodes)]


def _draw_one(
    rng: random.Random,
    by_speaker: dict[str, dict[str, list[int]]],
    able: dict[str, list[str]],
    speakers: list[str],
    condition: str,
    n_way: int,
    n_shot: int,
) -> Episode:
    speaker = rng.choice(speakers)
    labels = rng.sample(able[speaker], n_way)
    others = [other for other in sorted(by_speaker) if other != speaker]
    if condition == "several speakers":
        able_too = [other for other in others if set(labels) <= set(able[other])]
        taught_by = [speaker, *rng.sample(able_too, n_shot - 1)]
        support = [[rng.choice(by_speaker[teacher][label]) for teacher in taught_by] for label in labels]
        others = [other for other in others if other not in taught_by]
    else:
        support = [rng.sample(by_speaker[speaker][label], n_shot) for label in labels]

    def queries_of(label: str, taken: Sequence[int] = ()) -> list[int]:
        if condition == "same speaker":
            rows = [row for row in by_speaker[speaker][label] if row not in taken]
        else:
            rows = [row for other in others for row in by_speaker[other].get(label, ())]
        return rng.sample(rows, min(MAX_QUERIES_PER_LABEL, len(rows)))

    asked = [(row, position) for position, label in enumerate(labels) for row in queries_of(label, support[position])]
    if condition == "open set":
        strange = sorted({label for spoken in by_speaker.values() for label in spoken} - set(labels))
        never = [(row, -1) for label in rng.sample(strange, min(n_way, len(strange))) for row in queries_of(label)]
        asked += never[: len(asked)]  # half of the queries, not more, are words that were never enrolled
    queries, positions = np.array(asked).T
    return Episode(tuple(labels), np.array(support), queries, positions)


def mean_and_ci95(values: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval over episodes: 1.96 s / sqrt(n), s with n - 1 in the denominator.

    values  float [n], n >= 2
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 episodes, found {len(values)}")
    return float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
