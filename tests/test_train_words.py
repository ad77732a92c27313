"""What is said in training, and what must never be."""

import hashlib

import pytest

from edgealign.train import words
from edgealign.train.synthesis import Espeak
from edgealign.train.words import Word, collect, is_validation, reserved_sounds, sound_of, usable_languages


@pytest.fixture(scope="module")
def espeak() -> Espeak:
    return Espeak()


def lists(monkeypatch: pytest.MonkeyPatch, **of_language: str) -> None:
    """Word lists of a test's own instead of CLDR's and Debian's."""
    monkeypatch.setattr(words, "_words_of", lambda language: of_language.get(language, "").split())
    monkeypatch.setattr(words, "_candidate_languages", lambda: sorted(of_language))


@pytest.mark.parametrize(
    ("ipa", "sound"),
    [("mˈaɟi", "maɟi"), ("ˌma.ˈdʒiː", "madʒi"), ("fə nˈɛtɪk", "fənɛtɪk"), ("bɔ\u0303", "bɔ\u0303"), ("ç", "c\u0327")],
)
def test_a_sound_is_what_is_left_without_stress_length_and_spaces(ipa, sound):
    assert sound_of(ipa) == sound
    assert Word("any", "xx", ipa).sound == sound


def test_about_a_fiftieth_of_all_sounds_is_kept_for_validation():
    sounds = [hashlib.sha256(str(i).encode()).hexdigest()[:9] for i in range(20_000)]
    kept = sum(map(is_validation, sounds))
    # Binomial with mean 400 and standard deviation 20: six of them are never reached by chance.
    assert abs(kept - 400) < 120


def test_homophones_are_on_the_same_side_of_the_split():
    for text in ("sˈɪ", "tˈoː", "mˈaɟi", *"abcdefghijkl"):
        for marked in (f"ˈ{text}", f"{text}ː", f"ˌ{text}", f"{text} "):
            assert is_validation(sound_of(marked)) == is_validation(sound_of(text))


def test_reserved_words_and_their_homophones_are_never_collected(espeak, monkeypatch):
    lists(monkeypatch, en="water too sicks lamp ate garden fore know cupboard milk nine")
    assert {word.text for word in collect(espeak, "en", 100, seed=0)} == {"lamp", "garden", "cupboard"}


def test_a_reserved_sound_is_refused_in_every_language(espeak, monkeypatch):
    espeak.set_voice("sw")
    monkeypatch.setattr(words, "reserved_sounds", lambda _espeak: frozenset({sound_of(espeak.phonemes("maji"))}))
    lists(monkeypatch, sw="maji moto ndege")
    assert {word.text for word in collect(espeak, "sw", 100, seed=0)} == {"moto", "ndege"}


def test_every_word_of_the_demo_and_of_the_evaluation_is_reserved(espeak):
    from edgealign.train.held_out_clips import DEMO_OTHER_WORDS, DEMO_WORDS

    reserved = reserved_sounds(espeak)
    espeak.set_voice("en")
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for word in (*DEMO_WORDS, *DEMO_OTHER_WORDS, *digits):
        assert sound_of(espeak.phonemes(word)) in reserved, word


def test_languages_that_are_left_out_are_not_usable(espeak, monkeypatch):
    many = " ".join(f"{a}{b}{c}a" for a in "bdklmnprst" for b in "aeiou" for c in "klm")
    lists(monkeypatch, cs=many, sk=many, sw=many, es=many)
    assert usable_languages(espeak) == ["es", "sw"]


class Speller:
    """Stands for espeak-ng: says every word as given for its language."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers

    def set_voice(self, language: str) -> bool:
        self.language = language
        return language in self.answers

    def phonemes(self, text: str) -> str:
        return self.answers[self.language].replace("*", text)


def test_languages_whose_phonemes_cannot_be_trusted_are_not_usable(monkeypatch):
    many = " ".join(f"{a}{b}{c}" for a in "bdklm" for b in "aeiou" for c in "bdklm")
    lists(monkeypatch, aa=many, bb=many, cc=many, cmn=many, dd=many, ee="few words")
    heard = Speller(aa="*", bb="(en)*(bb)", cc="*2", cmn="*5", dd="", ee="*")
    assert usable_languages(heard) == ["aa", "cmn"]  # digits are tones in Mandarin


def test_words_are_collected_in_a_seeded_order_and_half_of_them_are_short(espeak, monkeypatch):
    short = [f"{a}{b}{c}" for a in "bdklmn" for b in "aeiou" for c in "klmn"]
    long = [word + "takari" for word in short]
    lists(monkeypatch, sw=" ".join(long + short))
    first, again, other = (collect(espeak, "sw", 40, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len(first) <= 40
    # 20 short ones are chosen first, then the rest at random; a few are lost where two of them sound alike.
    assert sum(len(word.text) <= 5 for word in first) >= len(first) / 2 - 2


def test_within_a_language_a_sound_is_collected_once(espeak, monkeypatch):
    lists(monkeypatch, en="sea see lamp")
    assert len(collect(espeak, "en", 10, seed=0)) == 2


def test_a_language_without_a_voice_gives_no_words(espeak):
    assert collect(espeak, "qqq", 10, seed=0) == []


def test_cldr_gives_words_of_letters_alone():
    found = words._words_of("sw")
    assert len(found) > 300
    assert all(2 <= len(word) <= 14 and not any(c.isdigit() or c.isspace() for c in word) for word in found)
