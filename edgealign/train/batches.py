"""What a batch is made of: synthetic words that are hard to tell apart, recorded words, and splices of those."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgealign.text import Tokenizer, normalize
from edgealign.train.augment import Augmenter
from edgealign.train.config import TrainConfig
from edgealign.train.corpus import CROSSED, STRETCHES, TESTED, Corpus, Label
from edgealign.train.front_end import WINDOWS
from edgealign.train.words import Word, sound_of


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


# How often a recorded word of a batch is of this source.
RECORDED_SHARES = {
    "arabic_sc": 0.3, "dspspeech20": 0.25, "fsdd": 0.15, "wakewords_en": 0.2, "wakewords_community": 0.1,
    STRETCHES: 0.15,
}  # fmt: skip


@dataclass(frozen=True)
class Splice:
    """A pseudo-word: parts of up to three recorded words, each (label row, from, to) in shares of the word's length.

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
        self.recorded = self._recorded()
        sound = {i: sound_of(corpus.labels[i].ipa) for i in self.synthetic}
        self.clips_by_speaker = {label: self._by_speaker(clips) for label, clips in self.recorded.items()}
        self.packs: dict[str, list[int]] = {}
        for label in self.recorded:
            self.packs.setdefault(corpus.labels[label].source.split(":")[0], []).append(label)
        self.shares = [RECORDED_SHARES[source] for source in self.packs]
        self.by_start = sorted(self.synthetic, key=lambda i: sound[i])
        self.by_end = sorted(self.synthetic, key=lambda i: sound[i][::-1])

    @property
    def phones(self) -> str:
        """What the rows of a phoneme head stand for, but for the first, the blank."""
        return "".join(self.phone_ids)

    def _recorded(self) -> dict[int, list[int]]:
        """Clips of every word that people said and training may hear, by the first row of the word's labels."""
        rows = self.corpus.select("train", synthetic=False)
        for role in (TESTED, CROSSED):
            rows += [
                i for i in self.corpus.select(role, synthetic=False)
                if self.corpus.labels[i].source.split(":")[0] not in self.config.left_out
            ]  # fmt: skip
        first_row: dict[str, int] = {}
        clips: dict[int, list[int]] = {}
        for row in rows:
            label = first_row.setdefault(self.corpus.labels[row].source, row)
            clips.setdefault(label, []).extend(self.corpus.clips_of[row].tolist())
        return clips

    def draw(self, step: int) -> Batch:
        config = self.config
        rng = random.Random(f"{config.seed} {step}")
        words = self._words(rng, config.synthetic_words)
        rows = [row for label in words for row in self._whole(rng, label, config.renders)]
        for slot in range(config.recorded_words if self.recorded else 0):
            source = rng.choices(list(self.packs), self.shares)[0]
            label = rng.choice(self.packs[source])
            unnamed = len(self.corpus.labels) + slot
            if source == STRETCHES:
                rows += [(unnamed, *heard) for heard in self._window_takes(rng, label, config.takes)]
            elif rng.random() < config.whole_share:
                rows += self._whole(rng, label, config.takes)
            else:
                splice = self._splice(rng, label, self.packs[source])
                rows += [(unnamed, *said) for said in self._splice_takes(rng, splice, config.takes)]
        return self._batch(rows, rng, step)

    def _whole(self, rng: random.Random, label: int, n: int) -> list[tuple[int, int, np.ndarray]]:
        takes = self._takes(rng, label, n)
        return [(label, int(self.corpus.clips["speaker"][clip]), self.cut(clip, rng)) for clip in takes]

    def _splice(self, rng: random.Random, label: int, pack: list[int]) -> Splice:
        """A quarter each: one part of a word, two or three in a row, the beginning of one and the end of another."""
        kind = rng.randrange(4)
        if kind == 0:
            return Splice(((label, 0.0, rng.uniform(0.35, 0.65)), (rng.choice(pack), rng.uniform(0.35, 0.65), 1.0)))
        parts = []
        for part in [label, *rng.choices(pack, k=kind - 1)]:
            width = rng.uniform(*((0.4, 0.75), (0.3, 0.6), (0.25, 0.45))[kind - 1])
            first = rng.uniform(0, 1 - width)
            parts.append((part, first, first + width))
        return Splice(tuple(parts))

    def _window_takes(self, rng: random.Random, label: int, n: int) -> list[tuple[int, np.ndarray]]:
        """One window of a stretch of unknown words, n times: field conditions make them the takes of n voices."""
        clip = rng.choice(self.recorded[label])
        row = self.corpus.clips[clip]
        length = int(row["end"] - row["first"])
        width = min(rng.randint(25, 90), length)
        first = rng.randint(0, length - width)
        return [(-1 - i, self._part(clip, first / length, (first + width) / length, rng)) for i in range(n)]

    def _splice_takes(self, rng: random.Random, splice: Splice, n: int) -> list[tuple[int, np.ndarray]]:
        """n takes of a splice, by different speakers where there are: the speaker and the frames.

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
            takes.append((int(self.corpus.clips["speaker"][chosen[0]]), np.concatenate(frames)))
        return takes

    def _part(self, clip: int, first: float, end: float, rng: random.Random) -> np.ndarray:
        row = self.corpus.clips[clip]
        length = row["end"] - row["first"]
        first, end = (
            min(max(share + rng.uniform(-0.04, 0.04), 0), 1) if 0 < share < 1 else share for share in (first, end)
        )
        begin = int(row["offset"] + row["first"] + first * length)
        return self.corpus.spectra[begin : max(begin + 4, int(row["offset"] + row["first"] + end * length))]

    def _by_speaker(self, clips: list[int]) -> dict[int, list[int]]:
        by_speaker: dict[int, list[int]] = {}
        for clip in clips:
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
        by_speaker = self.clips_by_speaker.get(label) or self._by_speaker(self.corpus.clips_of[label].tolist())
        by_speaker = {speaker: rng.sample(clips, len(clips)) for speaker, clips in by_speaker.items()}
        by_speaker = {speaker: by_speaker[speaker] for speaker in rng.sample(list(by_speaker), len(by_speaker))}
        turns = [clip for turn in zip(*by_speaker.values(), strict=False) for clip in turn]
        rest = [clip for own in by_speaker.values() for clip in own if clip not in set(turns[:n])]
        chosen = (turns + rest)[:n]
        return chosen + [rng.choice(chosen) for _ in range(n - len(chosen))]

    def _batch(self, rows: list[tuple[int, int, np.ndarray]], rng: random.Random, step: int) -> Batch:
        """rows   label (past the end of the corpus for a splice), speaker, frames"""
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
            torch.tensor([speaker for _, speaker, _ in rows]),
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
        """Token ids int64 [n, longest] and mask [n, 1, longest] of label rows, see `token_row`."""
        return padded([token_row(self.tokenizer, self.corpus.labels[i], kind, rng) for i in labels])

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


def token_row(tokenizer: Tokenizer, word: Label | Word, kind: str, rng: random.Random | None) -> Tensor:
    """Token ids int64 [n_tokens] of one word. With `rng` language, stress and length marks are sometimes left out, as
    people leave them out."""
    text, language = word.text if kind == "grapheme" else word.ipa, word.language
    if rng and rng.random() < (0.3 if kind == "grapheme" else 0.6):
        language = None
    if kind == "ipa" and rng:
        if rng.random() < 0.4:
            text = text.replace("ˈ", "").replace("ˌ", "")
        if rng.random() < 0.3:
            text = text.replace("ː", "")
    return torch.from_numpy(tokenizer.encode(text, kind, language).ids)


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Token ids int64 [n, longest] and mask [n, 1, longest]."""
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1])[None] < lengths[:, None]).float().unsqueeze(1)


def _phones(corpus: Corpus) -> list[str]:
    counts: dict[str, int] = {}
    for label in corpus.labels:
        for c in sound_of(label.ipa):
            counts[c] = counts.get(c, 0) + 1
    return sorted(counts, key=lambda c: (-counts[c], c))
