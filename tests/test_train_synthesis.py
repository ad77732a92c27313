"""Synthesizers: phonemes of known words, and samples as they were asked for."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgealign.train.synthesis import (
    FESTIVAL_VOICES,
    FLITE_VOICES,
    SAMPLE_RATE_HZ,
    Espeak,
    Manner,
    festival_voices_installed,
    say_with_festival,
    say_with_flite,
)

needs_festival = pytest.mark.skipif(not festival_voices_installed(), reason="festival is not installed")
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


@pytest.fixture(scope="module")
def espeak() -> Espeak:
    return Espeak()


@pytest.mark.parametrize(
    ("language", "text", "ipa"),
    [("sw", "maji", "mˈaɟi"), ("en", "water", "wˈɔːtə"), ("de", "Schule", "ʃˈuːlə"), ("fr", "bonjour", "bɔ̃ʒˈuʁ")],
)
def test_phonemes_of_known_words(espeak, language, text, ipa):
    """As the pronunciation dictionaries of these languages have them; espeak-ng writes Swahili j as a palatal stop."""
    assert espeak.set_voice(language)
    assert espeak.phonemes(text) == ipa


def test_phonemes_of_several_words_are_joined_by_spaces(espeak):
    espeak.set_voice("en")
    assert espeak.phonemes("water, water").split() == ["wˈɔːtə", "wˈɔːtə"]
    assert espeak.phonemes("") == ""


def test_a_voice_that_does_not_exist_is_not_chosen(espeak):
    assert not espeak.set_voice("qqq")


def test_a_word_is_some_tenths_of_a_second_of_finite_samples(espeak):
    espeak.set_voice("sw")
    samples = espeak.say("maji")
    assert samples.dtype == np.float32
    assert 0.2 < len(samples) / SAMPLE_RATE_HZ < 1.5
    assert 0.05 < np.abs(samples).max() <= 1


def test_the_pace_is_as_asked(espeak):
    lengths = []
    for words_per_minute in (100, 200):
        espeak.set_voice("sw", Manner(words_per_minute=words_per_minute))
        lengths.append(len(espeak.say("kitabu kizuri sana")))
    assert 1.5 < lengths[0] / lengths[1] < 2.5


def pitch_hz(samples: np.ndarray) -> float:
    """Where the autocorrelation of the loudest 128 ms, freed of its taper, peaks between 50 and 250 Hz."""
    middle = int(np.argmax(np.convolve(samples**2, np.ones(2048), "same")))
    frame = samples[max(0, middle - 1024) : middle + 1024].astype(np.float64)
    autocorrelation = np.correlate(frame, frame, "full")[len(frame) - 1 :] / np.arange(len(frame), 0, -1)
    shortest, longest = SAMPLE_RATE_HZ // 250, SAMPLE_RATE_HZ // 50
    return SAMPLE_RATE_HZ / (shortest + int(np.argmax(autocorrelation[shortest:longest])))


def test_a_higher_pitch_sounds_higher(espeak):
    heard = []
    for pitch in (20, 90):
        espeak.set_voice("sw", Manner(pitch=pitch, pitch_range=0))
        heard.append(pitch_hz(espeak.say("maaaa")))
    assert heard[1] > 1.3 * heard[0]


def test_voice_variants_sound_different(espeak):
    said = []
    for variant in ("f2", "m3"):
        assert variant in espeak.variants()
        espeak.set_voice("sw", Manner(variant))
        said.append(espeak.say("maji"))
    shorter = min(map(len, said))
    assert np.corrcoef(said[0][:shorter], said[1][:shorter])[0, 1] < 0.9


@needs_festival
def test_festival_says_each_text_and_nothing_for_an_empty_one():
    voice = next(voice for voice in FESTIVAL_VOICES if voice.name in festival_voices_installed())
    plain, empty, slow = (*say_with_festival(voice, ["casa", ""]), *say_with_festival(voice, ["casa"], stretch=1.6))
    assert empty is None
    assert plain.dtype == np.float32
    assert len(slow) > 1.3 * len(plain) > 0.2 * SAMPLE_RATE_HZ


@needs_flite
def test_flite_says_a_word_longer_when_it_is_stretched():
    plain, slow = (say_with_flite(FLITE_VOICES[0], "lamp", stretch) for stretch in (1.0, 1.6))
    assert plain.dtype == np.float32
    assert len(slow) > 1.3 * len(plain) > 0.2 * SAMPLE_RATE_HZ


def test_training_speaks_with_no_voice_that_the_demo_has():
    trained = {voice.name.split("_")[0] for voice in FESTIVAL_VOICES} | {voice.name for voice in FESTIVAL_VOICES}
    assert trained.isdisjoint(FLITE_VOICES)
    assert all(voice.language != "cs" for voice in FESTIVAL_VOICES)


def test_what_a_process_did_not_survive_is_not_said_again(tmp_path):
    say = (
        "import sys; from pathlib import Path; from edgealign.train.synthesis import Espeak, Manner\n"
        "espeak = Espeak(Path(sys.argv[1])); espeak.set_voice('pl', Manner('Annie', 161, 22, 94))\n"
        "print(len(espeak.say('niemcy kopr')))"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", say, tmp_path], capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    if first.returncode == 0:
        pytest.skip("this build of espeak-ng survives the word that crashes others")
    assert second.stdout.split() == ["0"]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_survived_leaves_no_note(tmp_path: Path):
    espeak = Espeak(tmp_path / "crashed")
    espeak.set_voice("en", Manner("f1"))
    assert len(espeak.say("water"))
    assert not list((tmp_path / "crashed").iterdir())
