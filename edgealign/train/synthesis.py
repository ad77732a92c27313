"""Speech synthesizers as sources of strong pairs: a word goes in, samples and phonemes come out.

espeak-ng runs in-process (formant synthesis, over a hundred languages); festival and flite, where Debian's packages are
installed, add voices that were cut from recordings of people. Two renderings of one word differ by a few samples even
in espeak-ng, so training never renders twice: `corpus` keeps what was rendered.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

from edgealign.errors import MissingExtra

SAMPLE_RATE_HZ = 16_000

# espeak-ng/speak_lib.h
_SYNCHRONOUS, _INITIALIZE_DONT_EXIT = 2, 0x8000
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_PHONEMES_IPA = 0x02


# Other voices for words of one language. A word keeps one label in all of its accents.
ACCENTS = {
    "en": ("en-us", "en-us-nyc", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
    "es": ("es-419",),
    "pt": ("pt-br",),
    "fr": ("fr-be", "fr-ch"),
    "ca": ("ca-ba", "ca-nw", "ca-va"),
}


@dataclass(frozen=True)
class Manner:
    """How espeak-ng says a word."""

    variant: str = ""  # a file name of espeak-ng-data/voices/!v, or empty
    words_per_minute: int = 160
    pitch: int = 50  # 0 to 99
    pitch_range: int = 50  # 0 (monotone) to 99


class Espeak:
    """The espeak-ng library of the `espeakng_loader` package, in this process.

    The library keeps one global voice: use one instance per process and no threads. Some words crash it in some voices.
    """

    def __init__(self, notes: Path | None = None) -> None:
        """notes   folder where a process keeps what it is saying: what another did not survive is not said again"""
        self._voice, self._note, self._fatal = "", None, frozenset()
        if notes is not None:
            notes.mkdir(parents=True, exist_ok=True)
            self._fatal = frozenset(note.read_text(encoding="utf-8") for note in notes.iterdir())
            self._note = notes / f"{os.getpid()}-{time.time_ns()}"
        try:
            import espeakng_loader
        except ImportError as error:
            raise MissingExtra(
                "espeakng_loader is not installed, and strong pairs are rendered with it: "
                "run `pip install 'edgealign[train]'`"
            ) from error
        self._data = Path(espeakng_loader.get_data_path())
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self._lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.sample_rate_hz = self._lib.espeak_Initialize(
            _SYNCHRONOUS, 0, str(self._data.parent).encode(), _INITIALIZE_DONT_EXIT
        )
        self._chunks: list[np.ndarray] = []

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        def collect(samples, n_samples, _events):
            if n_samples > 0:
                self._chunks.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
            return 0

        self._collect = collect  # keeps the callback alive as long as the library may call it
        self._lib.espeak_SetSynthCallback(collect)

    def variants(self) -> list[str]:
        """Names of the voice variants that come with the library."""
        return sorted(path.name for path in (self._data / "voices" / "!v").iterdir())

    def set_voice(self, language: str, manner: Manner = Manner()) -> bool:
        """Choose who speaks; False where the library has no such voice."""
        name = f"{language}+{manner.variant}" if manner.variant else language
        if self._lib.espeak_SetVoiceByName(name.encode()) != 0:
            return False
        for parameter, value in (
            (_RATE, manner.words_per_minute),
            (_PITCH, manner.pitch),
            (_RANGE, manner.pitch_range),
        ):
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._voice = f"{name} {manner.words_per_minute} {manner.pitch} {manner.pitch_range}"
        return True

    def phonemes(self, text: str) -> str:
        """IPA of a text in the current voice, with stress marks."""
        pointer = ctypes.c_char_p(text.encode())
        parts = []
        while pointer.value:
            parts.append(self._lib.espeak_TextToPhonemes(ctypes.byref(pointer), _CHARS_UTF8, _PHONEMES_IPA).decode())
        return " ".join(part.strip() for part in parts if part.strip())

    def say(self, text: str) -> np.ndarray:
        """Samples of a text in the current voice: float32 [n_samples] in [-1, 1] at SAMPLE_RATE_HZ; may be empty."""
        self._chunks.clear()
        encoded, said = text.encode() + b"\0", f"{self._voice} {text}"
        if said in self._fatal:
            return np.zeros(0, np.float32)
        if self._note:
            self._note.write_text(said, encoding="utf-8")
        self._lib.espeak_Synth(encoded, len(encoded), 0, 1, 0, _CHARS_UTF8, None, None)
        if self._note:
            self._note.unlink()
        if not self._chunks:
            return np.zeros(0, np.float32)
        samples = np.concatenate(self._chunks).astype(np.float32) / 32768
        return soxr.resample(samples, self.sample_rate_hz, SAMPLE_RATE_HZ)


@dataclass(frozen=True)
class FestivalVoice:
    """A voice of Debian's festival packages. `encoding` is what its letter-to-sound rules were written for."""

    name: str
    language: str
    encoding: str


