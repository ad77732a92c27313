"""The demo: what it learns, counts and draws, on clips made here as the shipped ones are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import soundfile
from toy_bundle import noise_clip, word_clip

from edgealign import Bundle, demo
from edgealign.errors import InputUnreadable

LABELS = ("water", "bread <&>", "house", "night", "seven")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips to enroll and two to ask about per word, three other words and a noise."""
    folder = tmp_path_factory.mktemp("clips")
    entries = []

    def add(name: str, label: str | None, voice: int, role: str, samples) -> None:
        soundfile.write(folder / name, samples, 16_000)
        entries.append({"file": name, "label": label, "voice": f"voice {voice}", "role": role})

    for word, label in enumerate(LABELS):
        for voice in range(5):
            role = "enroll" if voice < 3 else "query"
            add(f"word{word}_{voice}.flac", label, voice, role, word_clip(word, voice))
    for word in range(100, 103):
        add(f"other{word}.ogg", None, 3, "query", word_clip(word, 3))
    add("noise.flac", None, 0, "query", noise_clip())
    (folder / "manifest.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def result(toy_bundle: Bundle, clips: Path) -> demo.Result:
    return demo.run(toy_bundle.path, clips=str(clips))


def test_words_are_learned_and_others_left_unknown(result: demo.Result) -> None:
    assert result.labels == LABELS and result.n_enrolled == 15
    assert len(result.queries) == 14
    right, of_enrolled = result.share_right(enrolled=True)
    rejected, of_others = result.share_right(enrolled=False)
    assert of_enrolled == 10 and right >= 9
    assert of_others == 4 and rejected >= 3
    assert [query.label for query in result.queries[:2]] == ["water"] * 2 and result.queries[-1].label is None


def test_the_picture_shows_every_query_and_the_answers(result: demo.Result, tmp_path: Path) -> None:
    demo.save_picture(result, tmp_path / "demo.svg")
    root = ElementTree.parse(tmp_path / "demo.svg").getroot()
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("bread <&>") == 1 and {"word1 · 3", "word1 · 4", "noise", "other102"} <= set(texts)
    assert texts.count("✓ right") == sum(query.right for query in result.queries)
    assert texts.count("✗ wrong") == sum(not query.right for query in result.queries)
    outlined = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if "stroke" in rect.attrib]
    assert len(outlined) == len(result.queries)


def test_what_a_clip_is_not_is_unknown_in_the_picture(result: demo.Result) -> None:
    query = result.queries[0]
    closest, further = (replace(top, probability=p) for top, p in zip(query.answer.top[:2], (0.2, 0.4), strict=True))
    answer = replace(query.answer, label=None, probability=0.2, top=(closest, further))
    picture = demo.draw(replace(result, queries=(replace(query, answer=answer),)))
    assert ">80%<" in picture and ">20%<" in picture and ">40%<" in picture and ">60%<" not in picture


def test_the_command_prints_a_table_and_says_that_clips_are_synthetic(
    edgealign, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "CLIPS", str(clips))
    ran = edgealign("demo", "-o", tmp_path / "picture.svg")
    assert ran.code == 0 and ran.err == ""
    assert "synthetic" in ran.out and "edgealign enroll --modality speech samples/" in ran.out
    assert "of 10 clips of these words are right" in ran.out and "of 4 other words and noises" in ran.out
    assert (tmp_path / "picture.svg").stat().st_size > 1000
    assert not (tmp_path / "stores").exists()  # the user's own store is not touched
    ran = edgealign("demo", "-o", tmp_path / "none" / "picture.svg")
    assert ran.code == 2 and "cannot be written" in ran.err and not ran.out


def test_missing_clips_are_named(toy_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match=r"manifest\.json"):
        demo.run(toy_bundle.path, clips=str(tmp_path))
