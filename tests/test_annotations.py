"""Tables of annotations: read, written, and understood by the libraries of the tools they belong to."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgealign.annotations import Annotation, eaf, read, tables, textgrid
from edgealign.errors import AnnotationUnreadable, InvalidInput

LABELS = ["maji", 'ŋǃʼo, "big" & <loud>', "犬 鳴き声", "=SUM(1)", "it's", "a;b"]
FOUND = [Annotation(i * 1.5 + 0.25, i * 1.5 + 1.125, label, 0.5 + i / 20) for i, label in enumerate(LABELS)]
TIERS = {label: [found] for label, found in zip(LABELS, FOUND, strict=True)}


def essence(found: list[Annotation]) -> list[tuple[float, float, str]]:
    return [(round(a.start_s, 3), round(a.end_s, 3), a.label) for a in found]


def test_audacity_labels_come_back(tmp_path: Path) -> None:
    path = tmp_path / 'tape 1, "é".txt'
    path.write_text(tables.write_audacity(FOUND), encoding="utf-8")
    back = read(path)
    assert not back.problems
    assert essence(back.annotations) == essence(FOUND)
    assert [a.score for a in back.annotations] == [round(a.score, 2) for a in FOUND]
    path.write_text("0\t1\tversion 2.00\n1\t2\tdog 0.5\n2\t3\t0.93\n3\t4\tdog 1.00\n", encoding="utf-8")
    assert [(a.label, a.score) for a in read(path).annotations] == [
        ("version 2.00", None), ("dog 0.5", None), ("0.93", None), ("dog", 1.0),
    ]  # fmt: skip


def test_audacity_frequencies_points_and_bad_lines_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(
        "1.0\t2.0\tdog\n\\\t300.0\t4000.0\n3.0\t3.0\tpoint\n5.0\t4.0\tback\n-1\t1\tearly\nx\ty\tz\n6\t7\t\n"
    )
    back = read(path)
    assert back.annotations == [Annotation(1.0, 2.0, "dog", None, 300.0, 4000.0)]
    assert len(back.problems) == 4 and all("line" in problem for problem in back.problems)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # pandas, about crowsetta
def test_crowsetta_reads_our_raven_and_audacity_tables(tmp_path: Path) -> None:
    crowsetta = pytest.importorskip("crowsetta")
    path = tmp_path / "tape.Table.1.selections.txt"
    path.write_text(tables.write_raven(FOUND, "tape.wav", "/data/tape.wav", (60.0, 7600.0)), encoding="utf-8")
    theirs = crowsetta.formats.bbox.Raven.from_file(path, annot_col="Annotation").to_bbox()
    assert [(b.onset, b.offset, b.low_freq, b.high_freq, b.label) for b in theirs] == [
        (a.start_s, a.end_s, 60.0, 7600.0, a.label) for a in FOUND
    ]
    path = tmp_path / "tape.txt"
    path.write_text(tables.write_audacity([Annotation(a.start_s, a.end_s, a.label) for a in FOUND]), encoding="utf-8")
    sequence = crowsetta.formats.seq.AudSeq.from_file(path).to_seq()
    assert list(zip(sequence.onsets_s, sequence.offsets_s, sequence.labels, strict=True)) == essence(FOUND)


def test_raven_tables_are_read_with_one_row_per_selection_and_times_inside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tape.Table.1.selections.txt"
    path.write_text(
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tBegin File\t"
        "File Offset (s)\tSpecies\n"
        '1\tWaveform 1\t1\t10.0\t11.5\t0\t8000\ta.wav\t10.0\t"great" tit\n'
        '1\tSpectrogram 1\t1\t10.0\t11.5\t2000\t8000\ta.wav\t10.0\t"great" tit\n'
        "2\tSpectrogram 1\t2\t610.0\t611.0\t2000\t8000\tb.wav\t10.0\tcrow\n"
        "2\tWaveform 3\t3\t610.0\t611.0\t2000\t8000\tb.wav\t10.0\tcrow\n",
        encoding="utf-8",
    )
    back = read(path)
    assert essence(back.annotations) == [(10.0, 11.5, '"great" tit'), (10.0, 11.0, "crow"), (10.0, 11.0, "crow")]
    assert [a.file for a in back.annotations] == ["a.wav", "b.wav", "b.wav"]
    assert [a.channel for a in back.annotations] == [1, 2, 3]
    ours = tmp_path / "ours.txt"
    ours.write_text(tables.write_raven(FOUND, "tape.wav", "/x/tape.wav", (60.0, 7600.0)), encoding="utf-8")
    assert essence(read(ours).annotations) == essence(FOUND)
    ours.write_text(tables.write_raven([], "tape.wav", "/x/tape.wav", (60.0, 7600.0)), encoding="utf-8")
    assert read(ours).annotations == [] and ours.read_text().count("\n") == 1


def test_selections_that_are_numbered_anew_in_one_table_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "all.txt"
    first, second = (
        tables.write_raven([Annotation(at, at + 1, "crow")], name, name, (0.0, 1.0))
        for at, name in ((1, "a"), (2, "b"))
    )
    path.write_text(first + second.split("\n", 1)[1], encoding="utf-8")
    assert essence(read(path).annotations) == [(1, 2, "crow"), (2, 3, "crow")]


def test_what_else_a_sound_might_have_been_is_no_annotation(tmp_path: Path) -> None:
    path = tmp_path / "detections.csv"
    path.write_text("file,start_s,end_s,label,rank\na.wav,1,2,maji,1\na.wav,1,2,moto,2\na.wav,3,4,moto,1\n")
    assert essence(read(path).annotations) == [(1, 2, "maji"), (3, 4, "moto")]


def test_quotes_in_tables_with_tabs_are_letters_to_raven_alone(tmp_path: Path) -> None:
    path = tmp_path / "times.tsv"
    path.write_text('"start"\t"end"\t"label"\n1\t2\t"the ""big"" one, here"\n', encoding="utf-8")
    assert essence(read(path).annotations) == [(1, 2, 'the "big" one, here')]


def test_a_quote_that_nothing_ends_is_said_and_costs_the_rows_above_nothing(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text('start,end,label\n1,2,maji\n\n3,4,"moto\n5,6,ndege\n')
    back = read(path)
    assert essence(back.annotations) == [(1, 2, "maji")]
    assert len(back.problems) == 1 and "line 4: a quote begins here" in back.problems[0]
    path.write_text('start,end,label\n1,2,"two\nlines"\n3,4,"moto"')  # closed on a later line, or on the last one
    assert essence(read(path).annotations) == [(1, 2, "two\nlines"), (3, 4, "moto")]
    path.write_text("start,end,label\n1,2,a\u2028b\x0cc\n3,4,moto\n", encoding="utf-8")
    assert essence(read(path).annotations) == [(1, 2, "a\u2028b\x0cc"), (3, 4, "moto")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_with_times_are_read_in_any_dialect(tmp_path: Path, delimiter: str, encoding: str) -> None:
    path = tmp_path / "times.csv"
    rows = [["File", "Start", "Duration", "Label"], ["a b.wav", "1.5", "0.5", "ñandú"], ["c.wav", "oops", "1", "x"]]
    path.write_text("\r\n".join(delimiter.join(row) for row in rows), encoding=encoding)
    back = read(path)
    assert back.annotations == [Annotation(1.5, 2.0, "ñandú", file="a b.wav")]
    assert len(back.problems) == 1


def test_pympi_reads_a_new_eaf(tmp_path: Path) -> None:
    pympi = pytest.importorskip("pympi")
    path = tmp_path / "tape 1.eaf"
    path.write_bytes(eaf.new(TIERS, str(tmp_path / "tape 1, é.wav")))
    theirs = pympi.Eaf(str(path))
    for label, found in zip(LABELS, FOUND, strict=True):
        assert theirs.get_annotation_data_for_tier(label)[0][:3] == (
            round(found.start_s * 1000), round(found.end_s * 1000), label,
        )  # fmt: skip
        assert essence(read(path, label).annotations) == essence([found])
    assert "tape%201" in theirs.media_descriptors[0]["MEDIA_URL"]


@pytest.mark.parametrize("suffix", [".eaf", ".TextGrid"])
def test_tiers_that_a_scan_wrote_are_read_together_and_others_are_not(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tape{suffix}"

    def write(tiers: dict[str, list[Annotation]]) -> None:
        path.write_bytes(eaf.new(tiers, "tape.wav") if suffix == ".eaf" else textgrid.write(tiers, 20.0).encode())

    write({**TIERS, "maji (channel 2)": [Annotation(12, 13, "maji"), Annotation(14, 15, "maji")]})
    back = read(path)
    expected = [*essence(FOUND), (12, 13, "maji"), (14, 15, "maji")]
    assert not back.problems and sorted(essence(back.annotations)) == sorted(expected)
    assert [a.channel for a in back.annotations if a.start_s >= 12] == [2, 2]
    assert {a.channel for a in back.annotations if a.start_s < 12} == {None}
    write({"words (channel 10) 2": [Annotation(12, 13, "maji")], "take (channel one)": [Annotation(1, 2, "moto")]})
    assert read(path, "words (channel 10) 2").annotations[0].channel == 10
    assert read(path, "take (channel one)").annotations[0].channel is None
    write({**TIERS, "words": [Annotation(12, 13, "maji")]})
    with pytest.raises(InvalidInput, match=r"several tiers with annotations.*'words' \(1\)"):
        read(path)
    assert essence(read(path, "words").annotations) == [(12, 13, "maji")]


def elan_file(path: Path) -> bytes:
    """As ELAN writes it: an aligned tier, one that refers to it, slots without a value, odd spacing."""
    path.write_bytes(
        """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="é" DATE="2024-01-01T00:00:00+01:00" FORMAT="3.0" VERSION="3.0"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
        <MEDIA_DESCRIPTOR MEDIA_URL="file:///home/x/tape.wav" MIME_TYPE="audio/x-wav"   />
        <PROPERTY NAME="lastUsedAnnotationId">4</PROPERTY>
    </HEADER>
    <TIME_ORDER>
        <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="500"/>
        <TIME_SLOT TIME_SLOT_ID="ts2"/>
        <TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="1500"/>
        <TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="9000"/>
    </TIME_ORDER>
    <!-- a comment of the user's -->
    <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="words">
        <ANNOTATION>
            <ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
                <ANNOTATION_VALUE>maji  &amp; moto</ANNOTATION_VALUE>
            </ALIGNABLE_ANNOTATION>
        </ANNOTATION>
        <ANNOTATION>
            <ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="ts3">
                <ANNOTATION_VALUE>ndege</ANNOTATION_VALUE>
            </ALIGNABLE_ANNOTATION>
        </ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="gloss" PARENT_REF="words" TIER_ID="gloss">
        <ANNOTATION>
            <REF_ANNOTATION ANNOTATION_ID="a3" ANNOTATION_REF="a2">
                <ANNOTATION_VALUE>bird</ANNOTATION_VALUE>
            </REF_ANNOTATION>
        </ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="empty"/>
    <LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>
    <LINGUISTIC_TYPE CONSTRAINTS="Symbolic_Association" LINGUISTIC_TYPE_ID="gloss" TIME_ALIGNABLE="false"/>
    <CONSTRAINT DESCRIPTION="1-1 association" STEREOTYPE="Symbolic_Association"/>
