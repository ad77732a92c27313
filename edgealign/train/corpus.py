"""Words and recordings, rendered once into a cache of power spectra that training reads from.

A cache folder holds

    manifest.json   what was rendered and the sha256 of everything below: a run that resumes elsewhere can tell
    labels.tsv      one row per label: text, language, ipa, source, role
    clips.npy       one row per clip: see CLIP
    spectra.u8      all frames one after the other: uint8 [n_frames_total, N_BINS], see `encode_power`
    noise.u8        recorded noises and room sounds in the same form

Shards are rendered by worker processes and joined at the end; a shard that is on disk is not rendered again. Until then
begun.json says what is being rendered: shards of two different lines never come together.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from edgealign import reference
from edgealign.errors import EdgealignError, InvalidInput
from edgealign.train import words as word_lists
from edgealign.train.front_end import FRONT_END, WINDOWS, mel_filters
from edgealign.train.synthesis import (
    ACCENTS,
    FESTIVAL_VOICES,
    Espeak,
    Manner,
    festival_voices_installed,
    say_with_festival,
)
from edgealign.train.words import Word
from edgealign.workers import results
from edgealign.writing import replace_file

N_BINS = FRONT_END.n_fft // 2 + 1
DB_LOWEST, DB_STEP = -100.0, 0.6

CLIP = np.dtype([
    ("offset", "i8"),  # of its first frame in spectra.u8
    ("n_frames", "i4"),
    ("first", "i4"),  # the word begins here, in frames of the clip, without padding
    ("end", "i4"),  # one past its last frame
    ("label", "i4"),  # row of labels.tsv
    ("speaker", "i4"),  # recordings with one number share a voice
])  # fmt: skip

# espeak-ng variants that only validation hears, and those that are effects rather than voices; `rob`, `Henrique` and
# `Annie` crash the library.
VALIDATION_VARIANTS = ("f4", "m7", "Andy", "linda", "klatt3", "antonio")
EFFECT_VARIANTS = ("Demonic", "Tweaky", "croak", "Storm", "UniRobot", "Mr serious", "Nguyen", "fast")
EFFECT_VARIANTS += ("rob", "Henrique", "Annie")

LONGEST_WORD_FRAMES = 180  # a recording labeled with one word whose sound is longer holds something else
SHORTEST_STRETCH_FRAMES = 40
STRETCHES = "stretches"  # source of the labels that are stretches of unknown words


class EvaluationPack(NamedTuple):
    """A recorded pack that accuracy is measured on, unless training heard all of it."""

    halves: tuple[str, ...]  # folders
    title: str
    license: str
    whole: str  # what training hears of it
    part: str  # the same where its test words and speakers are left out; empty where that is nothing

    def attribution(self, what: str) -> str:
        """The line of a bundle's manifest that says what was heard: `whole` or `part`."""
        return f"{self.title}: {what} ({self.license})"


EVALUATION_PACKS = {
    "arabic_sc": EvaluationPack(
        ("arabic_sc", "arabic_sc_train"), "Arabic Speech Commands", "CC BY 4.0, Ghandoura et al.",
        "26 of 30 words, all 18 speakers", "16 of 30 words, 12 of 18 speakers",
    ),
    "dspspeech20": EvaluationPack(
        ("dspspeech20", "dspspeech20_train"), "DSPSpeech-20", "MIT",
        "12 of 14 Mandarin and English words, all 21 speakers", "6 of 14 Mandarin and English words, 14 of 21 speakers",
    ),
    "fsdd": EvaluationPack(
        ("fsdd",), "Free Spoken Digit Dataset", "CC BY-SA 4.0, Zohar Jackson and contributors",
        "English digits, 4 speakers", "",
    ),
}  # fmt: skip

# Roles of their words and speakers. What a split does not list, words of one role by speakers of another, is CROSSED;
# training hears TESTED and CROSSED only of packs that it does not leave out.
SPLITS = Path(__file__).parents[2] / "benchmarks" / "splits"
TESTED, CROSSED = "test", "crossed"

