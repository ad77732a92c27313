"""The dictionary of vocab.json: what is not spelled as it sounds, and is looked up where it is typed.

A text encoder of 0.8 MB does not learn by heart how "one" and "two" are said, nor what thousands of Chinese characters
are; IPA it reads well. So words that it reads otherwise by their letters than as IPA go into a dictionary, and so do
all characters of Chinese, whose words are put together from these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from edgealign.text import normalize
from edgealign.train.synthesis import Espeak
from edgealign.train.words import CHINESE, Word, is_pronounced

# `pronunciations` and `characters` of vocab.json, by these names.
Dictionary = dict[str, dict[str, dict[str, str]]]

# 1 - cosine between what is read of a word's letters and of its IPA; the second of short English words, which are typed
# most. Not by what is heard of words: that of a word which training heard from few people is theirs.
MIN_DISTANCE, MIN_DISTANCE_OF_SHORT = 0.18, 0.06
LONGEST_SHORT = 5
UNSTATED = ("en", "cmn")  # where a text whose language is not stated is looked up
# Sets of characters with their first bytes: those of simplified and of traditional Chinese that are in use.
_HAN = (("gb2312", range(0xB0, 0xF8)), ("big5", range(0xA4, 0xC7)))


def of_words(words: Sequence[Word], apart: np.ndarray) -> dict[str, dict[str, str]]:
    """The words that are worth looking up: language -> word -> IPA.

    apart   float [n]: 1 - cosine of what is read of the letters of each and of its IPA
    """
    found: dict[str, dict[str, str]] = {}
    for word, distance in zip(words, apart.tolist(), strict=True):
        if " " in word.text or word.language in CHINESE or len(word.sound) > 2 * len(word.text) + 2:
            continue  # the last are numerals and abbreviations that espeak-ng expands: "iv" is "Roman four" to it
        short = word.language == "en" and len(word.text) <= LONGEST_SHORT
        if distance > (MIN_DISTANCE_OF_SHORT if short else MIN_DISTANCE):
            found.setdefault(word.language, {}).setdefault(normalize(word.text, "grapheme"), word.ipa)
    return found


def of_chinese(espeak: Espeak) -> dict[str, dict[str, str]]:
    """Every Chinese character that espeak-ng can say: language -> IPA -> characters."""
    characters = sorted({character for codec, rows in _HAN for character in _characters(codec, rows)})
    found: dict[str, dict[str, str]] = {}
    for language in sorted(CHINESE):
        if espeak.set_voice(language):
            by_ipa: dict[str, str] = defaultdict(str)
            for character in characters:
                by_ipa[espeak.phonemes(character)] += character
            found[language] = {ipa: texts for ipa, texts in by_ipa.items() if is_pronounced(ipa, language)}
    return found


def with_dictionary(vocabulary: dict, dictionary: Dictionary) -> dict:
    """vocab.json: the tables of training (version 1), and what of a dictionary is in languages that they know."""
    if not dictionary:
        return vocabulary
    languages = vocabulary["languages"]
    known = {
        name: {tag: table for tag, table in tables.items() if tag in languages} for name, tables in dictionary.items()
    }
    return vocabulary | known | {"format_version": 2, "unstated": [tag for tag in UNSTATED if tag in languages]}


def _characters(codec: str, rows: range) -> list[str]:
    pairs = (bytes([first, second]) for first in rows for second in range(0x40, 0xFF))
    decoded = (pair.decode(codec, errors="ignore") for pair in pairs)
    return [text for text in decoded if len(text) == 1 and "\u4e00" <= text <= "\u9fff"]
