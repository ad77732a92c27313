"""Training of the encoders of the bundles `audio` and `image`.

Three losses on two views of every sample: a cosine classifier over all labels, a contrastive loss in which all samples
of a group are positives (Khosla et al. 2020), and one in which only the other view of the same sample is (Chen et al.
2020). The last keeps what sets samples of a class apart: new classes are told apart by it.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgealign.errors import InvalidInput
from edgealign.train import losses
from edgealign.train.checkpoints import plain, read_checkpoint
from edgealign.train.loop import Diverged, duration
from edgealign.train.sense_encoders import SenseConfig, SenseEncoder
from edgealign.train.source_networks import N_SPECIAL, PictureMap, Words
from edgealign.train.updates import add_to_log, follow, learning_rate, trim_log
from edgealign.writing import replace_file

FORMAT = "edgealign sense run 1"
SENSE_FORMAT = "edgealign sense 2"
CLASSIFIER_SCALE = 16.0


@dataclass(frozen=True)
class SensesConfig:
    """fold   which third of the sound classes is kept for the test; -1 trains on all (for pictures, 0 or -1)."""

    seed: int = 0
    fold: int = 0
    steps: int = 900
    learning_rate: float = 2e-3
    weight_decay: float = 0.03
    warm_up_steps: int = 40
    group_weight: float = 1.0
    instance_weight: float = 0.5
    average_decay: float = 0.99
    validate_every: int = 100
    encoder: SenseConfig = field(default_factory=SenseConfig)


class Heads(nn.Module):
    """What training needs beside the encoder."""

    def __init__(self, dim: int, n_labels: int) -> None:
        super().__init__()
        self.labels = nn.Linear(dim, n_labels, bias=False)
        self.instance = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, dim))


class SenseTrainer:
    """One run in a folder: goes on where it was stopped.

    batches       has n_labels and draw(step), see `sounds.SoundBatches`
    validation    (samples as the encoder reads them, one batch each; labels int [n]); None where all is for training
    folder        log.jsonl, last.pt and best.pt
    """

    def __init__(self, batches, validation: tuple[list[Tensor], np.ndarray] | None, config: SensesConfig, folder: Path):
        torch.manual_seed(config.seed)
        self.batches, self.validation, self.config, self.folder = batches, validation, config, folder
        self.encoder = SenseEncoder(config.encoder)
        self.heads = Heads(config.encoder.dim, batches.n_labels)
        self.average = copy.deepcopy(self.encoder).eval()
        decayed, others = [], []
        for parameter in (*self.encoder.parameters(), *self.heads.parameters()):
            (decayed if parameter.ndim > 1 else others).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        )
        self.step, self.best, self.trained_s = 0, -math.inf, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "last.pt").exists():
            self._resume(folder / "last.pt")

    def run(self, report: Callable[[str], None], minutes: float | None = None) -> None:
        """Train to config.steps, or for so many minutes; a later call goes on as if there had been no stop."""
        started, before, first, saved = time.monotonic(), self.trained_s, self.step, time.monotonic()
        while self.step < self.config.steps:
            terms = self.advance()
            now = time.monotonic()
            self.trained_s = before + now - started
            done = self.step == self.config.steps
            out_of_time = minutes is not None and now - started > 60 * minutes
            if self.step % 10 == 0 or done:
                pace_s = (now - started) / (self.step - first)
                numbers = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
                left = duration((self.config.steps - self.step) * pace_s)
                report(f"step {self.step}/{self.config.steps} {numbers} {pace_s:.2f} s/step, {left} left")
            if self.step % self.config.validate_every == 0 or done:
                self._validate(report, terms)
            elif out_of_time or now - saved > 60:
                self._save("last.pt")
                saved = now
            if out_of_time:
                return

    def advance(self) -> dict[str, float]:
        """One update. Returns the loss terms; Diverged where one is not a finite number."""
        x, labels, groups, instances = self.batches.draw(self.step)
        self.encoder.train()
        self.heads.train()
        raw = self.encoder(x)
        embedding = F.normalize(raw, dim=1)
        logits = CLASSIFIER_SCALE * embedding @ F.normalize(self.heads.labels.weight, dim=1).T
        projected = F.normalize(self.heads.instance(raw), dim=1)
        view = (torch.arange(len(x)) >= len(x) // 2).long()
        scale = torch.tensor(10.0)
        terms = {
            "label": F.cross_entropy(logits, labels, label_smoothing=0.1),
            "group": self.config.group_weight * losses.across_speakers(embedding, groups, torch.arange(len(x)), scale),
            "instance": self.config.instance_weight * losses.across_speakers(projected, instances, view, scale),
        }
        total = sum(terms.values())
        if not torch.isfinite(total):
            raise Diverged(f"the loss at step {self.step} is {float(total)}: lower learning_rate, or look at the data")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                self.config.learning_rate, self.step, self.config.steps, self.config.warm_up_steps, last=0.01
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        follow(self.average, self.encoder, self.step, self.config.average_decay)
        return {name: float(term.detach()) for name, term in terms.items()}

    def _validate(self, report: Callable[[str], None], terms: dict[str, float]) -> None:
        scores = {}
        if self.validation is not None:
            samples, labels = self.validation
            with torch.inference_mode():
                embeddings = torch.cat([self.average.embed(x) for x in samples]).numpy()
            enough = np.sort(np.bincount(labels))[-2:].min()  # of the two largest labels: the fewest that can be asked
            scores = {f"{k} shot": accuracy(embeddings, labels, k) for k in (1, 5) if k < enough}
            report("validation " + " ".join(f"{name} {value:.1f} %" for name, value in scores.items()))
        row = {"step": self.step, "trained_s": round(self.trained_s), **terms, **scores}
        add_to_log(self.folder / "log.jsonl", row)
        score = sum(scores.values()) or float(self.step)
        if score > self.best:
            self.best = score
            self._save("best.pt")
        self._save("last.pt")

    def _save(self, name: str) -> None:
        state = {
            "format": FORMAT, "config": plain(self.config), "step": self.step,
            "best": self.best, "trained_s": self.trained_s, "average": self.average.state_dict(),
            "encoder": self.encoder.state_dict(), "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        with replace_file(self.folder / name) as file:
            torch.save(state, file)

    def _resume(self, path: Path) -> None:
        state = load_state(path)
        expected = plain(self.config)
        if state["config"] != expected:
            different = [name for name in expected if state["config"].get(name) != expected[name]]
            raise InvalidInput(
                f"'{path}' was made with other values of {', '.join(different)}: name another folder, or give those"
            )
        self.encoder.load_state_dict(state["encoder"])
        self.heads.load_state_dict(state["heads"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.trained_s = state["step"], state["best"], state["trained_s"]
        trim_log(self.folder / "log.jsonl", self.step)


def load_state(path: Path, form: str = FORMAT) -> dict:
    """What `SenseTrainer` or `Sense` saved; InvalidInput for anything else."""
    state = read_checkpoint(path, "sense.pt of a run")
    found = state.get("format")
    if found != form:
        raise InvalidInput(
            f"'{path}' has the format {found!r}: expected {form!r}, of `edgealign train audio` or `image`"
        )
    return state


def is_sense(path: Path) -> bool:
    """Whether a file is what `Sense.save` wrote; False for what is no checkpoint at all."""
    try:
        load_state(path, SENSE_FORMAT)
    except InvalidInput:
        return False
    return True


@dataclass(frozen=True)
class Sense:
    """A trained encoder and its sources: what `edgealign export` takes.

    words, vocabulary       the text source
    pictures, picture_map   the picture source of sounds: an image encoder, and the map from its space
    """

    config: dict
    encoder: SenseEncoder
    words: Words | None = None
    vocabulary: dict | None = None
    pictures: SenseEncoder | None = None
    picture_map: PictureMap | None = None

    @classmethod
    def of_run(cls, run: Path) -> Sense:
        """The best encoder of a run."""
        state = load_state(run / "best.pt")
        return cls(state["config"], _encoder(state["config"]["encoder"], state["average"]))

    @property
    def modality(self) -> str:
        return self.encoder.config.modality

    def save(self, path: Path) -> None:
        """In half precision: the encoder at `path`, and what it can start from in files of their own beside it."""
        encoder = _half(self.encoder)
        sources = {}
        if self.words is not None:
            sources["words"] = {"words": _half(self.words), "vocabulary": self.vocabulary}
        if self.pictures is not None:
            sources["pictures"] = {
                "pictures": _half(self.pictures), "pictures_config": plain(self.pictures.config),
                "picture_map": _half(self.picture_map),
            }  # fmt: skip
        for name, parts in sources.items():
            with replace_file(_beside(path, name)) as file:
                torch.save({"format": SENSE_FORMAT, "encoder_sha256": _sha256(encoder), **parts}, file)
        with replace_file(path) as file:
            torch.save(
                {
                    "format": SENSE_FORMAT, "config": self.config | {"encoder": plain(self.encoder.config)},
                    "encoder": encoder, "sources": list(sources),
                },
                file,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path, modality: str | None = None) -> Sense:
        """InvalidInput for anything but what `save` wrote, and for another modality than the one asked for."""
        state = load_state(path, SENSE_FORMAT)
        try:
            sense = cls(state["config"], _encoder(state["config"]["encoder"], state["encoder"]))
            dim = sense.encoder.config.dim
            parts = {name: _part(path, name, _sha256(state["encoder"])) for name in state["sources"]}
            if "words" in parts:
                vocabulary = parts["words"]["vocabulary"]
                words = Words(len(vocabulary["tokens"]) + N_SPECIAL, dim)
                words.load_state_dict(_full(parts["words"]["words"]))
                sense = replace(sense, words=words.eval(), vocabulary=vocabulary)
            if "pictures" in parts:
                pictures = _encoder(parts["pictures"]["pictures_config"], parts["pictures"]["pictures"])
                mapped = PictureMap(pictures.config.dim, dim)
                mapped.load_state_dict(_full(parts["pictures"]["picture_map"]))
                sense = replace(sense, pictures=pictures, picture_map=mapped.eval())
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise InvalidInput(f"'{path}' was saved by another version of `edgealign train`: train again") from error
        if modality is not None and sense.modality != modality:
            raise InvalidInput(f"'{path}' is an encoder of the modality {sense.modality}: expected {modality}")
        return sense


def _beside(path: Path, source: str) -> Path:
    return path.with_name(f"{path.stem}-{source}{path.suffix}")


def _part(path: Path, source: str, encoder_sha256: str) -> dict:
    """What `Sense.save` wrote beside the encoder at `path`; InvalidInput where it is missing, or another encoder's."""
    beside = _beside(path, source)
    if not beside.exists():
        raise InvalidInput(f"'{path}' has {source}, but there is no '{beside}': copy it from where the former is from")
    state = load_state(beside, SENSE_FORMAT)
    if state.get("encoder_sha256") != encoder_sha256:
        raise InvalidInput(f"'{beside}' belongs to another encoder than '{path}': copy both from one run")
    return state


