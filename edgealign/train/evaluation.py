"""Meta-test: few-shot episodes on labels that meta-training did not see, label noise, and retrieval.

Episodes are drawn from the data and a seed alone, so that every method, seed and shot is asked the same queries: a
difference is paired. Two heads answer. **prototype**: nearest prototype of the support embeddings, nothing is adapted;
this is what runs on a device. **phi**: a copy of the model adapted to the support, thrown away after the episode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgealign.errors import InvalidInput
from edgealign.train import meta, ops
from edgealign.train.losses import centroid_hinge, cosine_alignment
from edgealign.train.methods import LoopConfig
from edgealign.train.networks import PairedEncoders
from edgealign.train.paired import Paired, Protocol, Side
from edgealign.train.tasks import as_input, instance_nce, modality_confusion, set_nce, some

BATCH = 256
GALLERY_PER_LABEL = 10  # of retrieval: the gallery holds N x 10 samples
RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class Cell:
    """Accuracies in [0, 1], float64 [n_episodes], of one way to ask.

    head   "prototype", "phi", or "phi, aligned": with alignment steps on the pairs at hand first
    k      labeled target samples per label; 0: source samples only
    noise  the share of support labels that is wrong, on average
    """

    protocol: str
    head: str
    k: int
    noise: float
    n_way: int
    accuracies: np.ndarray


@dataclass(frozen=True)
class Episodes:
    """rows int64 [n, n_way, longest support + n_queries]: target samples, support first; sources int64 [n, n_way, m]
    (m = 0 where the protocol has none); flip float64 and other int64 [n, n_way, longest support]: whether and into
    which of the other slots a label is flipped."""

    protocol: Protocol
    n_way: int
    n_support: int
    rows: np.ndarray
    sources: np.ndarray
    flip: np.ndarray
    other: np.ndarray


class Evaluation:
    """The episodes of one role, for every protocol of the data.

    shots      of the support; the longest is drawn, shorter ones are its beginning
    n_queries  per label
    """

    def __init__(
        self, data: Paired, role: str, n_episodes: int = 600, n_queries: int = 10, shots: Sequence[int] = (1, 5, 10),
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.data, self.role, self.shots, self.n_queries = data, role, tuple(shots), n_queries
        self.drawn = [
            drawn for protocol in data.protocols if (drawn := self._draw(protocol, n_episodes, seed)) is not None
        ]
        if not self.drawn:
            raise InvalidInput(
                f"{data.name}: no two {role} labels have {max(shots) + n_queries} target samples for {max(shots)} "
                f"shots and {n_queries} queries: add samples, or ask for fewer"
            )

    def _draw(self, protocol: Protocol, n_episodes: int, seed: int) -> Episodes | None:
        data, longest = self.data, max(self.shots)
        targets, sources = data.target.labels, data.source.labels
        able = [
            int(label)
            for label in data.with_role(self.role)
            if data.classes[label].startswith(protocol.among)
            and (targets == label).sum() >= longest + self.n_queries
            and (not protocol.with_source or (sources == label).any())
        ]
        if len(able) < 2:
            return None
        n_way = min(protocol.n_way, len(able))
        rng = np.random.default_rng([seed, sum(protocol.name.encode())])
        targets_of = {label: np.flatnonzero(targets == label) for label in able}
        sources_of = {label: np.flatnonzero(sources == label) for label in able}
        n_sources = min(longest, 5) if protocol.with_source else 0
        rows, source_rows = [], []
        for _ in range(n_episodes):
            labels = rng.choice(able, n_way, replace=False)
            rows.append([some(targets_of[int(label)], longest + self.n_queries, rng) for label in labels])
            source_rows.append([
                some(sources_of[int(label)], n_sources, rng) if n_sources else np.zeros(0, np.int64)
                for label in labels
            ])  # fmt: skip
        shape = (n_episodes, n_way, longest)
        return Episodes(
            protocol, n_way, longest, np.array(rows), np.array(source_rows).reshape(n_episodes, n_way, n_sources),
            rng.random(shape), rng.integers(1, n_way, shape),
        )  # fmt: skip

    @cached_property
    def sha256(self) -> str:
        """Names the episodes: rows made with other ones cannot be compared."""
        digest = hashlib.sha256()
        for drawn in self.drawn:
            digest.update(f"{drawn.protocol} {drawn.n_support}".encode())
            for array in (drawn.rows, drawn.sources, drawn.flip, drawn.other):
                digest.update(array.tobytes())
        return digest.hexdigest()

    def prototype_cells(
        self, model: PairedEncoders, noises: Sequence[float] = (0.0,), data: Paired | None = None
    ) -> Iterator[Cell]:
        """Nearest prototypes at every shot, and at every share of wrong labels for the longest but one support.

        data   the same samples in another form, to be asked instead of those that the episodes were drawn from
        """
        data = self.data if data is None else data
        target = Embedded(data.target, model, model.embed_target)
        source = Embedded(data.source, model, model.embed_source)
        for drawn in self.drawn:
            queries = target.at(drawn.rows[:, :, drawn.n_support :])
            if drawn.protocol.with_source:
                yield self._nearest(drawn, source.at(drawn.sources), queries, 0, None, 0.0)
            noisy_at = sorted(self.shots)[len(self.shots) // 2]
            for k in self.shots:
                support = target.at(drawn.rows[:, :, :k])
                for noise in noises if k == noisy_at else (0.0,):
                    yield self._nearest(drawn, support, queries, k, self._slots(drawn, k, noise), noise)

    @staticmethod
    def _slots(drawn: Episodes, k: int, noise: float) -> np.ndarray:
        """The slot that each support sample is said to have: int64 [n, n_way, k]."""
        own = np.arange(drawn.n_way)[:, None]
        wrong = (own + drawn.other[:, :, :k]) % drawn.n_way
        return np.where(drawn.flip[:, :, :k] < noise, wrong, own)

    @staticmethod
    def _nearest(
        drawn: Episodes, support: Tensor, queries: Tensor, k: int, slots: np.ndarray | None, noise: float
    ) -> Cell:
        """support [n, n_way, k, dim] and queries [n, n_way, n_queries, dim], unit rows."""
        n, n_way, n_given, dim = support.shape
        if slots is None:
            slots = np.broadcast_to(np.arange(n_way)[:, None], (n, n_way, n_given))
        labels = torch.from_numpy((np.arange(n)[:, None, None] * n_way + slots).ravel())
        made = ops.prototypes(support.reshape(-1, dim).contiguous(), labels, n * n_way).reshape(n, n_way, dim)
        truth = torch.arange(n_way).repeat_interleave(queries.shape[2])
        nearest = (queries.reshape(n, -1, dim) @ made.transpose(1, 2)).argmax(dim=2)
        right = (nearest == truth).double().mean(dim=1)
        return Cell(drawn.protocol.name, "prototype", k, noise, n_way, right.numpy())

    def phi_cells(
        self, model: PairedEncoders, config: LoopConfig, shots: Sequence[int], n_episodes: int,
        noises: Sequence[float] = (0.0,), align: str | None = None, report: Callable[[str], None] = lambda line: None,
    ) -> Iterator[Cell]:  # fmt: skip
        """The shared classifier, adapted to the support of each of the first n_episodes episodes.

        shots  0 gives the classifier as it is, its slots at random: chance by construction
        align  an alignment loss (`methods.ALIGNMENTS`): config.align_steps steps of it on the k target and as many
               source samples at hand come first; protocols without source samples are left out
        """
        data = self.data
        device = next(model.parameters()).device
        target = Embedded(data.target, model, model.embed_target)
        for drawn in self.drawn:
            if align is not None and not drawn.protocol.with_source:
                continue
            for k in shots:
                for noise in noises:
                    said, right = self._slots(drawn, max(k, 1), noise), []
                    for i in range(min(n_episodes, len(drawn.rows))):
                        rng = np.random.default_rng([i, 29])
                        slots = rng.permutation(config.networks.n_way)[: drawn.n_way]
                        x = as_input(data.target.x[drawn.rows[i, :, :k].ravel()], data.target.kind, None, device)
                        y = torch.from_numpy(slots[said[i, :, :k].ravel()]).to(device)
                        first = None
                        if align is not None and k:
                            rows = np.concatenate([some(of, k, rng) for of in drawn.sources[i]])
                            source_x = as_input(data.source.x[rows], data.source.kind, None, device)
                            first = _alignment_at_hand(align, config, source_x, x, y)
                        copy = adapt(model, config, x, y, first) if k else model.eval()
                        asked = drawn.rows[i, :, drawn.n_support :]
                        with torch.inference_mode():
                            if k:
                                queries = as_input(data.target.x[asked.ravel()], data.target.kind, None, device)
                                embedded = copy.embed_target(queries)
                            else:
                                embedded = target.at(asked.ravel()).to(device)
                            logits = copy.slots(embedded)[:, slots].cpu().numpy()
                        truth = np.repeat(np.arange(drawn.n_way), asked.shape[1])
                        right.append(float((logits.argmax(axis=1) == truth).mean()))
                    head = "phi" if align is None else "phi, aligned"
                    report(f"{head} {drawn.protocol.name} k={k} noise={noise}: {100 * np.mean(right):.1f} %")
                    yield Cell(drawn.protocol.name, head, k, noise, drawn.n_way, np.array(right))


class Embedded:
    """Embeddings of a side's samples, computed when they are asked for."""

    def __init__(self, side: Side, model: PairedEncoders, embed: Callable[[Tensor], Tensor]) -> None:
        self.side, self.model, self.embed = side, model.eval(), embed
        self.known = np.zeros(len(side.x), bool)
        self.rows = torch.zeros(len(side.x), model.config.dim)

    @torch.inference_mode()
    def at(self, rows: np.ndarray) -> Tensor:
        """Unit embeddings [*rows.shape, dim] on the CPU."""
        device = next(self.model.parameters()).device
        missing = np.unique(rows)
        missing = missing[~self.known[missing]]
        for first in range(0, len(missing), BATCH):
            part = missing[first : first + BATCH]
            x = as_input(self.side.x[part], self.side.kind, None, device)
            self.rows[torch.from_numpy(part)] = self.embed(x).float().cpu()
        self.known[missing] = True
        return self.rows[torch.from_numpy(rows)]


