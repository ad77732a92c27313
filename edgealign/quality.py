"""How good an enrollment is: how tight each label, which clip does not belong, which labels are easily confused."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgealign import kernels
from edgealign.kernels import Calibration
from edgealign.store import RECORDING, Store

MIN_RECORDINGS_FOR_OUTLIERS = 3  # of two clips that disagree, neither can be called the odd one
OUTLIER_RATIO = 2.5
MAX_WARNINGS_OF_A_KIND = 10
MIN_LABELS_FOR_SPELLING = 4  # three may be hard words
UNLIKE_BANK_SHARE = 0.2  # of ordinary words and noises that are closer to a spelling than its recordings are


@dataclass(frozen=True)
class LabelReport:
    """What a store knows of one label.

    n_added        rows that this enrollment added
    n_known        clips or texts of this enrollment that were there already
    n_recordings, n_texts   in the store now
    tightness      mean leave-one-out cosine distance of the recordings; None with fewer than two rows
    text_share     of the prototype, in [0, 1]: text_weight * n_texts / (text_weight * n_texts + n_recordings)
    own_share      how much of the spread that sets the threshold was seen in these recordings, in [0, 1]; the rest is
                   the typical spread of the bundle's labels
    """

    label: str
    n_added: int
    n_known: int
    n_recordings: int
    n_texts: int
    tightness: float | None
    text_share: float
    own_share: float


@dataclass(frozen=True)
class Quality:
    """What leave-one-out distances and prototypes say about some labels of a store.

    labels      all labels of the store
    looked_at   rows of `labels` that the questions are about
    prototypes  float32 [n_labels, dim]
    row_label, is_recording, names, embeddings   of the rows of the labels that are looked at
    loo, has_loo   leave-one-out distance of each of these rows, and whether it has one
    spread      per label that is looked at: its mean leave-one-out distance, shrunk to the bundle's prior
    """

    labels: list[str]
    looked_at: list[int]
    prototypes: np.ndarray
    row_label: np.ndarray
    is_recording: np.ndarray
    names: list[str]
    embeddings: np.ndarray
    loo: np.ndarray
    has_loo: np.ndarray
    spread: dict[int, float]
    calibration: Calibration
    text_weight: float

    @classmethod
    def of(cls, store: Store, calibration: Calibration, text_weight: float, labels: Sequence[str]) -> Quality:
        all_labels = store.labels()
        rows = store.rows()
        embeddings = store.embeddings()
        weights = np.where(rows["kind"] == RECORDING, 1.0, text_weight).astype(np.float32)
        prototypes = kernels.prototypes(embeddings, rows["label"], len(all_labels), weights)
        wanted = set(labels)
        looked_at = [i for i, label in enumerate(all_labels) if label in wanted]
        mask = np.isin(rows["label"], looked_at)
        row_label = rows["label"][mask]
        # Numbered from 0 among the labels that are looked at, so that ten thousand others cost nothing.
        local = np.searchsorted(looked_at, row_label).astype(np.int32)
        loo, has_loo = kernels.leave_one_out(embeddings[mask], local, len(looked_at), weights[mask])
        is_recording = rows["kind"][mask] == RECORDING
        spread = {}
        for i in looked_at:
            own = loo[(row_label == i) & is_recording & has_loo]
            spread[i] = (calibration.prior_loo * calibration.prior_weight + float(own.sum())) / (
                calibration.prior_weight + len(own)
            )
        names = [str(name) for name in rows["name"][mask]]
        return cls(
            all_labels, looked_at, prototypes, row_label, is_recording, names, embeddings[mask], loo, has_loo, spread,
            calibration, text_weight,
        )  # fmt: skip

    def report(self, label: str, n_added: int, n_known: int) -> LabelReport:
        own = self.row_label == self.labels.index(label)
        n_recordings = int((own & self.is_recording).sum())
        n_texts = int(own.sum()) - n_recordings
        loo = self.loo[own & self.is_recording & self.has_loo]
        text_weight = self.text_weight * n_texts
        return LabelReport(
            label,
            n_added,
            n_known,
            n_recordings,
            n_texts,
            float(loo.mean()) if len(loo) else None,
            text_weight / (text_weight + n_recordings),
            len(loo) / (len(loo) + self.calibration.prior_weight),
        )

    def outliers(self, store_path: str | None = None) -> list[str]:
        """One warning per recording that does not sound like its label. The rule, where its label has other samples:

        it lies closer to the prototype of another label than to that of its own label made without it; or its label
        has three recordings or more, and its leave-one-out distance is more than 2.5 times the median of theirs and
        more than 2.5 times the bundle's typical distance prior_loo.
        """
        warnings = []
        others = self._closest_other_labels(self.embeddings, self.row_label)
        for label in self.looked_at:
            own = np.flatnonzero((self.row_label == label) & self.is_recording & self.has_loo)
            if not len(own):
                continue
            limit = OUTLIER_RATIO * max(float(np.median(self.loo[own])), self.calibration.prior_loo)
            for row in own:
                clip, distance = f"'{self.names[row]}'", float(self.loo[row])
                takes_out = _takes_out(self.labels[label], self.names[row], store_path)
                if others is not None and others[0][row] < distance:
                    other = self.labels[others[1][row]]
                    warnings.append(
                        f"{clip} is more like '{other}' ({others[0][row]:.2f} away) than like the rest of "
                        f"'{self.labels[label]}' ({distance:.2f} away): check that it is what its label says, or "
                        f"{takes_out}"
                    )
                elif len(own) >= MIN_RECORDINGS_FOR_OUTLIERS and distance > limit:
                    warnings.append(
                        f"{clip} is unlike the rest of '{self.labels[label]}' ({distance:.2f} away, {limit:.2f} would "
                        f"be usual at most): listen to it, or {takes_out}"
                    )
        return _shortened(warnings, "clips")

    def confusable_labels(self) -> list[str]:
        """One warning per pair of labels that are easily confused. The rule:

        their prototypes are closer to each other than the recordings of the wider of the two are, on average, to
        their own prototype.
        """
        closest = self._closest_other_labels(self.prototypes[self.looked_at], np.array(self.looked_at))
        if closest is None:
            return []
        warnings = {}
        for label, distance, other in zip(self.looked_at, *closest, strict=True):
            spread = max(self.spread[label], self.spread.get(other, 0.0))
            if distance < spread:
                warnings.setdefault(
                    frozenset((label, other)),
                    f"'{self.labels[label]}' and '{self.labels[other]}' are easily confused: they are {distance:.2f} "
                    f"apart, while samples lie {spread:.2f} from their own label on average",
                )
        return _shortened(list(warnings.values()), "pairs of labels")

    def _closest_other_labels(self, rows: np.ndarray, own_label: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Distance and index of the closest label that is not the row's own: [n_rows] each; None with one label."""
        if len(self.labels) < 2 or not len(rows):
            return None
        distances, indices = kernels.nearest(rows, self.prototypes, 2)
        column = (indices[:, 0] == own_label).astype(np.intp)
        pick = np.arange(len(rows)), column
        return distances[pick], indices[pick]


