"""Enrolling from annotated recordings."""

from __future__ import annotations

import csv
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_scan import LABELS, RATE_HZ, tape

from edgealign import Store
from edgealign.annotations import Annotation, eaf, tables, textgrid
from edgealign.audio import AudioExcerpt
from edgealign.errors import AudioUnreadable


@pytest.fixture
def annotated(tmp_path: Path) -> tuple[Path, list[Annotation]]:
    """A recording of three words, five times each, with a name that needs quoting, and where the words are."""
    samples, truth = tape([0, 1, 2] * 5, gap_s=0.4)
    path = tmp_path / 'tape 1, "é".wav'
    soundfile.write(path, samples, RATE_HZ)
    return path, [Annotation(start_s, end_s, LABELS[word]) for start_s, end_s, word in truth]


def write(kind: str, path: Path, found: list[Annotation]) -> Path:
    """The annotations beside the recording, in one of the formats."""
    stem = path.with_suffix("")
    if kind == "raven":
        target = Path(f"{stem}.Table.1.selections.txt")
        target.write_text(tables.write_raven(found, path.name, str(path), (0.0, 8000.0)), encoding="utf-8")
    elif kind == "audacity":
        target = Path(f"{stem}.txt")
        target.write_text(tables.write_audacity(found), encoding="utf-8")
    elif kind == "eaf":
        target = Path(f"{stem}.eaf")
        target.write_bytes(eaf.new({"words": found, "other": [Annotation(0, 1, "x")]}, str(path)))
    elif kind == "textgrid":
        target = Path(f"{stem}.TextGrid")
        target.write_text(textgrid.write({"words": found, "other": [Annotation(0, 1, "x")]}, 60), encoding="utf-8")
    else:
        target = path.with_name("table of mine.csv")
        name = path.name.replace('"', '""')
        rows = "".join(f'"{name}",{a.start_s},{a.end_s},{a.label}\r\n' for a in found)
        target.write_text("file,start_s,end_s,label\r\n" + rows, encoding="utf-8")
    return target


@pytest.mark.parametrize("kind", ["raven", "audacity", "eaf", "textgrid", "csv"])
def test_words_are_learned_from_tables_of_every_format(kind: str, annotated: tuple, tmp_path: Path, edgealign) -> None:
    path, found = annotated
    tier = ("--tier", "words") if kind in ("eaf", "textgrid") else ()
    ran = edgealign("enroll", "--table", write(kind, path, found), *tier)
    assert ran.code == 0, ran.err
    store = Store.load(tmp_path / "stores" / "speech.store")
    assert store.labels() == list(LABELS) and len(store.rows()) == 15
    assert edgealign("scan", path, "-o", tmp_path / "out", "-q").code == 0
    lines = (tmp_path / "out" / "detections.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(lines) >= 13  # of the 15 words that it was taught with


def test_an_excerpt_is_the_sound_that_a_clip_of_it_would_be(annotated: tuple, tmp_path: Path) -> None:
    path, found = annotated
    samples, _ = soundfile.read(path)
    first, end = round(found[3].start_s * RATE_HZ), round(found[3].end_s * RATE_HZ)
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, samples[first:end], RATE_HZ)
    excerpt = AudioExcerpt(path, found[3].start_s, found[3].end_s)
    whole = AudioExcerpt(clip, 0, (end - first) / RATE_HZ)
    (a,), (b,) = list(excerpt.blocks(RATE_HZ)), list(whole.blocks(RATE_HZ))
    assert (a == b).all() and excerpt.sha256 == whole.sha256
    with pytest.raises(AudioUnreadable, match="are not in it"):
        AudioExcerpt(path, 1.0, 1000.0)


def test_the_recording_is_the_one_given_or_one_beside_the_table(annotated: tuple, tmp_path: Path, edgealign) -> None:
    path, found = annotated
    table = tmp_path / "elsewhere" / "labels.txt"
    table.parent.mkdir()
    table.write_text(tables.write_audacity(found), encoding="utf-8")
    lost = edgealign("enroll", "--table", table)
    assert lost.code == 4 and "is not beside it" in lost.err
    for suffix in (".m4a", ".w4v"):  # what cannot be read is not preferred to what can
        table.with_suffix(suffix).write_bytes(b"another form of the recording")
    (table.parent / "labels.wav").write_bytes(path.read_bytes())
    assert edgealign("enroll", "--table", table, "--label", "beside", "--store", tmp_path / "beside.store").code == 0
    assert edgealign("enroll", path, "--table", table, "--label", "word").code == 0
    assert Store.load(tmp_path / "stores" / "speech.store").labels() == ["word"]


