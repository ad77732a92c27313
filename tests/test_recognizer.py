"""Enroll and classify through the library: what is learned, what is refused, what is warned of, and from any thread."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_bundle import noise_clip, word_clip

from edgealign import Bundle, Recognizer, Store, demo
from edgealign.errors import (
    AudioUnreadable,
    BundleMismatch,
    EnrollmentRefused,
    InputUnreadable,
    InvalidInput,
    StoreUnreadable,
)

RATE_HZ = 16_000


@pytest.fixture
def recognizer(toy_bundle: Bundle, tmp_path: Path) -> Recognizer:
    """Without a store yet."""
    return Recognizer(toy_bundle, tmp_path / "words.store")


@pytest.fixture
def taught(recognizer: Recognizer, samples_folder: Path) -> Recognizer:
    """Knows maji, moto and ndege from five voices each."""
    recognizer.enroll(samples_folder)
    return recognizer


def test_words_of_other_voices_are_named_and_other_words_are_unknown(taught: Recognizer) -> None:
    for word, label in enumerate(("maji", "moto", "ndege")):
        for voice in range(10, 15):
            answer = taught.classify(word_clip(word, voice), RATE_HZ)
            assert answer.label == label
            assert answer.distance <= answer.threshold and answer.probability > 0.5
            assert answer.runner_up.label != label and answer.runner_up.distance > answer.distance
    others = [taught.classify(word_clip(word, 20), RATE_HZ) for word in range(100, 120)]
    assert sum(answer.label is not None for answer in others) <= 2
    assert all(len(answer.top) == 3 and answer.reason for answer in others if answer.label is None)


@pytest.mark.parametrize("samples", [np.zeros(16_000, np.float32), noise_clip(), noise_clip(1, seconds=8)])
def test_silence_and_noise_are_unknown_with_a_reason_not_an_error(taught: Recognizer, samples: np.ndarray) -> None:
    answer = taught.classify(samples, RATE_HZ)
    assert (answer.label, answer.distance, answer.threshold, answer.runner_up, answer.top) == (None,) * 4 + ((),)
    assert "no sound stands out" in answer.reason


def test_a_file_and_its_samples_get_the_same_answer(taught: Recognizer, samples_folder: Path) -> None:
    path = samples_folder / "moto" / "voice0.wav"
    samples, rate_hz = soundfile.read(path, dtype="int16")
    from_file, from_samples = taught.classify(path), taught.classify(samples, rate_hz)
    assert from_file.file == str(path)
    assert from_samples.distance == from_file.distance


def test_8_khz_and_eight_channels_are_heard(taught: Recognizer) -> None:
    assert taught.classify(word_clip(0, 30, sample_rate_hz=44_100), 44_100).label == "maji"
    assert taught.classify(word_clip(0, 30, sample_rate_hz=384_000), 384_000).label == "maji"
    clip = word_clip(0, 30)
    channels = np.random.default_rng(0).normal(size=(len(clip), 8)) * 1e-4
    channels[:, 4] = clip
    assert taught.classify(channels, RATE_HZ, channel=5).label == "maji"
    assert taught.classify(channels, RATE_HZ, channel=1).label is None


def test_enrolling_again_adds_and_the_same_clip_counts_once(recognizer: Recognizer, samples_folder: Path) -> None:
    clips = sorted((samples_folder / "maji").iterdir())
    first = recognizer.enroll(clips[:2]).labels[0]
    second = recognizer.enroll(clips[:3]).labels[0]
    assert (first.label, first.n_added, first.n_recordings) == ("maji", 2, 2)
    assert (second.n_added, second.n_known, second.n_recordings) == (1, 2, 3)
    assert recognizer.store.n_ops == 2


def test_one_enrollment_is_one_undo(recognizer: Recognizer, samples_folder: Path) -> None:
    recognizer.enroll(samples_folder / "maji", text="maji")
    recognizer.enroll(samples_folder)
    with Store.update(recognizer.store_path) as store:
        store.undo()
    opened = Recognizer(recognizer.bundle, recognizer.store_path)
    assert opened.store.labels() == ["maji"]
    assert len(opened.store.rows()) == 6  # five clips and the text


def test_reports_say_how_tight_a_label_is_and_what_it_rests_on(recognizer: Recognizer, samples_folder: Path) -> None:
    clips = sorted((samples_folder / "maji").iterdir())
    one = recognizer.enroll(clips[:1]).labels[0]
    assert (one.tightness, one.own_share, one.text_share) == (None, 0.0, 0.0)
    five = recognizer.enroll(clips).labels[0]
    prior_weight = recognizer.bundle.calibration.prior_weight
    assert 0 < five.tightness < 0.2
    assert five.own_share == pytest.approx(5 / (5 + prior_weight))


def test_text_alone_makes_a_label_and_recordings_refine_it(recognizer: Recognizer, samples_folder: Path) -> None:
    report = recognizer.enroll(text="maji", language="sw").labels[0]
    assert (report.label, report.n_recordings, report.n_texts, report.text_share) == ("maji", 0, 1, 1.0)
    weight = recognizer.bundle.text_weight
    clips = sorted((samples_folder / "maji").iterdir())
    for k in range(1, 6):
        report = recognizer.enroll(clips[k - 1]).labels[0]
        assert report.text_share == pytest.approx(weight / (weight + k))
    assert recognizer.classify(word_clip(0, 40), RATE_HZ).label == "maji"


def test_text_and_ipa_are_different_samples_and_typing_twice_is_one(recognizer: Recognizer) -> None:
    recognizer.enroll(text="maji")
    recognizer.enroll(ipa="ˈmadʒi", label="maji")
    for again in ("maji", "Maji "):
        report = recognizer.enroll(text=again, label="maji").labels[0]
        assert (report.n_added, report.n_known, report.n_texts) == (0, 1, 2)
    assert recognizer.enroll(text="maji", language="sw").labels[0].n_texts == 3


def test_labels_that_are_words_are_texts_as_well(recognizer: Recognizer, samples_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    shutil.copytree(samples_folder, folder)
    unread = next(path for path in folder.iterdir() if path.name != "maji")
    unread.rename(folder / "水")
    report = recognizer.enroll(folder, labels_are_words=True, language="sw")
    n_texts = {label.label: label.n_texts for label in report.labels}
    assert n_texts["maji"] == 1 and n_texts["水"] == 0
    assert sum(n_texts.values()) == len(n_texts) - 1
    assert all(label.n_recordings == 5 for label in report.labels)
    assert any("'水'" in warning for warning in report.warnings)
    typed = Recognizer(recognizer.bundle, tmp_path / "typed.store")
    typed.enroll(samples_folder / "maji", text="maji", language="sw")
    of_label = recognizer.store.rows()["label"] == recognizer.store.labels().index("maji")
    assert np.array_equal(recognizer.store.embeddings()[of_label], typed.store.embeddings())
    with pytest.raises(InvalidInput, match="one label needs no more than the text"):
        recognizer.enroll(folder / "maji", text="maji", labels_are_words=True)


def test_labels_that_are_no_words_of_their_recordings_are_doubted(tmp_path: Path) -> None:
    learned = Path(demo.CLIPS, "enroll")
    words = sorted(path.name for path in learned.iterdir())
    assert len(words) >= 4

    def warned(names: list[str], store: str) -> list[str]:
        for word, name in zip(words, names, strict=True):
            shutil.copytree(learned / word, tmp_path / store / name)
        report = Recognizer.open(tmp_path / f"{store}.store").enroll(tmp_path / store, labels_are_words=True)
        return [warning for warning in report.warnings if "do not sound like" in warning]

    assert warned(words, "spelled") == []
    translated = ["jabal", "kitabu", "nyoka", "samaki", "chumvi", "barabara", "ndege", "mwezi"][: len(words)]
    (doubt,) = warned(translated, "translated")
    assert f"edgealign store undo --store {tmp_path / 'translated.store'}`" in doubt
    assert warned(words[:1] + translated[1:2] + words[2:], "one wrong") == []  # a hard word looks the same


def test_a_word_that_is_looked_up_without_a_language_is_said_to_be(recognizer: Recognizer) -> None:
    table = {"pronunciations": {"en": {"two": "tˈuː"}}, "unstated": ["en"]}
    recognizer.bundle.__dict__["tokenizer"] = replace(recognizer.bundle.tokenizer, **table)
    (warning,) = recognizer.enroll(text="two").warnings
    assert warning == "'two' is read as a word of the language 'en', tˈuː: give --language if it is of another"
    report = recognizer.enroll(text="two", language="en")
    assert report.warnings == ()
    assert report.labels[0].n_known == 1  # the same word
    assert recognizer.enroll(ipa="tˈuː", language="en", label="two").labels[0].n_known == 1


def test_what_is_not_known_of_a_word_that_is_looked_up_is_said_of_its_ipa(recognizer: Recognizer) -> None:
    table = {"pronunciations": {"en": {"two": "tˈuː7"}}, "unstated": []}
    recognizer.bundle.__dict__["tokenizer"] = replace(recognizer.bundle.tokenizer, **table)
    (warning,) = recognizer.enroll(text="two", language="en").warnings
    assert warning == "the bundle does not know these characters of 'tˈuː7', they were passed over: '7'"


def test_text_that_the_bundle_cannot_read(recognizer: Recognizer) -> None:
    with pytest.raises(EnrollmentRefused, match="--ipa"):
        recognizer.enroll(text="水")
    assert not Path(recognizer.store_path).exists()
    report = recognizer.enroll(text="maji!", language="tlh")
    assert any("'maji!'" in warning and "!" in warning for warning in report.warnings)
    assert any("'tlh'" in warning for warning in report.warnings)
    with pytest.raises(InvalidInput, match="both"):
        recognizer.enroll(text="a", ipa="a")


def test_a_clip_of_another_word_is_called_an_outlier(recognizer: Recognizer, samples_folder: Path) -> None:
    assert recognizer.enroll(samples_folder).warnings == ()
    report = recognizer.enroll([word_clip(1, 50)], label="maji", sample_rate_hz=RATE_HZ)
    assert any("is more like 'moto'" in warning for warning in report.warnings)


def test_a_clip_unlike_its_label_is_called_an_outlier_but_of_two_neither(recognizer: Recognizer) -> None:
    clips = [word_clip(0, voice) for voice in range(4)] + [word_clip(77)]
    report = recognizer.enroll(clips, label="maji", sample_rate_hz=RATE_HZ)
    assert len([warning for warning in report.warnings if "unlike the rest of 'maji'" in warning]) == 1
    pair = recognizer.enroll([word_clip(5), word_clip(77)], label="two that disagree", sample_rate_hz=RATE_HZ)
    assert not any("unlike the rest" in warning for warning in pair.warnings)


def test_a_clip_that_was_learned_as_two_labels_is_named_with_both(recognizer: Recognizer) -> None:
    clips = [word_clip(0, voice) for voice in range(4)]
    assert recognizer.enroll(clips, label="maji", sample_rate_hz=RATE_HZ).warnings == ()
    report = recognizer.enroll([clips[2], word_clip(0, 9)], label="moto", sample_rate_hz=RATE_HZ)
    twice = [warning for warning in report.warnings if "was learned as" in warning]
    assert len(twice) == 1 and "'moto' and as 'maji'" in twice[0] and "store remove" in twice[0]
    both = recognizer.enroll(clips[:2], label="moto", sample_rate_hz=RATE_HZ)
    assert sum("was learned as" in warning for warning in both.warnings) == 3


def test_labels_that_sound_alike_are_named_as_a_pair(recognizer: Recognizer) -> None:
    recognizer.enroll([word_clip(0, voice) for voice in range(5)], label="sea", sample_rate_hz=RATE_HZ)
    report = recognizer.enroll([word_clip(0, voice) for voice in range(5, 10)], label="see", sample_rate_hz=RATE_HZ)
    confused = [warning for warning in report.warnings if "easily confused" in warning]
    assert len(confused) == 1 and "'see'" in confused[0] and "'sea'" in confused[0]
    calm = recognizer.enroll([word_clip(1, voice) for voice in range(5)], label="moto", sample_rate_hz=RATE_HZ)
    assert not any("easily confused" in warning for warning in calm.warnings)


def test_clips_with_more_than_a_word_are_warned_of(taught: Recognizer, tmp_path: Path) -> None:
    two = np.concatenate([0.2 * word_clip(1), word_clip(0, 60), np.zeros(8000)]).astype(np.float32)
    soundfile.write(tmp_path / "two.wav", two, RATE_HZ)
    answer = taught.classify(tmp_path / "two.wav")
    assert answer.label == "maji"
    assert "has 2 sounds" in answer.warnings[0]
    alone = np.concatenate([np.zeros(40_000, np.float32), word_clip(0, 60)])
    assert "lasts" in taught.classify(alone, RATE_HZ).warnings[0]
    assert taught.classify(word_clip(0, 60), RATE_HZ).warnings == ()


def test_what_cannot_be_learned_from_is_listed_and_the_rest_is_learned(
    recognizer: Recognizer, samples_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "samples"
    shutil.copytree(samples_folder, folder)
    (folder / "maji" / "notes.wav").write_text("not audio")
    soundfile.write(folder / "maji" / "silence.wav", np.zeros(16_000), RATE_HZ)
    report = recognizer.enroll([folder, tmp_path / "missing"])
    kinds = sorted(type(failure).__name__ for failure in report.failures)
    assert kinds == ["AudioUnreadable", "EnrollmentRefused", "InputUnreadable"]
    assert [label.n_recordings for label in report.labels] == [5, 5, 5]


def test_where_nothing_is_left_the_store_is_untouched(recognizer: Recognizer, tmp_path: Path) -> None:
    with pytest.raises(EnrollmentRefused, match="no sound stands out"):
        recognizer.enroll([np.zeros(16_000)], label="maji", sample_rate_hz=RATE_HZ)
    with pytest.raises(InputUnreadable, match="does not exist"):
        recognizer.enroll(tmp_path / "missing.wav", label="maji")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputUnreadable, match="holds no audio files"):
        recognizer.enroll(tmp_path / "empty")
    with pytest.raises(InvalidInput, match="nothing to learn from"):
        recognizer.enroll()
    with pytest.raises(InvalidInput, match="without a label"):
        recognizer.enroll([word_clip(0)], sample_rate_hz=RATE_HZ)
    with pytest.raises(InvalidInput, match="sample_rate_hz"):
        recognizer.enroll([word_clip(0)], label="maji")
    assert not Path(recognizer.store_path).exists()


@pytest.mark.parametrize(
    "label",
    ["good morning", "a/b\\c", "🦜🏴‍☠️", "مرحبا", "\x1b[31mred", "=1+1", "a" * 1024, "ｆｕｌｌ", "null", "unknown"],
)
def test_labels_of_all_kinds_survive(recognizer: Recognizer, label: str) -> None:
    recognizer.enroll([word_clip(0, voice) for voice in range(3)], label=label, sample_rate_hz=RATE_HZ)
    again = Recognizer(recognizer.bundle, recognizer.store_path)
    assert again.store.labels() == [label]
    assert again.classify(word_clip(0, 9), RATE_HZ).label == label


@pytest.mark.parametrize("label", ["", "  ", "a" * 10_000, "é" * 600, "nul\0l", "half \ud83d"])
def test_labels_that_cannot_be_kept_are_refused_before_any_clip_is_read(recognizer: Recognizer, label: str) -> None:
    with pytest.raises(InvalidInput, match="the label"):
        recognizer.enroll(["/nowhere.wav"], label=label)


def test_composed_and_decomposed_labels_are_one(recognizer: Recognizer) -> None:
    recognizer.enroll([word_clip(0)], label="cafe\u0301", sample_rate_hz=RATE_HZ)
    report = recognizer.enroll([word_clip(0, 1)], label="caf\u00e9", sample_rate_hz=RATE_HZ)
    assert report.labels[0].n_recordings == 2


def test_folders_name_labels(recognizer: Recognizer, samples_folder: Path, tmp_path: Path) -> None:
    assert [label.label for label in recognizer.enroll(samples_folder / "moto").labels] == ["moto"]
    one = recognizer.enroll(samples_folder / "ndege" / "voice1.wav")
    assert [label.label for label in one.labels] == ["ndege"]
    flat = tmp_path / "flat"
    shutil.copytree(samples_folder / "maji", flat)
    (flat / "notes.txt").write_text("not a clip")
    (flat / "._voice0.wav").write_bytes(b"resource fork")
    assert recognizer.enroll(flat, label="water").labels[0].n_recordings == 5
    (flat / "more").mkdir()
    shutil.copy(flat / "voice0.wav", flat / "more")
    with pytest.raises(InputUnreadable, match="both clips and folders"):
        recognizer.enroll(flat)
    (flat / "empty").mkdir()
    for clip in flat.glob("*.wav"):
        clip.unlink()
    report = recognizer.enroll(flat)
    assert [label.label for label in report.labels] == ["more"]
    assert any("'" + str(flat / "empty") + "' holds no audio files" in warning for warning in report.warnings)


def test_a_store_of_another_bundle_is_refused_both_ways(taught: Recognizer, other_bundle: Bundle) -> None:
    other = Recognizer(other_bundle, taught.store_path)
    before = Path(taught.store_path).read_bytes()
    with pytest.raises(BundleMismatch, match="encoder"):
        other.classify(word_clip(0), RATE_HZ)
    with pytest.raises(BundleMismatch, match="encoder"):
        other.enroll([word_clip(0)], label="maji", sample_rate_hz=RATE_HZ)
    assert Path(taught.store_path).read_bytes() == before


@pytest.mark.parametrize("sample", [None, 5, [0.0, 0.1], b"clip.wav"])
def test_what_is_neither_path_nor_array_is_refused(taught: Recognizer, sample: object) -> None:
    name = type(sample).__name__
    with pytest.raises(InvalidInput, match=f"a sample is a {name}: expected a path or a numpy array"):
        taught.classify(sample, RATE_HZ)


@pytest.mark.parametrize(("sources", "name"), [([None], "NoneType"), ([0.0, 0.1], "float"), (b"clip.wav", "int")])
def test_what_is_neither_path_nor_array_is_not_learned_from(taught: Recognizer, sources: object, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"a sample is a {name}: expected a path or a numpy array"):
        taught.enroll(sources, label="maji", sample_rate_hz=RATE_HZ)


FORKED = """
import multiprocessing, sys
import soundfile
from edgealign import Bundle, Recognizer
recognizer = Recognizer(Bundle.open(sys.argv[1]), sys.argv[2])
samples, rate = soundfile.read(sys.argv[3], dtype="float32")
before = recognizer.classify(samples, rate)
assert before.distance is not None
def ask(_):
    return recognizer.classify(samples, rate)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(ask, range(4)) == [before] * 4
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_recognizer_that_was_opened_before_a_fork_answers_after_it(taught: Recognizer, samples_folder: Path) -> None:
    words = (taught.bundle.path, taught.store_path, samples_folder / "maji" / "voice0.wav")
    subprocess.run([sys.executable, "-c", FORKED, *words], check=True, timeout=60)