</ANNOTATION_DOCUMENT>
""".encode()
    )
    return path.read_bytes()


def test_the_tier_of_an_eaf_is_chosen_and_slots_without_a_time_are_filled_in(tmp_path: Path) -> None:
    elan_file(tmp_path / "tape.eaf")
    words = read(tmp_path / "tape.eaf", "words").annotations
    assert essence(words) == [(0.5, 1.0, "maji  & moto"), (1.0, 1.5, "ndege")]
    assert words[0].file == "file:///home/x/tape.wav"
    assert essence(read(tmp_path / "tape.eaf", "gloss").annotations) == [(1.0, 1.5, "bird")]
    with pytest.raises(InvalidInput, match=r"'words' \(2\), 'gloss' \(1\)"):
        read(tmp_path / "tape.eaf")
    with pytest.raises(InvalidInput, match="no tier 'phones'"):
        read(tmp_path / "tape.eaf", "phones")


def test_an_eaf_that_gains_tiers_keeps_every_byte_of_the_users(tmp_path: Path) -> None:
    before = elan_file(tmp_path / "tape.eaf")
    added = eaf.add_tiers(before, {"words": [FOUND[0]], **TIERS}, "tape.eaf")
    rest = iter(added)
    assert all(byte in rest for byte in before)  # in their order, with new bytes between them
    kept = [line for line in added.splitlines() if b"ets" not in line]
    cut = b"\n".join(kept)
    for element in (b'<TIER LINGUISTIC_TYPE_REF="edgealign"', b'<LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LING'):
        assert element in added
    assert before.split(b"<TIME_ORDER>")[0] in added and before.split(b'TIER_ID="empty"/>')[1] in added
    assert b"<!-- a comment of the user's -->" in cut
    (tmp_path / "more.eaf").write_bytes(added)
    pympi = pytest.importorskip("pympi")
    theirs = pympi.Eaf(str(tmp_path / "more.eaf"))
    assert theirs.get_annotation_data_for_tier("words 2")[0][:2] == (250, 1125)
    assert [value for _, _, value in theirs.get_annotation_data_for_tier("words")] == ["maji  & moto", "ndege"]
    assert theirs.get_annotation_data_for_tier(LABELS[1])[0][2] == LABELS[1]
    values = [int(part.split(b'"')[0]) for part in added.split(b'TIME_VALUE="')[1:]]
    assert values == sorted(values)


def test_parts_of_an_annotation_are_not_taken_for_all_of_it(tmp_path: Path) -> None:
    data = elan_file(tmp_path / "tape.eaf")
    part = b"""        <ANNOTATION>
            <REF_ANNOTATION ANNOTATION_ID="a5" ANNOTATION_REF="a2" PREVIOUS_ANNOTATION="a3">
                <ANNOTATION_VALUE>PL</ANNOTATION_VALUE>
            </REF_ANNOTATION>
        </ANNOTATION>
        <ANNOTATION>
            <REF_ANNOTATION ANNOTATION_ID="a6" ANNOTATION_REF="a1">
                <ANNOTATION_VALUE>water</ANNOTATION_VALUE>
            </REF_ANNOTATION>
        </ANNOTATION>
