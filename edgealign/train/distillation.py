"""Teach a speech encoder what other ones hear on average, whoever says it and however fast.

Training on words ends in what tells these words apart; the longer it lasts, the more is dropped that others need. So
what ships is a student: its target for a clip in field conditions is the mean of what its teachers, finished encoders,
make of that clip as it is and of the clip with its bands and its time warped, as if others said it. That is moved
part of the way to the words that it might be, as nobody in particular says them. No label is used, so that none is
learned by heart.

    t(x)    mean over teachers' embeddings of variants of x, centered and concatenated: a unit vector [n_teachers * dim]
    w(x)    mean of what teachers hear of words of the corpus, weighted by the softmax of SHARPNESS times their cosines
            to t(x), a unit vector: what is left of t(x) where its speaker is forgotten
    target  the DIM principal components of (1 - word_share) t + word_share w, as a unit vector: nearly all lies there
    loss    1 - cosine of the student's embedding to its target, and STATISTICS_WEIGHT times the squared error of what
            its heads pool to the mean of what the first teacher's pool of the variants, in units of their deviations,
            and phone_weight times the connectionist temporal classification of the phonemes of spelled words
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgealign.errors import InvalidInput
from edgealign.train import last_maps
from edgealign.train.batches import Batch, Batches
from edgealign.train.checkpoints import plain, read_checkpoint, refuse_other_config
from edgealign.train.clips import Clips
from edgealign.train.config import TrainConfig
from edgealign.train.corpus import Corpus
from edgealign.train.encoders import AlignedEncoders, centered
from edgealign.train.front_end import FRONT_END, mel_filters
from edgealign.train.sense_encoders import computes_bfloat16
from edgealign.train.text_to_speech import Checkpoint, in_parts, phone_losses, shared_phones
from edgealign.train.updates import Updates, add_to_log, parts_left, run_folder, trim_log
from edgealign.writing import replace_file

# What others would have said: frequencies read at so many times each, and lengths. The clip itself is the first.
VARIANTS = (
    (1.0, 1.0), (0.92, 1.0), (0.96, 1.0), (1.04, 1.0), (1.08, 1.0), (1.0, 0.9), (1.0, 1.1), (0.95, 0.9), (1.05, 1.1),
    (0.95, 1.1), (1.05, 0.9),
)  # fmt: skip
STATISTICS_WEIGHT = 0.3
WORDS, CLIPS_OF_WORD, SHARPNESS = 60_000, 2, 25.0
SHORTEST_FRAMES = 8


@dataclass(frozen=True)
class DistillationConfig:
    seed: int = 0
    steps: int = 900
    synthetic_words: int = 64  # in a batch, one clip of each
    recorded_words: int = 16  # two takes of each; most are spliced, see `batches.Splice`
    variants: int = 3  # of a clip that a teacher hears in one step
    word_share: float = 0.35  # of a target: words near what was heard, see w(x)
    phone_weight: float = 0.08
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    warm_up_steps: int = 30
    average_decay: float = 0.99
    validate_every: int = 150
    left_out: tuple[str, ...] = ()  # packs that neither the teachers nor the student hear

    def __post_init__(self) -> None:
        if not 1 <= self.variants <= len(VARIANTS):
            raise InvalidInput(f"variants is {self.variants}: expected a number from 1 to {len(VARIANTS)}")
        if not 0 <= self.word_share <= 1:
            raise InvalidInput(f"word_share is {self.word_share}: expected a number from 0 to 1")
        for name in ("steps", "synthetic_words", "validate_every"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}: expected a number from 1 on")


class Distillation(Updates):
    """A run in a folder: last.pt to go on from, student.pt, a checkpoint as `text_to_speech.Checkpoint` reads it, and
    log.jsonl."""

    def __init__(
        self, folder: Path, start: Checkpoint, teachers: Sequence[Checkpoint], corpus: Corpus,
        config: DistillationConfig, report: Callable[[str], None],
    ) -> None:  # fmt: skip
        """start   the student begins with its weights"""
        for one in (start, *teachers):
            one.check(corpus)
        start.refuse_teacher()
        self.start, self.corpus = start, corpus
        self.fingerprints = [_fingerprint(teacher.encoders) for teacher in teachers]  # as given, before any is fitted
        heard = [one.left_out for one in (start, *teachers)]
        left_out = tuple(sorted(set.intersection(*map(set, heard))))
        config = replace(config, left_out=left_out)
        torch.manual_seed(config.seed)
        model = AlignedEncoders(start.encoders.config)
        average = AlignedEncoders(start.encoders.config)
        super().__init__(run_folder(folder), config, model, average.eval())
        drawn = TrainConfig(
            seed=config.seed, synthetic_words=config.synthetic_words, renders=1, recorded_words=config.recorded_words,
            takes=2, left_out=left_out, encoders=start.encoders.config,
        )  # fmt: skip
        self.drawn = Batches(corpus, start.vocabulary, drawn)
        resumed = (folder / "last.pt").exists()
        if resumed:
            self._resume()
        self.teachers = []
        for number, teacher in enumerate(teachers, 1):
            if teacher.finished is None:
                report(f"fitting the last maps of teacher {number}")
            self.teachers.append(teacher.finished or teacher.finish(corpus).finished)
        if not resumed:
            self.words = self._words(report)
            report("fitting the student's last map to the teachers")
            self._begin()

    def _resume(self) -> None:
        state = read_checkpoint(self.folder / "last.pt", "last.pt of a run")
        refuse_other_config(state["config"], self.config, self.folder)
        if state["corpus_sha256"] != self.corpus.sha256:
            raise InvalidInput(f"'{self.folder}' was trained on another corpus: name it, or another run folder")
        if state.get("teachers") != self.fingerprints:
            raise InvalidInput(f"'{self.folder}' has other teachers: name them in their order, or another run folder")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.components, self.deviation = state["components"], state["deviation"]
        self.words = state["words"].float()
        self.step, self.trained_s = state["step"], state["trained_s"]
        trim_log(self.folder / "log.jsonl", self.step)

    def _words(self, report: Callable[[str], None]) -> Tensor:
        """What teachers hear of words of the corpus, the means of their clips: unit rows [n_words, n_teachers * dim].
        None where no target is moved to them."""
        dim = len(self.teachers) * self.start.encoders.config.dim
        if not self.config.word_share:
            return torch.zeros(0, dim)
        clips = Clips(self.corpus, self.drawn, self.config.seed)
        labels, rows = clips.several_of_each(WORDS, CLIPS_OF_WORD)
        names, word = np.unique(labels, return_inverse=True)
        sums = np.zeros((len(names), dim), np.float32)
        parts = [slice(first, first + 512) for first in range(0, len(rows), 512)]
        with torch.inference_mode():
            for part in parts_left("hearing words of the corpus", parts, report):
                log_mels = clips.plain(rows[part])
                heard = [teacher.embed_speech(log_mels) for teacher in self.teachers]
                np.add.at(sums, word[part], np.concatenate(heard, axis=1))
        return F.normalize(torch.from_numpy(sums)).half().float()  # as a run that goes on reads them

    @torch.no_grad()
    def _begin(self, n_batches: int = 24) -> None:
        """Components of what teachers hear; the student's embeddings of speech and text begin with a map to them."""
        model, dim = self.model, self.start.encoders.config.dim
        model.load_state_dict(self.start.encoders.state_dict())
        if self.start.phones:
            here, there = (list(column) for column in zip(*shared_phones(self.drawn, self.start.phones), strict=True))
            given = self.start.encoders.speech.phones
            for own, theirs in zip(model.speech.phones.parameters(), given.parameters(), strict=True):
                own[here] = theirs[there]
        model.eval()
        heard, statistics, speech, text = [], [], [], []
        for step in range(n_batches):
            rng = random.Random(f"components {self.config.seed} {step}")
            batch = self.drawn.draw(self.config.steps + step)
            for _, log_mels, mask in _halves(batch):
                for column, x in zip((heard, statistics), self._hear(log_mels, mask, rng), strict=True):
                    column.append(x)
                speech.append(model.alignment(model.speech(log_mels, mask)))
            text.append(model.text(*batch.graphemes))
        heard = torch.cat(heard)
        self.components = torch.linalg.svd(heard, full_matrices=False)[2][:dim].T.contiguous()
        self.deviation = torch.cat(statistics).std(dim=0) + 1e-3
        target = F.normalize(heard @ self.components, dim=1)
        fitted = last_maps.ridge(F.normalize(torch.cat(speech), dim=1).double().numpy(), target.double().numpy())
        weight, offset = torch.from_numpy(fitted.weight).float(), torch.from_numpy(fitted.offset).float()
        for layer, embedded in ((model.alignment, speech), (model.text.pooling.out, text)):
            size = torch.cat(embedded).norm(dim=1).mean()  # they are made unit vectors after the map
            layer.weight.copy_(weight @ layer.weight)
            layer.bias.copy_(weight @ layer.bias + offset * size)
        self.average.load_state_dict(model.state_dict())
        model.train()

    @torch.no_grad()
    def _hear(self, log_mels: Tensor, mask: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Targets in all dimensions [n, n_teachers * dim], and mean statistics by the first teacher, which always hears
        the clip itself."""
        embedded, statistics = [], []
        for number, teacher in enumerate(self.teachers):
            encoders = teacher.encoders
            pooling = encoders.speech.pooling
            first = [VARIANTS[0]] if number == 0 else []
            rest = VARIANTS[len(first) :]
            total = 0
            for variant in first + rng.sample(rest, self.config.variants - len(first)):
                with torch.autocast("cpu", torch.bfloat16, enabled=computes_bfloat16()):
                    pooled = encoders.speech.pooling.statistics(
                        *encoders.speech.frames(*varied(log_mels, mask, variant))
                    )
                pooled = pooled.float()
                total = total + centered(encoders.alignment(pooling.out(pooled)), teacher.speech_center)
                if number == 0:
                    statistics.append(pooled)
            embedded.append(total / self.config.variants)
        heard = toward_words(torch.cat(embedded, dim=1), self.words, self.config.word_share)
        return heard, torch.stack(statistics).mean(dim=0)

    def batches(self) -> Iterator[Batch]:
        return self.drawn.ahead(self.step, self.config.steps)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        rng = random.Random(f"{self.config.seed} {self.step}")
        closeness, errors, phones = [], [], []
        for part, log_mels, mask in _halves(batch):
            heard, statistics = self._hear(log_mels, mask, rng)
            frames, frame_mask = self.model.speech.frames(log_mels, mask)
            if self.config.phone_weight:
                phones += phone_losses(self.model.speech, batch, part, frames, frame_mask)
            pooled = self.model.speech.pooling.statistics(frames, frame_mask)
            embedded = F.normalize(self.model.alignment(self.model.speech.pooling.out(pooled)), dim=1)
            closeness.append((embedded * F.normalize(heard @ self.components, dim=1)).sum(dim=1))
            errors.append(((pooled - statistics) / self.deviation).pow(2).mean(dim=1))
        return {
            "cosine": 1 - torch.cat(closeness).mean(),
            "statistics": STATISTICS_WEIGHT * torch.cat(errors).mean(),
            "phones": self.config.phone_weight * torch.stack(phones).mean() if phones else torch.zeros(()),
        }

    def validate(self, report: Callable[[str], None], terms: dict[str, float]) -> None:
        """What the student is for is better on words that nobody chose by: the losses alone are logged."""
        add_to_log(self.folder / "log.jsonl", {"step": self.step, "trained_s": round(self.trained_s), **terms})
        config = {**self.start.config, "left_out": list(self.config.left_out)}
        replace(
            self.start, encoders=self.average, centers=None, config=config, step=self.step, phones=self.drawn.phones,
            corpus_sha256=self.corpus.sha256, corpus=self.corpus.made_of,
        ).save(self.folder / "student.pt")  # fmt: skip
        state = {
            "config": plain(self.config), "step": self.step, "trained_s": self.trained_s,
            "corpus_sha256": self.corpus.sha256, "components": self.components, "deviation": self.deviation,
            "words": self.words.half(),
            "teachers": self.fingerprints,
            "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        with replace_file(self.folder / "last.pt") as file:
            torch.save(state, file)


def varied(log_mels: Tensor, mask: Tensor, variant: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Clips and their mask as another speaker might have said them: a factor of frequencies and one of lengths."""
    warp, length = variant
    if warp != 1:
        log_mels = torch.einsum("ij,bjn->bin", _warping(warp), log_mels)
    if length != 1:
        n = max(round(log_mels.shape[2] * length), SHORTEST_FRAMES)
        log_mels = F.interpolate(log_mels, size=n, mode="linear", align_corners=True)
        frames = (mask.sum(dim=(1, 2)) * length).round().clamp(SHORTEST_FRAMES, n)
        mask = (torch.arange(n) < frames[:, None]).to(mask.dtype).unsqueeze(1)
    return log_mels, mask


def toward_words(heard: Tensor, words: Tensor, share: float) -> Tensor:
    """Directions of heard [n, d], moved by `share` to the mean of the unit rows of words [n_words, d] near them."""
    unit = F.normalize(heard, dim=1)
    near = torch.softmax(SHARPNESS * (unit @ words.T), dim=1) @ words
    return (1 - share) * unit + share * F.normalize(near, dim=1)


def _fingerprint(encoders: AlignedEncoders) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in encoders.state_dict().values())).hexdigest()


@cache
def _warping(warp: float) -> Tensor:
    """float32 [n_mels, n_mels]: each band becomes what was at `warp` times its frequency, between two bands."""
    filters = mel_filters().astype(np.float64)
    center = filters @ np.arange(filters.shape[1]) / filters.sum(axis=1)
    place = np.interp(center * warp, center, np.arange(len(center)))
    below = np.minimum(place.astype(int), len(center) - 2)
    matrix = np.zeros((FRONT_END.n_mels, FRONT_END.n_mels), np.float32)
    rows = np.arange(FRONT_END.n_mels)
    matrix[rows, below] = 1 - (place - below)
    matrix[rows, below + 1] += place - below
    return torch.from_numpy(matrix)


def _halves(batch: Batch) -> Iterator[tuple[slice, Tensor, Tensor]]:
    for part in in_parts(batch.mask):
        longest = int(batch.mask[part].sum(dim=2).max())
        yield part, batch.log_mels[part, :, :longest], batch.mask[part, :, :longest]
