"""The first look of a scan: what it says of candidates, and that a scan with it finds what one without it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_bundle import word_clip

from edgealign import Bundle, Recognizer, kernels
from edgealign.audio import AudioArray
from edgealign.scan import ScanOptions, _stands_out
from edgealign.scan_runs import make_scanner
from edgealign.sieve import LEAST_COSINE, Sieve

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.open()


def log_mels(bundle: Bundle, samples: np.ndarray) -> np.ndarray:
    front_end = bundle.front_end
    numbers = (front_end.window_samples, front_end.hop_samples, front_end.energy_floor)
    return kernels.log_mel(samples.astype(np.float32), bundle.filters, *numbers)


def tape() -> np.ndarray:
    """Words of three kinds among others, over faint noise, the last nine without a pause."""
    rng = np.random.default_rng(0)
    kinds = (0, 700, 1, 2, 701, 1, 0, 702, 2, 703, 704, 0, 705, 706)
    words = [word_clip(word, 30 + i, silence_s=0.0) for i, word in enumerate(kinds)]
    pauses = [np.zeros(int(s * RATE_HZ)) for s in (1.0, 0.7, 3.0, 0.5, 1.2, *[0.0] * 9)]
    samples = np.concatenate([piece for pair in zip(pauses, words, strict=True) for piece in pair] + [pauses[0]])
    return (samples + 1e-3 * rng.normal(size=len(samples))).astype(np.float32)


@pytest.mark.parametrize("variant", ["int8", "fp32"])
def test_a_stretch_that_is_one_candidate_gets_the_embedding_that_the_encoder_gives(variant: str) -> None:
    bundle = Bundle.open(variant=variant)
    sieve = Sieve.of(bundle)
    for word in range(4):
        frames = log_mels(bundle, word_clip(word, silence_s=0.05))
        frames = frames[:, : frames.shape[1] // 4 * 4]
        alone = bundle.encode(np.ascontiguousarray(frames)[None])[0]
        assert sieve.embed(frames, [(0, frames.shape[1])])[0] @ alone >= LEAST_COSINE


def test_many_candidates_get_what_each_gets_by_itself(shipped: Bundle) -> None:
    sieve = Sieve.of(shipped)
    frames = log_mels(shipped, tape())
    rng = np.random.default_rng(1)
    spans = [(int(first), int(first + length)) for first, length in zip(
        rng.integers(0, frames.shape[1] - 150, 90), rng.integers(18, 150, 90), strict=True
    )]  # fmt: skip
    together = sieve.embed(frames, spans)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for i in (0, 17, 89):
        assert np.allclose(sieve.embed(frames, [spans[i]])[0], together[i], atol=1e-5)


def test_an_encoder_of_another_make_has_none(toy_bundle: Bundle) -> None:
    assert Sieve.of(toy_bundle) is None


def test_a_scan_with_it_finds_what_one_without_it_finds_and_encodes_less(
    shipped: Bundle, samples_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = Recognizer(shipped, tmp_path / "words.store")
    recognizer.enroll([samples_folder])
    encode, n_encoded, found = shipped.encode, [0, 0], []
    for i, sieve in enumerate((False, True)):
        scanner = make_scanner(recognizer, ScanOptions(accept=0.3, sieve=sieve))

        def counted(frames: np.ndarray, i: int = i) -> np.ndarray:
            n_encoded[i] += len(frames)
            return encode(frames)

        monkeypatch.setattr(shipped, "encode", counted)
        found.append([(d.label, round(d.start_s, 1)) for d in scanner.scan(AudioArray(tape(), RATE_HZ))])
        monkeypatch.undo()
    assert len(found[0]) >= 4
    assert len(set(found[0]) & set(found[1])) >= 0.75 * len(found[0])
    assert len(found[1]) <= len(found[0])
    assert n_encoded[1] < 0.75 * n_encoded[0]


def test_steady_noise_does_not_stand_out_and_a_word_in_it_does(shipped: Bundle) -> None:
    noise = 0.01 * np.random.default_rng(0).normal(size=10 * RATE_HZ)
    spoken = noise.copy()
    word = word_clip(1, silence_s=0.0)
    spoken[5 * RATE_HZ :][: len(word)] += word
    for samples, expected in ((noise, False), (spoken, True)):
        levels = 10 * np.log10(np.exp(log_mels(shipped, samples)).mean(axis=0))
        assert _stands_out(levels, shipped.front_end).any() == expected
