"""Thresholds fitted to recordings of the user's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_scan import RATE_HZ, tape

from edgealign import Bundle, Recognizer, thresholds
from edgealign.annotations import Annotation
from edgealign.errors import StoreUnreadable
from edgealign.thresholds import Heard


def test_each_annotation_is_found_once_and_the_rest_are_false_alarms() -> None:
    truth = [Annotation(1.0, 2.0, "a"), Annotation(5.0, 6.0, "a"), Annotation(8.0, 9.0, "b")]
    detections = [(1.1, 2.1, "a", 0.9), (1.0, 1.9, "a", 0.6), (5.0, 5.9, "b", 0.8), (8.05, 9.0, "b", 0.7)]
    false, hits, hours = thresholds.sort_out([Heard(1800, detections, truth), Heard(1800, [(0, 1, "a", 0.3)])])
    assert hours == 1.0
    assert false == {"a": [0.6, 0.3], "b": [0.8]}
    assert hits == {"a": [0.9, 0.0], "b": [0.7]}


@pytest.mark.parametrize("per_hour", [0, 1, 3])
def test_calibration_leaves_no_more_false_alarms_than_were_asked_for(per_hour: int) -> None:
    rng = np.random.default_rng(5)
    detections = [(i, i + 0.5, "ab"[i % 2], float(p)) for i, p in enumerate(rng.uniform(0.02, 1, 400))]
    made, hours = thresholds.calibrate([Heard(7200, detections)], ["a", "b", "c"], {}, 0.5, per_hour)
    assert hours == 2
    for found in made[:2]:
        left = sum(label == found.label and p >= found.probability for _, _, label, p in detections)
        assert left == per_hour * 2
        assert found.false_alarms.low <= per_hour <= found.false_alarms.high
    assert made[2].probability == 0.5  # nothing was heard: not laxer than the bundle


@pytest.fixture
def noisy_place(tmp_path: Path, samples_folder: Path, edgealign) -> Path:
    """noise/ with words that are like the enrolled ones, and labels in the default store."""
    edgealign("enroll", samples_folder)
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "yard.wav", tape(list(range(40, 70)) + [None] * 4)[0], RATE_HZ)
    return tmp_path / "noise"


def test_calibrated_thresholds_hold_for_the_scan_until_the_store_changes(
    noisy_place: Path, tmp_path: Path, samples_folder: Path, edgealign
) -> None:
    before = edgealign("simulate", noisy_place)
    assert before.code == 0 and "false alarms per hour" in before.out
    ran = edgealign("calibrate", noisy_place, "--per-hour", 0)
    assert ran.code == 0, ran.err
    assert "too short to promise" in ran.err and "no recording is long enough" in ran.err
    after = edgealign("simulate", noisy_place)
    assert after.out.startswith("0.00 false alarms per hour")
    assert not before.out.startswith("0.00")
    document = json.loads((tmp_path / "stores" / "speech.store.thresholds.json").read_text(encoding="utf-8"))
    assert document["format"] == "edgealign-thresholds" and set(document["labels"]) == {"maji", "moto", "ndege"}
    assert edgealign("scan", noisy_place, "-o", tmp_path / "out", "-q").code == 0
    assert len((tmp_path / "out" / "detections.csv").read_bytes().splitlines()) == 1
    assert edgealign("store", "rename", "maji", "water").code == 0  # the same rows: nothing is to be heard anew
    assert edgealign("simulate", noisy_place).out.startswith("0.00 false alarms per hour")
    found = json.loads((tmp_path / "stores" / "speech.store.thresholds.json").read_text(encoding="utf-8"))
    assert found["labels"] == {{"maji": "water"}.get(k, k): v for k, v in document["labels"].items()}
    assert found["store_sha256"] != document["store_sha256"] and found.keys() == document.keys()
    edgealign("enroll", samples_folder / "maji", "--label", "maji2")
    stale = edgealign("scan", noisy_place, "-o", tmp_path / "out2")
    assert stale.code == 3 and "calibrate again" in stale.err


@pytest.mark.parametrize("command", ["calibrate", "simulate"])
def test_recordings_that_break_off_count_as_far_as_they_go_and_are_named(
    command: str, noisy_place: Path, edgealign
) -> None:
    whole = noisy_place / "yard.wav"
    cut = noisy_place / "cut.wav"
    cut.write_bytes(whole.read_bytes()[:100_000])
    ran = edgealign(command, noisy_place)
    assert ran.code == 5
    assert f"error: '{cut}' breaks off at " in ran.err
    assert "error: 1 recording could not be searched to the end, see above" in ran.err
    assert "accepted from" in ran.out


def test_a_table_tells_where_the_labels_are(tmp_path: Path, samples_folder: Path, edgealign) -> None:
    edgealign("enroll", samples_folder)
    samples, truth = tape([0, 30, 1, None, 2, 0])
    soundfile.write(tmp_path / "tape.wav", samples, RATE_HZ)
    labels = {0: "maji", 1: "moto", 2: "ndege"}
    lines = [f"{start:.3f}\t{end:.3f}\t{labels[word]}\n" for start, end, word in truth if word in labels]
    (tmp_path / "tape.txt").write_text("".join(lines))
    ran = edgealign("simulate", tmp_path / "tape.wav", "--table", tmp_path / "tape.txt")
    assert ran.code == 0, ran.err
    rows = {
        line.split()[0]: line
        for line in ran.out.splitlines()
        if line.split()[:1] and line.split()[0] in labels.values()
    }
    assert all("100%" in row for row in rows.values()) and len(rows) == 3
    other = edgealign("simulate", tmp_path / "tape.wav", "--table", samples_folder / "nothing.txt")
    assert other.code == 4 and "nothing.txt" in other.err and other.out == ""


@pytest.mark.parametrize("command", ["calibrate", "simulate"])
def test_without_a_store_that_is_what_is_said(tmp_path: Path, edgealign, command: str) -> None:
    (tmp_path / "noise").mkdir()
    store = tmp_path / "no folder" / "words.store"
    ran = edgealign(command, tmp_path / "noise", "--store", store)
    assert ran.code == 3
    assert ran.err == f"error: there is no store at '{store}': enroll recordings first\n"


@pytest.mark.parametrize("per_hour", ["nan", "inf", "-1"])
def test_what_is_no_rate_is_refused_before_anything_is_heard(per_hour: str, tmp_path: Path, edgealign) -> None:
    ran = edgealign("calibrate", tmp_path / "gone", "--per-hour", per_hour)
    assert ran.code == 2 and ran.err == f"error: per-hour is {per_hour}: expected 0 or more\n"


def test_a_table_that_does_not_say_all_calibrates_nothing(tmp_path: Path, samples_folder: Path, edgealign) -> None:
    edgealign("enroll", samples_folder)
    soundfile.write(tmp_path / "tape.wav", tape([0, 1])[0], RATE_HZ)
    (tmp_path / "tape.txt").write_text("0.5\t0.5\tmaji\n3\t2\tmoto\n")
    ran = edgealign("calibrate", tmp_path / "tape.wav", "--table", tmp_path / "tape.txt")
    assert ran.code == 4 and "is a point in time" in ran.err and "(1 more like this): mend the tables" in ran.err
    assert not (tmp_path / "stores" / "speech.store.thresholds.json").exists()


def test_own_clips_are_judged_by_the_others(toy_bundle: Bundle, samples_folder: Path, tmp_path: Path) -> None:
    recognizer = Recognizer(toy_bundle, tmp_path / "words.store")
    recognizer.enroll([samples_folder])
    found = thresholds.leave_one_out_probabilities(recognizer.store, toy_bundle)
    assert {label: len(values) for label, values in found.items()} == {"maji": 5, "moto": 5, "ndege": 5}
    for row, path in enumerate(sorted((samples_folder / "maji").glob("*.wav"))):
        without = Recognizer(toy_bundle, tmp_path / f"without{row}.store")
        without.enroll([p for p in samples_folder.rglob("*.wav") if p != path])
        answer = without.classify(path)
        assert found["maji"][row] == pytest.approx(
            answer.probability if answer.top[0].label == "maji" else 0.0, abs=1e-5
        )


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "other"}', '{"format": "edgealign-thresholds", "format_version": 2}']
)
def test_unusable_thresholds_are_refused(text: str, toy_bundle: Bundle, samples_folder: Path, tmp_path: Path) -> None:
    recognizer = Recognizer(toy_bundle, tmp_path / "words.store")
    recognizer.enroll([samples_folder])
    Path(thresholds.path_of(recognizer.store_path)).write_text(text)
    with pytest.raises(StoreUnreadable, match="again"):
        thresholds.load(recognizer.store, recognizer.store_path)