@pytest.mark.parametrize(
    "text",
    [
        "Selection\tView\tBegin Time (s)\tEnd Time (s)\n1\tSpectrogram 1\t{}\t{}\n2\tSpectrogram 1\t{}\t{}\n",
        "{}\t{}\t\n{}\t{}\tcorn crake?\n",
    ],
)
def test_selections_without_an_annotation_are_of_the_label_given(
    annotated: tuple, tmp_path: Path, edgealign, text: str
) -> None:
    path, found = annotated
    table = tmp_path / "selections.txt"
    table.write_text(text.format(*(time for entry in found[:2] for time in (entry.start_s, entry.end_s))))
    ran = edgealign("enroll", path, "--table", table, "--label", "crake")
    assert ran.code == 0, ran.err
    assert Store.load(tmp_path / "stores" / "speech.store").labels() == ["crake"] and "2 " in ran.out


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("name", [b"old card \xe9.wav", b"tape #3? 100%25.wav"])
def test_an_eaf_finds_its_recording_whatever_the_name(annotated: tuple, tmp_path: Path, edgealign, name: bytes) -> None:
    path, found = annotated
    renamed = path.rename(tmp_path / os.fsdecode(name))
    table = tmp_path / "elsewhere" / "words.eaf"
    table.parent.mkdir()
    table.write_bytes(eaf.new({"words": found[:2]}, str(renamed)))
    ran = edgealign("enroll", "--table", table)
    assert ran.code == 0, ran.err


@pytest.fixture
def stereo(tmp_path: Path) -> tuple[Path, list[Annotation]]:
    """Other words on each channel at the same times, and where those of the first channel are."""
    left, truth = tape([0, 1, 2, 0, 1, 2], gap_s=0.5)
    right, _ = tape([1, 2, 0, 1, 2, 0], gap_s=0.5, seed=5)
    n_samples = min(len(left), len(right))
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left[:n_samples], right[:n_samples]], axis=1), RATE_HZ)
    inside = [place for place in truth if place[1] * RATE_HZ < n_samples]
    return path, [Annotation(start_s, end_s, LABELS[word]) for start_s, end_s, word in inside]


def learned(edgealign, store: Path, *arguments: object) -> np.ndarray:
    ran = edgealign("enroll", *arguments, "--store", store)
    assert ran.code == 0, ran.err
    return Store.load(store).embeddings()


@pytest.mark.parametrize("kind", ["raven", "csv"])
@pytest.mark.parametrize("channel", [1, 2])
def test_an_excerpt_is_learned_from_the_channel_that_its_table_names(
    kind: str, channel: int, stereo: tuple, tmp_path: Path, edgealign
) -> None:
    path, found = stereo
    samples, _ = soundfile.read(path)
    mono = tmp_path / "mono" / "stereo.wav"
    mono.parent.mkdir()
    soundfile.write(mono, samples[:, channel - 1], RATE_HZ)
    plain = write("audacity", path, found).rename(tmp_path / "mono" / "stereo.txt")
    expected = learned(edgealign, tmp_path / "mono.store", mono, "--table", plain)
    if kind == "raven":
        table = write("raven", path, [replace(entry, channel=channel) for entry in found])
    else:
        table = tmp_path / "stereo.csv"
        rows = "".join(f"{entry.start_s},{entry.end_s},{entry.label},{channel}\n" for entry in found)
        table.write_text("start_s,end_s,label,channel\n" + rows)
    assert (learned(edgealign, tmp_path / "named.store", path, "--table", table) == expected).all()
    # What the command line names wins.
    mixed = learned(edgealign, tmp_path / "mixed.store", path, "--table", table, "--channel", "mix")
    assert (mixed == learned(edgealign, tmp_path / "plain.store", path, "--table", plain)).all()
    assert not (mixed == expected).all()
    other = learned(edgealign, tmp_path / "other.store", path, "--table", table, "--channel", 3 - channel)
    assert not (other == expected).all() and not (other == mixed).all()


