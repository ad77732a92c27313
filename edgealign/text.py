"""Text -> token ids of the text encoder. Training and the runtime both use exactly this.

Text enters in one of two kinds: "grapheme", as a language is written, and "ipa", as it is pronounced. Neither needs a
phonemizer; the tables come from the bundle's vocab.json. So does a dictionary of what is not spelled as it sounds, such
as "two", and of Chinese characters: these are read as the IPA that it has for them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from edgealign.errors import BundleUnreadable, InvalidInput
from edgealign.strict_json import expect, parse_json

KINDS = ("grapheme", "ipa")
UNDETERMINED = "und"  # BCP 47's subtag for "no language given"
MAX_TEXT_CODE_POINTS = 1000
MAX_TOKENS = 8192
_NOT_SPOKEN_IN_IPA = {ord(character): None for character in ".‿ "}  # syllable break, linking, white space
_OF_VERSION_2 = {"pronunciations", "characters", "unstated"}  # of vocab.json
_IPA_DELIMITERS = ("//", "[]")


def normalize(text: str, kind: str) -> str:
    """The code points that are looked up in the vocabulary, one token each.

    grapheme  NFC, casefold, NFD; white space is dropped at the ends and becomes one space inside
    ipa       NFC, NFD; white space, "." and "‿" are dropped, ASCII g becomes "ɡ"; stress and length marks stay; the
              delimiters of /…/ and […] are dropped
    """
    if kind not in KINDS:
        raise InvalidInput(f"kind of text is '{kind}': expected one of {', '.join(KINDS)}")
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if kind == "grapheme":
        return unicodedata.normalize("NFD", text.casefold())
    for opening, closing in _IPA_DELIMITERS:
        if len(text) > 1 and text.startswith(opening) and text.endswith(closing):
            text = text[1:-1]
    return unicodedata.normalize("NFD", text).translate(_NOT_SPOKEN_IN_IPA).replace("g", "ɡ")


@dataclass(frozen=True)
class Tokens:
    """One text as the text encoder sees it.

    inputs          int64 [1, n_tokens] each, by the name that the text encoder gives it; the ids are the first
    unknown         the code points that the vocabulary lacks, in order of first appearance
    unknown_share   of all code points, in [0, 1]
    known_language  whether the vocabulary has the language; False also where none was given
    n_cut           characters at the end of the text that the encoder has no place for
    read_as         the language and the IPA that the dictionary has for the text; None where it is read by its letters
    """

    inputs: dict[str, np.ndarray]
    unknown: tuple[str, ...]
    unknown_share: float
    known_language: bool
    n_cut: int = 0
    read_as: tuple[str, str] | None = None

    @property
    def ids(self) -> np.ndarray:
        """int64 [n_tokens]"""
        return next(iter(self.inputs.values()))[0]


class TextTokenizer(Protocol):
    """What every kind of tokenizer provides."""

    def encode(self, text: str, kind: str = "grapheme", language: str | None = None) -> Tokens:
        """Tokens of one text; InvalidInput where it is empty, too long, or of a kind that the tokenizer lacks."""
        ...


@dataclass(frozen=True)
class Tokenizer:
    """The tables of vocab.json. `und` stands for a language that is not given or not in the table.

    pronunciations  language -> normalized word -> IPA
    characters      language that is written without spaces -> IPA -> all characters that are read so
    unstated        languages in which a text without one is looked up, the likeliest first
    """

    tokens: dict[str, int]
    languages: dict[str, int]
    kinds: dict[str, int]
    unknown: int
    pad: int
    max_tokens: int
    pronunciations: dict[str, dict[str, str]] = field(default_factory=dict)
    characters: dict[str, dict[str, str]] = field(default_factory=dict)
    unstated: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, vocab: dict) -> Tokenizer:
        version = vocab.get("format_version") if isinstance(vocab, dict) else None
        if version not in (1, 2) or type(version) is not int:
            raise BundleUnreadable(f"vocab.json has format_version {version!r}: this edgealign reads 1 and 2")
        expected = {"format_version", *cls.__dataclass_fields__} - (_OF_VERSION_2 if version == 1 else set())
        if set(vocab) != expected:
            raise BundleUnreadable(
                f"vocab.json has the keys {', '.join(sorted(vocab))}: expected {', '.join(sorted(expected))}"
            )
        tables = {name: vocab[name] for name in ("tokens", "languages", "kinds")}
        for name, table in tables.items():
            if not isinstance(table, dict) or not all(type(i) is int and 0 <= i < 2**20 for i in table.values()):
                raise BundleUnreadable(f"'{name}' of vocab.json is not a table of token ids")
        numbers = [vocab[name] for name in ("unknown", "pad", "max_tokens")]
        if not all(type(number) is int and 0 <= number < 2**20 for number in numbers) or vocab["max_tokens"] < 3:
            raise BundleUnreadable("unknown, pad or max_tokens of vocab.json is not a usable whole number")
        if UNDETERMINED not in tables["languages"] or not set(KINDS) <= set(tables["kinds"]):
            raise BundleUnreadable(f"vocab.json lacks the language '{UNDETERMINED}' or one of the kinds {KINDS}")
        if version == 2:
            _check_dictionary(vocab)
        return cls(**{key: value for key, value in vocab.items() if key != "format_version"})

    def language_id(self, language: str | None) -> tuple[int, bool]:
        """Token of a BCP 47 tag and whether the table knows it; "pt-BR" falls back to "pt", the rest to "und"."""
        subtags = (language or "").replace("_", "-").lower().split("-")
        folded = {tag.lower(): i for tag, i in self.languages.items()}
        for n in range(len(subtags), 0, -1):
            tag = "-".join(subtags[:n])
            if tag in folded:
                return folded[tag], tag != UNDETERMINED
        return self.languages[UNDETERMINED], False

    def encode(self, text: str, kind: str = "grapheme", language: str | None = None) -> Tokens:
        """One text as `tokens`: its kind, its language, then one per code point, cut at max_tokens.

        InvalidInput where nothing is left of it or it is longer than 1000 code points.
        """
        if len(text) > MAX_TEXT_CODE_POINTS:
            raise InvalidInput(f"text has {len(text)} characters: a word or short phrase was expected")
        characters = normalize(text, kind)
        language_id, known_language = self.language_id(language)
        stated = language not in (None, "", UNDETERMINED)
        languages = [tag for tag, i in self.languages.items() if known_language and i == language_id]
        read_as = self._look_up(characters, languages if stated else self.unstated) if kind == "grapheme" else None
        if read_as is not None:
            kind, language_id, characters = "ipa", self.languages[read_as[0]], normalize(read_as[1], "ipa")
        if not characters:
            raise InvalidInput(f"text '{text}' is empty: type the word that the label stands for")
        unknown = [character for character in characters if character not in self.tokens]
        ids = [self.kinds[kind], language_id, *(self.tokens.get(character, self.unknown) for character in characters)]
        return Tokens(
            {"tokens": np.array([ids[: self.max_tokens]], dtype=np.int64)},
            tuple(dict.fromkeys(unknown)),
            len(unknown) / len(characters),
            known_language,
            max(0, len(ids) - self.max_tokens),
            read_as,
        )

    def _look_up(self, characters: str, languages: list[str]) -> tuple[str, str] | None:
        """The first of the languages in which the dictionary has all words of a normalized text, or all its characters,
        and their IPA."""
        for tag in languages:
            by_word, by_character = self.pronunciations.get(tag, {}), self._by_character.get(tag, {})
            for table, parts in ((by_word, characters.split(" ")), (by_character, characters.replace(" ", ""))):
                if all(part in table for part in parts):
                    return tag, "".join(table[part] for part in parts)
        return None

    @cached_property
    def _by_character(self) -> dict[str, dict[str, str]]:
        """language -> character -> IPA"""
        return {
            tag: {character: ipa for ipa, texts in table.items() for character in texts}
            for tag, table in self.characters.items()
        }


def _check_dictionary(vocab: dict) -> None:
    """BundleUnreadable where the parts of vocab.json that version 2 added are not as `Tokenizer` says."""
    languages = set(vocab["languages"]) - {UNDETERMINED}
    for name in ("pronunciations", "characters"):
        tables = vocab[name]
        usable = isinstance(tables, dict) and set(tables) <= languages
        usable = usable and all(isinstance(table, dict) for table in tables.values())
        if not (usable and all(type(value) is str for table in tables.values() for value in table.values())):
            raise BundleUnreadable(f"'{name}' of vocab.json is not a table of texts and IPA by known languages")
    tags = vocab["unstated"]
    if not isinstance(tags, list) or not all(type(tag) is str and tag in languages for tag in tags):
        raise BundleUnreadable("'unstated' of vocab.json is not a list of known languages")


def _open_edgealign(entry: dict[str, Any], data: bytes) -> Tokenizer:
    expect(set(entry) == {"kind", "file"}, "a tokenizer of the kind edgealign has a file and nothing else")
    return Tokenizer.from_dict(parse_json(data, entry["file"]))


def _open_huggingface(entry: dict[str, Any], data: bytes) -> TextTokenizer:
    from edgealign.tokenizers_hf import HuggingFaceTokenizer

    keys, limit = set(entry), entry.get("max_tokens")
    expect(keys == {"kind", "file", "max_tokens"}, "a tokenizer of the kind huggingface has a file and max_tokens")
    usable = type(limit) is int and 1 <= limit <= MAX_TOKENS
    expect(usable, f"'max_tokens' of a tokenizer is {limit!r}: expected 1 to {MAX_TOKENS}")
    return HuggingFaceTokenizer.from_json(data, limit)


# kind -> how its section of the manifest and the bytes of its file become a tokenizer
TOKENIZERS: dict[str, Callable[[dict[str, Any], bytes], TextTokenizer]] = {
    "edgealign": _open_edgealign,
    "huggingface": _open_huggingface,
}


def open_tokenizer(entry: dict[str, Any], data: bytes) -> TextTokenizer:
    """The tokenizer of a bundle; BundleUnreadable where its kind is not known or its parts do not fit.

    entry   `tokenizer` of the manifest: `kind`, `file`, and what the kind needs;  data   the bytes of the file
    """
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in TOKENIZERS:
        known = ", ".join(TOKENIZERS)
        raise BundleUnreadable(f"its tokenizer is of the kind {kind!r}: this edgealign knows {known}")
    return TOKENIZERS[kind](entry, data)
