"""What a loader found, before features: items of both modalities, their labels, strong pairs, roles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgealign.train.features import FeatureConfig, Item, features
from edgealign.train.paired import Paired, Protocol, Side


@dataclass
class Listing:
    """Grows by `source`, `target` and `pair`; `paired` computes the features.

    kinds    of source and target
    roles    of every label that has samples
    """

    name: str
    kinds: tuple[str, str]
    roles: dict[str, str] = field(default_factory=dict)
    sources: list[tuple[Item, str]] = field(default_factory=list)
    targets: list[tuple[Item, str]] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)

    def source(self, item: Item, label: str) -> int:
        """Adds a source sample and returns its row."""
        self.sources.append((item, label))
        return len(self.sources) - 1

    def target(self, item: Item, label: str) -> int:
        """Adds a target sample and returns its row; it is weakly paired with the set of source samples of its label."""
        self.targets.append((item, label))
        return len(self.targets) - 1

    def pair(self, source: int, target: int) -> None:
        """The sample of one row belongs to that of the other."""
        self.pairs.append((source, target))

    def paired(self, config: FeatureConfig, cache: Path | None, protocols: tuple[Protocol, ...]) -> Paired:
        """Features and labels as arrays."""
        arrays = [
            features([item for item, _ in samples], kind, config, cache, self.name)
            for kind, samples in zip(self.kinds, (self.sources, self.targets), strict=True)
        ]
        return self.joined(self.kinds, arrays, protocols)

    def joined(self, kinds: tuple[str, str], arrays: Sequence[np.ndarray], protocols: tuple[Protocol, ...]) -> Paired:
        """The same with arrays of source and target that were made elsewhere, and what kinds they are."""
        found = {label for _, label in (*self.sources, *self.targets)}
        classes = tuple(sorted(found))
        row_of = {label: row for row, label in enumerate(classes)}
        sides = [
            Side(kind, x, np.array([row_of[label] for _, label in samples], np.int64))
            for kind, x, samples in zip(kinds, arrays, (self.sources, self.targets), strict=True)
        ]
        pairs = np.array(self.pairs, np.int64).reshape(-1, 2)
        roles = tuple(self.roles[label] for label in classes)
        return Paired(self.name, classes, roles, *sides, pairs, sides[1].labels.copy(), protocols)
