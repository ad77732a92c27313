"""The first look of a scan: what it says of candidates, and that a scan with it finds what one without it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_bundle import word_clip

from edgealign import Bundle, Recognizer, kernels
from edgealign.audio import AudioArray
from edgealign.scan import Scanner, ScanOptions, Searched, _stands_out
from edgealign.scan_runs import make_scanner
from edgealign.sieve import BEHIND, FURTHEST, LEAST_COSINE, ROUNDS, FirstLook, Sieve
from edgealign.words import at_least

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.open()


@pytest.fixture
def scanner(shipped: Bundle, samples_folder: Path, tmp_path: Path) -> Scanner:
    recognizer = Recognizer(shipped, tmp_path / "words.store")
    recognizer.enroll([samples_folder])
    return make_scanner(recognizer, ScanOptions())


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


def chosen_in_rounds(look: FirstLook, probability: float) -> list[list[tuple[int, int]]]:
    """What is chosen in each round where everything that is encoded turns out to be so probable."""
    rounds = []
    for n_rivals in ROUNDS:
        rounds.append(look.choose(n_rivals))
        for span in rounds[-1]:
            look.hear(span, probability)
    return rounds


def test_more_rivals_are_encoded_only_where_the_first_leave_it_open() -> None:
    spans = [(i, 60 + i) for i in range(12)]
    distances = np.linspace(0.4, 0.5, 12, dtype=np.float32)[::-1].copy()
    open_, known, hopeless = (chosen_in_rounds(FirstLook(spans, distances), p) for p in (0.3, 0.95, 0.001))
    assert open_[0] == known[0] == hopeless[0] == [spans[11], spans[10]]  # the nearest of all
    assert open_[1] == [spans[9], spans[8]]
    assert known[1] == hopeless[1] == []


def test_what_does_not_overlap_is_no_rival() -> None:
    spans = [(100 * i, 100 * i + 60) for i in range(8)]
    look = FirstLook(spans, np.linspace(0.3, 0.6, 8, dtype=np.float32))
    assert look.choose(1) == spans
    assert look.chosen == set(spans)
    assert look.choose(6) == []


def test_what_is_far_from_every_label_or_behind_a_rival_is_not_encoded() -> None:
    spans = [(0, 60), (5, 60), (10, 60), (300, 360)]
    distances = np.array([0.2, 0.2 + BEHIND / 2, 0.25 + BEHIND, FURTHEST + 0.01], np.float32)
    assert chosen_in_rounds(FirstLook(spans, distances), 0.5) == [spans[:2], []]


def test_of_candidates_that_lie_as_near_the_shorter_is_encoded_first(
    scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    stretch = [(0, 100), (20, 80), (30, 60)]
    monkeypatch.setattr(scanner._sieve, "embed", lambda _, spans: np.tile(scanner._prototypes[:1], (len(spans), 1)))
    assert scanner._first_look(np.zeros((48, 100), np.float32), stretch).choose(3) == stretch[::-1]


def test_candidates_of_several_search_windows_get_the_embeddings_that_each_gets_alone(
    shipped: Bundle, scanner: Scanner
) -> None:
    rng = np.random.default_rng(3)
    windows = [
        Searched(0, rng.normal(-6, 3, (48, 400)).astype(np.float32), None, np.zeros(400), 0.0, {}, [], [])
        for _ in range(2)
    ]
    spans = [(windows[i % 2], (10 * i, 10 * i + (40, 60, 12)[i % 3])) for i in range(20)]
    together = scanner._encode(spans)
    for row, (window, (first, end)) in zip(together, spans, strict=True):
        frames = at_least(window.log_mels, first, end, shipped.windows.min_frames, shipped.front_end.energy_floor)
        assert np.allclose(row, shipped.encode(frames[None])[0], atol=1e-5)


def test_a_candidate_in_which_only_a_click_stands_out_is_dropped(scanner: Scanner) -> None:
    spans, stands_out = [(0, 100), (120, 220), (400, 430)], np.zeros(200, bool)
    stands_out[[10, 11, 12, 35, 36, 37, 38, 104]] = True  # of every fourth frame: a click, a word, a click
    frames = np.zeros((48, 800), np.float32)
    assert scanner._first_looks(frames, spans, set(), stands_out) == ([(120, 220)], [])
    assert scanner._first_looks(frames, spans, {(400, 430)}, stands_out) == ([(120, 220), (400, 430)], [])


def test_steady_noise_does_not_stand_out_and_a_word_in_it_does(shipped: Bundle) -> None:
    noise = 0.01 * np.random.default_rng(0).normal(size=10 * RATE_HZ)
    spoken = noise.copy()
    word = word_clip(1, silence_s=0.0)
    spoken[5 * RATE_HZ :][: len(word)] += word
    for samples, expected in ((noise, False), (spoken, True)):
        levels = 10 * np.log10(np.exp(log_mels(shipped, samples)).mean(axis=0))
        assert _stands_out(levels, shipped.front_end).any() == expected
