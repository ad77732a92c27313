"""Meta-align a text encoder (source) and a speech encoder (target): the command that trains the shipped bundle.

Two recipes share the data, the encoders, the validation and the checkpoints:

    croma   the paper's loop: source tasks (classify spelled words with e_s and phi) and alignment tasks (strong pairs)
            alternate; each is adapted on a copy and moves the meta-parameters by Reptile
    joint   one optimizer over large batches: strong alignment, agreement of recordings across speakers, phonemes
"""

from __future__ import annotations

import json
import math
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgealign.errors import InvalidInput
from edgealign.text import Tokenizer, normalize
from edgealign.train import losses, meta
from edgealign.train.augment import AugmentConfig, Augmenter
from edgealign.train.corpus import Corpus
from edgealign.train.encoders import AlignedEncoders, EncoderConfig
from edgealign.train.front_end import WINDOWS
from edgealign.train.words import sound_of

RECIPES = ("joint", "croma")


@dataclass(frozen=True)
class TrainConfig:
    recipe: str = "joint"
    seed: int = 0
    steps: int = 4000
    synthetic_words: int = 48
    renders: int = 2  # of each synthetic word in a batch
    recorded_words: int = 24
    takes: int = 4  # of each recorded word in a batch, by different speakers where there are
    whole_share: float = 0.4  # of the recorded words; the others are spliced, see `Splice`
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up_steps: int = 200
    text_weight: float = 1.0
    speaker_weight: float = 1.0
    phone_weight: float = 0.3
    average_decay: float = 0.998  # of the exponential moving average that is validated and exported
    inner_steps: int = 5  # croma: Adam steps on a copy
    inner_learning_rate: float = 1e-3
    outer_learning_rate: float = 1e-3
    validate_every: int = 250
    encoders: EncoderConfig = field(default_factory=EncoderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            lowest = int(name in {"steps", "synthetic_words", "renders", "takes", "inner_steps", "validate_every"})
            if isinstance(value, (int, float)) and not lowest <= value < math.inf:
                raise InvalidInput(f"{name} is {value}: expected a number from {lowest} on")


def build_vocabulary(corpus: Corpus) -> dict:
    """vocab.json of the bundle: every code point that at least three labels are written with."""
    counts: dict[str, int] = {}
    for label in corpus.labels:
        for character in {*normalize(label.text, "grapheme"), *normalize(label.ipa, "ipa")} if label.text else ():
            counts[character] = counts.get(character, 0) + 1
    kept = sorted(c for c, n in counts.items() if n >= 3)
    languages = ["und", *sorted({label.language for label in corpus.labels if label.language})]
    ids = iter(range(2, 100_000))
    vocabulary = {
        "format_version": 1,
        "pad": 0,
        "unknown": 1,
        "kinds": {kind: next(ids) for kind in ("grapheme", "ipa")},
        "languages": {language: next(ids) for language in languages},
        "tokens": {character: next(ids) for character in kept},
        "max_tokens": 40,
    }
    table = vocabulary["languages"]
    # BCP 47 writes the language or its macrolanguage, espeak-ng names the voice.
    table |= {tag: table[voice] for tag, voice in (("zh", "cmn"), ("no", "nb"), ("nn", "nb")) if voice in table}
    return vocabulary


@dataclass
class Batch:
    """log_mels [n, n_mels, longest], mask [n, 1, longest]; label and speaker int64 [n]; phones int64 [n, longest word]
    and n_phones int64 [n], 0 where unknown; per spelled label: text_label [m], and tokens [m, longest] with masks."""

    log_mels: Tensor
    mask: Tensor
    label: Tensor
    speaker: Tensor
    phones: Tensor
    n_phones: Tensor
    text_label: Tensor
    graphemes: tuple[Tensor, Tensor]
    ipa: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Splice:
    """A pseudo-word: parts of one or two recorded words, each (label row, from, to) in shares of the word's length.

    People recorded few words, so parts of them are put together into thousands of others: whoever said both words
    also "said" the splice. Time runs alike enough in two people's takes for shares of the length to mark one sound.
    """

    parts: tuple[tuple[int, float, float], ...]


class Batches:
    """Draws batches; batch number `step` of a seed is always the same."""

    def __init__(self, corpus: Corpus, vocabulary: dict, config: TrainConfig) -> None:
        self.corpus, self.config = corpus, config
        self.tokenizer = Tokenizer.from_dict(vocabulary)
        self.augmenter = Augmenter(config.augment, corpus.noise)
        self.phone_ids = {c: i for i, c in enumerate(_phones(corpus)[: config.encoders.n_phones - 1], 1)}
        self.synthetic = corpus.select("train", synthetic=True)
        self.recorded = corpus.select("train", synthetic=False)
        sound = {i: sound_of(corpus.labels[i].ipa) for i in self.synthetic}
        self.clips_by_speaker = {label: self._by_speaker(label) for label in self.recorded}
        self.packs: dict[str, list[int]] = {}
        for label in self.recorded:
            self.packs.setdefault(corpus.labels[label].source.split(":")[0], []).append(label)
        self.by_start = sorted(self.synthetic, key=lambda i: sound[i])
        self.by_end = sorted(self.synthetic, key=lambda i: sound[i][::-1])

    def draw(self, step: int) -> Batch:
        config = self.config
        rng = random.Random(f"{config.seed} {step}")
        rows = [
            (label, clip, self.cut(clip, rng))
            for label in self._words(rng, config.synthetic_words)
            for clip in self._takes(rng, label, config.renders)
        ]
        for slot in range(config.recorded_words if self.recorded else 0):
            label = rng.choice(self.packs[rng.choice(sorted(self.packs))])
            if rng.random() < config.whole_share:
                rows += [(label, clip, self.cut(clip, rng)) for clip in self._takes(rng, label, config.takes)]
            else:
                splice = self._splice(rng, label)
                unnamed = len(self.corpus.labels) + slot
                rows += [(unnamed, *said) for said in self._splice_takes(rng, splice, config.takes)]
        return self._batch(rows, rng, step)

    def _splice(self, rng: random.Random, label: int) -> Splice:
        """Mostly the beginning of one word and the end of another of the same pack, sometimes part of one."""
        cut = rng.uniform(0.35, 0.65)
        if rng.random() < 0.3:
            return Splice(((label, 0.0, cut + 0.1) if rng.random() < 0.5 else (label, cut - 0.1, 1.0),))
        pack = self.packs[self.corpus.labels[label].source.split(":")[0]]
        ends_with = rng.uniform(0.35, 0.65)
        return Splice(((label, 0.0, cut), (rng.choice(pack), ends_with, 1.0)))

    def _splice_takes(self, rng: random.Random, splice: Splice, n: int) -> list[tuple[int, np.ndarray]]:
        """n takes of a splice, by different speakers where there are: a clip that names the speaker, and the frames.

        Where nobody is known to have said all parts (recordings without speaker labels), voices are mixed.
        """
        by_speaker = [self.clips_by_speaker[label] for label, _, _ in splice.parts]
        shared = sorted(set.intersection(*(set(clips) for clips in by_speaker)))
        order = rng.sample(shared, len(shared))
        takes = []
        for i in range(n):
            chosen = []
            for clips in by_speaker:
                speaker = order[i % len(order)] if order else rng.choice(list(clips))
                chosen.append(rng.choice(clips[speaker]))
            frames = [
                self._part(clip, first, end, rng) for clip, (_, first, end) in zip(chosen, splice.parts, strict=True)
            ]
            takes.append((chosen[0], np.concatenate(frames)))
        return takes

    def _part(self, clip: int, first: float, end: float, rng: random.Random) -> np.ndarray:
        row = self.corpus.clips[clip]
        length = row["end"] - row["first"]
        first, end = (share + rng.uniform(-0.04, 0.04) if 0 < share < 1 else share for share in (first, end))
        begin = int(row["offset"] + row["first"] + first * length)
        return self.corpus.spectra[begin : max(begin + 4, int(row["offset"] + row["first"] + end * length))]

    def _by_speaker(self, label: int) -> dict[int, list[int]]:
        by_speaker: dict[int, list[int]] = {}
        for clip in self.corpus.clips_of[label].tolist():
            by_speaker.setdefault(int(self.corpus.clips["speaker"][clip]), []).append(clip)
        return by_speaker

    def _words(self, rng: random.Random, n: int) -> list[int]:
        """Half of the words at random, half in runs of words that begin or end alike, which are hard to tell apart."""
        n = min(n, len(self.synthetic))
        chosen: dict[int, None] = {}
        while len(chosen) < n // 2:
            order = rng.choice((self.by_start, self.by_end))
            at = rng.randrange(len(order))
            chosen |= dict.fromkeys(order[at : at + 7])
        while len(chosen) < n:
            chosen[rng.choice(self.synthetic)] = None
        return list(chosen)[:n]

    def _takes(self, rng: random.Random, label: int, n: int) -> list[int]:
        by_speaker = self.clips_by_speaker.get(label) or self._by_speaker(label)
        by_speaker = {speaker: rng.sample(clips, len(clips)) for speaker, clips in by_speaker.items()}
        by_speaker = {speaker: by_speaker[speaker] for speaker in rng.sample(list(by_speaker), len(by_speaker))}
        turns = [clip for turn in zip(*by_speaker.values(), strict=False) for clip in turn]
        rest = [clip for own in by_speaker.values() for clip in own if clip not in set(turns[:n])]
        chosen = (turns + rest)[:n]
        return chosen + [rng.choice(chosen) for _ in range(n - len(chosen))]

    def _batch(self, rows: list[tuple[int, int, np.ndarray]], rng: random.Random, step: int) -> Batch:
        """rows   label (past the end of the corpus for a splice), a clip by the same speaker, and the frames"""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        log_mels, mask = self.augmenter([frames for _, _, frames in rows], generator)
        # Sorted by length, so that `in_parts` can cut the batch where little is padded.
        order = torch.argsort(mask.sum(dim=(1, 2)))
        log_mels, mask = log_mels[order], mask[order]
        rows = [rows[i] for i in order.tolist()]
        label = torch.tensor([label for label, _, _ in rows])
        known = {i: self.corpus.labels[i] for i in label.tolist() if i < len(self.corpus.labels)}
        phones = [
            torch.tensor(
                [self.phone_ids[c] for c in sound_of(known[i].ipa) if c in self.phone_ids] if i in known else []
            )
            for i in label.tolist()
        ]
        spelled = [i for i, known_label in known.items() if known_label.text]
        return Batch(
            log_mels, mask, label,
            torch.from_numpy(self.corpus.clips["speaker"][[clip for _, clip, _ in rows]].astype(np.int64)),
            torch.nn.utils.rnn.pad_sequence(phones, batch_first=True).long(),
            torch.tensor([len(p) for p in phones]),
            torch.tensor(spelled),
            self.tokens(spelled, "grapheme", rng),
            self.tokens(spelled, "ipa", rng),
        )  # fmt: skip

    def cut(self, clip: int, rng: random.Random | None) -> np.ndarray:
        """Frames of one clip: the word with a little of what is around it, or exactly what the runtime would cut."""
        row = self.corpus.clips[clip]
        if rng is None:
            before = after = WINDOWS.pad_frames
        else:
            before, after = (rng.randint(-1, self.config.augment.jitter_frames) for _ in range(2))
        first = int(np.clip(row["first"] - before, 0, max(row["end"] - 6, 0)))
        end = int(np.clip(row["end"] + after, first + 6, row["n_frames"]))
        return self.corpus.spectra[row["offset"] + first : row["offset"] + max(end, first + 1)]

    def tokens(self, labels: list[int], kind: str, rng: random.Random | None) -> tuple[Tensor, Tensor]:
        """Token ids int64 [n, longest] and mask [n, 1, longest]. With `rng` the language, stress and length marks are
        sometimes left out, as people leave them out."""
        rows = []
        for i in labels:
            label = self.corpus.labels[i]
            text, language = (label.text, label.language) if kind == "grapheme" else (label.ipa, label.language)
            if rng and rng.random() < (0.3 if kind == "grapheme" else 0.6):
                language = None
            if kind == "ipa" and rng:
                if rng.random() < 0.4:
                    text = text.replace("ˈ", "").replace("ˌ", "")
                if rng.random() < 0.3:
                    text = text.replace("ː", "")
            rows.append(torch.from_numpy(self.tokenizer.encode(text, kind, language).ids))
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(ids.shape[1])[None] < lengths[:, None]).float().unsqueeze(1)

    def ahead(self, first: int, end: int, depth: int = 4) -> Iterator[Batch]:
        """Batches first..end-1, drawn by a thread while the caller trains."""
        ready: queue.Queue = queue.Queue(depth)
        stop = threading.Event()

        def hand_over(item: Batch | BaseException) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.5)
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                for step in range(first, end):
                    hand_over(self.draw(step))
                    if stop.is_set():
                        return
            except BaseException as error:  # handed to the training thread, which raises it
                hand_over(error)

        thread = threading.Thread(target=produce, daemon=True)
        thread.start()
        try:
            for _ in range(first, end):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()


