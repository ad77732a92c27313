"""The last linear maps of both encoders, fitted anew at export.

Training ends in a linear map that tells the words of training apart, and drops what these do not need: on other words,
said by people, the statistics that its heads pooled do better than its embeddings. What ships is both:

    s(x)   statistics of a clip, pooled by the heads
    e(s)   the embedding of training, W s + b, centered
    z(s)   the statistics, centered and whitened within words (Hatch and Stolcke 2006), the covariance shrunk toward a
           multiple of the identity, all in units of their deviation
    map    the DIM principal components of [e / |e|, sqrt(WHITENED_SHARE) z / |z|], |.| being means over the clips

A text has no such statistics. Its map is the mean of two: its embedding of training through the same components, and a
ridge regression from the statistics of texts to the mean embeddings of their words. All of it is linear, so nothing is
added to the graphs. The numbers were chosen on validation words: benchmarks/LOG.md.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from edgealign.train.encoders import AlignedEncoders

WHITENED_SHARE = 2.0
SHRINKAGE = 0.8
SYNTHETIC_SHARE = 0.3  # of the covariance within words; the rest is of recorded ones, where there are any
RIDGE = 30.0


@dataclass(frozen=True)
class Pooled:
    """Statistics float32 [n, n_statistics] of clips or texts, and the word of each, int [n]."""

    statistics: np.ndarray
    word: np.ndarray


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
    with torch.no_grad():
        trained = _Affine((alignment.weight @ out.weight).double().numpy(), np.zeros(dim)).centered(clips)
        whitened = _whitening(clips, synthetic, recorded).centered(clips)
        both = _Affine(
            np.concatenate([trained.weight, np.sqrt(WHITENED_SHARE) * whitened.weight]),
            np.concatenate([trained.offset, np.sqrt(WHITENED_SHARE) * whitened.offset]),
        )
        _, _, components = np.linalg.svd(both(clips), full_matrices=False)
        speech = both.then(components[:dim])

        direct = _Affine(text_out.weight.double().numpy(), np.zeros(dim)).centered(texts.statistics)
        direct = direct.then(components[:dim, :dim]).of_unit_size(texts.statistics)
        regressed = _regression(texts, synthetic, speech).of_unit_size(texts.statistics)
        text = _Affine(direct.weight + regressed.weight, direct.offset + regressed.offset)
        for layer, fitted in ((out, speech), (text_out, text)):
            layer.weight.copy_(torch.from_numpy(fitted.weight))
            layer.bias.copy_(torch.from_numpy(fitted.offset))
        torch.nn.init.eye_(alignment.weight)
        torch.nn.init.zeros_(alignment.bias)
    return made


@dataclass(frozen=True)
class _Affine:
    """x [n, inputs] -> x weight^T + offset; float64."""

    weight: np.ndarray
    offset: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight.T + self.offset

    def then(self, weight: np.ndarray) -> _Affine:
        return _Affine(weight @ self.weight, weight @ self.offset)

    def centered(self, x: np.ndarray) -> _Affine:
        """The same with mean zero and of unit size over the rows of x."""
        return _Affine(self.weight, self.offset - self(x).mean(axis=0)).of_unit_size(x)

    def of_unit_size(self, x: np.ndarray) -> _Affine:
        size = np.linalg.norm(self(x), axis=1).mean()
        return _Affine(self.weight / size, self.offset / size)


def _whitening(clips: np.ndarray, synthetic: Pooled, recorded: Pooled | None) -> _Affine:
    scale = 1 / (clips.std(axis=0) + 1e-6)
    covariance = _within_words(synthetic, scale)
    if recorded is not None:
        covariance = SYNTHETIC_SHARE * covariance + (1 - SYNTHETIC_SHARE) * _within_words(recorded, scale)
    n = len(covariance)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / n * np.eye(n)
    values, vectors = np.linalg.eigh(covariance)
    return _Affine((vectors / np.sqrt(np.maximum(values, 1e-12))).T * scale, np.zeros(n))


def _within_words(pooled: Pooled, scale: np.ndarray) -> np.ndarray:
    """Covariance of scaled statistics around the mean of their word."""
    x = pooled.statistics * scale
    rest = x - _means(x, pooled.word)[np.unique(pooled.word, return_inverse=True)[1]]
    return rest.T @ rest / len(rest)


def _means(x: np.ndarray, word: np.ndarray) -> np.ndarray:
    """Mean row of each word, words in order."""
    _, row, count = np.unique(word, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), x.shape[1]))
    np.add.at(sums, row, x)
    return sums / count[:, None]


def _regression(texts: Pooled, synthetic: Pooled, speech: _Affine) -> _Affine:
    """From the statistics of a text to the mean unit embedding of its word's clips."""
    embeddings = speech(synthetic.statistics)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    target = _means(embeddings, synthetic.word)[np.searchsorted(np.unique(synthetic.word), texts.word)]
    mean, scale = texts.statistics.mean(axis=0), 1 / (texts.statistics.std(axis=0) + 1e-6)
    x = (texts.statistics - mean) * scale
    weight = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (target - target.mean(axis=0))).T * scale
    return _Affine(weight, target.mean(axis=0) - weight @ mean)