def in_two_labels(store: Store, labels: Sequence[str], store_path: str | None = None) -> list[str]:
    """One warning per recording of these labels that another label was learned from, too."""
    all_labels, rows, embeddings = store.labels(), store.rows(), store.embeddings()
    wanted = set(labels)
    asked = np.isin(rows["label"], [i for i, label in enumerate(all_labels) if label in wanted])
    recordings = rows["kind"] == RECORDING
    places: dict[bytes, list[int]] = {}
    for row in np.flatnonzero(asked & recordings):
        places.setdefault(embeddings[row].tobytes(), []).append(int(row))
    # Hardly any other recording agrees in the first element, so that a million of them cost little.
    alike = np.isin(embeddings[:, 0], embeddings[asked & recordings, 0])
    for row in np.flatnonzero(~asked & recordings & alike):
        if (same := places.get(embeddings[row].tobytes())) is not None:
            same.append(int(row))
    warnings = []
    for same in places.values():
        found = dict.fromkeys(f"'{all_labels[rows['label'][row]]}'" for row in same)
        if len(found) > 1:
            last = rows[same[-1]]
            warnings.append(
                f"'{last['name']}' was learned as {' and as '.join(found)}: if one of them is wrong, "
                f"{_takes_out(all_labels[last['label']], last['name'], store_path)}, or likewise with the other label"
            )
    return _shortened(warnings, "clips")


def unlike_their_labels(
    recordings: Mapping[str, Sequence[np.ndarray]],
    texts: Mapping[str, np.ndarray],
    bank: np.ndarray,
    store_path: str | None = None,
) -> list[str]:
    """A warning where labels that were taken for words seem to be none: translations, codes, speakers. The rule:

    of four labels or more, more than half are unlike their recordings: more than a fifth of the background bank is
    closer to the label, as it is written, than the mean of its recordings is.

    recordings   label -> unit float32 [dim] each
    texts        label -> unit float32 [dim]
    bank         float32 [n_bank, dim]
    """
    both = [label for label in texts if recordings.get(label)]
    unlike = []
    for label in both:
        mean = np.mean(recordings[label], axis=0, dtype=np.float64)
        nearness = float(texts[label] @ mean / np.linalg.norm(mean))
        if (bank @ texts[label] > nearness).mean() > UNLIKE_BANK_SHARE:
            unlike.append(label)
    if len(both) < MIN_LABELS_FOR_SPELLING or 2 * len(unlike) <= len(both):
        return []
    shown = ", ".join(f"'{label}'" for label in unlike[:3])
    undo = shlex.join(["edgealign", "store", "undo", *([] if store_path is None else ["--store", store_path])])
    return [
        f"{len(unlike)} of {len(both)} labels ({shown}{', …' if len(unlike) > 3 else ''}) do not sound like their "
        f"recordings: if they are translations or codes, take this back with `{undo}` and enroll the recordings "
        f"alone"
    ]


def _takes_out(label: str, name: str, store_path: str | None) -> str:
    """The command that takes a sample out; store_path is None for the store in the default place."""
    words = ["edgealign", "store", "remove", label, "--sample", name]
    words += [] if store_path is None else ["--store", store_path]
    return f"take it out with `{shlex.join(words)}`"


def _shortened(warnings: list[str], what: str) -> list[str]:
    if len(warnings) <= MAX_WARNINGS_OF_A_KIND:
        return warnings
    rest = len(warnings) - MAX_WARNINGS_OF_A_KIND
    return [*warnings[:MAX_WARNINGS_OF_A_KIND], f"{what} of this kind that are not shown: {rest}"]