"""
    tier = data.index(b"</TIER>", data.index(b'TIER_ID="gloss"'))
    (tmp_path / "tape.eaf").write_bytes(data[:tier] + part + data[tier:])
    gloss = read(tmp_path / "tape.eaf", "gloss")
    assert essence(gloss.annotations) == [(0.5, 1.0, "water")]
    assert len(gloss.problems) == 2 and all("one of 2 parts" in problem for problem in gloss.problems)


def test_slots_without_a_time_lie_between_those_of_their_own_tier(tmp_path: Path) -> None:
    data = elan_file(tmp_path / "tape.eaf")
    for at_s in (0.6, 1.4):  # another tier has slots of its own before and behind the slot without a time
        other = eaf.add_tiers(data, {"other": [Annotation(at_s, at_s + 0.05, "x")]}, "tape.eaf")
        (tmp_path / "tape.eaf").write_bytes(other)
        words = read(tmp_path / "tape.eaf", "words").annotations
        assert essence(words) == [(0.5, 1.0, "maji  & moto"), (1.0, 1.5, "ndege")]


def test_of_a_video_and_its_sound_the_sound_is_meant_and_its_own_clock_counts(tmp_path: Path) -> None:
    data = elan_file(tmp_path / "tape.eaf")
    video = b'<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/x/tape.mp4" MIME_TYPE="video/mp4"/>\n'
    sound = (
        b'<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/x/My%20tape.wav" MIME_TYPE="audio/x-wav" TIME_ORIGIN="250" '
        b'RELATIVE_MEDIA_URL="../audio/My%20tape.wav"/>\n'
    )
    at = data.index(b"<MEDIA_DESCRIPTOR"), data.index(b"<PROPERTY")
    (tmp_path / "notes").mkdir()
    path = tmp_path / "notes" / "tape.eaf"
    path.write_bytes(data[: at[0]] + video + sound + data[at[1] :])
    elsewhere = read(path, "words").annotations[0]
    assert (elsewhere.file, elsewhere.start_s, elsewhere.end_s) == ("file:///C:/x/My%20tape.wav", 0.75, 1.25)
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "My tape.wav").touch()
    moved = read(path, "words").annotations[0].file
    assert moved is not None and Path(moved).samefile(tmp_path / "audio" / "My tape.wav")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"<ANNOTATION_DOCUMENT", b"<other/>",
        "<?xml version='1.0' encoding='UTF-16'?><ANNOTATION_DOCUMENT/>".encode("utf-16"),
        b"<ANNOTATION_DOCUMENT><!-- <TIME_ORDER></TIME_ORDER> --></ANNOTATION_DOCUMENT>",
        b"<ANNOTATION_DOCUMENT></ANNOTATION_DOCUMENT>",
    ],
)  # fmt: skip
def test_tiers_are_not_added_to_what_is_no_eaf(data: bytes) -> None:
    with pytest.raises(AnnotationUnreadable):
        eaf.add_tiers(data, TIERS, "tape.eaf")


def test_praat_libraries_read_our_textgrid(tmp_path: Path) -> None:
    path = tmp_path / "tape.TextGrid"
    path.write_text(textgrid.write(TIERS, 20.0), encoding="utf-8")
    theirs = pytest.importorskip("textgrid").TextGrid.fromFile(str(path))
    assert [tier.name for tier in theirs] == [label.replace('"', '""') for label in LABELS] or [
        tier.name for tier in theirs
    ] == LABELS
    praatio = pytest.importorskip("praatio.textgrid").openTextgrid(str(path), includeEmptyIntervals=True)
    for label, found in zip(LABELS, FOUND, strict=True):
        entries = praatio.getTier(praatio.tierNames[LABELS.index(label)]).entries
        assert entries[0].start == 0 and entries[-1].end == 20.0
        assert all(a.end == b.start for a, b in pairwise(entries))
        (full,) = [entry for entry in entries if entry.label]
        assert (full.start, full.end) == (found.start_s, found.end_s)
        assert essence(read(path, label).annotations) == essence([found])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("form", ["long_textgrid", "short_textgrid"])
def test_textgrids_of_praat_libraries_are_read(tmp_path: Path, encoding: str, form: str) -> None:
    praatio = pytest.importorskip("praatio.textgrid")
    made = praatio.Textgrid()
    made.addTier(praatio.IntervalTier("words", [(0.5, 1.25, 'she said "no"'), (2.0, 3.0, "ñ 3 [1]: x")], 0, 5))
    made.addTier(praatio.PointTier("points", [(1.0, "click")], 0, 5))
    path = tmp_path / "tape.TextGrid"
    made.save(str(path), form, includeBlankSpaces=True)
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    assert essence(read(path, "words").annotations) == [(0.5, 1.25, 'she said "no"'), (2.0, 3.0, "ñ 3 [1]: x")]
    points = read(path, "points")
    assert not points.annotations and len(points.problems) == 1


def test_short_textgrids_of_old_praats_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tape.TextGrid"
    path.write_text(
        'File type = "ooTextFile short"\n"TextGrid"\n\n0\n5\n<exists>\n1\n"IntervalTier"\n"words"\n0\n5\n2\n'
        '0\n1.5\n"maji"\n1.5\n5\n""\n'
    )
    assert essence(read(path).annotations) == [(0, 1.5, "maji")]


LABEL = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp", "Zs")), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 300), LABEL), max_size=8))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, drawn: list) -> None:
    at_ms, found = 0, []
    for gap_ms, length_ms, label in drawn:
        found.append(Annotation((at_ms + gap_ms) / 1000, (at_ms + gap_ms + length_ms) / 1000, label))
        at_ms += gap_ms + length_ms
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.eaf").write_bytes(eaf.new({"t": found}, "/x/a.wav"))
    (folder / "a.TextGrid").write_text(textgrid.write({"t": found}, 1.0), encoding="utf-8")
    (folder / "a.txt").write_text(tables.write_audacity(found), encoding="utf-8")
    (folder / "r.txt").write_text(tables.write_raven(found, "a.wav", "/x/a.wav", (0.0, 1.0)), encoding="utf-8")
    for name in ("a.eaf", "a.TextGrid", "a.txt", "r.txt"):
        assert essence(read(folder / name).annotations) == essence(found), name


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b"what,ever\n1,2\n"), ("a.txt", b"\xff\xfe\x00"), ("a.txt", b"1.0\t2.0\tcaf\xe9\n"),
        ("a.TextGrid", b"nothing"),
        ("a.TextGrid", b'"ooTextFile" "TextGrid" 0 1 <exists> 1 "IntervalTier" "w" 0 1 5 0'),
        ("a.eaf", b"\x00"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_in_a_sentence(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AnnotationUnreadable, match=r"'.*a"):
        read(tmp_path / name)