RECORDED_PACKS = ("wakewords_en", "wakewords_community", "esc50")
RECORDED_PACKS += tuple(half for pack in EVALUATION_PACKS.values() for half in pack.halves)

FREE_NOISE_LICENSES = frozenset({"CC0", "CC-BY"})

WORDS_PER_SHARD = 2000  # what an interrupted rendering loses at most, per worker


@dataclass(frozen=True)
class CorpusConfig:
    seed: int = 0
    languages: tuple[str, ...] = ()  # espeak-ng voices; empty for all whose phonemes can be trusted
    words_per_language: int = 600
    # Longer lists, as multiples: languages that recordings are in, or that voices cut from people speak.
    longer_lists: tuple[tuple[str, int], ...] = (
        ("en", 16), ("cmn", 3), ("es", 3), ("it", 4), ("ca", 4), ("fi", 3), ("hi", 3), ("mr", 3), ("te", 3), ("ru", 3),
    )  # fmt: skip
    renders_per_word: int = 3
    festival_words_per_voice: int = 6000
    clipped_share: float = 0.06


@dataclass(frozen=True)
class Label:
    text: str  # empty where the spelling is unknown
    language: str
    ipa: str
    source: str  # synthetic, or the name of the pack
    role: str  # train, val, TESTED or CROSSED


def encode_power(power: np.ndarray) -> np.ndarray:
    """Power spectra as bytes: decibels above DB_LOWEST in steps of DB_STEP."""
    db = 10 * np.log10(np.maximum(power, 10 ** (DB_LOWEST / 10)))
    return np.clip(np.rint((db - DB_LOWEST) / DB_STEP), 0, 255).astype(np.uint8)