def _sha256(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, t in sorted(state.items()):
        digest.update(name.encode() + t.numpy().tobytes())
    return digest.hexdigest()


def _half(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.half() if t.is_floating_point() else t for name, t in module.state_dict().items()}


def _full(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def _encoder(config: dict, state: dict[str, Tensor]) -> SenseEncoder:
    encoder = SenseEncoder(SenseConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}))
    encoder.load_state_dict(_full(state))
    return encoder.eval()


def accuracy(embeddings: np.ndarray, labels: np.ndarray, n_shot: int, n_way: int = 5, n_episodes: int = 300) -> float:
    """Percent of queries whose nearest prototype is that of their label, mean over episodes drawn from a fixed seed.

    A label of n_shot samples or fewer is not asked.
    """
    rng = np.random.default_rng(n_shot)
    rows_of = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rows_of = [rows for rows in rows_of if len(rows) > n_shot]
    hits = []
    for _ in range(n_episodes):
        chosen = rng.choice(len(rows_of), min(n_way, len(rows_of)), replace=False)
        drawn = [rng.permutation(rows_of[i])[: n_shot + 10] for i in chosen]
        prototypes = np.stack([embeddings[rows[:n_shot]].mean(axis=0) for rows in drawn])
        prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
        queries = np.concatenate([rows[n_shot:] for rows in drawn])
        truth = np.repeat(np.arange(len(drawn)), [len(rows) - n_shot for rows in drawn])
        hits.append(float(((embeddings[queries] @ prototypes.T).argmax(axis=1) == truth).mean()))
    return 100 * float(np.mean(hits))
