"""How well a store names clips whose labels are known: counts, intervals, confusions, precision against recall.

The folder of a clip is what it holds. A label that is not in the store stands for "anything else": its clips should be
unknown. Shares have the exact 95 % intervals of `intervals`; clips of one session by one speaker are less independent
than these assume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgealign.audio import AudioFile
from edgealign.errors import EdgealignError, InputUnreadable, InvalidInput
from edgealign.intervals import Interval, rate_interval, share_interval
from edgealign.recognizer import Recognizer
from edgealign.sources import Clip
from edgealign.store import RECORDING

UNKNOWN = None  # as an answer


@dataclass(frozen=True)
class Asked:
    """One clip: what it holds, what was answered (None: unknown), the closest label and its probability (None where
    no sound stands out), how long it lasts (None for a picture), and whether the store was taught with it."""

    file: str
    truth: str
    answer: str | None
    closest: str | None
    probability: float | None
    duration_s: float | None
    was_learned: bool = False


@dataclass(frozen=True)
class LabelScore:
    """Clips of one label, how many were right, unknown, or taken for another, and the share that is right."""

    label: str
    n: int
    right: int
    unknown: int
    taken_for: tuple[tuple[str, int], ...]
    share: Interval


@dataclass(frozen=True)
class Evaluation:
    """What a store makes of clips whose labels are known.

    labels    of the store, in its order
    asked     every clip that could be read
    failures  of those that could not
    accept_probability   the least probability at which a label is answered
    store_sha256, encoder_sha256   of the store, and of the encoder that it was made with
    """

    labels: tuple[str, ...]
    asked: tuple[Asked, ...]
    failures: tuple[EdgealignError, ...]
    accept_probability: float
    store_sha256: str
    encoder_sha256: str

    @cached_property
    def enrolled(self) -> list[Asked]:
        """Clips of labels that are in the store."""
        return [one for one in self.asked if one.truth in set(self.labels)]

    @cached_property
    def others(self) -> list[Asked]:
        """Clips of anything else."""
        return [one for one in self.asked if one.truth not in set(self.labels)]

    @property
    def n_learned(self) -> int:
        """Clips that the store was taught with: that they are right says nothing about others."""
        return sum(one.was_learned for one in self.asked)

    @property
    def right(self) -> Interval | None:
        """Share of the enrolled clips that got their label."""
        return _share(sum(one.answer == one.truth for one in self.enrolled), len(self.enrolled))

    @property
    def right_if_forced(self) -> Interval | None:
        """The same if nothing could be unknown: whose closest label is the right one."""
        return _share(sum(one.closest == one.truth for one in self.enrolled), len(self.enrolled))

    @property
    def others_accepted(self) -> Interval | None:
        """Share of the other clips that got a label."""
        return _share(sum(one.answer is not UNKNOWN for one in self.others), len(self.others))

    @property
    def false_alarms_per_hour(self) -> Interval | None:
        """Other clips that got a label, by the time that they last; None without such clips, and for pictures."""
        hours = sum(one.duration_s or 0.0 for one in self.others) / 3600
        accepted = sum(one.answer is not UNKNOWN for one in self.others)
        return rate_interval(accepted, hours) if hours > 0 else None

    @cached_property
    def by_label(self) -> list[LabelScore]:
        """In the order of the store, without the labels that nobody asked for."""
        scores = []
        for label in self.labels:
            answers = Counter(one.answer for one in self.enrolled if one.truth == label)
            n, right, unknown = answers.total(), answers.pop(label, 0), answers.pop(UNKNOWN, 0)
            if n:
                wrong = tuple(sorted(answers.items(), key=lambda item: (-item[1], item[0])))
                scores.append(LabelScore(label, n, right, unknown, wrong, share_interval(right, n)))
        return scores

    def confusion(self) -> tuple[list[str], list[str | None], list[list[int]]]:
        """What was said, what was answered, and how many clips of each: every other label is a row of its own."""
        truths = [score.label for score in self.by_label] + sorted({one.truth for one in self.others})
        seen = {one.answer for one in self.asked}
        answers = [label for label in self.labels if label in seen or label in set(truths)] + [UNKNOWN]
        counts = Counter((one.truth, one.answer) for one in self.asked)
        return truths, answers, [[counts[truth, answer] for answer in answers] for truth in truths]

    def precision_recall(self) -> list[tuple[float, float, float]]:
        """(probability, precision, recall) for every probability that could be asked of an answer, largest first.

        precision   of the clips whose closest label is as probable, those whose label it is
        recall      of the enrolled clips, those that are so found
        """
        ranked = sorted((one for one in self.asked if one.probability is not None), key=lambda one: -one.probability)
        points: list[tuple[float, float, float]] = []
        right = 0
        for n, one in enumerate(ranked, 1):
            right += one.closest == one.truth
            if n == len(ranked) or ranked[n].probability < one.probability:
                points.append((one.probability, right / n, right / max(len(self.enrolled), 1)))
        return points

    @property
    def average_precision(self) -> float:
        """Precision averaged over the recall that each further clip brings: sum of (r_i - r_{i-1}) p_i."""
        total = before = 0.0
        for _, precision, recall in self.precision_recall():
            total, before = total + (recall - before) * precision, recall
        return total

    def as_dict(self) -> dict:
        """For other programs; shares are {"value", "low", "high"}, the interval of 95 %."""
        truths, answers, counts = self.confusion()
        return {
            "n_enrolled": len(self.enrolled),
            "n_others": len(self.others),
            "n_learned": self.n_learned,
            "right": _as_dict(self.right),
            "right_if_forced": _as_dict(self.right_if_forced),
            "others_accepted": _as_dict(self.others_accepted),
            "false_alarms_per_hour": _as_dict(self.false_alarms_per_hour),
            "average_precision": self.average_precision if self.enrolled else None,
            "labels": [
                {
                    "label": one.label, "n": one.n, "right": one.right, "unknown": one.unknown,
                    "taken_for": dict(one.taken_for), "share": _as_dict(one.share),
                }
                for one in self.by_label
            ],
            "confusion": {"truth": truths, "answer": answers, "counts": counts},
            "precision_recall": [list(point) for point in self.precision_recall()],
            "files": [
                {
                    "file": one.file, "truth": one.truth, "answer": one.answer, "probability": one.probability,
                    "was_learned": one.was_learned,
                }
                for one in self.asked
            ],
            "failures": [str(failure) for failure in self.failures],
            "accept_probability": self.accept_probability,
            "store_sha256": self.store_sha256,
            "encoder_sha256": self.encoder_sha256,
        }  # fmt: skip


def evaluate(
    recognizer: Recognizer,
    clips: Sequence[Clip],
    channel: int | None = None,
    progress: Callable[[float, int], None] = lambda share, n_done: None,
) -> Evaluation:
    """Ask for every clip; what cannot be read is listed in the result.

    progress   told the share that is done and the number of clips
    raises     InputUnreadable where no clip can be read, StoreUnreadable without labels
    """
    if not clips:
        raise InvalidInput("nothing to evaluate: name a folder with a folder of clips for each label")
    store = recognizer.store
    labels = tuple(store.labels())
    taught = {row.tobytes() for row in store.embeddings()[store.rows()["kind"] == RECORDING]}
    asked: list[Asked] = []
    failures: list[EdgealignError] = []
    for n_done, clip in enumerate(clips, 1):
        try:
            answer, embedding = recognizer.classify_embedded(clip.path, channel=channel, top_k=1)
            closest = answer.top[0].label if answer.top else None
            duration_s = None if recognizer.bundle.modality == "image" else _duration_s(clip.path)
            learned = embedding is not None and embedding.tobytes() in taught
            asked.append(Asked(clip.path, clip.label, answer.label, closest, answer.probability, duration_s, learned))
        except InputUnreadable as error:
            failures.append(error)
        progress(n_done / len(clips), n_done)
    if not asked:
        raise InputUnreadable(f"none of {len(clips)} clips can be read; the first: {failures[0]}")
    return Evaluation(
        labels, tuple(asked), tuple(failures), recognizer.accept_probability, store.sha256, store.encoder_sha256
    )


def _duration_s(path: str) -> float:
    recording = AudioFile(path)
    return recording.n_expected / recording.sample_rate_hz


def _share(count: int, total: int) -> Interval | None:
    return share_interval(count, total) if total else None


def _as_dict(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The result in sentences."""
    lines = []
    if evaluation.right is not None:
        lines.append(
            f"{len(evaluation.enrolled)} clips of enrolled labels: {shown_share(evaluation.right)} right; "
            f"{shown_share(evaluation.right_if_forced)} if none could be unknown"
        )
    if evaluation.others_accepted is not None:
        lines.append(f"{len(evaluation.others)} other clips: {shown_share(evaluation.others_accepted)} got a label")
        rate = evaluation.false_alarms_per_hour
        if rate is not None:
            lines.append(f"false alarms per hour of them: {rate.value:.1f} ({rate.low:.1f} to {rate.high:.1f})")
    if evaluation.n_learned:
        lines.append(
            f"{evaluation.n_learned} of these clips were learned from, and say nothing about others: ask with clips "
            f"that were not"
        )
    if evaluation.failures:
        lines.append(f"{len(evaluation.failures)} clips could not be read")
    return lines


def shown_share(share: Interval) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def taken_for(score: LabelScore) -> str:
    """The three labels that a label's clips were most often taken for."""
    return ", ".join(f"{label} ({n})" for label, n in score.taken_for[:3]) or "-"