def power_spectrum(samples: np.ndarray) -> np.ndarray:
    """float32 [n_frames, N_BINS], framed as `edgealign.kernels.log_mel` does."""
    window, hop = FRONT_END.window_samples, FRONT_END.hop_samples
    if len(samples) < window:
        samples = np.pad(samples, (0, window - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
    spectrum = np.fft.rfft(frames * hann, FRONT_END.n_fft)
    return (spectrum.real**2 + spectrum.imag**2).astype(np.float32)


def build(folder: Path, config: CorpusConfig, data: Path | None, workers: int, report: Callable[[str], None]) -> None:
    """Render the corpus into `folder`, continuing where an earlier call stopped.

    data      folder of recorded packs (arabic_sc, wakewords_en, esc50, ...), or None for synthetic speech alone
    workers   processes; each has an espeak-ng of its own
    """
    if (folder / "manifest.json").exists():
        _refuse_other_words(folder, config, data)
        return
    if data is not None:
        _check_packs(data)
    shards = folder / "shards"
    try:
        shards.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"'{folder}' cannot hold a corpus ({error.strerror}): name another folder") from error
    asked = _asked(config, data)
    _refuse_other_options(folder, asked)
    words = _load_or_collect_words(folder, config, asked)
    tasks = [("espeak", i) for i in range(0, len(words), WORDS_PER_SHARD)]
    installed, spoken = festival_voices_installed(), {word.language for word in words}
    heard = [voice.name in installed and voice.language in spoken for voice in FESTIVAL_VOICES]
    tasks += [("festival", i) for i in np.flatnonzero(heard).tolist()]
    if data is not None:
        tasks += [("packs", 0), ("noise", 0)]
    tasks = [task for task in tasks if not (shards / f"{task[0]}-{task[1]:06d}.npz").exists()]
    started = time.monotonic()
    try:
        rendered = results(_render, tasks, workers, _start_worker, (folder, config, data))
        for done, name in enumerate(rendered, 1):
            left_s = (time.monotonic() - started) / done * (len(tasks) - done)
            report(f"rendered {name}: {done} of {len(tasks)} shards, about {left_s / 60:.1f} min left")
        _join(folder, asked, words)
    except OSError as error:
        if error.filename is not None:
            raise
        raise EdgealignError(
            f"'{folder}' cannot be written ({error.strerror}): the same line goes on where it stopped"
        ) from None


def _asked(config: CorpusConfig, data: Path | None) -> dict:
    """What is rendered, as the manifest and begun.json say it."""
    return json.loads(json.dumps({"config": asdict(config), "recordings": data is not None}))


def _refuse_other_options(folder: Path, asked: dict) -> None:
    """A corpus whose rendering was interrupted goes on with what it was begun with, or not at all."""
    if not (folder / "begun.json").exists():
        return
    begun = json.loads((folder / "begun.json").read_text())
    if begun != asked:
        was, now = ({**all_of["config"], "recordings": all_of["recordings"]} for all_of in (begun, asked))
        other = ", ".join(f"{name} = {was[name]}" for name in was if was[name] != now[name])
        raise InvalidInput(
            f"'{folder}' was begun with {other}, and something else is asked for: give the same options to go on, or "
            f"name another corpus folder"
        )


def _refuse_other_words(folder: Path, config: CorpusConfig, data: Path | None) -> None:
    """A rendered corpus keeps its words: an option that asks for others must not be passed over."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if data is not None and not manifest.get("recordings", True):
        raise InvalidInput(
            f"'{folder}' was rendered without recordings, and '{data}' holds some: name another corpus folder, or "
            f"leave out --data and $EDGEALIGN_DATA"
        )
    rendered = manifest["config"]
    for field, default in (("languages", ()), ("words_per_language", CorpusConfig.words_per_language)):
        wanted, there = getattr(config, field), rendered[field]
        there = tuple(there) if isinstance(there, list) else there
        if wanted not in (default, there):
            raise InvalidInput(
                f"'{folder}' was rendered with {field} = {there or 'all'}, and {wanted} is asked for: name another "
                f"corpus folder, or leave the option out"
            )


def _check_packs(data: Path) -> None:
    for pack in RECORDED_PACKS:
        if not (data / pack / "manifest.tsv").is_file():
            raise InvalidInput(
                f"'{data}' lacks {pack}/manifest.tsv: it must hold the packs {', '.join(RECORDED_PACKS)}; without "
                f"--data and $EDGEALIGN_DATA training uses synthetic speech alone"
            )


def _load_or_collect_words(folder: Path, config: CorpusConfig, asked: dict) -> list[Word]:
    path = folder / "words.tsv"
    if not path.exists():
        espeak = Espeak()
        unknown = [language for language in config.languages if not espeak.set_voice(language)]
        if unknown:
            raise InvalidInput(f"espeak-ng has no voice '{unknown[0]}': expected names such as sw, pt or cmn")
        languages = list(config.languages) or word_lists.usable_languages(espeak)
        longer = dict(config.longer_lists)
        words = [
            word
            for language in languages
            for word in word_lists.collect(
                espeak, language, config.words_per_language * longer.get(language, 1), config.seed
            )
        ]
        random.Random(config.seed).shuffle(words)
        if not words:
            raise InvalidInput(f"no word lists were found for {', '.join(languages)}: name languages that CLDR has")
        with replace_file(folder / "begun.json") as file:
            file.write(json.dumps(asked).encode())
        word_lists.write_words(path, words)
    return word_lists.read_words(path)


_worker: dict = {}


def _start_worker(folder: Path, config: CorpusConfig, data: Path | None) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    words = word_lists.read_words(folder / "words.tsv")
    _worker.update(folder=folder, config=config, data=data, words=words, espeak=Espeak(folder / "crashed"))


def _render(task: tuple[str, int]) -> str:
    kind, start = task
    render = {"espeak": _espeak_shard, "festival": _festival_shard, "packs": _pack_shard, "noise": _noise_shard}[kind]
    name = f"{kind}-{start:06d}"
    spectra, rows = [], []
    for samples, span, label, speaker in render(start):
        power = encode_power(power_spectrum(samples))
        first, end = span if span else (0, len(power))
        rows.append((len(power), first, min(end, len(power)), *label, speaker))
        spectra.append(power)
    path = _worker["folder"] / "shards" / f"{name}.npz"
    partial = path.with_suffix(".partial.npz")
    # A shard may be empty: festival cannot say every word.
    spectra = np.concatenate([np.zeros((0, N_BINS), np.uint8), *spectra])
    np.savez(partial, spectra=spectra, rows=np.array(rows, dtype=object).astype(str).reshape(-1, 6))
    os.replace(partial, path)
    return name


def _espeak_shard(start: int) -> Iterator[tuple]:
    config, espeak = _worker["config"], _worker["espeak"]
    voices = [v for v in espeak.variants() if v not in VALIDATION_VARIANTS + EFFECT_VARIANTS]
    for i, word in enumerate(_worker["words"][start : start + WORDS_PER_SHARD], start):
        validation = word_lists.is_validation(word.sound)
        rng = random.Random(f"{config.seed} {word.language} {word.text}")
        for _ in range(config.renders_per_word):
            variant = rng.choice(VALIDATION_VARIANTS if validation else voices)
            manner = Manner(variant, rng.randint(105, 230), rng.randint(10, 95), rng.randint(15, 95))
            clipping = rng.uniform(2, 8) if rng.random() < config.clipped_share else 1.0
            accent = rng.choice((word.language, *ACCENTS.get(word.language, ())))
            if not espeak.set_voice(accent, manner):
                continue
            samples = trimmed(espeak.say(word.text))
            if len(samples) >= 0.08 * FRONT_END.sample_rate_hz:
                loud = np.clip(samples * (0.5 * clipping / np.abs(samples).max()), -0.5, 0.5)
                yield loud, None, ("word", i), f"espeak {variant}"


def _festival_shard(index: int) -> Iterator[tuple]:
    voice, config = FESTIVAL_VOICES[index], _worker["config"]
    own = [
        (i, word) for i, word in enumerate(_worker["words"])
        if word.language == voice.language and not word_lists.is_validation(word.sound)
    ][: config.festival_words_per_voice]  # fmt: skip
    for part in range(3):
        chosen = own[part::3]
        said = say_with_festival(voice, [word.text for _, word in chosen], stretch=(0.85, 1.0, 1.25)[part])
        for (i, _), samples in zip(chosen, said, strict=True):
            samples = np.zeros(0, np.float32) if samples is None else trimmed(samples)
            if 0.1 < len(samples) / FRONT_END.sample_rate_hz < 3:
                yield samples * (0.5 / np.abs(samples).max()), None, ("word", i), f"festival {voice.name}"


# Recordings whose words are known to training by text too; a label that is not here has no spelling.
_SPELLED = {
    "wakewords_en": {name: (name, "en") for name in ("computer", "jarvis", "snowboy", "smart mirror")},
    "wakewords_community": {
        "athena/en": ("athena", "en"),
        "amelia/en": ("amelia", "en"),
        "heychatterbox/en-us": ("hey chatterbox", "en"),
    },
    "dspspeech20": {name: (name, "en" if name.isascii() else "cmn") for name in
                    ("数字", "语音", "语言", "中国", "总工", "北京", "上海", "商行", "复旦",
                     "Speech", "Speaker", "Process", "Print", "Close")},
    "fsdd": {str(digit): (name, "en") for digit, name in enumerate(word_lists.DIGITS)},
}  # fmt: skip


def _pack_shard(_start: int) -> Iterator[tuple]:
    data = _worker["data"]
    for pack in ("wakewords_en", "wakewords_community"):
        for row in _rows(data / pack / "manifest.tsv"):
            if row["label"] in _SPELLED[pack]:
                yield from _recording(data / pack / row["file"], (pack, row["label"], "train"), f"{pack} {row['file']}")
            elif row["label"].startswith("not-wake-words"):
                yield from _stretches(data / pack / row["file"], row["file"])
    for pack, about in EVALUATION_PACKS.items():
        split = list(_rows(SPLITS / f"{pack}.tsv"))
        role_of = {(row["pack"], row["file"]): row["role"] for row in split}
        validated = {row["label"] for row in split if row["role"] == "val"}
        for half in about.halves:
            for row in _rows(data / half / "manifest.tsv"):
                role = role_of.get((half, row["file"]), CROSSED)
                if role != CROSSED or row["label"] not in validated:
                    label = (pack, row["label"], role)
                    yield from _recording(data / half / row["file"], label, f"{pack} {row['speaker']}")


def _stretches(path: Path, name: str) -> Iterator[tuple]:
    """Speech between pauses whose words are not known, each stretch a label of its own that windows are cut from."""
    samples = _samples(path)
    for i, (first, end, _) in enumerate(_sound_spans(samples)):
        if end - first >= SHORTEST_STRETCH_FRAMES:
            yield samples, (int(first), int(end)), ("pack", f"{STRETCHES}|{name} {i}|train"), f"{STRETCHES} {name}"


def _sound_spans(samples: np.ndarray) -> np.ndarray:
    """Where there is sound, as `edgealign.kernels.sound_spans` finds it, unpadded."""
    f, w = FRONT_END, WINDOWS
    log_mels = reference.log_mel(samples, mel_filters(), f.window_samples, f.hop_samples, f.energy_floor)
    return reference.sound_spans(
        log_mels,
        w.floor_quantile,
        w.above_floor_db,
        w.below_peak_db,
        w.merge_frames,
        w.min_span_frames,
        0,
        w.max_frames,
    )


def _recording(path: Path, label: tuple[str, str, str], speaker: str) -> Iterator[tuple]:
    """The clearest word of a clip, found as on the device but unpadded; nothing where it is longer than a word."""
    samples = _samples(path)
    spans = _sound_spans(samples)
    if len(spans):
        first, end, _ = spans[np.argmax(spans[:, 2])]
        if end - first < LONGEST_WORD_FRAMES:
            yield samples, (int(first), int(end)), ("pack", "|".join(label)), speaker


def _samples(path: Path) -> np.ndarray:
    samples, rate_hz = soundfile.read(path, dtype="float32")
    if rate_hz != FRONT_END.sample_rate_hz or samples.ndim != 1:
        raise InvalidInput(
            f"'{path}' has {rate_hz} Hz and {samples.ndim} dimensions: recorded packs are mono at "
            f"{FRONT_END.sample_rate_hz} Hz, convert it first"
        )
    return samples


def _noise_shard(_start: int) -> Iterator[tuple]:
    data = _worker["data"]
    for row in _rows(data / "esc50" / "manifest.tsv"):
        if row["licence"] in FREE_NOISE_LICENSES:
            samples = _samples(data / "esc50" / row["file"])
            if np.abs(samples).max() > 1e-3:
                yield samples / np.abs(samples).max() * 0.5, None, ("noise", row["label"]), row["file"]


def _rows(path: Path) -> Iterable[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Without the digital silence that synthesizers put around a word."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max(initial=0))
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


def _join(folder: Path, asked: dict, words: list[Word]) -> None:
    """Put the shards into one file of spectra, in the order of their names, and write the manifest last."""
    labels: list[Label] = []
    label_of: dict[tuple[str, str], int] = {}
    speakers: dict[str, int] = {}
    espeak = Espeak()
    clips, offset = [], 0
    with (folder / "spectra.u8").open("wb") as spectra_file, (folder / "noise.u8").open("wb") as noise_file:
        for path in sorted((folder / "shards").glob("*-??????.npz")):
            with np.load(path) as shard:
                spectra, rows = shard["spectra"], shard["rows"]
            if path.name.startswith("noise"):
                noise_file.write(spectra.tobytes())
                continue
            spectra_file.write(spectra.tobytes())
            for n_frames, first, end, kind, key, speaker in rows:
                label = _label(kind, key, words, espeak)
                # Synthetic words that sound alike are one label: spelling cannot be heard.
                identity = ("sound", word_lists.sound_of(label.ipa)) if kind == "word" else (kind, key)
                if identity not in label_of:
                    label_of[identity] = len(labels)
                    labels.append(label)
                voice = speakers.setdefault(str(speaker), len(speakers))
                clips.append((offset, int(n_frames), int(first), int(end), label_of[identity], voice))
                offset += int(n_frames)
    np.save(folder / "clips.npy", np.array(clips, dtype=CLIP))
    with (folder / "labels.tsv").open("w", encoding="utf-8") as file:
        for label in labels:
            file.write("\t".join(asdict(label).values()) + "\n")
    manifest = {
        **asked,
        "n_clips": len(clips), "n_labels": len(labels), "n_frames": offset,
        "sha256": {n: _sha256(folder / n) for n in ("labels.tsv", "clips.npy", "spectra.u8", "noise.u8", "words.tsv")},
    }  # fmt: skip
    with replace_file(folder / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=1).encode())
    for path in (folder / "begun.json", *(folder / "shards").glob("*.npz")):
        path.unlink(missing_ok=True)


def _label(kind: str, key: str, words: list[Word], espeak: Espeak) -> Label:
    if kind == "word":
        word = words[int(key)]
        role = "val" if word_lists.is_validation(word.sound) else "train"
        return Label(word.text, word.language, word.ipa, "synthetic", role)
    pack, name, role = key.split("|")
    text, language = _SPELLED.get(pack, {}).get(name, ("", ""))
    if text:
        espeak.set_voice(language)
    return Label(text, language, espeak.phonemes(text) if text else "", f"{pack}:{name}", role)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Corpus:
    """A rendered corpus, memory-mapped.

    labels   list of Label
    clips    structured array of CLIP
    spectra  uint8 [n_frames, N_BINS]
    noise    uint8 [n_frames, N_BINS], maybe empty
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text())
        except OSError as error:
            raise InvalidInput(
                f"'{folder}' is not a rendered corpus (no manifest.json): name the folder that was --corpus of "
                f"`edgealign train`"
            ) from error
        lines = (folder / "labels.tsv").read_text(encoding="utf-8").splitlines()
        self.labels = [Label(*line.split("\t")) for line in lines]
        self.clips = np.load(folder / "clips.npy")
        self.spectra = np.memmap(folder / "spectra.u8", np.uint8, "r").reshape(-1, N_BINS)
        has_noise = (folder / "noise.u8").stat().st_size > 0
        noise = np.memmap(folder / "noise.u8", np.uint8, "r") if has_noise else np.zeros(0, np.uint8)
        self.noise = noise.reshape(-1, N_BINS)
        order = np.argsort(self.clips["label"], kind="stable")
        bounds = np.searchsorted(self.clips["label"][order], np.arange(len(self.labels) + 1))
        self.clips_of = [order[bounds[i] : bounds[i + 1]] for i in range(len(self.labels))]

    @property
    def sha256(self) -> str:
        """Fingerprint of the rendered files."""
        return hashlib.sha256(json.dumps(self.manifest["sha256"], sort_keys=True).encode()).hexdigest()

    @property
    def made_of(self) -> dict:
        """How it was rendered: the fields of CorpusConfig but the seed, and `recordings`, whether packs were read."""
        config = {name: value for name, value in self.manifest["config"].items() if name != "seed"}
        return {**config, "recordings": self.manifest.get("recordings", True)}

    def select(self, role: str, synthetic: bool) -> list[int]:
        """Label rows of one role, from synthesizers or from people."""
        return [
            i for i, label in enumerate(self.labels)
            if label.role == role and (label.source == "synthetic") == synthetic and len(self.clips_of[i])
        ]  # fmt: skip