# The voices that training uses. The four Czech voices (a language left out of training) and awb and rms of flite (the
# demo's) are not here.
FESTIVAL_VOICES = (
    FestivalVoice("ked_diphone", "en", "latin-1"),
    FestivalVoice("kal_diphone", "en", "latin-1"),
    FestivalVoice("cmu_us_slt_arctic_hts", "en", "latin-1"),
    FestivalVoice("lp_diphone", "it", "latin-1"),
    FestivalVoice("pc_diphone", "it", "latin-1"),
    FestivalVoice("suo_fi_lj_diphone", "fi", "latin-1"),
    FestivalVoice("hy_fi_mv_diphone", "fi", "latin-1"),
    FestivalVoice("upc_ca_ona_hts", "ca", "latin-1"),
    FestivalVoice("hindi_NSK_diphone", "hi", "utf-8"),
    FestivalVoice("marathi_NSK_diphone", "mr", "utf-8"),
    FestivalVoice("telugu_NSK_diphone", "te", "utf-8"),
    FestivalVoice("msu_ru_nsh_clunits", "ru", "utf-8"),
)
CZECH_VOICES = tuple(FestivalVoice(f"czech_{name}", "cs", "iso-8859-2") for name in ("dita", "krb", "machac", "ph"))


@cache
def festival_voices_installed() -> frozenset[str]:
    """Names of the festival voices on this machine; empty without festival."""
    root = Path("/usr/share/festival/voices")
    return frozenset(path.name for path in root.glob("*/*")) if shutil.which("festival") else frozenset()


def say_with_festival(voice: FestivalVoice, texts: list[str], stretch: float = 1.0) -> list[np.ndarray | None]:
    """Samples per text, as `Espeak.say` returns them; None for a text that the voice cannot say.

    stretch   length of the speech relative to the voice's own tempo
    """
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"(voice_{voice.name})", f"(Parameter.set 'Duration_Stretch {stretch})"]
        for i, text in enumerate(texts):
            quoted = text.replace("\\", "").replace('"', "")
            lines.append(
                f'(unwind-protect (utt.save.wave (utt.synth (Utterance Text "{quoted}"))'
                f' "{folder}/{i}.wav" \'riff) nil)'
            )
        script = Path(folder, "say.scm")
        script.write_bytes("\n".join(lines).encode(voice.encoding, errors="replace"))
        subprocess.run(["festival", "--batch", str(script)], capture_output=True, check=False, timeout=3600)
        return [_read(Path(folder, f"{i}.wav")) for i in range(len(texts))]


FLITE_VOICES = ("awb", "rms")  # slt and kal, which flite has too, are among festival's


def say_with_flite(voice: str, text: str, stretch: float = 1.0) -> np.ndarray | None:
    """Samples of an English text in a voice of FLITE_VOICES, as `Espeak.say` returns them; None where flite fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "said.wav")
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}", "-t", text, "-o", str(path)]
        subprocess.run(command, capture_output=True, check=False, timeout=60)
        return _read(path)


def _read(path: Path) -> np.ndarray | None:
    if not path.exists() or path.stat().st_size < 1000:
        return None
    samples, rate_hz = soundfile.read(path, dtype="float32")
    return soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
