"""Data of a cross-modal task: samples of a source and of a target modality, how they are paired, and which labels are
for meta-training, for validation and for the test.

    text    int32 [n, n_tokens]                 hashed words and letter trigrams, 0 is padding
    image   uint8 [n, 3, size_px, size_px]      RGB
    sound   float16 [n, n_mels, n_frames]       log-mel, mean 0
    embedding  float32 [n, dim]                 of a frozen encoder, unit rows; on both sides or on none
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgealign.errors import InvalidInput

ROLES = ("train", "val", "test", "retrieval")
KINDS = ("text", "image", "sound", "embedding")


@dataclass(frozen=True)
class Side:
    """The samples of one modality.

    kind    one of KINDS
    x       as the head of this file says, by kind
    labels  int64 [n], rows of `Paired.classes`
    """

    kind: str
    x: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Protocol:
    """What is asked at meta-test: episodes of n_way test labels.

    with_source   only labels that have source samples, so that they can also be started from those
    among         only labels that begin so: recordings and pictures of one origin, which origin alone cannot tell apart
    """

    name: str
    n_way: int
    with_source: bool
    among: str = ""


@dataclass(frozen=True)
class Paired:
    """One task, ready to train on.

    pairs    int64 [n, 2]: strong pairs, rows of source and target
    set_of   int64 [n_target]: the set (a row of `classes`) that a target sample is weakly paired with, -1 for none.
             Meta-training reads this and `pairs`, never `target.labels`; only the oracle does.
    roles    one of ROLES for each class; "retrieval" labels are only ranked
    """

    name: str
    classes: tuple[str, ...]
    roles: tuple[str, ...]
    source: Side
    target: Side
    pairs: np.ndarray
    set_of: np.ndarray
    protocols: tuple[Protocol, ...]

    @cached_property
    def sha256(self) -> str:
        """Of everything that a run depends on, without the target labels, which meta-training does not read."""
        digest = hashlib.sha256(self.split_text.encode())
        for array in (self.source.x, self.source.labels, self.target.x, self.pairs, self.set_of):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    @property
    def split_text(self) -> str:
        """Which label has which role, as canonical JSON."""
        return json.dumps(dict(sorted(zip(self.classes, self.roles, strict=True))), ensure_ascii=False, indent=1)

    @property
    def split_sha256(self) -> str:
        return hashlib.sha256(self.split_text.encode()).hexdigest()

    def with_role(self, role: str) -> np.ndarray:
        """Rows of `classes` that have a role: int64 [n]."""
        return np.flatnonzero(np.array(self.roles) == role)

    @cached_property
    def source_halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Source rows of the training labels, for source tasks and for alignment: half of each label's samples each.

        A label with one sample, or with one strong pair, has it in both.
        """
        for_tasks, for_alignment = [], []
        for label in self.with_role("train"):
            rows = np.flatnonzero(self.source.labels == label)
            rows = np.random.default_rng([13, int(label)]).permutation(rows)
            middle = len(rows) // 2
            for_tasks.append(rows[middle:])
            for_alignment.append(rows[:middle] if middle else rows)
        empty = np.zeros(0, np.int64)
        return np.concatenate([empty, *for_tasks]), np.concatenate([empty, *for_alignment])

    @cached_property
    def training_pairs(self) -> np.ndarray:
        """Strong pairs of the half that is for alignment: int64 [n, 2]."""
        return self.pairs[np.isin(self.pairs[:, 0], self.source_halves[1])]

    @cached_property
    def training_targets(self) -> np.ndarray:
        """Target rows that training may see, whatever they are: those in a set of a training label, or in a pair."""
        in_set = np.flatnonzero(np.isin(self.set_of, self.with_role("train")))
        return np.union1d(in_set, self.training_pairs[:, 1])

    def check(self, shots: Sequence[int], n_queries: int) -> None:
        """InvalidInput where a label has too few samples, or too few labels are there, for what is to be asked."""
        for role, k, q in (("val", 1, 1), ("test", max(shots), n_queries)):
            labels = self.with_role(role)
            if len(labels) < 2:
                raise InvalidInput(
                    f"{self.name}: {len(labels)} labels have the split '{role}' and telling apart takes 2 or more: "
                    f"give more labels that split"
                )
            for label in labels:
                n = int((self.target.labels == label).sum())
                if n < k + q:
                    raise InvalidInput(
                        f"{self.name}: the {role} label '{self.classes[label]}' has {n} target samples, but k + "
                        f"queries is {k} + {q}: add {k + q - n} more, ask for fewer with --shots and --queries, or "
                        f"move the label to the split train"
                    )
        if len(self.with_role("train")) < 2:
            raise InvalidInput(f"{self.name}: fewer than 2 labels have the split 'train': nothing can be learned")


def split_labels(labels: Iterable[str], shares: tuple[float, float] = (0.15, 0.15)) -> dict[str, str]:
    """A role for each label, the same on every machine: the labels in the order of a hash, the first `shares` of them
    for test and validation (at least 2 each), the others for training."""
    ordered = sorted(set(labels), key=lambda label: hashlib.sha256(label.encode()).digest())
    if len(ordered) < 6:
        raise InvalidInput(f"{len(ordered)} labels cannot be split: training, validation and test need 2 each")
    n_test, n_val = (max(2, round(share * len(ordered))) for share in shares)
    return {
        label: "test" if i < n_test else "val" if i < n_test + n_val else "train" for i, label in enumerate(ordered)
    }
