"""Text -> token ids, exactly as training sees them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_bundle import VOCABULARY

from edgealign.errors import BundleUnreadable, InvalidInput
from edgealign.text import Tokenizer, normalize

TOKENIZER = Tokenizer.from_dict(VOCABULARY)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("Maji", "grapheme", "maji"),
        ("  good \t morning\n", "grapheme", "good morning"),
        ("Straße", "grapheme", "strasse"),
        ("caf\u00e9", "grapheme", "cafe\u0301"),
        ("cafe\u0301", "grapheme", "cafe\u0301"),
        ("ˈmaː.dʒi", "ipa", "ˈmaːdʒi"),
        ("/ɡo‿on/", "ipa", "ɡoon"),
        ("[go on]", "ipa", "ɡoon"),
        ("Bã", "ipa", "Ba\u0303"),  # IPA has capitals of its own: no casefolding
    ],
)
def test_normalize(text: str, kind: str, expected: str) -> None:
    assert normalize(text, kind) == expected


def test_what_is_cut_off_is_counted() -> None:
    fits = TOKENIZER.max_tokens - 2  # kind and language come first
    assert TOKENIZER.encode("a" * fits).n_cut == 0
    cut = TOKENIZER.encode("a" * (fits + 3))
    assert cut.n_cut == 3 and len(cut.ids) == TOKENIZER.max_tokens


@given(st.text(max_size=50), st.sampled_from(["grapheme", "ipa"]))
def test_composed_and_decomposed_text_are_one(text: str, kind: str) -> None:
    import unicodedata

    assert normalize(unicodedata.normalize("NFC", text), kind) == normalize(unicodedata.normalize("NFD", text), kind)


def test_ids_are_kind_language_characters() -> None:
    tokens = TOKENIZER.encode("Ab", "grapheme", "sw")
    vocab = VOCABULARY
    expected = [vocab["kinds"]["grapheme"], vocab["languages"]["sw"], vocab["tokens"]["a"], vocab["tokens"]["b"]]
    assert tokens.ids.tolist() == expected
    assert tokens.ids.dtype == np.int64
    assert tokens.unknown == () and tokens.known_language


@pytest.mark.parametrize(
    ("language", "tag", "known"),
    [
        ("pt", "pt", True),
        ("pt-BR", "pt", True),
        ("PT_br", "pt", True),
        ("ptx", "und", False),
        ("", "und", False),
        (None, "und", False),
        ("und", "und", False),
    ],
)
def test_language_falls_back_subtag_by_subtag(language: str | None, tag: str, known: bool) -> None:
    assert TOKENIZER.language_id(language) == (VOCABULARY["languages"][tag], known)


def test_unknown_characters_are_named_once_and_counted() -> None:
    tokens = TOKENIZER.encode("a漢a字漢", "grapheme")
    assert tokens.unknown == ("漢", "字")
    assert tokens.unknown_share == pytest.approx(3 / 5)
    assert (tokens.ids == VOCABULARY["unknown"]).sum() == 3


def test_long_text_is_cut_and_overlong_text_refused() -> None:
    assert len(TOKENIZER.encode("a" * 500).ids) == VOCABULARY["max_tokens"]
    with pytest.raises(InvalidInput, match="2000 characters"):
        TOKENIZER.encode("a" * 2000)


@pytest.mark.parametrize("text", ["", "  \n", "..‿"])
def test_empty_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is empty"):
        TOKENIZER.encode(text, "ipa")


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"format_version": True},
        {"max_tokens": 2},
        {"max_tokens": "40"},
        {"tokens": {"a": -1}},
        {"tokens": ["a"]},
        {"languages": {"en": 3}},
        {"kinds": {"grapheme": 6}},
        {"surprise": 1},
    ],
)
def test_broken_vocabulary_is_refused(change: dict) -> None:
    with pytest.raises(BundleUnreadable, match=r"vocab\.json"):
        Tokenizer.from_dict({**VOCABULARY, **change})


# ---- the dictionary of version 2 ----

DICTIONARY = {
    "format_version": 2,
    "pronunciations": {"en": {"two": "tˈuː", "one": "wˌɒn"}},
    "characters": {"pt": {"jˈi": "一壱", "ˈər": "二"}},
    "unstated": ["en", "pt"],
}
LOOKING_UP = Tokenizer.from_dict({**VOCABULARY, **DICTIONARY})


@pytest.mark.parametrize(
    ("text", "language", "read_as"),
    [
        ("two", "en", ("en", "tˈuː")),
        (" Two\n", "en-GB", ("en", "tˈuː")),
        ("one two", "en", ("en", "wˌɒntˈuː")),
        ("one too", "en", None),  # the encoder reads a text in one kind, so a part that is not listed spells the rest
        ("onetwo", "en", None),
        ("two", None, ("en", "tˈuː")),
        ("two", "und", ("en", "tˈuː")),
        ("two", "sw", None),
        ("two", "xx", None),  # a language was stated: that it is not known does not make it English
        ("二一", "pt", ("pt", "ˈərjˈi")),
        ("二 壱", "pt", ("pt", "ˈərjˈi")),
        ("二", None, ("pt", "ˈər")),
        ("二三", "pt", None),
        ("two 二", None, None),
    ],
)
def test_what_the_dictionary_has_is_read_as_its_ipa(
    text: str, language: str | None, read_as: tuple[str, str] | None
) -> None:
    tokens = LOOKING_UP.encode(text, language=language)
    assert tokens.read_as == read_as
    if read_as is None:
        assert tokens.ids.tolist() == TOKENIZER.encode(text, language=language).ids.tolist()
    else:
        assert tokens.ids.tolist() == TOKENIZER.encode(read_as[1], "ipa", read_as[0]).ids.tolist()
    assert tokens.known_language == (language in ("en", "en-GB", "sw", "pt"))


def test_ipa_is_not_looked_up() -> None:
    assert LOOKING_UP.encode("two", "ipa", "en").ids.tolist() == TOKENIZER.encode("two", "ipa", "en").ids.tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"pronunciations": []},
        {"pronunciations": {"xx": {"two": "tuː"}}},
        {"pronunciations": {"und": {"two": "tuː"}}},
        {"pronunciations": {"en": ["two"]}},
        {"pronunciations": {"en": {"two": 2}}},
        {"characters": {"xx": {"ˈər": "二"}}},
        {"characters": {"pt": {"ˈər": ["二"]}}},
        {"characters": None},
        {"unstated": [["en"]]},
        {"unstated": None},
        {"unstated": ["und"]},
        {"format_version": 1},
        {"format_version": 3},
    ],
)
def test_a_broken_dictionary_is_refused(change: dict) -> None:
    with pytest.raises(BundleUnreadable, match=r"vocab\.json"):
        Tokenizer.from_dict({**VOCABULARY, **DICTIONARY, **change})


def test_an_entry_without_any_sound_is_an_empty_text() -> None:
    table = {**VOCABULARY, **DICTIONARY, "pronunciations": {"en": {"two": "."}}}
    with pytest.raises(InvalidInput, match="is empty"):
        Tokenizer.from_dict(table).encode("two", language="en")
