"""What overlapping candidates of a scan share, and that a scan finds with it what one finds without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_bundle import word_clip

from edgealign import Bundle, Recognizer, kernels
from edgealign import sieve as sieve_module
from edgealign.audio import AudioArray
from edgealign.scan import JUST_SHORT, Scanner, ScanOptions, Searched, _stands_out
from edgealign.scan_runs import make_scanner
from edgealign.sieve import BEHIND, FURTHEST, LEAST_COSINE, ROUNDS, FirstLook, Sieve, _running_max
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
        heard, whole = sieve.hear(frames), (0, frames.shape[1])
        assert sieve.look(heard, np.array([whole]))[0] @ alone >= LEAST_COSINE
        assert sieve.embed([(heard, whole)])[0] @ alone >= LEAST_COSINE


def test_many_candidates_get_what_each_gets_by_itself(shipped: Bundle) -> None:
    sieve = Sieve.of(shipped)
    heard = sieve.hear(log_mels(shipped, tape()))
    rng = np.random.default_rng(1)
    spans = [(int(first), int(first + length)) for first, length in zip(
        rng.integers(0, 4 * heard.shape[3] - 150, 90), rng.integers(18, 150, 90), strict=True
    )]  # fmt: skip
    for together, single in (
        (sieve.look(heard, np.array(spans)), lambda span: sieve.look(heard, np.array([span]))),
        (sieve.embed([(heard, span) for span in spans]), lambda span: sieve.embed([(heard, span)])),
    ):
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        for i in (0, 17, 89):
            assert np.allclose(single(spans[i])[0], together[i], atol=1e-5)


def test_what_surrounds_a_candidate_reaches_less_into_its_embedding_than_into_a_look(shipped: Bundle) -> None:
    sieve, frames = Sieve.of(shipped), log_mels(shipped, tape())
    heard = sieve.hear(frames)
    spans = [(first, first + 80) for first in range(900, frames.shape[1] - 80, 40)]  # words without pauses
    alone = shipped.encode(np.stack([frames[:, first:end] for first, end in spans]))
    of_looks = (sieve.look(heard, np.array(spans)) * alone).sum(axis=1)
    of_embeddings = (sieve.embed([(heard, span) for span in spans]) * alone).sum(axis=1)
    assert of_embeddings.mean() > 0.9 > of_looks.mean()


def test_loudness_is_that_around_a_frame_however_long_the_stretch(shipped: Bundle) -> None:
    sieve = Sieve.of(shipped)
    rng = np.random.default_rng(2)
    quiet, loud = (rng.normal(mean, 1, (48, 1000)).astype(np.float32) for mean in (-12, -2))
    alone = sieve._leveled(loud[:, -500:])
    assert np.allclose(sieve._leveled(np.concatenate([quiet, loud], axis=1))[:, -200:], alone[:, -200:], atol=1e-5)
    peaks = quiet.max(axis=0)
    assert np.array_equal(_running_max(peaks, 7), [peaks[max(0, i - 7) : i + 8].max() for i in range(1000)])


def test_an_encoder_of_another_make_has_none(toy_bundle: Bundle) -> None:
    assert Sieve.of(toy_bundle) is None


@pytest.mark.parametrize(("name", "other"), [("SCALE", "CENTER"), ("WEIGHT", "OFFSET"), ("BANDS", "POSITION")])
def test_an_encoder_whose_names_mean_something_else_has_none(
    shipped: Bundle, name: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sieve_module, name, getattr(sieve_module, other))
    assert Sieve.of(shipped) is None


def test_a_scan_with_it_finds_what_one_without_it_finds_and_encodes_less_alone(
    shipped: Bundle, samples_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = Recognizer(shipped, tmp_path / "words.store")
    recognizer.enroll([samples_folder])
    encode, n_alone, found = shipped.encode, [0, 0], []
    for i, sieve in enumerate((False, True)):
        scanner = make_scanner(recognizer, ScanOptions(accept=0.3, sieve=sieve))

        def counted(frames: np.ndarray, i: int = i) -> np.ndarray:
            n_alone[i] += len(frames)
            return encode(frames)

        monkeypatch.setattr(shipped, "encode", counted)
        found.append([(d.label, round(d.start_s, 1)) for d in scanner.scan(AudioArray(tape(), RATE_HZ))])
        monkeypatch.undo()
    assert len(found[0]) >= 4
    assert len(set(found[0]) & set(found[1])) >= 0.75 * len(found[0])
    assert len(found[1]) <= len(found[0])
    assert n_alone[1] < 0.5 * n_alone[0]


def look_of(spans: list[tuple[int, int]], distances: np.ndarray) -> FirstLook:
    return FirstLook(spans, distances, [], np.zeros((1, 1, 1, 100)), 0)


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
    open_, known, hopeless = (chosen_in_rounds(look_of(spans, distances), p) for p in (0.3, 0.95, 0.001))
    assert open_[0] == known[0] == hopeless[0] == [spans[11], spans[10]]  # the nearest of all
    assert open_[1] == [spans[9]]
    assert known[1] == hopeless[1] == []


def test_what_does_not_overlap_is_no_rival() -> None:
    spans = [(100 * i, 100 * i + 60) for i in range(8)]
    look = look_of(spans, np.linspace(0.3, 0.6, 8, dtype=np.float32))
    assert look.choose(1) == spans
    assert look.chosen == set(spans)
    assert look.choose(6) == []


def test_what_is_far_from_every_label_or_behind_a_rival_is_not_encoded() -> None:
    spans = [(0, 60), (5, 60), (10, 60), (300, 360)]
    distances = np.array([0.2, 0.2 + BEHIND / 2, 0.25 + BEHIND, FURTHEST + 0.01], np.float32)
    assert chosen_in_rounds(look_of(spans, distances), 0.5) == [spans[:2], []]


def test_of_candidates_that_lie_as_near_the_shorter_is_encoded_first(
    scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    stretch = [(0, 100), (20, 80), (30, 60)]
    monkeypatch.setattr(scanner._sieve, "look", lambda _, spans: np.tile(scanner._prototypes[:1], (len(spans), 1)))
    assert scanner._first_look(np.zeros((48, 100), np.float32), stretch, []).choose(3) == stretch[::-1]


def test_short_parts_need_no_look_and_share_the_first_layers(scanner: Scanner, shipped: Bundle) -> None:
    frames = log_mels(shipped, tape())
    whole, short, others = (300, 500), (310, 330), [(340, 420), (360, 440), (380, 470)]
    stands_out = np.ones(frames.shape[1] // 4 + 1, bool)
    at_once, looks = scanner._first_looks(frames, [whole, short, *others], {whole}, {short}, stands_out)
    window = Searched(0, frames, None, np.zeros(0), 0.0, {}, at_once, looks)
    assert at_once == [whole]
    assert window.choose(2)[:2] == [whole, short]
    assert short not in window.choose(3)
    window.hear(short, 0.9)  # says nothing about what overlaps with it
    embeddings = scanner._embed([(window, whole), (window, short), (window, others[0])])
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert np.allclose(embeddings[0], shipped.encode(frames[None, :, 300:500])[0], atol=1e-5)
    assert np.allclose(
        embeddings[1:], scanner._sieve.embed([looks[0].part(short), looks[0].part(others[0])]), atol=1e-5
    )


def test_what_falls_just_short_is_encoded_alone(scanner: Scanner, monkeypatch: pytest.MonkeyPatch) -> None:
    scanner._accept = [0.5] * len(scanner.labels)
    alone = []
    encode, embed = scanner._encode, scanner._sieve.embed

    def heard_alone(spans: list[tuple[Searched, tuple[int, int]]]) -> np.ndarray:
        alone.extend((span, span in one.look_at) for one, span in spans)
        return encode(spans)

    monkeypatch.setattr(scanner, "_encode", heard_alone)
    probabilities: list[float] = []

    def remembered(parts: list) -> np.ndarray:
        embeddings = embed(parts)
        probabilities.extend(scanner.matcher.classify(row)[0].probability for row in embeddings)
        return embeddings

    monkeypatch.setattr(scanner._sieve, "embed", remembered)
    list(scanner.scan(AudioArray(tape(), RATE_HZ)))
    n_short = sum(0.5 * JUST_SHORT <= p < 0.5 for p in probabilities)
    assert sum(shared for _, shared in alone) == n_short > 0


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
    assert scanner._first_looks(frames, spans, set(), set(), stands_out) == ([(120, 220)], [])
    assert scanner._first_looks(frames, spans, {(400, 430)}, set(), stands_out) == ([(120, 220), (400, 430)], [])
    assert scanner._first_looks(frames, spans, set(), {(400, 430)}, stands_out) == ([(120, 220), (400, 430)], [])


def test_steady_noise_does_not_stand_out_and_a_word_in_it_does(shipped: Bundle) -> None:
    noise = 0.01 * np.random.default_rng(0).normal(size=10 * RATE_HZ)
    spoken = noise.copy()
    word = word_clip(1, silence_s=0.0)
    spoken[5 * RATE_HZ :][: len(word)] += word
    for samples, expected in ((noise, False), (spoken, True)):
        levels = 10 * np.log10(np.exp(log_mels(shipped, samples)).mean(axis=0))
        assert _stands_out(levels, shipped.front_end).any() == expected
