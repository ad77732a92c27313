"""`edgealign evaluate` counts right, and says so as text, JSON and a page."""

from __future__ import annotations

import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile
from toy_bundle import noise_clip, word_clip

from edgealign.errors import InvalidInput
from edgealign.evaluation import Asked, Evaluation, evaluate
from edgealign.evaluation_page import page
from edgealign.intervals import share_interval
from edgealign.recognizer import Recognizer

RATE_HZ = 16_000


def asked(truth: str, answer: str | None, closest: str | None, probability: float | None) -> Asked:
    return Asked(f"{truth}.wav", truth, answer, closest, probability, 1.8)


BY_HAND = Evaluation(
    ("a", "b", "never asked"),
    (
        asked("a", "a", "a", 0.9),
        asked("a", "b", "b", 0.8),
        asked("b", None, "b", 0.4),
        asked("b", None, None, None),
        asked("noise", "a", "a", 0.7),
        asked("noise", None, "b", 0.1),
    ),
    (),
    0.5,
    "5e" * 32,
    "e6" * 32,
)


def test_shares_are_counted_with_their_intervals() -> None:
    assert BY_HAND.right == share_interval(1, 4)
    assert BY_HAND.right_if_forced == share_interval(2, 4)
    assert BY_HAND.others_accepted == share_interval(1, 2)
    rate = BY_HAND.false_alarms_per_hour
    assert rate.value == pytest.approx(1000)  # one in 3.6 s
    assert rate.low < 1000 < rate.high


def test_each_label_says_what_it_was_taken_for() -> None:
    first, second = BY_HAND.by_label
    assert (first.label, first.n, first.right, first.unknown, first.taken_for) == ("a", 2, 1, 0, (("b", 1),))
    assert (second.label, second.n, second.right, second.unknown, second.taken_for) == ("b", 2, 0, 2, ())


def test_the_confusion_has_a_line_for_what_was_not_enrolled() -> None:
    assert BY_HAND.confusion() == (
        ["a", "b", "noise"], ["a", "b", None], [[1, 1, 0], [0, 0, 2], [1, 0, 1]],
    )  # fmt: skip


def test_precision_and_recall_at_every_probability() -> None:
    points = BY_HAND.precision_recall()
    assert points == [(0.9, 1, 0.25), (0.8, 0.5, 0.25), (0.7, 1 / 3, 0.25), (0.4, 0.5, 0.5), (0.1, 0.4, 0.5)]
    assert BY_HAND.average_precision == pytest.approx(0.25 * 1 + 0.25 * 0.5)


def test_equal_probabilities_are_one_point() -> None:
    tied = Evaluation(("a",), (asked("a", "a", "a", 0.5), asked("noise", "a", "a", 0.5)), (), 0.5, "", "")
    assert tied.precision_recall() == [(0.5, 0.5, 1.0)]


def test_a_page_stands_alone_and_escapes_labels() -> None:
    spiteful = "<script>alert(1)</script>"
    text = page(Evaluation((spiteful,), (asked(spiteful, spiteful, spiteful, 0.9),), (), 0.5, "", ""))
    assert "<script" not in text and "&lt;script&gt;" in text and "http" not in text
    seen: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: seen.append(tag)
    parser.feed(text)
    assert {"table", "svg", "polyline", "h1"} <= set(seen)


def test_a_page_and_its_json_say_what_was_evaluated_and_what_an_answer_needs() -> None:
    text = page(BY_HAND)
    assert BY_HAND.store_sha256 in text and BY_HAND.encoder_sha256 in text
    # Of the points (probability, precision, recall) 0.7 is the last that 0.5 accepts: 1/3 precision, 1/4 recall.
    assert f'cx="{44 + 360 / 4:.1f}" cy="{22 + 360 * 2 / 3:.1f}"' in text and text.count("<circle") == 1
    found = BY_HAND.as_dict()
    assert (found["store_sha256"], found["encoder_sha256"], found["accept_probability"]) == ("5e" * 32, "e6" * 32, 0.5)


def test_nothing_to_evaluate_is_refused(toy_bundle, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nothing to evaluate"):
        evaluate(Recognizer(toy_bundle, tmp_path / "a.store"), [])


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """Other voices of two enrolled words, and noise that was not."""
    for label, samples in (("maji", word_clip(0, 80)), ("moto", word_clip(1, 81)), ("noise", word_clip(300, 1))):
        (tmp_path / "known" / label).mkdir(parents=True)
        soundfile.write(tmp_path / "known" / label / "clip.wav", samples, RATE_HZ)
    return tmp_path / "known"


def test_the_command(edgealign, samples_folder: Path, known: Path, tmp_path: Path) -> None:
    assert edgealign("enroll", samples_folder).code == 0
    ran = edgealign("evaluate", known)
    assert ran.code == 0 and ran.err == ""
    assert ran.out.startswith("2 clips of enrolled labels: 100.0% (22.4% to 100.0%) right")
    assert "1 other clips: 0.0% (0.0% to 95.0%) got a label" in ran.out
    counted = json.loads(edgealign("evaluate", known, "--format", "json").out)
    assert counted["confusion"] == {
        "truth": ["maji", "moto", "noise"], "answer": ["maji", "moto", None],
        "counts": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    }  # fmt: skip
    assert edgealign("evaluate", known, "-o", tmp_path / "page.html").code == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_clips_that_were_learned_from_are_told_apart(edgealign, samples_folder: Path, known: Path) -> None:
    edgealign("enroll", samples_folder)
    before = edgealign("evaluate", known).out
    assert "were learned from" not in before
    learned = sorted((samples_folder / "maji").glob("*.wav"))[:2]
    for path in learned:
        (known / "maji" / path.name).write_bytes(path.read_bytes())
    assert "2 of these clips were learned from, and say nothing about others" in edgealign("evaluate", known).out
    counted = json.loads(edgealign("evaluate", known, "--format", "json").out)
    assert counted["n_learned"] == 2
    taught = [Path(entry["file"]).name for entry in counted["files"] if entry["was_learned"]]
    assert taught == [path.name for path in learned]


def test_what_cannot_be_read_is_listed_and_the_rest_counted(edgealign, samples_folder: Path, known: Path) -> None:
    edgealign("enroll", samples_folder)
    (known / "maji" / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(known / "moto" / "quiet.wav", noise_clip(), RATE_HZ)
    ran = edgealign("evaluate", known)
    assert ran.code == 5 and "broken.wav" in ran.err
    assert "3 clips of enrolled labels" in ran.out and "1 clips could not be read" in ran.out


def test_a_name_that_is_not_utf8(edgealign, samples_folder: Path, known: Path) -> None:
    edgealign("enroll", samples_folder)
    (known / "maji" / "clip.wav").rename(known / "maji" / os.fsdecode(b"clip\xe9.wav"))
    ran = edgealign("evaluate", known)
    assert ran.code == 0 and ran.out.startswith("2 clips of enrolled labels")


def test_refusals(edgealign, samples_folder: Path, known: Path, tmp_path: Path) -> None:
    assert edgealign("evaluate", known).code == 3  # no store yet
    edgealign("enroll", samples_folder)
    assert edgealign("evaluate", tmp_path / "missing").code == 4
    (tmp_path / "empty").mkdir()
    assert edgealign("evaluate", tmp_path / "empty").code == 4
    assert edgealign("evaluate", known, "--format", "pdf").code == 2