def test_a_text_that_is_too_long_to_be_read_is_told(recognizer: Recognizer) -> None:
    text = "maji" * 10
    (warning,) = recognizer.enroll(text=text).warnings
    assert warning == f"'{text}' is longer than the bundle reads: the last 2 of its characters were passed over"


def test_characters_that_the_bundle_does_not_know_are_named_in_quotes(recognizer: Recognizer) -> None:
    (warning,) = recognizer.enroll(text="maji -2").warnings
    assert warning == "the bundle does not know these characters of 'maji -2', they were passed over: '-', '2'"


def test_without_a_store_or_labels_classify_says_what_to_do(recognizer: Recognizer) -> None:
    with pytest.raises(StoreUnreadable, match="enroll recordings first"):
        recognizer.classify(word_clip(0), RATE_HZ)
    recognizer.enroll(text="maji")
    with Store.update(recognizer.store_path) as store:
        store.remove("maji")
    with pytest.raises(StoreUnreadable, match="has no labels"):
        Recognizer(recognizer.bundle, recognizer.store_path).classify(word_clip(0), RATE_HZ)


def test_embed(recognizer: Recognizer, samples_folder: Path) -> None:
    embedding = recognizer.embed(samples_folder / "maji" / "voice0.wav")
    assert embedding.shape == (recognizer.bundle.dim,) and embedding.dtype == np.float32
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    with pytest.raises(AudioUnreadable, match="no sound stands out"):
        recognizer.embed(noise_clip(), RATE_HZ)


