"""The last linear maps: against what they are said to be, and against words whose differences training dropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgealign.train import last_maps
from edgealign.train.encoders import AlignedEncoders, EncoderConfig
from edgealign.train.last_maps import Pooled

CONFIG = EncoderConfig(dim=8, heads=2, head_channels=4, speech_channels=16, text_channels=16, stem_channels=(8, 8, 8))
N_STATISTICS = 16
N_WORDS, N_CLIPS = 60, 6


@pytest.fixture(scope="module")
def encoders() -> AlignedEncoders:
    torch.manual_seed(0)
    return AlignedEncoders(CONFIG).eval()


def words(seed: int, speaker: np.ndarray) -> Pooled:
    """Words differ in every statistic; speakers differ much more, along one direction."""
    rng = np.random.default_rng(seed)
    word = np.repeat(np.arange(N_WORDS), N_CLIPS)
    means = rng.normal(size=(N_WORDS, N_STATISTICS))
    said = (
        means[word] + 0.3 * rng.normal(size=(len(word), N_STATISTICS)) + 4 * rng.normal(size=(len(word), 1)) * speaker
    )
    return Pooled(said, word)


@pytest.fixture(scope="module")
def speaker() -> np.ndarray:
    return np.eye(N_STATISTICS)[3]


@pytest.fixture(scope="module")
def texts() -> Pooled:
    """The statistics of a text are a linear map of its word's."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(N_WORDS, N_STATISTICS))
    return Pooled(means @ rng.normal(size=(N_STATISTICS, N_STATISTICS)) / 4, np.arange(N_WORDS))


def embedded(layer: torch.nn.Linear, statistics: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        rows = layer(torch.from_numpy(statistics).float()).double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def speech(encoders: AlignedEncoders, statistics: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        rows = encoders.alignment(encoders.speech.pooling.out(torch.from_numpy(statistics).float())).double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def share_right(rows: np.ndarray, word: np.ndarray) -> float:
    """Each clip asked of the first clip of every word but its own first."""
    first = np.arange(0, len(rows), N_CLIPS)
    asked = np.setdiff1d(np.arange(len(rows)), first)
    return float(np.mean((rows[asked] @ rows[first].T).argmax(axis=1) == word[asked]))


def test_new_words_are_told_apart_by_what_training_dropped_and_speakers_are_not(encoders, speaker, texts):
    made = last_maps.refitted(encoders, words(0, speaker), words(1, speaker), texts)
    unheard = words(2, speaker)
    before, after = (share_right(speech(e, unheard.statistics), unheard.word) for e in (encoders, made))
    assert after > before + 0.1  # chance is 1 / 60


def test_a_text_lies_where_its_word_does(encoders, speaker, texts):
    said = words(0, speaker)
    made = last_maps.refitted(encoders, said, None, texts)
    written = embedded(made.text.pooling.out, texts.statistics)
    spoken = speech(made, said.statistics)
    assert np.mean((spoken @ written.T).argmax(axis=1) == said.word) > 0.1  # chance is 1 / 60


def test_embeddings_are_the_principal_components_of_trained_and_whitened_ones(encoders, speaker, texts):
    """With as many components as there are inputs, angles are those between what is put side by side."""
    said = words(0, speaker)
    x, word = said.statistics, said.word
    whole = AlignedEncoders(EncoderConfig(**{**vars(CONFIG), "dim": 2 * N_STATISTICS})).eval()
    made = last_maps.refitted(whole, said, None, texts)

    weight = (whole.alignment.weight @ whole.speech.pooling.out.weight).detach().double().numpy()
    products = np.zeros((len(x), len(x)))
    for rows, shrinkage, share in (
        (x @ weight.T, last_maps.EMBEDDING_SHRINKAGE, 1.0),
        (x / x.std(axis=0), last_maps.STATISTICS_SHRINKAGE, last_maps.STATISTICS_SHARE),
    ):
        rest = rows - np.array([rows[word == w].mean(axis=0) for w in word])
        covariance = rest.T @ rest / len(x)
        n = len(covariance)
        shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / n * np.eye(n)
        centered = rows - rows.mean(axis=0)
        # Inner products need no square root of the inverse, only the inverse.
        whitened = centered @ np.linalg.inv(shrunk) @ centered.T
        products += share * whitened / np.sqrt(np.diag(whitened)).mean() ** 2
    lengths = np.sqrt(np.diag(products))
    found = speech(made, x)
    assert np.abs(found @ found.T - products / np.outer(lengths, lengths)).max() < 1e-4


def test_the_encoders_that_were_given_stay_as_they_were(encoders, speaker, texts):
    before = {name: tensor.clone() for name, tensor in encoders.state_dict().items()}
    last_maps.refitted(encoders, words(0, speaker), None, texts)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoders.state_dict().items())


def test_a_statistic_that_never_changes_does_no_harm(encoders, speaker, texts):
    said = words(0, speaker)
    said.statistics[:, 5] = 1.0
    made = last_maps.refitted(encoders, said, None, texts)
    assert np.isfinite(speech(made, said.statistics)).all()