def _phones(corpus: Corpus) -> list[str]:
    counts: dict[str, int] = {}
    for label in corpus.labels:
        for c in sound_of(label.ipa):
            counts[c] = counts.get(c, 0) + 1
    return sorted(counts, key=lambda c: (-counts[c], c))


def joint_loss(model: AlignedEncoders, batch: Batch, config: TrainConfig) -> tuple[Tensor, dict[str, float]]:
    """Strong alignment with both spellings + agreement across speakers + phonemes."""
    speech, phone_losses = [], []
    for part in in_parts(batch.mask):
        longest = int(batch.mask[part].sum(dim=2).max())
        frames, mask = model.speech.frames(batch.log_mels[part, :, :longest], batch.mask[part, :, :longest])
        speech.append(model.alignment(model.speech.pooling(frames, mask)))
        spoken = batch.n_phones[part] > 0
        if config.phone_weight and spoken.any():
            logits = model.speech.phones(frames).squeeze(2)[spoken]
            lengths = mask.sum(dim=(1, 2, 3)).long()[spoken]
            phones, n_phones = batch.phones[part][spoken], batch.n_phones[part][spoken]
            phone_losses.append(losses.phone_ctc(logits, lengths, phones, n_phones))
    speech = torch.nn.functional.normalize(torch.cat(speech), dim=1)
    scale = losses.temperature(model.log_scale)
    terms = {"speakers": config.speaker_weight * losses.across_speakers(speech, batch.label, batch.speaker, scale)}
    terms["text"] = torch.zeros(())
    for tokens in (batch.graphemes, batch.ipa):
        text = model.embed_text(*tokens)
        both = losses.contrastive(text, speech, batch.text_label, batch.label, scale)
        both = both + losses.contrastive(speech, text, batch.label, batch.text_label, scale)
        terms["text"] = terms["text"] + config.text_weight * both / 4
    if phone_losses:
        terms["phones"] = config.phone_weight * torch.stack(phone_losses).mean()
    return sum(terms.values()), {name: float(term.detach()) for name, term in terms.items()}


