"""Tasks of meta-training: each draws its samples once and gives a loss per inner step, for whatever copy is trained.

A task depends on the seed of the run, the step and its number alone, so that a resumed run and every process of a
distributed one draw the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgealign.train import losses, meta
from edgealign.train.methods import LoopConfig, Method
from edgealign.train.networks import GradientReversal, PairedEncoders
from edgealign.train.paired import Paired, Side

DECODED_PX = 8  # reconstruction is measured on 8 x 8 cells
EMBEDDING_NOISE = 0.2


def as_input(x: np.ndarray, kind: str, rng: np.random.Generator | None, device: torch.device | str = "cpu") -> Tensor:
    """Stored samples as an encoder reads them; `rng` varies them as training does, None leaves them as they are.

    text   tokens int64 [n, n_tokens]; a tenth of them is dropped
    image  float32 [n, 3, size, size] in [-1, 1]; shifted by up to an eighth, mirrored, brighter or darker
    sound  float32 [n, 1, n_mels, n_frames]; moved in time, louder or softer, a band and a stretch masked
    embedding  float32 [n, dim], scaled to unit variance; noise is added
    """
    if kind == "text":
        ids = x.astype(np.int64)
        if rng is not None:
            ids = np.where((rng.random(ids.shape) < 0.1) & (ids.cumsum(axis=1) > ids[:, :1]), 0, ids)
        return torch.from_numpy(ids).to(device)
    if kind == "embedding":
        values = x * np.float32(x.shape[1] ** 0.5)
        noise = 0 if rng is None else rng.normal(0, EMBEDDING_NOISE, values.shape).astype(np.float32)
        return torch.from_numpy(values + noise).to(device)
    if kind == "image":
        values = x.astype(np.float32) / 127.5 - 1
        return torch.from_numpy(values if rng is None else _varied_images(values, rng)).to(device)
    values = x.astype(np.float32)[:, None] * 0.3
    return torch.from_numpy(values if rng is None else _varied_sounds(values, rng)).to(device)


def _varied_images(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size, reach = x.shape[2], x.shape[2] // 8
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    made = np.empty_like(x)
    for i, (top, left, mirrored) in enumerate(rng.integers(0, (2 * reach + 1, 2 * reach + 1, 2), (len(x), 3))):
        cut = padded[i, :, top : top + size, left : left + size]
        made[i] = cut[..., ::-1] if mirrored else cut
    gain, offset = rng.uniform(0.7, 1.3, (len(x), 1, 1, 1)), rng.uniform(-0.2, 0.2, (len(x), 1, 1, 1))
    return (made * gain + offset).astype(np.float32)


def _varied_sounds(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n_mels, n_frames = x.shape[2:]
    made = np.empty_like(x)
    for i, shift in enumerate(rng.integers(-n_frames // 4, n_frames // 4 + 1, len(x)) % n_frames):
        made[i, :, :, shift:] = x[i, :, :, : n_frames - shift]
        made[i, :, :, :shift] = x[i, :, :, n_frames - shift :]
        band, stretch = rng.integers(0, n_mels - 5), rng.integers(0, n_frames - n_frames // 10)
        if rng.random() < 0.5:
            made[i, :, band : band + 5] = 0
        if rng.random() < 0.5:
            made[i, :, :, stretch : stretch + n_frames // 10] = 0
    tilt = rng.normal(0, 0.15, (len(x), 1, 1, 1)) * np.linspace(-1, 1, n_mels)[:, None]
    return (made + tilt + rng.normal(0, 0.1, (len(x), 1, 1, 1))).astype(np.float32)


def rows_by_label(rows: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """The rows of each label that has some."""
    return {int(label): rows[labels[rows] == label] for label in np.unique(labels[rows])}


def some(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n of the rows, with repetition only where there are fewer."""
    return rng.choice(rows, n, replace=len(rows) < n)