def test_what_a_scan_of_all_channels_mixed_wrote_for_raven_is_learned_from_the_mix(
    stereo: tuple, tmp_path: Path, edgealign
) -> None:
    path, found = stereo
    table = write("raven", path, found)
    assert table.read_text().splitlines()[1].split("\t")[2] == "1"
    expected = learned(edgealign, tmp_path / "mixed.store", path, "--table", write("audacity", path, found))
    assert (learned(edgealign, tmp_path / "raven.store", path, "--table", table) == expected).all()
    added = table.read_text().splitlines()[:2]  # a selection that was made in Raven has nothing in our column
    table.write_text(added[0] + "\n" + added[1].removesuffix("mix") + "\n")
    (first,) = learned(edgealign, tmp_path / "first.store", path, "--table", table)
    assert not (first == expected[0]).all()


@pytest.mark.parametrize("kind", ["csv", "raven", "eaf", "textgrid"])
def test_what_a_scan_of_each_channel_found_is_learned_from_that_channel(
    kind: str, stereo: tuple, tmp_path: Path, edgealign, samples_folder: Path
) -> None:
    path, _ = stereo
    edgealign("enroll", samples_folder)
    assert edgealign("scan", path, "-o", tmp_path / "out", "--channel", "all", "--rtype", f"csv,{kind}", "-q").code == 0
    rows = list(csv.DictReader((tmp_path / "out" / "detections.csv").read_text().splitlines()))
    assert {row["channel"] for row in rows} == {"1", "2"}
    tables_of = {"raven": "stereo.Table.1.selections.txt", "eaf": "stereo.eaf", "textgrid": "stereo.TextGrid"}
    table = tmp_path / "out" / tables_of.get(kind, "detections.csv")
    found = learned(edgealign, tmp_path / "found.store", path, "--table", table)
    assert len(found) == len(rows)
    samples, _ = soundfile.read(path)
    for number in (1, 2):
        mono = tmp_path / f"mono{number}.wav"
        soundfile.write(mono, samples[:, number - 1], RATE_HZ)
        times = "".join(f"{r['start_s']},{r['end_s']},{r['label']}\n" for r in rows if r["channel"] == str(number))
        mono.with_suffix(".csv").write_text("start_s,end_s,label\n" + times)
        expected = learned(edgealign, tmp_path / "mono.store", mono, "--table", mono.with_suffix(".csv"))
    assert len(expected) == len(rows)
    assert (found @ expected.T).max(axis=1).min() > 0.999  # an EAF keeps times to a millisecond


def test_a_channel_that_a_recording_lacks_is_a_failure_of_its_rows_alone(
    stereo: tuple, tmp_path: Path, edgealign
) -> None:
    path, found = stereo
    table = write("raven", path, [replace(found[0], channel=3), *found[1:]])
    ran = edgealign("enroll", path, "--table", table)
    assert ran.code == 5 and "channel 3 was asked for" in ran.err
    assert len(Store.load(tmp_path / "stores" / "speech.store").rows()) == len(found) - 1


