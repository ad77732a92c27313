"""Projections on top of two frozen bundles: small heads that align their spaces, trained by the loop of `loop`.

Every sample is embedded once, by the runtime of its bundle, and the embeddings are kept in a cache. To the loop they
are one more kind of side. A linear head and one with a residual MLP are trained; validation labels choose.
`export.projection` folds the heads into the graphs.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgealign.bundle import Bundle
from edgealign.errors import InputUnreadable, InvalidInput
from edgealign.inputs import ImageInput, Windows
from edgealign.samples import clip_values, embed, open_sample
from edgealign.train import pairs_table, research
from edgealign.train.evaluation import Cell, Episodes, Evaluation, Retrieval, retrieval
from edgealign.train.features import Item, identity
from edgealign.train.listing import Listing
from edgealign.train.loop import Loop, Report, load_best
from edgealign.train.methods import METHODS, LoopConfig, expect_pairs
from edgealign.train.networks import Head, NetworkConfig, PairedEncoders
from edgealign.train.paired import Paired, Protocol
from edgealign.writing import replace_file

VERSION = 1  # of what the cache holds: part of the name of every file
SAVE_EVERY = 256  # samples: what a stopped run loses at most
HEADS = {"linear": False, "residual": True}  # name -> NetworkConfig.residual
EMBEDDED = ("embedding", "embedding")  # kinds of both sides, to the loop
SOURCE_KINDS = ("text", "image")
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)  # recordings that a source sample may count as
LISTED_PROBLEMS = 5


# ---- embeddings of frozen encoders ----


@dataclass(frozen=True)
class Rows:
    """Unit embeddings of samples, window by window: a head works on those, not on their mean.

    windows   float32 [n_windows, dim], sample after sample
    counts    int64 [n_samples], windows of each
    """

    windows: np.ndarray
    counts: np.ndarray

    def means(self) -> np.ndarray:
        """Embeddings of the samples as the runtime makes them: unit rows, float32 [n_samples, dim]."""
        total = np.add.reduceat(self.windows, np.cumsum(self.counts) - self.counts, axis=0, dtype=np.float64)
        return (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class SourceSide:
    """One of the ways into the space of a bundle: texts, or pictures.

    file    of the graph that embeds them
    """

    bundle: Bundle
    kind: str
    file: str
    name: str

    @classmethod
    def of(cls, bundle: Bundle, kind: str | None) -> SourceSide:
        """kind   one of SOURCE_KINDS; None: texts where the bundle reads them, else pictures"""
        pictures = isinstance(bundle.input, ImageInput)
        files = {name: bundle.sources[name].file for name in SOURCE_KINDS if name in bundle.sources}
        if pictures:
            files["image"] = bundle.encoder_file()
        if not files:
            raise InvalidInput(
                f"the source bundle '{bundle.name}' is for {bundle.modality} and labels start from texts or pictures: "
                f"name a bundle that reads one of them"
            )
        kind = kind or next(name for name in SOURCE_KINDS if name in files)
        if kind not in files:
            raise InvalidInput(f"the source bundle '{bundle.name}' reads no {kind}: it reads {' and '.join(files)}")
        return cls(bundle, kind, files[kind], f"{kind} {bundle.encoder_sha256} {bundle.variant}")

    def encode(self, item: Item) -> np.ndarray:
        """float32 [1, dim]"""
        if self.kind == "text":
            return self.bundle.encode_text(self.bundle.tokenizer.encode(item))[None]
        if isinstance(self.bundle.input, ImageInput):
            return windows_of(self.bundle, item)
        from edgealign.images import fit, read_picture

        pixels = fit(read_picture(item).pixels, self.bundle.source("image").input)
        return self.bundle.encode_image_source(pixels)[None]


def windows_of(bundle: Bundle, path: Path, variant: str | None = None) -> np.ndarray:
    """Unit embeddings of the windows of a sample, one where it has no windows: float32 [n_windows, dim]."""
    opened = open_sample(bundle, path)
    taken = bundle.input
    if not isinstance(taken, ImageInput) and not isinstance(taken.windows, Windows):
        values = clip_values(bundle, opened.blocks(taken.sample_rate_hz))
        return np.concatenate([bundle.encode(window, variant) for window in values])
    found = embed(bundle, opened, variant=variant)
    if found is None:
        raise InputUnreadable(f"no sound stands out of '{path}'")
    return found.embedding[None]


def embedded(
    items: Sequence[Item], encode: Callable[[Item], np.ndarray], name: str, cache: Path, report: Report
) -> Rows:
    """Embeddings of all items, from the cache as far as they were made before.

    encode   an item -> float32 [n_windows, dim];  name   of the encoder: everything that changes its embeddings
    """
    path = cache / f"embeddings-{hashlib.sha256(f'{VERSION} {name}'.encode()).hexdigest()[:24]}.npz"
    known = _read_known(path)
    keys = [hashlib.sha256(identity(item)).hexdigest() for item in items]
    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
    problems = []
    for done, (key, item) in enumerate(missing.items(), 1):
        try:
            known[key] = encode(item)
        except (InputUnreadable, InvalidInput) as error:
            problems.append(str(error))
        if done % SAVE_EVERY == 0 or done == len(missing):
            _save_known(path, known)
            report(f"{name.partition(' ')[0]}: {done} of {len(missing)} embedded")
    if problems:
        more = f"; and {len(problems) - LISTED_PROBLEMS} more" if len(problems) > LISTED_PROBLEMS else ""
        raise InputUnreadable(
            f"{len(problems)} of {len(items)} samples cannot be embedded: "
            f"{'; '.join(problems[:LISTED_PROBLEMS])}{more}: take their rows out of the table, or mend the files"
        )
    windows = [known[key] for key in keys]
    return Rows(np.concatenate(windows), np.array([len(rows) for rows in windows], np.int64))


def _read_known(path: Path) -> dict[str, np.ndarray]:
    """What the cache holds, by the hash of the item; nothing where the file is not there or is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            ends = np.cumsum(arrays["counts"])[:-1]
            return dict(zip(arrays["keys"].tolist(), np.split(arrays["windows"], ends), strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def _save_known(path: Path, known: dict[str, np.ndarray]) -> None:
    if not known:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = np.array([len(rows) for rows in known.values()], np.int64)
    with replace_file(path) as file:
        np.savez(file, keys=np.array(list(known)), counts=counts, windows=np.concatenate(list(known.values())))


# ---- before and after ----


class Frozen(nn.Module):
    """Stands in for `PairedEncoders` where the sides hold embeddings that are to be compared as they are."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.config = NetworkConfig(dim=dim)
        self.device_of = nn.Parameter(torch.zeros(1))  # `Embedded` asks the first parameter for the device

    def embed_source(self, x: Tensor) -> Tensor:
        return F.normalize(F.pad(x, (0, self.config.dim - x.shape[1])), dim=1)

    embed_target = embed_source


def cells(evaluation: Evaluation, data: Paired, head: str) -> list[Cell]:
    """Accuracies of nearest prototypes of the embeddings in `data`, on the episodes of `evaluation`.

    Without k = 0 where the spaces of source and target have different dimensions: nothing compares them.
    """
    dims = {side.x.shape[1] for side in (data.source, data.target)}
    found = evaluation.prototype_cells(Frozen(max(dims)), data=data)
    return [replace(cell, head=head) for cell in found if cell.k or len(dims) == 1]


def refined_cells(evaluation: Evaluation, data: Paired, head: str, weight: float) -> Iterator[Cell]:
    """The same with prototypes of k target samples and one source sample that counts as `weight` of them."""
    for drawn in evaluation.drawn:
        if drawn.protocol.with_source:
            for k in evaluation.shots:
                yield Cell(drawn.protocol.name, head, k, 0.0, drawn.n_way, _refined(drawn, data, k, weight))


def _refined(drawn: Episodes, data: Paired, k: int, weight: float) -> np.ndarray:
    """Accuracy of each episode: float64 [n]."""
    support = data.target.x[drawn.rows[:, :, :k]].sum(axis=2)
    prototypes = support + weight * data.source.x[drawn.sources[:, :, 0]]
    prototypes /= np.linalg.norm(prototypes, axis=2, keepdims=True)
    queries = data.target.x[drawn.rows[:, :, drawn.n_support :]]
    nearest = np.einsum("eqkd,ewd->eqkw", queries, prototypes).argmax(axis=3)
    return (nearest == np.arange(drawn.n_way)[:, None]).mean(axis=(1, 2))


def difference(before: Sequence[Cell], after: Sequence[Cell]) -> list[Cell]:
    """Paired differences on the same episodes, where both were measured."""
    known = {(cell.protocol, cell.k): cell for cell in before}
    return [
        replace(
            cell, head=f"{cell.head} − before", accuracies=cell.accuracies - known[cell.protocol, cell.k].accuracies
        )
        for cell in after
        if (cell.protocol, cell.k) in known
    ]


# ---- the heads ----


@dataclass(frozen=True)
class Affine:
    """weight float32 [outputs, inputs], bias float32 [outputs]"""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Projection:
    """What is folded into a graph: unit rows x -> linear(x) + second(relu(first(x))), scaled to unit length.

    first, second   None for a linear head
    """

    linear: Affine
    first: Affine | None = None
    second: Affine | None = None

    @classmethod
    def of(cls, head: Head, after: nn.Linear | None) -> Projection:
        """A trained head and the linear map behind it (A, on the target side) in one; float64 inside."""
        inputs = head.linear.in_features
        matrix = np.eye(head.linear.out_features) if after is None else _float64(after.weight)
        offset = 0 if after is None else _float64(after.bias)
        scale = inputs**0.5  # `tasks.as_input` scales embeddings to unit variance
        linear = _affine(matrix @ _float64(head.linear.weight) * scale, matrix @ _float64(head.linear.bias) + offset)
        if head.residual is None:
            return cls(linear)
        first, _, second = head.residual
        return cls(
            linear, _affine(_float64(first.weight) * scale, _float64(first.bias)),
            _affine(matrix @ _float64(second.weight), matrix @ _float64(second.bias)),
        )  # fmt: skip

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 [n, inputs] -> unit rows [n, outputs]."""
        y = x @ self.linear.weight.T + self.linear.bias
        if self.first is not None and self.second is not None:
            hidden = np.maximum(x @ self.first.weight.T + self.first.bias, 0)
            y = y + hidden @ self.second.weight.T + self.second.bias
        return y / np.linalg.norm(y, axis=1, keepdims=True)


def _float64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def _affine(weight: np.ndarray, bias: np.ndarray) -> Affine:
    return Affine(weight.astype(np.float32), bias.astype(np.float32))


# ---- from pairs to heads ----


@dataclass(frozen=True)
class Trained:
    """What `train` found, on its way into a bundle pair.

    data         with the embeddings of the frozen encoders;  after   with those of the heads
    rows         of the frozen encoders: source, target
    projections  of source and target
    weight       target samples that one source sample counts as, chosen on validation labels
    cells        test accuracies before and after, and their differences;  ranked   retrieval after
    """

    source: SourceSide
    target: Bundle
    listing: Listing
    data: Paired
    after: Paired
    rows: tuple[Rows, Rows]
    projections: tuple[Projection, Projection]
    head: str
    weight: float
    evaluation: Evaluation
    cells: list[Cell]
    ranked: list[Retrieval]
    scores: dict[str, float]

    @property
    def warnings(self) -> list[str]:
        """One sentence each, where the projection is not worth having."""
        frozen = self.scores.get("frozen", 0.0)
        if frozen < self.scores[self.head]:
            return []
        return [
            f"on validation labels the projection ({100 * self.scores[self.head]:.1f} %) is no better than the frozen "
            f"encoders ({100 * frozen:.1f} %): keep those, or give more pairs of more labels"
        ]

    def json(self) -> str:
        """Results for other programs."""
        whole = json.loads(research.results_json(self.data, self.evaluation, self.cells, self.ranked))
        whole |= {
            "source_sha256": self.source.bundle.encoder_sha256, "source_kind": self.source.kind,
            "target_sha256": self.target.encoder_sha256, "head": self.head, "weight": self.weight,
            "validation": {name: round(100 * score, 3) for name, score in self.scores.items()},
        }  # fmt: skip
        return json.dumps(whole, ensure_ascii=False, indent=1)


def default_config(method: str, seed: int, steps: int) -> LoopConfig:
    """A short schedule; heads are trained in a minute, so checkpoints are frequent."""
    return LoopConfig(
        method=method, seed=seed, steps=steps, tasks_per_step=1, validate_every=50, checkpoint_s=20.0
    )  # fmt: skip


def read_pairs(table: Path, source: SourceSide, target: Bundle) -> Listing:
    """The rows of a table whose files the two bundles read."""
    kinds = (source.kind, "image" if isinstance(target.input, ImageInput) else "sound")
    return pairs_table.read(table, f"pairs-{table.stem}", kinds)


def paired(
    listing: Listing, source: SourceSide, target: Bundle, cache: Path, report: Report
) -> tuple[Paired, tuple[Rows, Rows]]:
    """Embeds what a listing names."""
    rows = (
        embedded([item for item, _ in listing.sources], source.encode, source.name, cache, report),
        embedded(
            [item for item, _ in listing.targets], lambda item: windows_of(target, item),
            f"target {target.encoder_sha256} {target.variant}", cache, report,
        ),
    )  # fmt: skip
    has_source = {label for _, label in listing.sources}
    startable = all(
        sum(role == wanted and label in has_source for label, role in listing.roles.items()) > 1
        for wanted in ("val", "test")
    )
    protocols = (Protocol("labels", 5, startable),)
    return listing.joined(EMBEDDED, [part.means() for part in rows], protocols), rows


def train(
    source: SourceSide, target: Bundle, listing: Listing, folder: Path, config: LoopConfig, cache: Path,
    shots: Sequence[int], n_queries: int, n_episodes: int, report: Report,
) -> Trained:  # fmt: skip
    """Heads for the pairs of a listing; the runs of the loop are folders in `folder`, and go on where they stopped."""
    if METHODS[config.method].shared:
        raise InvalidInput(f"'{config.method}' shares a trunk, which two heads have not: choose another method")
    expect_pairs(METHODS[config.method], len(listing.pairs), listing.name)
    nothing = [np.zeros((len(samples), 1), np.float32) for samples in (listing.sources, listing.targets)]
    listing.joined(EMBEDDED, nothing, research.OWN).check(shots, n_queries)  # before hours of encoding
    data, rows = paired(listing, source, target, cache, report)
    networks = replace(config.networks, dim=data.target.x.shape[1])
    found: dict[str, tuple[float, PairedEncoders]] = {}
    for name, residual in HEADS.items():
        own = replace(config, networks=replace(networks, residual=residual))
        loop = Loop(data, own, folder / name)
        loop.run(lambda line, name=name: report(f"{name}, {line}"))
        found[name] = loop.best, load_best(data, own, folder / name)
    head = max(found, key=lambda name: found[name][0])
    model = found[head][1]
    projections = Projection.of(model.source, None), Projection.of(model.target, model.alignment)
    after = projected(data, rows, projections)

    validation = loop.evaluation
    scores = {name: score for name, (score, _) in found.items()}
    frozen = cells(validation, data, "before")
    if frozen and len(frozen) == len(cells(validation, after, "after")):
        scores["frozen"] = float(np.mean([cell.accuracies.mean() for cell in frozen]))
    weight = _best_weight(validation, after)
    evaluation = Evaluation(data, "test", n_episodes, n_queries, shots)
    before, then = cells(evaluation, data, "before"), cells(evaluation, after, "after")
    refined = list(refined_cells(evaluation, after, "after, with one source", weight))
    measured = [*before, *then, *refined, *difference(before, then), *difference(before, refined)]
    ranked = retrieval(after, Frozen(networks.dim))
    return Trained(
        source, target, listing, data, after, rows, projections, head, weight, evaluation, measured, ranked, scores
    )


def projected(data: Paired, rows: tuple[Rows, Rows], projections: tuple[Projection, Projection]) -> Paired:
    """The data with the embeddings that the projected encoders give."""
    sides = [
        replace(side, x=Rows(projection(part.windows), part.counts).means())
        for side, part, projection in zip((data.source, data.target), rows, projections, strict=True)
    ]
    return replace(data, source=sides[0], target=sides[1])


def _best_weight(validation: Evaluation, after: Paired) -> float:
    """Of WEIGHTS, the one with the best prototypes of validation labels; 1 where they have no source samples."""
    means = {}
    for weight in WEIGHTS:
        accuracies = [cell.accuracies.mean() for cell in refined_cells(validation, after, "", weight)]
        means[weight] = float(np.mean(accuracies)) if accuracies else 0.0
    best = max(means.values())
    return 1.0 if best == 0 else next(weight for weight, mean in means.items() if mean == best)
