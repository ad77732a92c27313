"""What is said: word lists, their phonemes, and the split into training, validation and reserved words.

Words come from CLDR through `babel` (names of places, languages, months, units, ...) and from Debian's word lists where
they are installed. Splits go by phoneme string across languages: two words that sound the same are on one side.
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgealign.errors import MissingExtra
from edgealign.train.synthesis import Espeak
from edgealign.writing import replace_file

# Left out whole, with its close relative, so that a language that was never heard can be measured.
LEFT_OUT_LANGUAGES = frozenset({"cs", "sk"})

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")  # the labels of fsdd

# Words of the evaluation packs and of the demo: never rendered for training, in any language.
RESERVED = {
    "en": f"{' '.join(DIGITS)} close speech print no send start stop up yes "
    "water fire bird stone river house salt tree milk moon",
    "cmn": "商行 总工 语言 语音",
    "ar": "أغلق إغلاق ثمانية ثمانيه لا أرسل إرسال ستة سته ابدأ بدء توقف قف ثلاثة ثلاثه فوق أعلى نعم",
}

VALIDATION_SHARE = 1 / 50
SPELLINGS_OF_A_LIST = 10_000

_CLDR_TABLES = ("territories", "languages", "scripts", "months", "days", "eras", "day_periods", "currency_names")
_CLDR_TABLES += ("unit_display_names", "date_fields", "time_zones", "quarters", "variants")
_CLDR_NAME_OF_VOICE = {"cmn": "zh", "nb": "no", "en-us": "en", "fr-fr": "fr"}
_WRITTEN_WITHOUT_SPACES = frozenset({"cmn", "yue", "ja", "th", "lo", "my", "km", "shn"})
CHINESE = frozenset({"cmn", "yue"})
_DEBIAN_LISTS = {
    "american-english": "en", "brazilian": "pt", "bulgarian": "bg", "catalan": "ca", "danish": "da", "esperanto": "eo",
    "french": "fr", "gaelic": "gd", "irish": "ga", "italian": "it", "ngerman": "de", "bokmaal": "nb",
    "polish": "pl", "portuguese": "pt", "spanish": "es", "swedish": "sv", "ukrainian": "uk", "faroese": "fo",
}  # fmt: skip


@dataclass(frozen=True)
class Word:
    text: str
    language: str  # of the espeak-ng voice, BCP 47
    ipa: str

    @property
    def sound(self) -> str:
        """What two words share when they cannot be told apart by ear: phonemes without stress, length and spaces."""
        return sound_of(self.ipa)


def write_words(path: Path, words: Iterable[Word]) -> None:
    with replace_file(path) as file:
        file.write("".join(f"{word.text}\t{word.language}\t{word.ipa}\n" for word in words).encode())


def read_words(path: Path) -> list[Word]:
    """What `write_words` wrote."""
    return [Word(*line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()]


def sound_of(ipa: str) -> str:
    return re.sub(r"[ˈˌː.‿\s]", "", unicodedata.normalize("NFD", ipa))


def is_validation(sound: str) -> bool:
    """Whether words that sound like this are kept for choosing the checkpoint."""
    return int(hashlib.sha256(sound.encode()).hexdigest()[:8], 16) < VALIDATION_SHARE * 2**32


def reserved_sounds(espeak: Espeak) -> frozenset[str]:
    """Phoneme strings of RESERVED."""
    sounds = set()
    for language, words in RESERVED.items():
        espeak.set_voice(language)
        sounds |= {sound_of(espeak.phonemes(word)) for word in words.split()}
    return frozenset(sounds)


def is_reserved(word: Word, sounds: frozenset[str]) -> bool:
    """Whether a word sounds like a reserved one, or a phrase has one in it.

    sounds   `reserved_sounds`
    """
    reserved = {text for texts in RESERVED.values() for text in texts.split()}
    return word.sound in sounds or any(part in reserved for part in word.text.split())


def usable_languages(espeak: Espeak, n_probes: int = 200) -> list[str]:
    """Voices whose phonemes can be trusted: of `n_probes` words under a tenth come back with a language switch, a
    digit or nothing. Tones are digits in tone languages, which stay usable."""
    usable = []
    for language in _candidate_languages():
        words = _words_of(language)[:n_probes]
        if language in LEFT_OUT_LANGUAGES or len(words) < 100 or not espeak.set_voice(language):
            continue
        bad = sum(not is_pronounced(espeak.phonemes(word), language) for word in words)
        if bad < len(words) / 10:
            usable.append(language)
    return usable


def collect(espeak: Espeak, language: str, n: int, seed: int) -> list[Word]:
    """Up to `n` words of a language, half of them short, none of them reserved, no two that sound the same; seeded."""
    seen = set(reserved_sounds(espeak))
    found = []
    candidates = _words_of(language)
    random.Random(f"{seed} {language}").shuffle(candidates)
    for word in _pronounced(espeak, language, _half_short(candidates, n)):
        if word.sound not in seen:
            seen.add(word.sound)
            found.append(word)
    return found


def spellings(espeak: Espeak, language: str) -> list[Word]:
    """What people may type in a language: many more words, homophones and reserved ones among them, and phrases.

    Of long lists a part is taken, but all English words. Phrases are two short words; in Chinese, whose words are not
    set apart, two characters.
    """
    listed = _listed_words(language)
    random.Random(language).shuffle(listed)
    listed = _half_short(listed, len(listed) if language == "en" else SPELLINGS_OF_A_LIST)
    texts = [*dict.fromkeys([*_cldr_words(language), *listed, *RESERVED.get(language, "").split()])]
    if language in CHINESE:
        parts, n_phrases = sorted({character for text in texts for character in text}), SPELLINGS_OF_A_LIST
        texts += parts
    else:
        parts, n_phrases = [text for text in texts if len(text) <= 7], len(texts) // 8
    rng, between = random.Random(language), "" if language in _WRITTEN_WITHOUT_SPACES else " "
    texts += [between.join(rng.choices(parts, k=2)) for _ in range(n_phrases if parts else 0)]
    return list(_pronounced(espeak, language, dict.fromkeys(texts)))


def _half_short(candidates: list[str], n: int) -> list[str]:
    """Up to n of them, half of up to five letters; in order."""
    short = [word for word in candidates if len(word) <= 5][: n // 2]
    return list(dict.fromkeys(short + candidates))[:n]


def _pronounced(espeak: Espeak, language: str, texts: Iterable[str]) -> Iterator[Word]:
    """The texts whose phonemes can be trusted, and are 2 to 24."""
    if espeak.set_voice(language):
        for text in texts:
            word = Word(text, language, espeak.phonemes(text))
            if is_pronounced(word.ipa, language) and 2 <= len(word.sound) <= 24:
                yield word


def is_pronounced(ipa: str, language: str) -> bool:
    tonal = language in {"cmn", "yue", "vi", "my", "shn", "hak", "nog"}
    return bool(ipa) and "(" not in ipa and (tonal or not any(c.isdigit() for c in ipa))


def _candidate_languages() -> list[str]:
    try:
        from babel.localedata import locale_identifiers
    except ImportError as error:
        raise MissingExtra(
            "babel is not installed, and word lists come from it: run `pip install 'edgealign[train]'`"
        ) from error
    known = {name for name in locale_identifiers() if "_" not in name}
    return sorted((known - {"zh", "no"}) | {"cmn", "nb"} | set(_DEBIAN_LISTS.values()))


def _words_of(language: str) -> list[str]:
    return list(dict.fromkeys([*_cldr_words(language), *_listed_words(language, 20_000)]))


def _listed_words(language: str, drawn: int | None = None) -> list[str]:
    """Words of Debian's lists in their order, or those among `drawn` lines of each, in random order."""
    words = []
    for name, list_language in _DEBIAN_LISTS.items():
        path = Path("/usr/share/dict", name)
        if list_language == language and path.exists():
            lines = path.read_text(encoding="utf-8", errors="ignore").split("\n")
            if drawn is not None:
                random.Random(name).shuffle(lines)
            words += [line for line in lines[:drawn] if line.islower() and _is_word(line)]
    return words


def _cldr_words(language: str) -> Iterator[str]:
    from babel.localedata import exists, load

    name = _CLDR_NAME_OF_VOICE.get(language, language)
    if not exists(name):
        return
    data = load(name)
    for table in _CLDR_TABLES:
        for text in _strings(data.get(table)):
            text = unicodedata.normalize("NFC", text).casefold()
            parts = [text] if language in _WRITTEN_WITHOUT_SPACES else re.split(r"[\s\-–/(),.'’·]+", text)
            longest = 6 if language in _WRITTEN_WITHOUT_SPACES else 14
            yield from (part for part in parts if _is_word(part) and len(part) <= longest)


def _strings(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _strings(value)


def _is_word(text: str) -> bool:
    return 2 <= len(text) <= 14 and all(unicodedata.category(c)[0] in "LM" for c in text)
