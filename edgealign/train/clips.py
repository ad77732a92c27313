"""Clips and texts of a corpus, drawn with a seed, for what is fitted on finished encoders: maps, bank, decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from edgealign import kernels
from edgealign.train.batches import Batches
from edgealign.train.corpus import STRETCHES, Corpus, trimmed
from edgealign.train.front_end import FRONT_END, WINDOWS

LONGEST_S, SHORTEST_S = 2.8, 0.08
FLOOR_DB = -55.0  # of the faint noise around a rendered word, below its peak


def log_mel_of_word(samples: np.ndarray, filters: np.ndarray) -> np.ndarray | None:
    """float32 [n_mels, n_frames] of a rendered word as the runtime would cut it out of a quiet room; None where it is
    no word by its length."""
    f, samples = FRONT_END, trimmed(samples)
    if not SHORTEST_S <= len(samples) / f.sample_rate_hz <= LONGEST_S:
        return None
    loudest, pad = np.abs(samples).max(), WINDOWS.pad_frames * f.hop_samples
    room = np.random.default_rng(len(samples)).standard_normal(len(samples) + 2 * pad, np.float32)
    around = room * loudest * 10 ** (FLOOR_DB / 20)
    around[pad:-pad] += samples
    return kernels.log_mel(around / (2 * loudest), filters, f.window_samples, f.hop_samples, f.energy_floor)


class Clips:
    """Log-mels [n_mels, n_frames] of a corpus, each at its own length, drawn with a seed."""

    def __init__(self, corpus: Corpus, batches: Batches, seed: int) -> None:
        self.corpus, self.batches, self.seed = corpus, batches, seed
        self.rng = np.random.default_rng(seed)

    def training_words(self, n: int) -> list[np.ndarray]:
        """n synthetic words under field conditions, one clip a word; all where the corpus has fewer."""
        labels = self.rng.choice(self.batches.synthetic, min(n, len(self.batches.synthetic)), replace=False)
        return self.in_the_field([int(self.rng.choice(self.corpus.clips_of[i])) for i in labels])

    def recordings(self, n: int) -> list[np.ndarray]:
        """Words that people said, none of those that accuracy is measured on: a word that lies in the bank is taken for
        "anything else" sooner. None where the corpus is synthetic alone."""
        labels = self.corpus.select("train", synthetic=False)
        rows = [clip for label in labels for clip in self.corpus.clips_of[label]]
        rows = self.rng.choice(rows, min(n, len(rows)), replace=False) if rows else []
        return self.in_the_field([int(i) for i in rows])

    def noises(self, n: int) -> list[np.ndarray]:
        """Pieces of recorded noise, 0.3 to 1.5 s, and colored noise where none was recorded."""
        pieces = []
        for _ in range(n):
            frames = int(self.rng.integers(30, 150))
            if len(self.corpus.noise) > frames:
                start = int(self.rng.integers(len(self.corpus.noise) - frames))
                pieces.append(self.corpus.noise[start : start + frames])
            else:
                slope = np.linspace(0, float(self.rng.uniform(-60, 10)), self.corpus.spectra.shape[1])
                pieces.append((120 + slope + self.rng.normal(0, 8, (frames, len(slope)))).clip(1, 255).astype(np.uint8))
        return self._lengths(*self.batches.augmenter.clean(pieces))

    def several_of_each(self, n_words: int, n_clips: int) -> tuple[list[int], list[int]]:
        """Up to n_clips clips each of n_words synthetic words: the word of each, and its row in the corpus."""
        words = self.rng.choice(self.batches.synthetic, min(n_words, len(self.batches.synthetic)), replace=False)
        return self._drawn({int(word): self.corpus.clips_of[word] for word in words}, n_clips)

    def recorded_words(self, n_clips: int) -> tuple[list[int], list[int]]:
        """The same of every word that people said and training heard."""
        words = {
            word: rows for word, rows in self.batches.recorded.items()
            if not self.corpus.labels[word].source.startswith(f"{STRETCHES}:")
        }  # fmt: skip
        return self._drawn(words, n_clips)

    def _drawn(self, clips_of: Mapping[int, Sequence[int]], n_clips: int) -> tuple[list[int], list[int]]:
        drawn = [(word, int(row)) for word, rows in clips_of.items() for row in self.rng.permutation(rows)[:n_clips]]
        return [word for word, _ in drawn], [row for _, row in drawn]

    def token_rows(self, n: int) -> list[np.ndarray]:
        """Token ids int64 [1, n_tokens] of n words, or of all, spellings and IPA in turn."""
        n = min(n, len(self.batches.synthetic))
        return self.texts_of(self.rng.choice(self.batches.synthetic, n, replace=False).tolist())

    def texts_of(self, words: Sequence[int]) -> list[np.ndarray]:
        kinds = ("grapheme", "ipa")
        return [self.batches.tokens([i], kinds[at % 2], None)[0].numpy() for at, i in enumerate(words)]

    def plain(self, rows: list[int]) -> list[np.ndarray]:
        """Clips as they are, cut as the runtime would cut them."""
        parts = [rows[i : i + 64] for i in range(0, len(rows), 64)]
        cut = [[self.batches.cut(clip, None) for clip in part] for part in parts]
        return [x for part in cut for x in self._lengths(*self.batches.augmenter.clean(part))]

    def in_the_field(self, rows: list[int]) -> list[np.ndarray]:
        """The same under field conditions."""
        generator = torch.Generator().manual_seed(self.seed)
        parts = [rows[i : i + 64] for i in range(0, len(rows), 64)]
        cut = [[self.batches.cut(clip, None) for clip in part] for part in parts]
        return [x for part in cut for x in self._lengths(*self.batches.augmenter(part, generator))]

    @staticmethod
    def _lengths(log_mels: torch.Tensor, mask: torch.Tensor) -> list[np.ndarray]:
        return [x[:, : int(m.sum())].numpy() for x, m in zip(log_mels, mask, strict=True)]
