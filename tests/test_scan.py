"""Scanning: what is found in long recordings, what is written, and what survives an interruption."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_bundle import word_clip

from edgealign import Bundle, Recognizer, scan_runs
from edgealign.annotations import Annotation, eaf
from edgealign.audio import AudioArray
from edgealign.errors import InvalidInput
from edgealign.scan import ScanOptions, dips
from edgealign.scan_runs import find_recordings, make_scanner

RATE_HZ = 16_000
LABELS = ("maji", "moto", "ndege")
COLUMNS = (
    "file,channel,start_s,end_s,start_utc,label,score,probability,threshold,accepted,rank,margin,low_hz,high_hz,"
    "store_sha256,encoder_sha256,version"
)


def tape(
    words: list[int | None], gap_s: float = 0.8, seed: int = 0
) -> tuple[np.ndarray, list[tuple[float, float, int]]]:
    """Words in faint noise, and where they are; None is a longer pause."""
    rng = np.random.default_rng(seed)
    pieces, truth, at_s = [np.zeros(RATE_HZ)], [], 1.0
    for i, word in enumerate(words):
        if word is not None:
            sound = word_clip(word, 20 + i % 3, silence_s=0.0)
            truth.append((at_s, at_s + len(sound) / RATE_HZ, word))
            pieces.append(sound)
            at_s += len(sound) / RATE_HZ
        length_s = gap_s if word is not None else 30.0
        pieces.append(np.zeros(int(length_s * RATE_HZ)))
        at_s += int(length_s * RATE_HZ) / RATE_HZ
    samples = np.concatenate(pieces)
    return (samples + 1e-4 * rng.normal(size=len(samples))).astype(np.float32), truth


@pytest.fixture(scope="module")
def recognizer(toy_bundle: Bundle, samples_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    made = Recognizer(toy_bundle, tmp_path_factory.mktemp("scan") / "words.store")
    made.enroll([samples_folder])
    return made


def matched(found: list, truth: list[tuple[float, float, int]]) -> list[tuple[float, float]]:
    """How far begin and end are off, for each word that was found under its label."""
    errors = []
    for start_s, end_s, word in truth:
        hits = [d for d in found if min(d.end_s, end_s) > max(d.start_s, start_s) and d.label == LABELS[word]]
        errors += [(abs(d.start_s - start_s), abs(d.end_s - end_s)) for d in hits[:1]]
    return errors


def test_words_are_found_once_each_and_where_they_are(recognizer: Recognizer) -> None:
    samples, truth = tape([0, 1, 2, None, 2, 1, None, 0, 0, None, 1])
    found = list(make_scanner(recognizer, ScanOptions()).scan(AudioArray(samples, RATE_HZ)))
    errors = matched(found, truth)
    assert len(errors) == len(truth) == 8
    assert len(found) == len(truth)
    assert np.median(errors) < 0.05
    assert [d.start_s for d in found] == sorted(d.start_s for d in found)


def test_a_word_is_found_at_every_place_around_the_seams_of_search_windows(recognizer: Recognizer) -> None:
    scanner = make_scanner(recognizer, ScanOptions())
    word = word_clip(1, 21, silence_s=0.0)
    rng = np.random.default_rng(3)
    for start_s in (56.2, 57.1, 58.0, 58.4, 58.9, 59.6, 60.3):
        samples = 1e-4 * rng.normal(size=70 * RATE_HZ)
        start = int(start_s * RATE_HZ)
        samples[start : start + len(word)] += word
        found = list(scanner.scan(AudioArray(samples, RATE_HZ)))
        assert [d.label for d in found] == ["moto"], start_s
        assert abs(found[0].start_s - start_s) < 0.06


def test_the_embedding_of_a_sound_alone_is_the_one_that_classify_uses(recognizer: Recognizer) -> None:
    clip = word_clip(2, 23)
    answer = recognizer.classify(clip, RATE_HZ)
    found = list(
        make_scanner(recognizer, ScanOptions(min_probability=0.0, merge=False)).scan(AudioArray(clip, RATE_HZ))
    )
    assert any(abs(d.ranked[0].similarity - (1 - answer.distance)) < 1e-5 for d in found)
    best = max(found, key=lambda d: d.probability)
    assert best.label == answer.label == "ndege"


def test_how_the_audio_is_cut_into_blocks_changes_nothing(recognizer: Recognizer) -> None:
    samples, _ = tape([0, None, 1, None, 2])

    class Blocky(AudioArray):
        def native_blocks(self):
            for start in range(0, len(self._samples), 12_345):
                yield self._samples[start : start + 12_345]

    scanner = make_scanner(recognizer, ScanOptions())
    assert list(scanner.scan(Blocky(samples, RATE_HZ))) == list(scanner.scan(AudioArray(samples, RATE_HZ)))


def test_a_slowed_down_recording_gives_its_own_times(recognizer: Recognizer, tmp_path: Path) -> None:
    samples, truth = tape([0, 1])
    path = tmp_path / "fast.wav"
    soundfile.write(path, samples, RATE_HZ * 10)  # as a bat detector would have recorded it
    from edgealign.scan_runs import scan_recording

    scanner = make_scanner(recognizer, ScanOptions(audio_speed=0.1))
    found = scan_recording(scanner, str(path), "mix", None, lambda share: None)
    assert [d["ranked"][0][0] for d in found["detections"]] == ["maji", "moto"]
    for detection, (start_s, end_s, _) in zip(found["detections"], truth, strict=True):
        assert abs(detection["start_s"] - start_s / 10) < 0.01 and abs(detection["end_s"] - end_s / 10) < 0.01
    assert found["duration_s"] == pytest.approx(len(samples) / RATE_HZ / 10)
    assert found["band_hz"] == [600.0, 76000.0]


def test_stricter_thresholds_keep_a_part_of_what_laxer_ones_keep(recognizer: Recognizer) -> None:
    samples, _ = tape([0, 1, 2, 7, 8, 9, 0, 11], gap_s=0.3)
    kept = []
    for least in (0.0, 0.5, 0.9):
        options = ScanOptions(min_probability=least, merge=False)
        found = make_scanner(recognizer, options).scan(AudioArray(samples, RATE_HZ))
        kept.append({(d.start_s, d.end_s, d.label) for d in found})
    assert kept[2] <= kept[1] <= kept[0] and len(kept[0]) > len(kept[2])


def test_the_threshold_of_a_detection_is_the_similarity_at_which_it_would_be_accepted(recognizer: Recognizer) -> None:
    samples, _ = tape([0, 1, 2, 9], gap_s=0.3)
    for accept in (0.3, 0.5, 0.9):
        options = ScanOptions(accept=accept, min_probability=0.0)
        for found in make_scanner(recognizer, options).scan(AudioArray(samples, RATE_HZ)):
            best = found.ranked[0]
            assert found.accepted == (best.similarity >= best.threshold - 1e-6)


def test_dips_part_two_bumps_and_not_one() -> None:
    bump = 20 * np.sin(np.linspace(0, np.pi, 40))
    assert dips(bump) == []
    (cut,) = dips(np.concatenate([bump, bump]))
    assert 36 <= cut <= 44


@pytest.mark.parametrize(
    "options",
    [
        {"overlap_s": 1.0}, {"overlap_s": -0.1}, {"min_probability": 1.5}, {"audio_speed": 0.0}, {"top_k": 0},
        {"low_hz": 3000, "high_hz": 2000}, {"low_hz": 9000},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(recognizer: Recognizer, options: dict) -> None:
    with pytest.raises(InvalidInput):
        make_scanner(recognizer, ScanOptions(**options))


@pytest.fixture
def field_folder(tmp_path: Path, samples_folder: Path, edgealign) -> Path:
    """card/ with recordings of several kinds, and labels enrolled in the default store."""
    assert edgealign("enroll", samples_folder).code == 0
    card = tmp_path / "card"
    (card / 'night 1, "é"').mkdir(parents=True)
    samples, _ = tape([0, 1])
    soundfile.write(card / "20240501_213000.WAV", samples, RATE_HZ, subtype="PCM_24")
    soundfile.write(card / 'night 1, "é"' / "a.flac", samples, RATE_HZ)
    stereo = np.stack([samples, samples], axis=1)
    soundfile.write(card / 'night 1, "é"' / "b.aiff", stereo, RATE_HZ)
    (card / "notes.txt").write_text("not a recording")
    return card


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "detections.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_scan_writes_every_format_and_the_rows_that_are_specified(
    field_folder: Path, tmp_path: Path, edgealign
) -> None:
    out = tmp_path / "out"
    ran = edgealign(
        "scan", field_folder, "-o", out, "--rtype", "csv", "jsonl", "audacity", "raven", "eaf", "textgrid",
        "--timezone", "+03:00", "--workers", 1,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert (out / "detections.csv").read_text(encoding="utf-8").splitlines()[0] == COLUMNS
    rows = rows_of(out)
    assert {row["file"] for row in rows} == {
        str(p) for p in field_folder.rglob("*") if p.suffix in (".WAV", ".flac", ".aiff")
    }
    first = rows[0]
    assert (first["label"], first["channel"], first["accepted"], first["rank"]) == ("maji", "mix", "true", "1")
    assert first["start_utc"].startswith("2024-05-01T18:30:0") and first["start_utc"].endswith("Z")
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["format"] == "edgealign-detections" and lines[0]["parameters"]["channel"] == "mix"
    assert [(line["label"], line["start_s"]) for line in lines[1:]] == [(r["label"], float(r["start_s"])) for r in rows]
    below = out / 'night 1, "é"'
    for name in ("a.txt", "a.Table.1.selections.txt", "a.eaf", "a.TextGrid", "b.txt"):
        assert (below / name).stat().st_size
    assert (out / "failed.csv").read_bytes() == b"file,reason\r\n"


def test_scan_again_repeats_nothing_and_finds_what_is_new(field_folder: Path, tmp_path: Path, edgealign) -> None:
    out = tmp_path / "out"
    command = ("scan", field_folder, "-o", out, "--rtype", "csv,audacity", "--workers", 1, "-q")
    assert edgealign(*command).code == 0
    before = (out / "detections.csv").read_bytes()
    again = edgealign(*command)
    assert again.code == 0 and "3 of them earlier" in again.out
    assert (out / "detections.csv").read_bytes() == before
    (out / "20240501_213000.txt").unlink()  # as if the run had ended before it was written
    soundfile.write(field_folder / "new.wav", tape([2])[0], RATE_HZ)
    assert edgealign(*command).code == 0
    assert (out / "20240501_213000.txt").exists()
    assert {row["file"] for row in rows_of(out)} > {str(field_folder / "new.wav")}
    refused = edgealign(*command, "--overlap", 0.5)
    assert refused.code == 2 and "other settings" in refused.err


def test_a_scan_that_read_nothing_binds_no_later_one(tmp_path: Path, samples_folder: Path, edgealign) -> None:
    edgealign("enroll", samples_folder)
    soundfile.write(tmp_path / "tape.wav", tape([0])[0], RATE_HZ)
    command = ("scan", tmp_path / "tape.wav", "-o", tmp_path / "out")
    nothing = edgealign(*command, "--channel", 3)
    assert nothing.code == 4 and "channel 3 was asked for" in nothing.err
    ran = edgealign(*command)
    assert ran.code == 0 and ran.out.startswith("1 row of 1 recording: ")
    assert (tmp_path / "out" / "failed.csv").read_bytes() == b"file,reason\r\n"
    assert edgealign(*command).out.startswith("1 row of 1 recording, 1 of them earlier: ")
    assert edgealign(*command, "--channel", 1).code == 2


def test_two_processes_find_what_one_finds(field_folder: Path, tmp_path: Path, edgealign) -> None:
    for workers in (1, 2):
        assert edgealign("scan", field_folder, "-o", tmp_path / str(workers), "--workers", workers, "-q").code == 0
    assert (tmp_path / "1" / "detections.csv").read_bytes() == (tmp_path / "2" / "detections.csv").read_bytes()


def test_each_channel_is_searched_where_all_are_asked_for(tmp_path: Path, samples_folder: Path, edgealign) -> None:
    edgealign("enroll", samples_folder)
    left, right = tape([0])[0], tape([2])[0]
    n = min(len(left), len(right))
    soundfile.write(tmp_path / "two.wav", np.stack([left[:n], right[:n]], axis=1), RATE_HZ)
    assert edgealign("scan", tmp_path / "two.wav", "-o", tmp_path / "out", "--channel", "all", "-q").code == 0
    assert {(row["channel"], row["label"]) for row in rows_of(tmp_path / "out")} == {("1", "maji"), ("2", "ndege")}


def test_bad_recordings_are_listed_and_the_others_are_searched(field_folder: Path, tmp_path: Path, edgealign) -> None:
    (field_folder / "empty.wav").touch()
    (field_folder / "text.wav").write_text("this is no recording")
    (field_folder / "folder.wav").mkdir()
    (field_folder / "loop").symlink_to(field_folder)
    (field_folder / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    samples, _ = tape([0, None, 1])
    samples[int(20 * RATE_HZ)] = np.nan
    soundfile.write(field_folder / "nan.wav", samples, RATE_HZ, subtype="FLOAT")
    whole = (field_folder / "20240501_213000.WAV").read_bytes()
    (field_folder / "cut.wav").write_bytes(whole[: len(whole) * 2 // 3])
    ran = edgealign("scan", field_folder, "-o", tmp_path / "out", "-q", "--workers", 1)
    assert ran.code == 5
    with open(tmp_path / "out" / "failed.csv", encoding="utf-8", newline="") as file:
        failed = {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}
    assert set(failed) == {"empty.wav", "text.wav", "folder.wav", "gone.wav", "nan.wav", "cut.wav"}
    assert "20.0" in failed["nan.wav"] and "0 bytes" in failed["empty.wav"]
    found = {Path(row["file"]).name for row in rows_of(tmp_path / "out")}
    assert found >= {"20240501_213000.WAV", "a.flac", "b.aiff", "cut.wav", "nan.wav"}  # what precedes the NaN is kept
    assert edgealign("scan", tmp_path / "nothing", "-o", tmp_path / "out2").code == 4
    assert edgealign("scan", field_folder / "text.wav", "-o", tmp_path / "out3").code == 4


def test_a_file_of_the_users_is_never_replaced(field_folder: Path, tmp_path: Path, edgealign) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "20240501_213000.txt").write_text("my notes")
    ran = edgealign("scan", field_folder, "-o", out, "--rtype", "audacity", "-q")
    assert ran.code == 2 and "exists" in ran.err
    assert (out / "20240501_213000.txt").read_text() == "my notes"


def test_what_somebody_corrected_stays_when_the_scan_goes_on(field_folder: Path, tmp_path: Path, edgealign) -> None:
    out = tmp_path / "out"
    command = ("scan", field_folder, "-o", out, "--workers", 1, "-q", "--rtype")
    assert edgealign(*command, "eaf,audacity").code == 0
    corrected = [*out.glob("[!.]*/*"), *out.glob("2*")]
    for path in corrected:
        path.write_text("corrected")
    soundfile.write(field_folder / "new.wav", tape([2])[0], RATE_HZ)
    assert edgealign(*command, "eaf,audacity,raven").code == 0
    assert [path.read_text() for path in corrected] == ["corrected"] * 6
    assert len(list(out.rglob("*.selections.txt"))) == 4
    soundfile.write(field_folder / "new.wav", tape([1])[0], RATE_HZ)
    before = (out / "new.eaf").read_bytes()
    assert edgealign(*command, "eaf,audacity,raven").code == 0
    assert b"ndege" in before and b"moto" in (out / "new.eaf").read_bytes()
    soundfile.write(field_folder / "new.wav", tape([0, 1])[0], RATE_HZ)
    for kind, name in (("eaf", "new.eaf"), ("textgrid", "new.TextGrid")):  # one that was corrected, one of the user's
        (out / name).write_text("mine")
        ran = edgealign(*command, kind)
        assert ran.code == 2 and f"'{out / name}' is not as the scan wrote it" in ran.err
        assert (out / name).read_text() == "mine"


def test_an_eaf_that_cannot_be_added_to_spoils_nothing_else(field_folder: Path, tmp_path: Path, edgealign) -> None:
    own = field_folder / "20240501_213000.eaf"
    own.write_text("no EAF")
    command = ("scan", field_folder, "-o", tmp_path / "out", "--workers", 1, "-q", "--rtype", "csv,eaf,textgrid")
    for _ in range(2):
        ran = edgealign(*command)
        assert ran.code == 5 and f"'{own}' is not XML" in ran.err
        assert len(rows_of(tmp_path / "out")) == 6
        assert len(list((tmp_path / "out").rglob("*.TextGrid"))) == 3
    own.write_bytes(eaf.new({"words": [Annotation(0.1, 0.2, "mine")]}, "x.wav"))
    assert edgealign(*command).code == 0
    assert b"mine" in (tmp_path / "out" / own.name).read_bytes()


@pytest.mark.parametrize("kept", ["nothing", "base", "both"])
def test_an_eaf_of_the_users_gains_its_tiers_once_wherever_a_run_was_cut_off(
    tmp_path: Path, samples_folder: Path, edgealign, kept: str
) -> None:
    edgealign("enroll", samples_folder)
    soundfile.write(tmp_path / "tape.wav", tape([0])[0], RATE_HZ)
    own = eaf.new({"words": [Annotation(0.1, 0.2, "mine")]}, str(tmp_path / "tape.wav"))
    target, base = tmp_path / "out" / "tape.eaf", tmp_path / "out" / ".edgealign-scan" / "tape.eaf"
    target.parent.mkdir()
    target.write_bytes(own)
    command = ("scan", tmp_path / "tape.wav", "-o", tmp_path / "out", "--rtype", "eaf", "-q")
    assert edgealign(*command).code == 0
    whole = target.read_bytes()
    assert whole != own and base.read_bytes() == own
    if kept != "both":
        target.write_bytes(own)
    if kept == "nothing":
        base.unlink()
    assert edgealign(*command).code == 0
    assert target.read_bytes() == whole and base.read_bytes() == own


def test_a_place_where_no_folder_can_be_made_is_a_usage_error(field_folder: Path, tmp_path: Path, edgealign) -> None:
    (tmp_path / "file").write_text("my notes")
    ran = edgealign("scan", field_folder, "-o", tmp_path / "file" / "out", "-q")
    assert ran.code == 2 and "cannot be written: Not a directory; name another folder" in ran.err


def test_names_of_outputs_do_not_collide(tmp_path: Path) -> None:
    for name in ("a/x.wav", "b/x.wav", "b/x.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_recordings([tmp_path / "a" / "x.wav", tmp_path / "b" / "x.wav", tmp_path / "b", tmp_path / "b"])
    assert [recording.name for recording in found.recordings] == ["a/x", "b/x.wav", "b/x.flac"]


def test_names_of_outputs_say_the_folder_where_two_hold_the_same_name_in_whatever_order(tmp_path: Path) -> None:
    for name in (
        "1/card/x.wav",
        "2/card/x.wav",
        "2/card/y.wav",
        "2/card/n.1.wav",
        "other/n.2.wav",
        "other/z/X.wav",
        "other/z/x.wav",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    folders = [tmp_path / "1" / "card", tmp_path / "2" / "card", tmp_path / "other"]

    def names(*paths: Path) -> dict[str, str]:
        return {str(Path(r.path).relative_to(tmp_path)): r.name for r in find_recordings(paths).recordings}

    assert names(folders[1]) == {"2/card/n.1.wav": "n.1", "2/card/x.wav": "x", "2/card/y.wav": "y"}
    expected = {
        "1/card/x.wav": "1/card/x", "2/card/x.wav": "2/card/x", "2/card/y.wav": "2/card/y",
        "2/card/n.1.wav": "2/card/n.1", "other/n.2.wav": "n.2",
        "other/z/X.wav": "z/X.wav", "other/z/x.wav": "z/x.wav-2",
    }  # fmt: skip
    assert names(*folders) == names(*folders[::-1]) == expected


def test_a_run_that_is_killed_loses_at_most_the_file_in_hand(
    tmp_path: Path, samples_folder: Path, toy_bundle: Bundle, edgealign
) -> None:
    edgealign("enroll", samples_folder)
    card = tmp_path / "card"
    card.mkdir()
    for i in range(8):
        soundfile.write(card / f"{i}.wav", tape([i % 3, None, None, (i + 1) % 3], seed=i)[0], RATE_HZ)
    arguments = ["scan", str(card), "--rtype", "csv,audacity", "--workers", "1", "-q", "-o"]
    assert edgealign(*arguments, tmp_path / "whole").code == 0
    journal = tmp_path / "cut" / ".edgealign-scan" / "journal.jsonl"
    command = [sys.executable, "-m", "edgealign.cli.app", *arguments, str(tmp_path / "cut")]
    n_lines = []
    for wanted in (2, 5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") > wanted:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait()
        n_lines.append(journal.read_bytes().count(b"\n"))
    with open(journal, "ab") as file:
        file.write(b'{"key": "half a li')  # what a power cut may leave
    ran = edgealign(*arguments, tmp_path / "cut")
    assert ran.code == 0
    assert n_lines[0] < 9  # it was cut off indeed
    assert (tmp_path / "cut" / "detections.csv").read_bytes() == (tmp_path / "whole" / "detections.csv").read_bytes()
    assert {p.name for p in (tmp_path / "cut").glob("*.txt")} == {f"{i}.txt" for i in range(8)}
    entries = [json.loads(line) for line in journal.read_bytes().splitlines()][1:]
    assert len({entry["key"] for entry in entries}) == len(entries) == 8


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not pinned on this system")
def test_a_scan_that_may_use_one_processor_starts_no_more_processes(
    field_folder: Path, tmp_path: Path, edgealign, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    with_processes = scan_runs._with_processes

    def counted(job: object, todo: object, workers: int, show: object) -> object:
        started.append(workers)
        return with_processes(job, todo, workers, show)

    monkeypatch.setattr(scan_runs, "_with_processes", counted)
    allowed = os.sched_getaffinity(0)
    for n_processors in range(1, min(len(allowed), 2) + 1):
        try:
            os.sched_setaffinity(0, sorted(allowed)[:n_processors])
            assert edgealign("scan", field_folder, "-o", tmp_path / str(n_processors), "-q").code == 0
        finally:
            os.sched_setaffinity(0, allowed)
        assert started == [2] * (n_processors - 1)


def test_workers_end_with_a_run_that_is_killed(tmp_path: Path, samples_folder: Path, edgealign) -> None:
    edgealign("enroll", samples_folder)
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", tape([i % 3] * 20, seed=i)[0], RATE_HZ)
    command = [sys.executable, "-m", "edgealign.cli.app", "scan", str(tmp_path), "-o", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE)
    journal = tmp_path / "out" / ".edgealign-scan" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)  # returns when nobody holds the pipe any more
    assert process.returncode == -signal.SIGKILL


def test_two_scans_into_one_folder_do_not_mix(field_folder: Path, tmp_path: Path, edgealign) -> None:
    from edgealign.scan_journal import Journal

    held = Journal(str(tmp_path / "out"), "0" * 64, {})
    ran = edgealign("scan", field_folder, "-o", tmp_path / "out")
    held.close()
    assert ran.code == 2 and "another scan" in ran.err


def test_memory_does_not_grow_with_the_recording(tmp_path: Path, samples_folder: Path, edgealign) -> None:
    edgealign("enroll", samples_folder)
    samples, _ = tape([0, None, 1])
    peaks = []
    for minutes in (2, 20):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", RATE_HZ, 1, "PCM_16") as file:
            for _ in range(int(minutes * 60 * RATE_HZ / len(samples)) + 1):
                file.write(samples)
        code = (
            "import sys; from edgealign.cli import app; from edgealign import machine\n"
            f"sys.argv = ['edgealign', 'scan', {str(path)!r}, '-q', '-o', {str(tmp_path / f'out{minutes}')!r}]\n"
            "try:\n    app.main()\nexcept SystemExit:\n    pass\n"
            "print(machine.peak_rss_mb())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
        peaks.append(float(done.stdout.splitlines()[-1]))
    assert peaks[1] < peaks[0] + 15 and peaks[1] < 300


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.wav", {"format": "WAVEX", "subtype": "PCM_24"}), ("a.wav", {"format": "RF64", "subtype": "FLOAT"}),
        ("a.aiff", {"subtype": "PCM_32"}), ("a.flac", {"subtype": "PCM_24"}), ("a.mp3", {}),
    ],
)  # fmt: skip
def test_words_are_found_in_what_recorders_write(recognizer: Recognizer, tmp_path: Path, name: str, form: dict) -> None:
    import soxr

    from edgealign.scan_runs import scan_recording

    samples, _ = tape([0, 2])
    rate_hz = 44_100 if name.endswith("mp3") else 384_000
    n_channels = 2 if name.endswith("mp3") else 4
    fast = soxr.resample(samples, RATE_HZ, rate_hz)
    soundfile.write(tmp_path / name, np.stack([fast] * n_channels, axis=1), rate_hz, **form)
    found = scan_recording(
        make_scanner(recognizer, ScanOptions()), str(tmp_path / name), "mix", None, lambda share: None
    )
    assert [d["ranked"][0][0] for d in found["detections"]] == ["maji", "ndege"]
    assert found["error"] is None and found["sample_rate_hz"] == rate_hz