class Tasks:
    """Draws the tasks of a method. The names of its public methods are those of `Stage.task`.

    Each returns a function from the number of an inner step (for fresh variations) to a `meta.Loss`.
    """

    def __init__(self, data: Paired, config: LoopConfig, method: Method, device: torch.device | str = "cpu") -> None:
        self.data, self.config, self.device = data, config, device
        for_tasks, for_alignment = data.source_halves
        self.train_labels = data.with_role("train")
        self.joint_row = {int(label): i for i, label in enumerate(self.train_labels)}
        self.source_rows = rows_by_label(for_tasks, data.source.labels)
        self.source_sets = rows_by_label(for_alignment, data.source.labels)
        pairs, set_of = data.training_pairs, data.set_of
        if method.shuffled:
            rng = np.random.default_rng([config.seed, 17])
            pairs = np.stack([pairs[:, 0], rng.permutation(pairs[:, 1])], axis=1)
            weak = np.flatnonzero(np.isin(set_of, self.train_labels))
            set_of = set_of.copy()
            set_of[weak] = rng.permutation(set_of[weak])
        self.pairs = pairs
        self.pairs_of = rows_by_label(np.arange(len(pairs)), data.source.labels[pairs[:, 0]])
        paired_targets = np.flatnonzero(np.isin(set_of, self.train_labels))
        self.target_sets = rows_by_label(paired_targets, set_of)
        self.set_labels = sorted(self.source_sets.keys() & self.target_sets.keys())
        self.unlabeled = data.training_targets
        if any(stage.task == "target" for stage in method.stages):
            own = np.flatnonzero(np.isin(data.target.labels, self.train_labels))
            self.oracle_rows = rows_by_label(own, data.target.labels)

    def draw(self, task: str, step: int, number: int) -> Callable[[int], meta.Loss]:
        """Task `number` of a step."""
        kind = sum(task.encode())  # another stream of random numbers for each kind of task
        rng = np.random.default_rng([self.config.seed, step, number, kind])
        return getattr(self, task)(rng)

    # ---- classification ----

    def source(self, rng: np.random.Generator) -> Callable[[int], meta.Loss]:
        """n_way labels x n_shot source samples, classified by phi with slots assigned at random."""
        return self._episode(self.data.source, self.source_rows, PairedEncoders.embed_source, rng)

    def target(self, rng: np.random.Generator) -> Callable[[int], meta.Loss]:
        """The same with labeled target samples: the oracle, which no other method may see."""
        return self._episode(self.data.target, self.oracle_rows, PairedEncoders.embed_target, rng)

    def _episode(
        self, side: Side, rows_of: dict[int, np.ndarray], embed: Callable, rng: np.random.Generator
    ) -> Callable[[int], meta.Loss]:
        n_way = min(self.config.n_way, len(rows_of))
        labels = rng.choice(sorted(rows_of), n_way, replace=False)
        slots = rng.permutation(self.config.networks.n_way)[:n_way]
        rows = np.concatenate([some(rows_of[int(label)], self.config.n_shot, rng) for label in labels])
        truth = self._tensor(np.repeat(slots, self.config.n_shot))
        seed = int(rng.integers(2**32))

        def at(inner: int) -> meta.Loss:
            x = self._input(side, rows, (seed, inner))
            return lambda model: F.cross_entropy(model.slots(embed(model, x)), truth)

        return at

    def joint(self, rng: np.random.Generator) -> Callable[[int], meta.Loss]:
        """A batch over all training labels for one plain classifier of source samples."""
        return self._joint(rng, with_pairs=False)

    def joint_pairs(self, rng: np.random.Generator) -> Callable[[int], meta.Loss]:
        """The same, and target samples by the label of the set they are weakly paired with."""
        return self._joint(rng, with_pairs=True)

    def _joint(self, rng: np.random.Generator, with_pairs: bool) -> Callable[[int], meta.Loss]:
        n = self.config.align_way

        def batch(side: Side, rows_of: dict[int, np.ndarray], key: tuple[int, int]) -> tuple[Tensor, Tensor]:
            own = np.random.default_rng(key)
            labels = own.choice(sorted(rows_of), min(n, len(rows_of)), replace=False)
            rows = np.concatenate([some(rows_of[int(label)], self.config.n_shot, own) for label in labels])
            truth = np.repeat([self.joint_row[int(label)] for label in labels], self.config.n_shot)
            return self._input(side, rows, key), self._tensor(truth)

        seed = int(rng.integers(2**32))

        def at(inner: int) -> meta.Loss:
            x, truth = batch(self.data.source, self.source_rows, (seed, inner))
            if with_pairs:
                target_x, target_truth = batch(self.data.target, self.target_sets, (seed, inner + 1000))

            def loss(model: PairedEncoders) -> Tensor:
                of_source = F.cross_entropy(model.joint(model.spread(model.embed_source(x))), truth)
                if not with_pairs:
                    return of_source
                logits = model.joint(model.spread(model.embed_target(target_x)))
                return (of_source + F.cross_entropy(logits, target_truth)) / 2

            return loss

        return at

    def reconstruction(self, rng: np.random.Generator) -> Callable[[int], meta.Loss]:
        """Decode samples of both modalities from their embeddings; no labels, no pairs."""
        n = self.config.n_way * self.config.n_shot
        drawn = [
            (self.data.source, some(np.concatenate(list(self.source_rows.values())), n, rng)),
            (self.data.target, some(self.unlabeled, n, rng)),
        ]
        seed = int(rng.integers(2**32))

        def at(inner: int) -> meta.Loss:
            inputs = [self._input(side, rows, (seed, inner)) for side, rows in drawn]

            def loss(model: PairedEncoders) -> Tensor:
                embedded = (model.embed_source(inputs[0]), model.embed_target(inputs[1]))
                total = 0
                for (side, _), x, embeddings, decoder in zip(drawn, inputs, embedded, model.decoders, strict=True):
                    total = total + reconstruction_loss(side.kind, x, decoder(model.spread(embeddings)))
                return total / 2

            return loss

        return at

    # ---- alignment ----

    def cosine(self, rng: np.random.Generator) -> Callable[[int], meta.Loss]:
        """Strong pairs: 1 - mean cosine, the loss of the authors' code."""
        return self._aligned(*self._strong(rng), lambda model, s, t, _: losses.cosine_alignment(s, t), rng)

    def instance(self, rng: np.random.Generator) -> Callable[[int], meta.Loss]:
        """Strong pairs: symmetric NCE, a sample's only positive is its partner."""
        return self._aligned(*self._strong(rng), lambda model, s, t, _: instance_nce(model, s, t), rng)

    def centroid(self, rng: np.random.Generator) -> Callable[[int], meta.Loss]:
        """Weak pairs: hinge between the centroids of sets, the loss of the authors' code."""
        margin = self.config.margin
        return self._aligned(*self._weak(rng), lambda model, s, t, sets: losses.centroid_hinge(s, t, sets, margin), rng)

    def set(self, rng: np.random.Generator) -> Callable[[int], meta.Loss]:
        """Weak pairs: symmetric NCE, positives are all members of the set."""
        return self._aligned(*self._weak(rng), set_nce, rng)

    def confusion(self, rng: np.random.Generator) -> Callable[[int], meta.Loss]:
        """No pairs: a discriminator tells the modalities apart and its gradient is reversed for the encoders."""
        n = self.config.n_way * self.config.n_shot
        source = some(np.concatenate(list(self.source_sets.values())), n, rng)
        return self._aligned(source, some(self.unlabeled, n, rng), np.zeros(n), modality_confusion, rng)

    def _strong(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = sorted(self.pairs_of)
        labels = rng.choice(labels, min(self.config.align_way, len(labels)), replace=False)
        rows = np.concatenate([some(self.pairs_of[int(label)], self.config.n_shot, rng) for label in labels])
        rows = np.unique(rows)  # a pair that is drawn twice would be its own negative
        return self.pairs[rows, 0], self.pairs[rows, 1], np.zeros(len(rows))

    def _weak(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        k = self.config.n_shot
        labels = rng.choice(self.set_labels, min(self.config.align_way, len(self.set_labels)), replace=False)
        source = np.concatenate([some(self.source_sets[int(label)], k, rng) for label in labels])
        target = np.concatenate([some(self.target_sets[int(label)], k, rng) for label in labels])
        return source, target, np.repeat(np.arange(len(labels)), k)

    def _aligned(
        self, source: np.ndarray, target: np.ndarray, sets: np.ndarray, loss: Callable, rng: np.random.Generator
    ) -> Callable[[int], meta.Loss]:
        seed, of = int(rng.integers(2**32)), self._tensor(sets.astype(np.int64))

        def at(inner: int) -> meta.Loss:
            s = self._input(self.data.source, source, (seed, inner))
            t = self._input(self.data.target, target, (seed, inner + 1000))
            return lambda model: loss(model, model.embed_source(s), model.embed_target(t), of)

        return at

    def _input(self, side: Side, rows: np.ndarray, key: tuple[int, int]) -> Tensor:
        return as_input(side.x[rows], side.kind, np.random.default_rng(key), self.device)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def instance_nce(model: PairedEncoders, source: Tensor, target: Tensor) -> Tensor:
    """Symmetric NCE of strong pairs: row i of source belongs to row i of target."""
    return set_nce(model, source, target, torch.arange(len(source), device=source.device))


def set_nce(model: PairedEncoders, source: Tensor, target: Tensor, sets: Tensor) -> Tensor:
    """Symmetric NCE of sets; sets int64 [n]: which one a row of source, and of target, belongs to."""
    scale = losses.temperature(model.log_scale)
    forth = losses.contrastive(source, target, sets, sets, scale)
    return (forth + losses.contrastive(target, source, sets, sets, scale)) / 2


def modality_confusion(model: PairedEncoders, source: Tensor, target: Tensor, _sets: Tensor) -> Tensor:
    """Cross-entropy of the discriminator; the encoders receive the negative of its gradient."""
    both = GradientReversal.apply(model.spread(torch.cat([source, target])))
    is_source = torch.cat([torch.ones(len(source)), torch.zeros(len(target))]).to(both.device)
    return F.binary_cross_entropy_with_logits(model.discriminator(both).squeeze(1), is_source)


def reconstruction_loss(kind: str, x: Tensor, decoded: Tensor) -> Tensor:
    """Text: cross-entropy of its tokens as a distribution; else squared error, of an embedding or on DECODED_PX x
    DECODED_PX cells."""
    if kind == "embedding":
        return F.mse_loss(decoded, x)
    if kind == "text":
        log_probability = F.log_softmax(decoded, dim=1).gather(1, x)
        there = (x != 0).to(decoded.dtype)
        return -((log_probability * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)).mean()
    return F.mse_loss(decoded, F.adaptive_avg_pool2d(x, DECODED_PX).flatten(1))


def n_decoded(side: Side, n_buckets: int) -> int:
    """Outputs of a decoder of a modality."""
    if side.kind == "embedding":
        return side.x.shape[1]
    return n_buckets if side.kind == "text" else DECODED_PX**2 * (3 if side.kind == "image" else 1)
