"""Meta-align a text encoder (source) and a speech encoder (target): the command that trains the shipped bundle.

Two recipes share the data, the encoders, the validation and the checkpoints:

    croma   the paper's loop: source tasks (classify spelled words with e_s and phi) and alignment tasks (strong pairs)
            alternate; each is adapted on a copy and moves the meta-parameters by Reptile
    joint   one optimizer over large batches: strong alignment, agreement of recordings across speakers, phonemes
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from edgealign.errors import InvalidInput
from edgealign.train import last_maps, losses, meta
from edgealign.train.batches import Batch, Batches, build_vocabulary
from edgealign.train.checkpoints import plain, read_checkpoint, refuse_other_config
from edgealign.train.clips import Clips
from edgealign.train.config import RECIPES, TrainConfig
from edgealign.train.corpus import EVALUATION_PACKS, Corpus
from edgealign.train.encoders import AlignedEncoders, EncoderConfig, SpeechEncoder
from edgealign.train.last_maps import Finished
from edgealign.train.pronunciations import Dictionary
from edgealign.train.updates import Updates, add_to_log, run_folder, trim_log
from edgealign.train.validation import Validation
from edgealign.writing import replace_file


def joint_losses(model: AlignedEncoders, batch: Batch, config: TrainConfig) -> dict[str, Tensor]:
    """Strong alignment with both spellings, agreement across speakers, phonemes."""
    speech, phones = [], []
    for part in in_parts(batch.mask):
        longest = int(batch.mask[part].sum(dim=2).max())
        frames, mask = model.speech.frames(batch.log_mels[part, :, :longest], batch.mask[part, :, :longest])
        speech.append(model.alignment(model.speech.pooling(frames, mask)))
        if config.phone_weight:
            phones += phone_losses(model.speech, batch, part, frames, mask)
    speech = torch.nn.functional.normalize(torch.cat(speech), dim=1)
    scale = losses.temperature(model.log_scale)
    terms = {"speakers": config.speaker_weight * losses.across_speakers(speech, batch.label, batch.speaker, scale)}
    terms["text"] = torch.zeros(())
    for tokens in (batch.graphemes, batch.ipa):
        text = model.embed_text(*tokens)
        both = losses.contrastive(text, speech, batch.text_label, batch.label, scale)
        both = both + losses.contrastive(speech, text, batch.label, batch.text_label, scale)
        terms["text"] = terms["text"] + config.text_weight * both / 4
    if phones:
        terms["phones"] = config.phone_weight * torch.stack(phones).mean()
    return terms


def phone_losses(speech: SpeechEncoder, batch: Batch, part: slice, frames: Tensor, mask: Tensor) -> list[Tensor]:
    """How far the frames of a part of a batch are from saying its phonemes; nothing where no word of it is spelled.

    frames, mask   what `speech.frames` gives of the part
    """
    spoken = batch.n_phones[part] > 0
    if not spoken.any():
        return []
    logits = speech.phones(frames).squeeze(2)[spoken]
    lengths = mask.sum(dim=(1, 2, 3)).long()[spoken]
    return [losses.phone_ctc(logits, lengths, batch.phones[part][spoken], batch.n_phones[part][spoken])]


def shared_phones(drawn: Batches, phones: str) -> list[tuple[int, int]]:
    """Rows of a phoneme head for `drawn`, and rows that mean the same in a head for `phones`; the blank is first."""
    there = {phone: row for row, phone in enumerate(phones, 1)}
    return [(0, 0)] + [(row, there[phone]) for phone, row in drawn.phone_ids.items() if phone in there]


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


class Trainer(Updates):
    """A run in a folder: config, checkpoints `last.pt` and `best.pt`, and one line of log.jsonl per validation."""

    def __init__(self, corpus: Corpus, config: TrainConfig, folder: Path) -> None:
        if config.recipe not in RECIPES:
            raise InvalidInput(f"recipe is '{config.recipe}': expected one of {', '.join(RECIPES)}")
        self.corpus = corpus
        self.vocabulary = build_vocabulary(corpus)
        n_tokens = max(max(self.vocabulary[t].values()) for t in ("tokens", "languages", "kinds")) + 1
        config = replace(config, encoders=replace(config.encoders, n_tokens=n_tokens))
        torch.manual_seed(config.seed)
        model, average = AlignedEncoders(config.encoders), AlignedEncoders(config.encoders)
        average.load_state_dict(model.state_dict())
        croma = config.recipe == "croma"
        super().__init__(run_folder(folder), config, model, average, config.outer_learning_rate if croma else None)
        if croma:
            self.optimizer.param_groups[0]["weight_decay"] = 0.0
        self.drawn = Batches(corpus, self.vocabulary, config)
        self.validation = Validation(corpus, self.drawn)
        self.best = -1.0
        if (folder / "last.pt").exists():
            self._resume()

    def _resume(self) -> None:
        state = load_state(self.folder / "last.pt")
        if state["corpus_sha256"] != self.corpus.sha256:
            raise InvalidInput(
                f"'{self.folder}' was trained on another corpus ({state['corpus_sha256'][:12]}, here "
                f"{self.corpus.sha256[:12]}): name the corpus it was made with, or another run folder"
            )
        refuse_other_config(state["config"], self.config, self.folder)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.trained_s = state["step"], state["best"], state["trained_s"]
        trim_log(self.folder / "log.jsonl", self.step)

    def start_from(self, checkpoint: Path) -> None:
        """Begin with the weights of another run; what it never saw of the vocabulary and the phonemes starts afresh."""
        state = load_state(checkpoint)
        theirs = {**plain(EncoderConfig()), **state["config"]["encoders"], "n_tokens": 0}
        if theirs != {**plain(self.config.encoders), "n_tokens": 0}:
            raise InvalidInput(f"'{checkpoint}' has other encoders than this run: start from one of the same sizes")
        weights, own = state["average"], self.model.state_dict()
        rows = [(self.vocabulary[key], state["vocabulary"][key]) for key in ("pad", "unknown")]
        for table in ("kinds", "languages", "tokens"):
            known = state["vocabulary"][table]
            rows += [(row, known[key]) for key, row in self.vocabulary[table].items() if key in known]
        phones = shared_phones(self.drawn, state.get("phones", ""))
        for name, shared in (
            ("text.embedding.weight", rows),
            ("speech.phones.weight", phones),
            ("speech.phones.bias", phones),
        ):
            here, there = (list(column) for column in zip(*shared, strict=True))
            own[name][here] = weights[name][there].to(own[name].dtype)
            weights[name] = own[name]
        for model in (self.model, self.average):
            model.load_state_dict(weights)

    def batches(self) -> Iterator[Batch]:
        return self.drawn.ahead(self.step, self.config.steps)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return joint_losses(self.model, batch, self.config)

    def update(self, batch: Batch) -> dict[str, float]:
        if self.config.recipe == "joint":
            return super().update(batch)
        terms = self._croma_step(batch)
        self.expect_finite(terms)
        return terms

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

    def validate(self, report: Callable[[str], None], terms: dict[str, float]) -> None:
        scores = self.validation.score(self.average)
        report("validation " + " ".join(f"{name} {value:.1f}" for name, value in scores.items()))
        row = {"step": self.step, "trained_s": round(self.trained_s), **terms, **scores}
        add_to_log(self.folder / "log.jsonl", row)
        if scores["score"] > self.best:
            self.best = scores["score"]
            self._save("best.pt")
        self._save("last.pt")

    def _save(self, name: str) -> None:
        state = {
            "config": plain(self.config),
            "vocabulary": self.vocabulary,
            "phones": self.drawn.phones,
            "corpus_sha256": self.corpus.sha256, "corpus": self.corpus.made_of,
            "step": self.step, "best": self.best, "trained_s": self.trained_s,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        with replace_file(self.folder / name) as file:
            torch.save(state, file)


def load_state(path: Path) -> dict:
    """What `Trainer` or `SpellingTrainer` saved; InvalidInput for anything else."""
    state = read_checkpoint(path, "best.pt or last.pt of a run")
    expected = {"average", "config", "vocabulary", "corpus_sha256", "step"}
    if "format" in state:
        raise InvalidInput(
            f"'{path}' is a checkpoint of another command ('{state['format']}'), not of text-to-speech: name another. "
            f"Bundles are also made of sense.pt of audio or image, and of your pairs by `edgealign train projection`"
        )
    if not expected <= set(state):
        raise InvalidInput(f"'{path}' is not a checkpoint of `edgealign train`: name best.pt or last.pt of a run")
    return state


@dataclass(frozen=True)
class Checkpoint:
    """What training saved: encoders in evaluation mode, the text vocabulary, and where they come from.

    centers   of speech and text, see `Finished`, where the last maps were fitted anew already; else None
    dictionary   of words and characters, where `train spelling` made one; training itself always reads letters
    phones   see `Batches.phones`; empty where an older version did not say
    """

    encoders: AlignedEncoders
    centers: tuple[Tensor, Tensor] | None
    vocabulary: dict
    config: dict
    corpus_sha256: str
    corpus: dict | None  # `Corpus.made_of`; None where an older version did not say
    step: int
    dictionary: Dictionary = field(default_factory=dict)
    phones: str = ""

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        state = load_state(path)
        try:
            config = {k: tuple(v) if isinstance(v, list) else v for k, v in state["config"]["encoders"].items()}
            encoders = AlignedEncoders(EncoderConfig(**config))
            encoders.load_state_dict({name: tensor.float() for name, tensor in state["average"].items()})
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise InvalidInput(f"'{path}' was saved by another version of `edgealign train`: train again") from error
        centers = state.get("centers")
        return cls(
            encoders.eval(), centers and (centers[0].float(), centers[1].float()), state["vocabulary"],
            state["config"], state["corpus_sha256"], state.get("corpus"), state["step"],
            state.get("dictionary", {}), state.get("phones", ""),
        )  # fmt: skip

    @property
    def finished(self) -> Finished | None:
        """The encoders with their centers; None where `finish` is still to be called."""
        return None if self.centers is None else Finished(self.encoders, *self.centers)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Packs whose test words and speakers training did not hear; where a checkpoint does not say, all packs."""
        return tuple(self.config.get("left_out", EVALUATION_PACKS))

    def check(self, corpus: Corpus) -> None:
        """InvalidInput where a corpus was rendered otherwise than the one of training."""
        if self.corpus is None or self.corpus_sha256 == corpus.sha256:
            return
        there = corpus.made_of
        other = [name for name, value in self.corpus.items() if name != "recordings" and there.get(name) != value]
        if self.corpus["recordings"] and not there["recordings"]:  # the other way round there is more to fit on
            other.append("recordings")
        if other:
            is_and_was = ", ".join(f"{name} = {there.get(name)} where it was {self.corpus[name]}" for name in other)
            raise InvalidInput(
                f"the corpus was not rendered as that of training ({is_and_was}): name the corpus of training, or "
                f"render one with the same options"
            )

    def refuse_teacher(self) -> None:
        """InvalidInput where the speech encoder is one that no bundle holds."""
        if self.encoders.config.recurrent_units:
            raise InvalidInput(
                "the checkpoint is of `text-to-speech --teacher`, which no bundle holds: name it as --teacher of "
                "`edgealign train distill`, and a checkpoint that is not of --teacher as --start-from"
            )

    def finish(self, corpus: Corpus) -> Checkpoint:
        """The same with new last maps, fitted on a corpus that was rendered as that of training."""
        self.check(corpus)
        config = TrainConfig(encoders=self.encoders.config, left_out=self.left_out)
        finished = last_maps.finish(self.encoders, Clips(corpus, Batches(corpus, self.vocabulary, config), seed=11))
        return replace(self, encoders=finished.encoders, centers=(finished.speech_center, finished.text_center))

    def save(self, path: Path, half: bool = False) -> None:
        """The weights alone: what training can start from, and what the bundle can be made of.

        half    in half precision
        """

        def kept(tensor: Tensor) -> Tensor:
            return tensor.half() if half and tensor.is_floating_point() else tensor

        whole = {
            "average": {name: kept(tensor) for name, tensor in self.encoders.state_dict().items()},
            "centers": self.centers and [kept(center) for center in self.centers],
            "vocabulary": self.vocabulary, "dictionary": self.dictionary, "phones": self.phones, "config": self.config,
            "step": self.step, "corpus_sha256": self.corpus_sha256, "corpus": self.corpus,
        }  # fmt: skip
        with replace_file(path) as file:
            torch.save(whole, file)