def in_parts(mask: Tensor, n_parts: int = 2) -> list[slice]:
    """Cut a batch that is sorted by length: the first half is spared the padding that the second needs."""
    bounds = [len(mask) * i // n_parts for i in range(n_parts + 1)]
    return [slice(first, end) for first, end in pairwise(bounds)]


def alignment_task(batch: Batch) -> meta.Loss:
    """Strong pairs of one episode: contrastive alignment of e_s(x_s) and A(e_t(x_t))."""

    def loss(model: AlignedEncoders) -> Tensor:
        speech = model.embed_speech(batch.log_mels, batch.mask)
        scale = losses.temperature(model.log_scale)
        total = torch.zeros(())
        for tokens in (batch.graphemes, batch.ipa):
            text = model.embed_text(*tokens)
            total = total + losses.contrastive(text, speech, batch.text_label, batch.label, scale)
            total = total + losses.contrastive(speech, text, batch.label, batch.text_label, scale)
        return total / 4

    return loss


def source_task(batch: Batch, n_way: int, rng: random.Random) -> meta.Loss:
    """Classify spelled words with e_s and phi: the slots of phi are assigned at random."""
    rows = torch.tensor(rng.sample(range(len(batch.text_label)), min(n_way, len(batch.text_label))))
    slots = torch.randperm(n_way, generator=torch.Generator().manual_seed(rng.getrandbits(32)))[: len(rows)]

    def loss(model: AlignedEncoders) -> Tensor:
        total = torch.zeros(())
        for ids, mask in (batch.graphemes, batch.ipa):
            logits = model.classifier(model.text(ids[rows], mask[rows]))
            total = total + torch.nn.functional.cross_entropy(logits, slots)
        return total / 2

    return loss


class Validation:
    """Episodes over meta-validation words: recorded ones, and synthetic ones in voices that training does not hear."""

    def __init__(self, corpus: Corpus, batches: Batches, n_synthetic: int = 300) -> None:
        self.batches = batches
        self.synthetic = corpus.select("val", synthetic=True)[:n_synthetic]
        if len(self.synthetic) < 2:
            raise InvalidInput(
                f"the corpus has {len(self.synthetic)} validation words and a checkpoint is chosen by telling them "
                f"apart: render it with more words or languages"
            )
        self.recorded = corpus.select("val", synthetic=False)
        clips = corpus.clips
        self.of_synthetic = [c for i in self.synthetic for c in corpus.clips_of[i][:3]]
        self.of_recorded = [c for i in self.recorded for c in corpus.clips_of[i]]
        self.labels = {n: clips["label"][rows] for n, rows in self._sets()}
        self.speakers = {n: clips["speaker"][rows] for n, rows in self._sets()}

    def _sets(self) -> list[tuple[str, list[int]]]:
        return [("synthetic", self.of_synthetic), ("recorded", self.of_recorded)]

    @torch.inference_mode()
    def score(self, model: AlignedEncoders) -> dict[str, float]:
        """Accuracies in percent; `score`, their mean, chooses the checkpoint."""
        model.eval()
        speech = {name: self._embed(model, rows) for name, rows in self._sets()}
        result = {}
        for name in speech:
            for k in (1, 5) if name == "recorded" else (1,):
                way = 10 if name == "synthetic" else 6
                if len(set(self.labels[name].tolist())) >= way:
                    result[f"{name}_{k}shot"] = self._episodes(name, speech[name], k, way)
        for kind in ("grapheme", "ipa"):
            text = model.embed_text(*self.batches.tokens(self.synthetic, kind, None)).numpy()
            result[f"text_{kind}"] = self._from_text(text, speech["synthetic"])
        model.train()
        return {"score": float(np.mean(list(result.values())))} | result

    def _embed(self, model: AlignedEncoders, rows: list[int]) -> np.ndarray:
        rows = [self.batches.cut(clip, None) for clip in rows]
        parts = []
        for i in range(0, len(rows), 64):
            parts.append(model.embed_speech(*self.batches.augmenter.clean(rows[i : i + 64])).numpy())
        return np.concatenate(parts) if parts else np.zeros((0, model.config.dim), np.float32)

    def _episodes(self, name: str, speech: np.ndarray, k: int, way: int, n: int = 300) -> float:
        """Support of one speaker per label, queries of others; nearest prototype."""
        rng = np.random.default_rng(7)
        labels, speakers = self.labels[name], self.speakers[name]
        right = []
        for _ in range(n):
            prototypes, queries, truth = [], [], []
            for slot, label in enumerate(rng.permutation(np.unique(labels))[:way]):
                own = np.flatnonzero(labels == label)
                speaker = rng.choice(speakers[own])
                support, other = own[speakers[own] == speaker], own[speakers[own] != speaker]
                if not len(other):
                    support, other = own[:1], own[1:]
                prototypes.append(speech[rng.permutation(support)[:k]].mean(axis=0))
                queries.extend(rng.permutation(other)[:5])
                truth += [slot] * min(5, len(other))
            prototypes = np.array(prototypes)
            prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
            right.append(np.mean((speech[queries] @ prototypes.T).argmax(axis=1) == truth))
        return 100 * float(np.mean(right))

    def _from_text(self, text: np.ndarray, speech: np.ndarray, way: int = 10, n: int = 300) -> float:
        rng = np.random.default_rng(8)
        row_of = {label: i for i, label in enumerate(self.synthetic)}
        owner = np.array([row_of[label] for label in self.labels["synthetic"].tolist()])
        right = []
        for _ in range(n):
            chosen = rng.permutation(len(text))[:way]
            queries = np.flatnonzero(np.isin(owner, chosen))
            nearest = chosen[(speech[queries] @ text[chosen].T).argmax(axis=1)]
            right.append(np.mean(nearest == owner[queries]))
        return 100 * float(np.mean(right))


class Trainer:
    """A run in a folder: config, checkpoints `last.pt` and `best.pt`, and one line of log.jsonl per validation."""

    def __init__(self, corpus: Corpus, config: TrainConfig, folder: Path) -> None:
        if config.recipe not in RECIPES:
            raise InvalidInput(f"recipe is '{config.recipe}': expected one of {', '.join(RECIPES)}")
        self.corpus, self.folder = corpus, folder
        self.vocabulary = build_vocabulary(corpus)
        n_tokens = max(max(self.vocabulary[t].values()) for t in ("tokens", "languages", "kinds")) + 1
        self.config = config = replace(config, encoders=replace(config.encoders, n_tokens=n_tokens))
        torch.manual_seed(config.seed)
        self.model = AlignedEncoders(config.encoders)
        self.average = AlignedEncoders(config.encoders)
        self.average.load_state_dict(self.model.state_dict())
        self.batches = Batches(corpus, self.vocabulary, config)
        self.validation = Validation(corpus, self.batches)
        joint = config.recipe == "joint"
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate if joint else config.outer_learning_rate,
            weight_decay=config.weight_decay if joint else 0.0,
        )
        self.step, self.best, self.trained_s = 0, -1.0, 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"'{folder}' cannot hold a run ({error.strerror}): name another folder") from error
        if (folder / "last.pt").exists():
            self._resume()

    def _resume(self) -> None:
        state = load_state(self.folder / "last.pt")
        if state["corpus_sha256"] != self.corpus.sha256:
            raise InvalidInput(
                f"'{self.folder}' was trained on another corpus ({state['corpus_sha256'][:12]}, here "
                f"{self.corpus.sha256[:12]}): name the corpus it was made with, or another run folder"
            )
        if state["config"] != _plain(self.config) and {**state["config"], "steps": 0} != {
            **_plain(self.config),
            "steps": 0,
        }:
            raise InvalidInput(f"'{self.folder}' was trained with another configuration: name another run folder")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.trained_s = state["step"], state["best"], state["trained_s"]

    def start_from(self, checkpoint: Path) -> None:
        """Begin with the weights of another run, whose spellings and encoders must be those of this one."""
        state = load_state(checkpoint)
        theirs, mine = state["config"]["encoders"], _plain(self.config)["encoders"]
        if theirs != mine or any(state["vocabulary"][t] != self.vocabulary[t] for t in ("tokens", "kinds")):
            raise InvalidInput(
                f"'{checkpoint}' has other encoders or another text vocabulary than a run on this corpus: start from a "
                f"checkpoint that was trained on the same words"
            )
        for model in (self.model, self.average):
            model.load_state_dict(state["average"])

    def run(self, report: Callable[[str], None], minutes: float | None = None) -> None:
        """Train to config.steps, or for so many minutes; interrupted at any moment, a later call goes on."""
        started, before = time.monotonic(), self.trained_s
        config, terms = self.config, {}
        first = self.step
        for batch in self.batches.ahead(self.step, config.steps):
            rate = self._learning_rate()
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            if config.recipe == "joint":
                loss, terms = joint_loss(self.model, batch, config)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
                self.optimizer.step()
            else:
                terms = self._croma_step(batch)
            self._update_average()
            self.step += 1
            self.trained_s = before + time.monotonic() - started
            if self.step % 25 == 0:
                pace_s = (time.monotonic() - started) / (self.step - first)
                left = (config.steps - self.step) * pace_s / 60
                numbers = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
                report(f"step {self.step}/{config.steps} {numbers} {pace_s:.2f} s/step, about {left:.0f} min left")
            out_of_time = minutes is not None and time.monotonic() - started > 60 * minutes
            if self.step % config.validate_every == 0 or self.step == config.steps or out_of_time:
                self._validate(report, terms)
            if out_of_time:
                return

    def _croma_step(self, batch: Batch) -> dict[str, float]:
        config = self.config
        rng = random.Random(f"slots {config.seed} {self.step}")
        source = source_task(batch, config.encoders.n_way, rng)
        align = alignment_task(batch)
        norms = {}
        for name, task in (("source", source), ("alignment", align)):
            norms[name] = meta.reptile_step(
                self.model, self.optimizer, [task] * config.inner_steps, config.inner_learning_rate
            )
        return norms

    def _learning_rate(self) -> float:
        config = self.config
        peak = config.learning_rate if config.recipe == "joint" else config.outer_learning_rate
        if self.step < config.warm_up_steps:
            return peak * (self.step + 1) / config.warm_up_steps
        done = (self.step - config.warm_up_steps) / max(config.steps - config.warm_up_steps, 1)
        return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.average_decay, (1 + self.step) / (10 + self.step))
        for mine, theirs in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - decay)
        for mine, theirs in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mine.copy_(mine.lerp(theirs, 1 - decay) if mine.is_floating_point() else theirs)

    def _validate(self, report: Callable[[str], None], terms: dict[str, float]) -> None:
        scores = self.validation.score(self.average)
        report("validation " + " ".join(f"{name} {value:.1f}" for name, value in scores.items()))
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": self.step, "trained_s": round(self.trained_s), **terms, **scores}) + "\n")
        if scores["score"] > self.best:
            self.best = scores["score"]
            self._save("best.pt")
        self._save("last.pt")

    def _save(self, name: str) -> None:
        state = {
            "config": _plain(self.config),
            "vocabulary": self.vocabulary,
            "phones": "".join(self.batches.phone_ids),
            "corpus_sha256": self.corpus.sha256,
            "step": self.step, "best": self.best, "trained_s": self.trained_s,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        partial = self.folder / (name + ".partial")
        torch.save(state, partial)
        os.replace(partial, self.folder / name)


def load_state(path: Path) -> dict:
    """What `Trainer` saved; InvalidInput for anything else. Nothing but tensors and plain values is ever unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InvalidInput(f"there is no checkpoint '{path}': name best.pt or last.pt of a run") from None
    except Exception as error:  # whatever a file that is none makes the unpickler stumble over
        raise InvalidInput(f"'{path}' is not a checkpoint of `edgealign train`, or is damaged: name another") from error
    expected = {"average", "config", "vocabulary", "corpus_sha256", "step"}
    if not isinstance(state, dict) or not expected <= set(state):
        raise InvalidInput(f"'{path}' is not a checkpoint of `edgealign train`: name best.pt or last.pt of a run")
    return state


def _plain(config: TrainConfig) -> dict:
    return json.loads(json.dumps(asdict(config)))
