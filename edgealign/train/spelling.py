"""Teach a text encoder how words are spelled: the last stage of what makes the bundle `speech`.

`text_to_speech` hears every word often, and therefore knows few words: how "two" or "eight" sounds cannot be told from
others. Here the speech encoder is finished (`last_maps`) and stays as it is. Hundreds of thousands of words are said by
espeak-ng a few times each, embedded and forgotten; what is kept of all that sounds alike is the mean of its unit
embeddings, together with the clips of the corpus. The text encoder learns to give that mean, for letters and for IPA.

Words are rendered by worker processes into shards, each of which is made once.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgealign.errors import EdgealignError, InvalidInput
from edgealign.text import Tokenizer
from edgealign.train import last_maps, losses, pronunciations
from edgealign.train import words as word_lists
from edgealign.train.batches import Batches, padded, token_row
from edgealign.train.checkpoints import plain, read_checkpoint, refuse_other_config
from edgealign.train.clips import Clips, log_mel_of_word
from edgealign.train.config import TrainConfig
from edgealign.train.corpus import EFFECT_VARIANTS, VALIDATION_VARIANTS, Corpus, Label
from edgealign.train.encoders import AlignedEncoders, TextEncoder
from edgealign.train.front_end import mel_filters
from edgealign.train.pronunciations import Dictionary
from edgealign.train.sense_encoders import computes_bfloat16
from edgealign.train.synthesis import (
    ACCENTS,
    FESTIVAL_VOICES,
    Espeak,
    FestivalVoice,
    Manner,
    festival_voices_installed,
    say_with_festival,
)
from edgealign.train.text_to_speech import Checkpoint
from edgealign.train.updates import Updates, add_to_log, parts_left, run_folder, trim_log
from edgealign.train.words import Word
from edgealign.workers import results
from edgealign.writing import replace_file

WORDS_PER_SHARD = 2000
RENDERS, RENDERS_OF_ENGLISH = 2, 3
WORDS_OF_FESTIVAL = 12_000  # of each voice; a word takes 10 ms

# Voices made of diphones: the others take five times as long.
_FESTIVAL = {voice.name: voice for voice in FESTIVAL_VOICES if voice.name.endswith("_diphone")}


@dataclass(frozen=True)
class SpellingConfig:
    seed: int = 0
    steps: int = 4500
    words: int = 1024  # in a batch
    letters_share: float = 0.6  # of the words of a batch are spelled; the others are in IPA
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warm_up_steps: int = 100
    contrast_weight: float = 0.1  # of telling the words of a batch apart, beside the cosine to the target
    average_decay: float = 0.998
    validate_every: int = 250
    left_out: tuple[str, ...] = ()  # packs; while there are any, words that accuracy is measured on are not read


@dataclass(frozen=True)
class Heard:
    """words, the row of `targets` (float32 [n, dim], unit rows) that each should give, and which are for validation."""

    words: list[Word]
    row: np.ndarray
    targets: np.ndarray
    validation: np.ndarray


def listen(
    folder: Path, corpus_folder: Path, left_out: Sequence[str], workers: int, report: Callable[[str], None]
) -> Heard:
    """What the encoder in folder/ear.pt hears of all words there are; goes on with the shards that are there."""
    said, corpus = folder / "said", Corpus(corpus_folder)
    said.mkdir(parents=True, exist_ok=True)
    if not (folder / "words.tsv").exists():
        word_lists.write_words(folder / "words.tsv", _all_words(corpus))
    parts = _parts(word_lists.read_words(folder / "words.tsv"), corpus.labels)
    tasks = [(name, i) for name, items in parts.items() for i in range(0, len(items), WORDS_PER_SHARD)]
    missing = [task for task in tasks if not _shard(said, task).exists()]
    started = time.monotonic()
    try:
        for done, _ in enumerate(results(_hear, missing, workers, _start_worker, (folder, corpus_folder)), 1):
            left_s = (time.monotonic() - started) / done * (len(missing) - done)
            report(f"heard {done} of {len(missing)} shards of words, about {left_s / 60:.1f} min left")
    except OSError as error:
        raise EdgealignError(
            f"'{said}' cannot be written ({error.strerror}): the same line goes on where it stopped"
        ) from None
    return _joined(said, tasks, parts, corpus, left_out)


def _parts(words: list[Word], labels: list[Label]) -> dict[str, list[Word] | list[Label]]:
    """What is heard, by name: words by espeak-ng, labels by their clips, and words by each voice of festival.

    festival is slow: it says the shortest words of its languages, and none that is for validation.
    """
    said = sorted((w for w in words if " " not in w.text and not word_lists.is_validation(w.sound)), key=_length)
    parts = {"words": words, "clips": labels}
    for name in sorted(festival_voices_installed() & _FESTIVAL.keys()):
        parts[name] = [word for word in said if word.language == _FESTIVAL[name].language][:WORDS_OF_FESTIVAL]
    return parts


def _length(word: Word) -> tuple[int, str]:
    return len(word.text), word.text


def _joined(
    said: Path, tasks: Sequence[tuple[str, int]], parts: dict[str, list], corpus: Corpus, left_out: Sequence[str]
) -> Heard:
    """Whatever sounds alike has one target. Words of validation are known by their sound, and recorded ones by role."""
    row_of: dict[str, int] = {}
    for spoken in (*parts["words"], *corpus.labels):
        row_of.setdefault(word_lists.sound_of(spoken.ipa), len(row_of))
    sums = None
    for name, start in tasks:
        with np.load(_shard(said, (name, start))) as shard:
            of_shard = shard["sums"].astype(np.float32)
        spoken = parts[name][start : start + len(of_shard)]
        sums = np.zeros((len(row_of), of_shard.shape[1]), np.float32) if sums is None else sums
        np.add.at(sums, [row_of[word_lists.sound_of(word.ipa)] for word in spoken], of_shard)
    sizes = np.linalg.norm(sums, axis=1)
    reserved = word_lists.reserved_sounds(Espeak())
    spelled = [Word(label.text, label.language, label.ipa) for label in corpus.labels if label.text]
    kept = [
        word for word in dict.fromkeys([*parts["words"], *spelled])
        if sizes[row_of[word.sound]] > 0 and not (left_out and word_lists.is_reserved(word, reserved))
    ]  # fmt: skip
    of_validation = {word_lists.sound_of(label.ipa) for label in corpus.labels if label.role == "val"}
    return Heard(
        kept,
        np.array([row_of[word.sound] for word in kept]),
        sums / np.maximum(sizes, 1e-9)[:, None],
        np.array([word.sound in of_validation or word_lists.is_validation(word.sound) for word in kept]),
    )


def _all_words(corpus: Corpus) -> list[Word]:
    """Of the languages of a corpus, shuffled: a shard has some of each."""
    espeak, languages = Espeak(), sorted({label.language for label in corpus.labels} - {""})
    words = [word for language in languages for word in word_lists.spellings(espeak, language)]
    random.Random(0).shuffle(words)
    return words


def _shard(said: Path, task: tuple[str, int]) -> Path:
    return said / f"{task[0]}-{task[1]:06d}.npz"


_worker: dict = {}


def _start_worker(folder: Path, corpus_folder: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    ear, corpus, espeak = Checkpoint.load(folder / "ear.pt"), Corpus(corpus_folder), Espeak(folder / "crashed")
    config = TrainConfig(encoders=ear.encoders.config, left_out=ear.left_out)
    clips = Clips(corpus, Batches(corpus, ear.vocabulary, config), seed=0)
    _worker.update(
        said=folder / "said",
        finished=ear.finished,
        clips=clips,
        heard=_heard(clips),
        parts=_parts(word_lists.read_words(folder / "words.tsv"), corpus.labels),
        espeak=espeak,
        voices=[voice for voice in espeak.variants() if voice not in VALIDATION_VARIANTS + EFFECT_VARIANTS],
        filters=mel_filters(),
    )


def _hear(task: tuple[str, int]) -> None:
    """Write the sum of the unit embeddings of each word, or of each label of the corpus: float16 [n, dim]."""
    name, start = task
    items = _worker["parts"][name][start : start + WORDS_PER_SHARD]
    if name == "clips":
        rows, log_mels = _clips_of_corpus(start)
    else:
        spoken = _by_espeak(items) if name == "words" else _by_festival(_FESTIVAL[name], items)
        heard = [(row, log_mel_of_word(samples, _worker["filters"])) for row, samples in spoken]
        rows = [row for row, log_mel in heard if log_mel is not None]
        log_mels = [log_mel for _, log_mel in heard if log_mel is not None]
    sums = np.zeros((len(items), _worker["finished"].encoders.config.dim), np.float32)
    np.add.at(sums, rows, _worker["finished"].embed_speech(log_mels))
    path = _shard(_worker["said"], task)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, sums=sums.astype(np.float16))
    os.replace(partial, path)


def _by_espeak(words: list[Word]) -> Iterator[tuple[int, np.ndarray]]:
    """Each word by a few voices: its row and samples."""
    espeak = _worker["espeak"]
    for row, word in enumerate(words):
        rng = random.Random(f"{word.language} {word.text}")
        voices = VALIDATION_VARIANTS if word_lists.is_validation(word.sound) else _worker["voices"]
        for _ in range(RENDERS_OF_ENGLISH if word.language == "en" else RENDERS):
            manner = Manner(rng.choice(voices), rng.randint(105, 230), rng.randint(10, 95), rng.randint(15, 95))
            if espeak.set_voice(rng.choice((word.language, *ACCENTS.get(word.language, ()))), manner):
                yield row, espeak.say(word.text)


def _by_festival(voice: FestivalVoice, words: list[Word]) -> Iterator[tuple[int, np.ndarray]]:
    said = say_with_festival(voice, [word.text for word in words])
    yield from ((row, samples) for row, samples in enumerate(said) if samples is not None)


def _heard(clips: Clips) -> dict[int, Sequence[int]]:
    """Label row -> clips, of spelled labels that training heard, and of synthetic ones for validation."""
    corpus, batches = clips.corpus, clips.batches
    synthetic = (*batches.synthetic, *corpus.select("val", synthetic=True))
    heard = {row: corpus.clips_of[row] for row in synthetic} | batches.recorded
    return {row: own for row, own in heard.items() if corpus.labels[row].text}


def _clips_of_corpus(start: int) -> tuple[list[int], list[np.ndarray]]:
    heard, end = _worker["heard"], start + WORDS_PER_SHARD
    chosen = [(row - start, int(clip)) for row in range(start, end) for clip in heard.get(row, ())]
    return [row for row, _ in chosen], _worker["clips"].plain([clip for _, clip in chosen])


class Reader(torch.nn.Module):
    """What learns: a text encoder, and the scale of its contrastive loss."""

    def __init__(self, text: TextEncoder, log_scale: Tensor) -> None:
        super().__init__()
        self.text, self.log_scale = text, torch.nn.Parameter(log_scale.detach().clone())


class SpellingTrainer(Updates):
    """A run in a folder: ear.pt, the finished speech encoder; what it heard, and of which corpus; last.pt, spelling.pt
    and log.jsonl.

    ear.pt and spelling.pt are checkpoints as `text_to_speech.Checkpoint` reads them.
    """

    def __init__(
        self, folder: Path, given: Checkpoint, corpus: Path, config: SpellingConfig, workers: int,
        report: Callable[[str], None],
    ) -> None:  # fmt: skip
        given.refuse_teacher()
        opened = Corpus(corpus)
        given.check(opened)
        run_folder(folder)
        if not (folder / "ear.pt").exists():
            if given.finished is None:
                report("fitting the last maps of the speech encoder")
                given = given.finish(opened)
            with replace_file(folder / "corpus.sha256") as file:
                file.write(opened.sha256.encode())
            given.save(folder / "ear.pt")
        self.ear = Checkpoint.load(folder / "ear.pt")
        if not _same_body(self.ear.encoders, given.encoders):
            raise InvalidInput(
                f"'{folder}' is a run for another speech encoder than that of the checkpoint: name another run folder"
            )
        if (folder / "corpus.sha256").read_text() != opened.sha256:
            raise InvalidInput(
                f"'{folder}' heard another corpus than '{corpus}': name the one it began with, or another run folder"
            )
        self.heard = listen(folder, corpus, config.left_out, workers, report)
        self.tokenizer = Tokenizer.from_dict(self.ear.vocabulary)
        learned = np.flatnonzero(~self.heard.validation)
        if len(learned) < 2 or len(learned) == len(self.heard.words):
            raise InvalidInput(f"'{corpus}' has too few words to learn from and to validate with: render a larger one")
        self.learned = learned[np.argsort([self.heard.words[i].text for i in learned], kind="stable")]
        self.typed = np.array([_typed(self.heard.words[i]) for i in self.learned])
        torch.manual_seed(config.seed)
        reader = Reader(copy.deepcopy(self.ear.encoders.text), self.ear.encoders.log_scale)
        self._begin_with_last_map(reader.text, config.seed)
        super().__init__(folder, config, reader.train(), copy.deepcopy(reader).eval())
        if (folder / "last.pt").exists():
            self._resume()
        else:
            self._miss(report)

    def _begin_with_last_map(self, text: TextEncoder, seed: int, n: int = 8192) -> None:
        """The body can spell already: a ridge regression to the targets is where its last map begins."""
        rng = random.Random(seed)
        places = np.array([rng.randrange(len(self.learned)) for _ in range(n)])
        ids, mask = padded([self._tokens(place, i % 2 == 0, rng) for i, place in enumerate(places)])
        with torch.inference_mode():
            parts = zip(ids.split(512), mask.split(512), strict=True)
            statistics = torch.cat([text.pooling.statistics(*text.letters(*part)) for part in parts])
        fitted = last_maps.ridge(statistics.double().numpy(), self.heard.targets[self.heard.row[self.learned[places]]])
        with torch.no_grad():
            text.pooling.out.weight.copy_(torch.from_numpy(fitted.weight))
            text.pooling.out.bias.copy_(torch.from_numpy(fitted.offset))

    def _resume(self) -> None:
        state = read_checkpoint(self.folder / "last.pt", "last.pt of a run")
        refuse_other_config(state["config"], self.config, self.folder)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.missing = state["missing"].numpy()
        self.step = state["step"]
        trim_log(self.folder / "log.jsonl", self.step)

    def batches(self) -> Iterable[int]:
        return range(self.step, self.config.steps)

    def losses(self, step: int) -> dict[str, Tensor]:
        """1 - mean cosine to the targets, and the contrast of the words of one batch; keeps what is missing to each."""
        rng = random.Random(f"{self.config.seed} {step}")
        places = self._draw(rng)
        spelled = np.array([rng.random() < self.config.letters_share for _ in places])
        tokens = [self._tokens(*drawn, rng) for drawn in zip(places, spelled, strict=True)]
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        embedded = []
        for part in np.array_split(order, 4):  # the short ones are spared the padding of the long ones
            with torch.autocast("cpu", torch.bfloat16, enabled=computes_bfloat16()):
                embedded.append(self.model.text(*padded([tokens[i] for i in part])).float())
        text = F.normalize(torch.cat(embedded), dim=1)
        places, spelled = places[order], spelled[order]
        sound = torch.from_numpy(self.heard.row[self.learned[places]])
        target = torch.from_numpy(self.heard.targets[sound.numpy()])
        missing = 1 - (text.detach() * target).sum(dim=1).numpy()
        self.missing[places[spelled]] = missing[spelled]
        contrast = losses.contrastive(text, target, sound, sound, losses.temperature(self.model.log_scale))
        return {"cosine": losses.cosine_alignment(text, target), "contrast": self.config.contrast_weight * contrast}

    def _draw(self, rng: random.Random) -> np.ndarray:
        """Places in `learned`. Half of the words by how often they are typed, times the square of what is missing to
        their target, so that "one" is learned among thousands that are spelled as they sound; half the next ones in
        the alphabet, that look alike."""
        n = self.config.words // 2
        upto = np.cumsum(self.typed * self.missing.astype(np.float64) ** 2)
        places = np.searchsorted(upto, upto[-1] * np.array([rng.random() for _ in range(n)]))
        places = np.append(places, places + np.array([rng.randint(1, 3) for _ in range(n)]))
        return places % len(self.learned)

    def _tokens(self, place: int, spelled: bool, rng: random.Random | None) -> Tensor:
        return token_row(self.tokenizer, self.heard.words[self.learned[place]], "grapheme" if spelled else "ipa", rng)

    @torch.inference_mode()
    def _miss(self, report: Callable[[str], None]) -> None:
        """What is missing to each target before the first step: 1 - cosine, of letters."""
        self.missing = np.zeros(len(self.learned), np.float32)
        for part in self._by_length("reading words", report):
            targets = self.heard.targets[self.heard.row[self.learned[part]]]
            self.missing[part] = 1 - (self._read(part, spelled=True) * targets).sum(axis=1)

    @torch.inference_mode()
    def dictionary(self, report: Callable[[str], None]) -> Dictionary:
        """What the trained encoder reads otherwise by its letters than as IPA, and Chinese characters."""
        apart = np.zeros(len(self.learned), np.float32)
        for part in self._by_length("reading words for the dictionary", report):
            apart[part] = 1 - (self._read(part, spelled=True) * self._read(part, spelled=False)).sum(axis=1)
        return {
            "pronunciations": pronunciations.of_words([self.heard.words[row] for row in self.learned], apart),
            "characters": pronunciations.of_chinese(Espeak()),
        }

    def _by_length(self, what: str, report: Callable[[str], None]) -> Iterator[np.ndarray]:
        """All places in `learned`, in parts of like length."""
        order = np.argsort([len(self.heard.words[row].text) for row in self.learned], kind="stable")
        return parts_left(what, [order[first : first + 512] for first in range(0, len(order), 512)], report)

    def _read(self, places: np.ndarray, spelled: bool) -> np.ndarray:
        """Unit embeddings of words in letters or in IPA: float32 [n, dim]."""
        tokens = padded([self._tokens(place, spelled, None) for place in places])
        return F.normalize(self.average.text(*tokens), dim=1).numpy()

    def validate(self, report: Callable[[str], None], terms: dict[str, float]) -> None:
        scores = self.score()
        report("validation " + " ".join(f"{name} {value:.1f}" for name, value in scores.items()))
        add_to_log(self.folder / "log.jsonl", {"step": self.step, **terms, **scores})
        encoders = copy.deepcopy(self.ear.encoders)
        encoders.text = self.average.text
        centers = (self.ear.centers[0], torch.zeros_like(self.ear.centers[1]))
        dictionary = self.dictionary(report) if self.step == self.config.steps else self.ear.dictionary
        made = replace(self.ear, encoders=encoders, centers=centers, dictionary=dictionary)
        made.save(self.folder / "spelling.pt")
        state = {
            "config": plain(self.config), "step": self.step,
            "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "missing": torch.from_numpy(self.missing),
        }  # fmt: skip
        with replace_file(self.folder / "last.pt") as file:
            torch.save(state, file)

    @torch.inference_mode()
    def score(self, most: int = 2000) -> dict[str, float]:
        """Validation words whose text is nearer to what was heard of them than of any other one, in percent."""
        rows = np.flatnonzero(self.heard.validation)[:most]
        sound = self.heard.row[rows]
        targets = self.heard.targets[sound]
        same = sound[:, None] == sound[None]
        result = {}
        for kind in ("grapheme", "ipa"):
            tokens = [token_row(self.tokenizer, self.heard.words[row], kind, None) for row in rows]
            parts = [padded(tokens[i : i + 256]) for i in range(0, len(tokens), 256)]
            text = torch.cat([F.normalize(self.average.text(*part), dim=1) for part in parts]).numpy()
            likeness = text @ targets.T
            others = np.where(same, -1, likeness).max(axis=1)
            result[f"text_{kind}"] = 100 * float((np.diag(likeness) > others).mean())
        return result


def _typed(word: Word) -> float:
    """How often a word is drawn beside others. Short English ones are typed most, and least spelled as they sound."""
    return 20.0 if word.language == "en" and len(word.text) <= 5 else 1.0


def _same_body(one: AlignedEncoders, other: AlignedEncoders) -> bool:
    """Whether two pairs of encoders differ in last maps and text at most."""
    weights = other.speech.state_dict()
    return all(
        name.startswith("pooling.out") or (name in weights and tensor.equal(weights[name]))
        for name, tensor in one.speech.state_dict().items()
    )
