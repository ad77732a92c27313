"""Scanning with encoders that hear whole windows, or the samples of words: bundles of format 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_bundle import word_clip
from toy_kinds import KINDS, RATE_HZ, make_kind

from edgealign import Bundle, Recognizer
from edgealign.audio import AudioArray
from edgealign.errors import InvalidInput
from edgealign.scan import ScanOptions
from edgealign.scan_runs import make_scanner
from edgealign.scan_windows import WindowScanner

LABELS = ("low", "middle", "high")
TONES_HZ = (300.0, 900.0, 2400.0)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {kind: make_kind(tmp_path_factory.mktemp(kind), kind) for kind in KINDS if kind != "image"}


def call(kind: int, seed: int, seconds: float = 1.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    tone = np.sin(2 * np.pi * TONES_HZ[kind] * rng.uniform(0.97, 1.03) * t) * np.sin(np.pi * t / seconds) ** 0.5
    return (0.3 * tone + 1e-4 * rng.normal(size=len(t))).astype(np.float32)


def night(order: list[int], gap_s: float = 4.0) -> tuple[np.ndarray, list[tuple[float, float, str]]]:
    pieces, truth, at_s = [np.zeros(int(gap_s * RATE_HZ))], [], gap_s
    for i, kind in enumerate(order):
        sound = call(kind, 100 + i)
        truth.append((at_s, at_s + len(sound) / RATE_HZ, LABELS[kind]))
        pieces += [sound, np.zeros(int(gap_s * RATE_HZ))]
        at_s += len(sound) / RATE_HZ + gap_s
    samples = np.concatenate(pieces)
    return (samples + 1e-4 * np.random.default_rng(9).normal(size=len(samples))).astype(np.float32), truth


@pytest.mark.parametrize("kind", ["audio_waveform", "audio_log_mel"])
def test_calls_are_found_by_windows_and_where_they_are(bundles: dict[str, Bundle], tmp_path: Path, kind: str) -> None:
    recognizer = Recognizer(bundles[kind], tmp_path / "sounds.store")
    for number, label in enumerate(LABELS):
        recognizer.enroll([call(number, i) for i in range(5)], label=label, sample_rate_hz=RATE_HZ)
    samples, truth = night([0, 1, 2, 2, 0, 1])
    scanner = make_scanner(recognizer, ScanOptions(accept=0.3))
    assert isinstance(scanner, WindowScanner)
    found = list(scanner.scan(AudioArray(samples, RATE_HZ)))
    hits = [
        (d, start_s, end_s)
        for start_s, end_s, label in truth
        for d in found
        if d.label == label and min(d.end_s, end_s) > max(d.start_s, start_s)
    ]
    assert len(hits) >= 5
    assert np.median([abs(d.start_s - start_s) + abs(d.end_s - end_s) for d, start_s, end_s in hits]) < 0.3
    assert [d.start_s for d in found] == sorted(d.start_s for d in found)


def test_windows_are_decided_as_each_is_alone_and_none_is_left_out(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    bundle = bundles["audio_waveform"]
    recognizer = Recognizer(bundle, tmp_path / "sounds.store")
    for number, label in enumerate(LABELS):
        recognizer.enroll([call(number, i) for i in range(3)], label=label, sample_rate_hz=RATE_HZ)
    matcher, labels = recognizer.current_matcher()
    for seconds in (0.4, 1.0, 1.1, 7.3):  # shorter than a window, one, a bit more, and more than a batch
        samples = night([0, 2], gap_s=0.9)[0][: int(seconds * RATE_HZ)]
        options = ScanOptions(overlap_s=0.9, min_probability=0.0, merge=False)
        found = list(make_scanner(recognizer, options).scan(AudioArray(samples, RATE_HZ)))
        starts = list(range(0, max(1, len(samples) - RATE_HZ + 1), RATE_HZ // 10))
        if len(samples) > RATE_HZ and starts[-1] + RATE_HZ < len(samples):
            starts.append(len(samples) - RATE_HZ)
        windows = [samples[at : at + RATE_HZ] for at in starts]
        windows = [np.pad(window, (0, RATE_HZ - len(window))) for window in windows]
        alone = [matcher.classify(bundle.encode(window[None])[0])[0] for window in windows]
        expected = sorted((labels[match.label], round(match.probability, 4)) for match in alone)
        assert sorted((d.label, round(d.probability, 4)) for d in found) == expected


def test_an_encoder_of_the_samples_of_words_hears_what_classify_hears(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    recognizer = Recognizer(bundles["speech_waveform"], tmp_path / "words.store")
    for word in range(3):
        recognizer.enroll([word_clip(word, i) for i in range(4)], label=LABELS[word], sample_rate_hz=RATE_HZ)
    clip = word_clip(1, 9)
    answer = recognizer.classify(clip, RATE_HZ)
    options = ScanOptions(min_probability=0.0, merge=False)
    found = list(make_scanner(recognizer, options).scan(AudioArray(clip, RATE_HZ)))
    assert any(abs(d.ranked[0].similarity - (1 - answer.distance)) < 1e-5 for d in found)


def test_options_that_have_no_effect_on_whole_windows_are_refused(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    recognizer = Recognizer(bundles["audio_waveform"], tmp_path / "sounds.store")
    recognizer.enroll([call(0, 0)], label="low", sample_rate_hz=RATE_HZ)
    for options in (ScanOptions(low_hz=500.0), ScanOptions(overlap_s=1.0)):
        with pytest.raises(InvalidInput):
            make_scanner(recognizer, options)
    pictures = Recognizer(make_kind(tmp_path / "image", "image"), tmp_path / "pictures.store")
    with pytest.raises(InvalidInput, match="takes pictures"):
        make_scanner(pictures, ScanOptions())


def test_the_command_scans_with_such_a_bundle(
    bundles: dict[str, Bundle], tmp_path: Path, edgealign, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles["audio_waveform"]
    for number, label in enumerate(LABELS):
        (tmp_path / "samples" / label).mkdir(parents=True)
        for i in range(3):
            soundfile.write(tmp_path / "samples" / label / f"{i}.wav", call(number, i), RATE_HZ)
    soundfile.write(tmp_path / "night.wav", night([0, 1, 2])[0], RATE_HZ)
    named = ["--bundle", bundle.path, "--store", tmp_path / "sounds.store"]
    assert edgealign("enroll", tmp_path / "samples", *named).code == 0
    ran = edgealign("scan", tmp_path / "night.wav", "-o", tmp_path / "out", "--rtype", "csv,raven", "-q", *named)
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / "detections.csv").read_text().startswith("file,channel,start_s")
    refused = edgealign("scan", tmp_path / "night.wav", "-o", tmp_path / "no", "--fmin", 500, "-q", *named)
    assert refused.code == 2 and "fmin" in refused.err and not (tmp_path / "no").exists()
