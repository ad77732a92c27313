"""The last linear maps of both encoders, fitted anew when training has ended.

Training ends in a linear map that tells the words of training apart, and drops what these do not need: on other words,
said by people, the statistics that its heads pooled do better than its embeddings. What ships is both:

    s(x)   statistics of a clip, pooled by the heads
    e(s)   the embedding of training, W s + b
    map    the DIM principal components of [white(e) / |white(e)|, sqrt(STATISTICS_SHARE) white(s / deviation) / |.|],
           all centered, |.| being means over the clips

white is whitening within words (Hatch and Stolcke 2006), the covariance shrunk toward a multiple of the identity. The
larger the share of the statistics, the better for words that training did not hear, and the worse for words that it
heard by other speakers.

A text has no such statistics. Its map is the mean of two: its embedding of training through the same components, and a
ridge regression from the statistics of texts to the mean embeddings of their words. All of it is linear, so nothing is
added to the graphs. The numbers were chosen on validation words: benchmarks/LOG.md.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgealign.errors import InvalidInput
from edgealign.train.batches import padded
from edgealign.train.clips import Clips
from edgealign.train.encoders import AlignedEncoders, centered

STATISTICS_SHARE = 2.0
EMBEDDING_SHRINKAGE, STATISTICS_SHRINKAGE = 0.7, 0.8
SYNTHETIC_SHARE = 0.3  # of the covariance within words; the rest is of recorded ones, where there are any
RIDGE = 30.0
WORDS, CLIPS, RECORDINGS = 6000, 3, 120  # clips of each synthetic word, and of each recorded one


@dataclass(frozen=True)
class Pooled:
    """Statistics float64 [n, n_statistics] of clips or texts, and the word of each, int [n]."""

    statistics: np.ndarray
    word: np.ndarray


@dataclass(frozen=True)
class Finished:
    """Encoders with new last maps, and the mean unit embedding of words of training in each modality, float32 [dim]:
    it is taken out of embeddings, so that the two clouds lie on one another."""

    encoders: AlignedEncoders
    speech_center: Tensor
    text_center: Tensor

    @torch.inference_mode()
    def embed_speech(self, log_mels: Sequence[np.ndarray]) -> np.ndarray:
        """Unit embeddings float32 [n, dim] of words [n_mels, n_frames]; those of like length are computed together."""
        embeddings = np.zeros((len(log_mels), self.encoders.config.dim), np.float32)
        order = np.argsort([x.shape[1] for x in log_mels], kind="stable")
        for first in range(0, len(order), 32):
            rows = order[first : first + 32]
            frames, mask = padded([torch.from_numpy(np.ascontiguousarray(log_mels[row].T)) for row in rows])
            unit = self.encoders.embed_speech(frames.transpose(1, 2).contiguous(), mask)
            embeddings[rows] = centered(unit, self.speech_center).numpy()
        return embeddings


def finish(encoders: AlignedEncoders, clips: Clips) -> Finished:
    """New last maps from words of training in field conditions."""

    @torch.inference_mode()
    def said(words: list[int], rows: list[int]) -> Pooled:
        frames = [encoders.speech.frames(torch.from_numpy(x)[None]) for x in clips.in_the_field(rows)]
        pooled = torch.cat([encoders.speech.pooling.statistics(*x) for x in frames])
        return Pooled(pooled.double().numpy(), np.array(words))

    @torch.inference_mode()
    def written(words: list[int]) -> Pooled:
        letters = [encoders.text.letters(torch.from_numpy(x)) for x in clips.texts_of(words)]
        pooled = torch.cat([encoders.text.pooling.statistics(*x) for x in letters])
        return Pooled(pooled.double().numpy(), np.array(words))

    words, rows = clips.several_of_each(WORDS, CLIPS)
    recorded = clips.recorded_words(RECORDINGS)
    made = refitted(
        encoders, said(words, rows), said(*recorded) if recorded[0] else None, written(list(dict.fromkeys(words)))
    )
    with torch.inference_mode():
        spoken = clips.training_words(600) + clips.recordings(200)
        speech = [made.embed_speech(torch.from_numpy(x)[None]) for x in spoken]
        text = [made.embed_text(torch.from_numpy(x)) for x in clips.token_rows(800)]
    return Finished(made, torch.cat(speech).mean(dim=0).clone(), torch.cat(text).mean(dim=0).clone())


def refitted(encoders: AlignedEncoders, synthetic: Pooled, recorded: Pooled | None, texts: Pooled) -> AlignedEncoders:
    """A copy of the encoders with new last maps and no alignment map: embeddings of the same dim.

    synthetic   clips of words of training, several of each
    recorded    the same, said by people; None where training heard none
    texts       one of each word of `synthetic`
    """
    made = copy.deepcopy(encoders)
    alignment, out, text_out = made.alignment, made.speech.pooling.out, made.text.pooling.out
    dim = encoders.config.dim
    clips = synthetic.statistics if recorded is None else np.concatenate([synthetic.statistics, recorded.statistics])
    if len(clips) < dim:
        raise InvalidInput(
            f"the corpus has {len(clips)} clips to fit the last maps on, which takes {dim} and more: render one with "
            f"more words (`edgealign train text-to-speech --words`)"
        )
    with torch.no_grad():
        embedding, scaled = (alignment.weight @ out.weight).double().numpy(), np.diag(1 / (clips.std(axis=0) + 1e-6))
        white = _whitening(embedding, EMBEDDING_SHRINKAGE, synthetic, recorded)
        trained = _centered(white @ embedding, clips)
        whole = _centered(_whitening(scaled, STATISTICS_SHRINKAGE, synthetic, recorded) @ scaled, clips)
        share = np.sqrt(STATISTICS_SHARE)
        both = Affine(
            np.concatenate([trained.weight, share * whole.weight]),
            np.concatenate([trained.offset, share * whole.offset]),
        )
        _, _, components = np.linalg.svd(both(clips), full_matrices=False)
        speech = both.then(components[:dim])

        direct = _centered(white @ text_out.weight.double().numpy(), texts.statistics)
        direct = direct.then(components[:dim, :dim]).of_unit_size(texts.statistics)
        regressed = _regression(texts, synthetic, speech).of_unit_size(texts.statistics)
        text = Affine(direct.weight + regressed.weight, direct.offset + regressed.offset)
        for layer, fitted in ((out, speech), (text_out, text)):
            layer.weight.copy_(torch.from_numpy(fitted.weight))
            layer.bias.copy_(torch.from_numpy(fitted.offset))
        torch.nn.init.eye_(alignment.weight)
        torch.nn.init.zeros_(alignment.bias)
    return made


@dataclass(frozen=True)
class Affine:
    """x [n, inputs] -> x weight^T + offset; float64."""

    weight: np.ndarray
    offset: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight.T + self.offset

    def then(self, weight: np.ndarray) -> Affine:
        return Affine(weight @ self.weight, weight @ self.offset)

    def of_unit_size(self, x: np.ndarray) -> Affine:
        size = np.linalg.norm(self(x), axis=1).mean()
        return Affine(self.weight / size, self.offset / size)


def _centered(weight: np.ndarray, x: np.ndarray) -> Affine:
    """weight x, less its mean and of unit size over the rows of x."""
    return Affine(weight, -(x @ weight.T).mean(axis=0)).of_unit_size(x)


def _whitening(weight: np.ndarray, shrinkage: float, synthetic: Pooled, recorded: Pooled | None) -> np.ndarray:
    """What makes the covariance of `weight s` around the mean of its word the identity."""
    covariance = _within_words(synthetic, weight)
    if recorded is not None:
        covariance = SYNTHETIC_SHARE * covariance + (1 - SYNTHETIC_SHARE) * _within_words(recorded, weight)
    n = len(covariance)
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / n * np.eye(n)
    values, vectors = np.linalg.eigh(covariance)
    return (vectors / np.sqrt(np.maximum(values, 1e-12))).T


def _within_words(pooled: Pooled, weight: np.ndarray) -> np.ndarray:
    x = pooled.statistics @ weight.T
    rest = x - _means(x, pooled.word)[np.unique(pooled.word, return_inverse=True)[1]]
    return rest.T @ rest / len(rest)


def _means(x: np.ndarray, word: np.ndarray) -> np.ndarray:
    """Mean row of each word, words in order."""
    _, row, count = np.unique(word, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), x.shape[1]))
    np.add.at(sums, row, x)
    return sums / count[:, None]


def _regression(texts: Pooled, synthetic: Pooled, speech: Affine) -> Affine:
    """From the statistics of a text to the mean unit embedding of its word's clips."""
    embeddings = speech(synthetic.statistics)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    target = _means(embeddings, synthetic.word)[np.searchsorted(np.unique(synthetic.word), texts.word)]
    return ridge(texts.statistics, target)


def ridge(statistics: np.ndarray, target: np.ndarray) -> Affine:
    """Ridge regression of targets [n, dim] on statistics float64 [n, n_statistics], in units of their deviations."""
    mean, scale = statistics.mean(axis=0), 1 / (statistics.std(axis=0) + 1e-6)
    x = (statistics - mean) * scale
    weight = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (target - target.mean(axis=0))).T * scale
    return Affine(weight, target.mean(axis=0) - weight @ mean)