def adapt(
    model: PairedEncoders, config: LoopConfig, x: Tensor, slots: Tensor, align: meta.Loss | None = None
) -> PairedEncoders:
    """A copy after config.align_steps steps of `align`, then config.test_steps steps of cross-entropy on the labeled
    target samples x. The model stays bit-identical."""
    classify: meta.Loss = lambda copy: F.cross_entropy(copy.slots(copy.embed_target(x)), slots)  # noqa: E731
    steps = [] if align is None else [align] * config.align_steps
    return meta.adapted(model, steps + [classify] * config.test_steps, config.inner_learning_rate).eval()


def _alignment_at_hand(name: str, config: LoopConfig, source_x: Tensor, target_x: Tensor, sets: Tensor) -> meta.Loss:
    """The alignment loss `name` on as many source as target samples, in the same order of labels."""

    def loss(model: PairedEncoders) -> Tensor:
        source, target = model.embed_source(source_x), model.embed_target(target_x)
        if name == "cosine":
            return cosine_alignment(source, target)
        if name == "instance":
            return instance_nce(model, source, target)
        if name == "centroid":
            return centroid_hinge(source, target, sets, config.margin)
        return (modality_confusion if name == "confusion" else set_nce)(model, source, target, sets)

    return loss


# ---- retrieval ----