@pytest.mark.parametrize("name", ["@home.wav", "=1+1.wav", "-.wav"])
def test_what_a_scan_found_in_a_recording_named_like_a_formula_is_learned(
    name: str, annotated: tuple, tmp_path: Path, edgealign, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = annotated
    edgealign("enroll", path, "--table", write("raven", path, found))
    monkeypatch.chdir(path.rename(tmp_path / name).parent)
    assert edgealign("scan", "--output", "out", "-q", "--", name).code == 0
    ran = edgealign("enroll", "--table", "out/detections.csv", "--store", "again.store")
    assert ran.code == 0, ran.err


def test_a_table_without_rows_says_that_nothing_is_there(annotated: tuple, tmp_path: Path, edgealign) -> None:
    path, found = annotated
    table = write("raven", path, found)
    quiet = tmp_path / "quiet.Table.1.selections.txt"
    quiet.write_text(tables.write_raven([], "quiet.wav", "quiet.wav", (0.0, 8000.0)), encoding="utf-8")
    nothing = edgealign("enroll", "--table", quiet)
    assert nothing.code == 4 and "holds no annotations" in nothing.err
    ran = edgealign("enroll", "--table", table, quiet)
    assert ran.code == 0 and "not learned" not in ran.err
    soundfile.write(tmp_path / "quiet.wav", np.zeros(10 * RATE_HZ), RATE_HZ)
    ran = edgealign("simulate", path, tmp_path / "quiet.wav", "--table", table, quiet)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("0.00 false alarms per hour")


def test_rows_about_other_recordings_are_not_learned_from_the_one_given(
    annotated: tuple, tmp_path: Path, edgealign
) -> None:
    path, found = annotated
    table = tmp_path / "all.csv"
    rows = [f"tape_1.flac,{a.start_s},{a.end_s},{a.label}" for a in found] + ["other.wav,1,2,early", "third.wav,1,2,x"]
    renamed = path.rename(tmp_path / "tape_1.wav")
    table.write_text("\n".join(["file,start_s,end_s,label", *rows]), encoding="utf-8")
    ran = edgealign("enroll", renamed, "--table", table)
    assert ran.code == 5 and ran.err.count("not learned") == 2 and "about 'other.wav': none of the" in ran.err
    assert set(Store.load(tmp_path / "stores" / "speech.store").labels()) == set(LABELS)


def test_recordings_of_one_name_are_told_apart_by_their_folders(annotated: tuple, tmp_path: Path, edgealign) -> None:
    path, found = annotated
    card = tmp_path / "card"
    for site in ("east", "west"):
        (card / site).mkdir(parents=True)
    path.rename(card / "west" / "20240601_040000.WAV")
    soundfile.write(card / "east" / "20240601_040000.WAV", tape([3], gap_s=0.4)[0], RATE_HZ)
    table = tmp_path / "all.Table.1.selections.txt"
    name = "20240601_040000.WAV"
    table.write_text(tables.write_raven(found, name, rf"D:\card\west\{name}", (0.0, 8000.0)), encoding="utf-8")
    ran = edgealign("enroll", card, "--table", table)
    assert ran.code == 0, ran.err
    assert len(Store.load(tmp_path / "stores" / "speech.store").rows()) == 15
    table.write_text(tables.write_raven(found, name, name, (0.0, 8000.0)), encoding="utf-8")
    assert "2 of the recordings given have that name" in edgealign("enroll", card, "--table", table).err


def test_what_a_scan_found_is_learned_where_it_was_run(
    annotated: tuple, tmp_path: Path, edgealign, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = annotated
    assert edgealign("enroll", "--table", write("csv", path, found)).code == 0
    (tmp_path / "tapes" / "first").mkdir(parents=True)
    path.rename(tmp_path / "tapes" / "first" / path.name)
    monkeypatch.chdir(tmp_path)
    assert edgealign("scan", "tapes", "-o", "out", "--top-k", "3", "-q").code == 0
    ran = edgealign("enroll", "--table", Path("out") / "detections.csv", "--store", tmp_path / "again.store")
    assert ran.code == 0, ran.err
    n_detections = (tmp_path / "out" / "detections.csv").read_text(encoding="utf-8").count(",true,1,")
    assert len(Store.load(tmp_path / "again.store").rows()) == n_detections


def test_all_tables_that_a_shell_lists_are_tables(annotated: tuple, tmp_path: Path, edgealign) -> None:
    path, found = annotated
    first = write("textgrid", path, found[:5])
    (tmp_path / "second.wav").write_bytes(path.read_bytes())
    second = write("textgrid", tmp_path / "second.wav", found[5:])
    third = tmp_path / "third.TextGrid"
    third.write_text(textgrid.write({"phones": found}, 60), encoding="utf-8")
    ran = edgealign("enroll", "--table", first, second, third, "--tier", "words")
    assert ran.code == 5 and ran.err.count("not learned") == 1 and "has no tier 'words'" in ran.err
    assert len(Store.load(tmp_path / "stores" / "speech.store").rows()) == 15


def test_rows_that_cannot_be_used_are_listed_and_the_others_are_learned(
    annotated: tuple, tmp_path: Path, edgealign
) -> None:
    path, found = annotated
    table = tmp_path / "bad.txt"
    rows = "5.0\t4.0\tback\n-1\t1\tearly\n1e5\t2e5\tlate\n" + tables.write_audacity(found[:2])
    table.write_text(rows, encoding="utf-8")
    ran = edgealign("enroll", path, "--table", table)
    assert ran.code == 5
    assert ran.err.count("not learned") == 3 and "are not in it" in ran.err and "before the recording" in ran.err
    assert set(Store.load(tmp_path / "stores" / "speech.store").labels()) == {"maji", "moto"}
    unknown = edgealign("enroll", "--table", write("eaf", path, found), "--tier", "phones")
    assert unknown.code == 2 and "'words' (15)" in unknown.err
    assert edgealign("enroll", path, "--table", tmp_path / "missing.txt").code == 4
