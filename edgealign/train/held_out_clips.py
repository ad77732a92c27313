"""Synthetic clips that training never hears: the demo's, and a test pack in a language that was left out.

    python -m edgealign.train.held_out_clips demo edgealign/demo_clips
    python -m edgealign.train.held_out_clips czech FOLDER

The demo speaks English with flite, whose voices were cut from recordings of people; the words are reserved (see
`words.RESERVED`) and no training voice is among flite's. The pack speaks Czech with four festival voices.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import butter, fftconvolve, sosfilt

from edgealign.errors import InvalidInput
from edgealign.train.synthesis import CZECH_VOICES, SAMPLE_RATE_HZ, say_with_festival, say_with_flite

DEMO_WORDS = ("water", "fire", "bird", "stone", "river")
DEMO_OTHER_WORDS = ("house", "salt", "tree", "milk", "moon")
DEMO_ENROLLED_VOICE, DEMO_ASKING_VOICE = "rms", "awb"

CZECH_WORDS = (
    "voda", "oheň", "strom", "kámen", "řeka", "dům", "sůl", "mléko", "měsíc", "slunce", "chléb", "ryba", "pták", "pes",
    "kočka", "ruka", "noha", "hlava", "oko", "ucho", "zima", "léto", "město", "cesta", "kniha", "okno", "dveře", "stůl",
    "židle", "hora",
)  # fmt: skip


def in_the_field(samples: np.ndarray, rng: np.random.Generator, snr_db: float) -> np.ndarray:
    """A clip as a recorder hears it: a small room, a microphone's band, noise, half a second of quiet around."""
    quiet = [np.zeros(int(rng.uniform(0.2, 0.5) * SAMPLE_RATE_HZ)) for _ in range(2)]
    clip = np.concatenate([quiet[0], samples, quiet[1]])
    tail = np.exp(-np.arange(0.25 * SAMPLE_RATE_HZ) / (rng.uniform(0.02, 0.06) * SAMPLE_RATE_HZ))
    room = 0.05 * tail * rng.standard_normal(len(tail))
    room[0] = 1
    clip = fftconvolve(clip, room)[: len(clip)]
    noise = np.cumsum(rng.standard_normal(len(clip))) * 0.02 + rng.standard_normal(len(clip))
    noise = sosfilt(butter(1, 80, "high", fs=SAMPLE_RATE_HZ, output="sos"), noise)
    noise *= np.sqrt(np.mean(samples**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    clip = sosfilt(
        butter(2, [rng.uniform(60, 200), rng.uniform(3600, 7500)], "band", fs=SAMPLE_RATE_HZ, output="sos"),
        clip + noise,
    )
    return (0.5 * clip / np.abs(clip).max()).astype(np.float32)


def demo(folder: Path) -> None:
    """Write the demo's clips and their manifest.json: rows of file, label (null = never enrolled), voice and role."""
    rng = np.random.default_rng(5)
    rows = []

    def write(name: str, samples: np.ndarray, label: str | None, voice: str, role: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, SAMPLE_RATE_HZ, format="OGG", subtype="VORBIS")
        rows.append({"file": name, "label": label, "voice": voice, "role": role})

    for word in DEMO_WORDS:
        for i, stretch in enumerate((0.9, 1.0, 1.1, 1.2, 1.35)):
            said = say_with_flite(DEMO_ENROLLED_VOICE, word, stretch)
            write(f"enroll/{word}/{i}.ogg", in_the_field(said, rng, 25), word, DEMO_ENROLLED_VOICE, "enroll")
    for word in DEMO_WORDS + DEMO_OTHER_WORDS:
        for voice, snr_db in ((DEMO_ENROLLED_VOICE, 15), (DEMO_ASKING_VOICE, 25), (DEMO_ASKING_VOICE, 12)):
            said = say_with_flite(voice, word, rng.uniform(0.9, 1.25))
            label = word if word in DEMO_WORDS else None
            write(f"ask/{word}_{voice}_{snr_db}dB.ogg", in_the_field(said, rng, snr_db), label, voice, "query")
    for i, noise in enumerate(_noises(rng)):
        write(f"ask/noise_{i}.ogg", noise, None, "noise", "query")
    (folder / "manifest.json").write_text(json.dumps(rows, indent=1) + "\n")


def _noises(rng: np.random.Generator) -> Iterator[np.ndarray]:
    seconds = np.arange(int(1.5 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    white = rng.standard_normal(len(seconds))
    yield (0.1 * white).astype(np.float32)
    brown = np.cumsum(white)
    yield (0.2 * (brown - brown.mean()) / np.abs(brown).max()).astype(np.float32)
    knocks = white * np.exp(-((seconds % 0.5) * 40))
    yield (0.4 * knocks / np.abs(knocks).max()).astype(np.float32)
    chirp = np.sin(2 * np.pi * (900 * seconds + 700 * seconds**2)) * (np.sin(2 * np.pi * 3 * seconds) > 0)
    yield (0.3 * chirp + 0.005 * white).astype(np.float32)


def czech(folder: Path) -> None:
    """Write the pack `czech_synthetic`: 30 words x 4 voices x 5 takes, and a manifest like those of recorded packs."""
    rng = np.random.default_rng(6)
    rows = ["file\tlabel\tspeaker\tfold\tsplit\tseconds\tsource\tlicence\tnote"]
    for voice in CZECH_VOICES:
        for take, stretch in enumerate((0.85, 0.95, 1.05, 1.15, 1.3)):
            for i, samples in enumerate(say_with_festival(voice, CZECH_WORDS, stretch)):
                if samples is None:
                    raise InvalidInput(f"festival could not say '{CZECH_WORDS[i]}' as {voice.name}: is it installed?")
                name = f"{i:02d}/{voice.name}_{take}.flac"
                path = folder / "czech_synthetic" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                clip = in_the_field(samples, rng, float(rng.uniform(10, 30)))
                soundfile.write(path, clip, SAMPLE_RATE_HZ)
                seconds = f"{len(clip) / SAMPLE_RATE_HZ:.3f}"
                rows.append(
                    "\t".join((name, CZECH_WORDS[i], voice.name, "", "dev", seconds, "festival", "synthetic", ""))
                )
    (folder / "czech_synthetic" / "manifest.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    {"demo": demo, "czech": czech}[sys.argv[1]](Path(sys.argv[2]))