@dataclass(frozen=True)
class Retrieval:
    """How well samples of one modality find their partners in the other.

    what         "pairs": its own partner; "labels": any sample of its label
    ranks        int64 [n_queries], 1 is best; among equals the right one counts as last
    n_gallery, n_right   size of the gallery, and how many of it are right for a query
    """

    role: str
    what: str
    direction: str
    ranks: np.ndarray
    n_gallery: int
    n_right: int

    def recall(self, k: int) -> float:
        return float((self.ranks <= k).mean())

    def recall_by_chance(self, k: int) -> float:
        """Of a random order: 1 - C(gallery - right, k) / C(gallery, k)."""
        if k >= self.n_gallery:
            return 1.0
        return 1 - comb(self.n_gallery - self.n_right, k) / comb(self.n_gallery, k)

    @property
    def median_rank(self) -> float:
        return float(np.median(self.ranks))

    @property
    def median_rank_by_chance(self) -> int:
        """The smallest rank by which half of the queries have met a right sample in a random order."""
        return next(r for r in range(1, self.n_gallery + 1) if self.recall_by_chance(r) >= 0.5)


def retrieval(data: Paired, model: PairedEncoders, seed: int = 0) -> list[Retrieval]:
    """Both directions, for strong pairs of the roles test and retrieval, and for the labels of the role test."""
    target = Embedded(data.target, model, model.embed_target)
    source = Embedded(data.source, model, model.embed_source)
    rng = np.random.default_rng([seed, 31])
    found = []
    for role in ("test", "retrieval"):
        labels = data.with_role(role)
        pairs = rng.permutation(data.pairs[np.isin(data.source.labels[data.pairs[:, 0]], labels)])
        # One source for each target and the other way round: a partner is to be the only right answer.
        pairs = pairs[np.unique(pairs[:, 1], return_index=True)[1]] if len(pairs) else pairs
        limit = GALLERY_PER_LABEL if role == "test" else len(pairs)
        pairs = _per_label(pairs, data.source.labels[pairs[:, 0]], limit)
        if len(pairs) > max(RECALL_AT):
            similarity = (source.at(pairs[:, 0]) @ target.at(pairs[:, 1]).T).numpy()
            own = np.eye(len(pairs), dtype=bool)
            found += _both_directions(role, "pairs", similarity, own)
    labels = [label for label in data.with_role("test") if (data.source.labels == label).any()]
    rows = [rng.permutation(np.flatnonzero(np.isin(side.labels, labels))) for side in (data.source, data.target)]
    s, t = (
        _per_label(own, side.labels[own], GALLERY_PER_LABEL)
        for own, side in zip(rows, (data.source, data.target), strict=True)
    )
    if len(labels) >= 2:
        similarity = (source.at(s) @ target.at(t).T).numpy()
        found += _both_directions("test", "labels", similarity, data.source.labels[s][:, None] == data.target.labels[t])
    return found


def _per_label(rows: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """The first n rows of each label."""
    return np.concatenate([rows[:0], *(rows[labels == label][:n] for label in np.unique(labels))])


def _both_directions(role: str, what: str, similarity: np.ndarray, right: np.ndarray) -> list[Retrieval]:
    return [
        Retrieval(role, what, direction, ranks(values, mask), values.shape[1], int(np.median(mask.sum(axis=1))))
        for direction, values, mask in (
            ("source to target", similarity, right),
            ("target to source", similarity.T, right.T),
        )
    ]


def ranks(similarity: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank of the best right sample of each row: int64 [n_queries]; wrong ones that are as similar come before it.

    similarity float32, right bool, both [n_queries, n_gallery]
    """
    best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((similarity >= best) & ~right).sum(axis=1)