def test_threads_classify_while_another_enrolls(taught: Recognizer) -> None:
    clip = word_clip(0, 70)
    alone = taught.classify(clip, RATE_HZ)

    def classify(_: int) -> str | None:
        return taught.classify(clip, RATE_HZ).label

    def enroll(i: int) -> None:
        taught.enroll([word_clip(200 + i)], label=f"word {i}", sample_rate_hz=RATE_HZ)

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(classify, i) for i in range(60)]
        enrollments = [pool.submit(enroll, i) for i in range(10)]
        assert {answer.result() for answer in answers} == {alone.label}
        for enrollment in enrollments:
            enrollment.result()
    assert len(taught.store.labels()) == 13
    assert taught.classify(clip, RATE_HZ).distance == alone.distance


def test_two_processes_that_enroll_at_once_lose_nothing(toy_bundle: Bundle, tmp_path: Path) -> None:
    script = """
import sys
from edgealign import Bundle, Recognizer
recognizer = Recognizer(Bundle.open(sys.argv[1]), sys.argv[2])
for i in range(20):
    recognizer.enroll(text=sys.argv[3] * (i + 1))
"""
    store = tmp_path / "words.store"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, toy_bundle.path, store, letter]) for letter in ("a", "b", "c")
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert sorted(Store.load(store).labels()) == sorted(letter * (i + 1) for letter in "abc" for i in range(20))


def test_ten_thousand_labels(recognizer: Recognizer) -> None:
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(10_000, recognizer.bundle.dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    bundle = recognizer.bundle
    with Store.update(recognizer.store_path, bundle.modality, bundle.encoder_sha256, bundle.dim) as store:
        for i, embedding in enumerate(embeddings):
            store.add(f"label {i}", embedding[None], 1, [i.to_bytes(32, "little")], [f"{i}.wav"])
    report = recognizer.enroll([word_clip(0, voice) for voice in range(3)], label="maji", sample_rate_hz=RATE_HZ)
    assert report.labels[0].n_recordings == 3
    assert len(recognizer.store.labels()) == 10_001
    assert recognizer.classify(word_clip(0, 9), RATE_HZ).top[0].label == "maji"
