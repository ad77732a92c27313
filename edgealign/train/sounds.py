"""Sounds that the encoder of the bundle `audio` is trained on: which, under what license, as log-mels, and varied."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import Tensor
from torch.nn import functional as F

from edgealign import kernels
from edgealign.errors import InvalidInput
from edgealign.train import packs
from edgealign.train.features import read_sound
from edgealign.train.front_end import SOUND_FRONT_END, mel_filters
from edgealign.train.made_sounds import made_sound
from edgealign.writing import replace_file

VERSION = 1  # of the log-mels below: part of the name of the cached file
FREE = ("CC0", "CC-BY", "CC BY 4.0", "MIT", "BSD-3", "BSD-3 (repository)", "Apache-2.0")
SPEEDS = (1.0, 0.8, 0.89, 1.12, 1.25, 0.62, 1.6)  # pitch and tempo together
OTHER_PITCH = {0.62: 1, 1.6: 2}  # far enough to be another class: 1 and 2 are the kinds of them
N_RECIPES, N_TAKES = 240, 5
SPOKEN_LABELS, SPOKEN_CLIPS = 20, 8
FEWEST = 3  # clips that make a class of a pack beside esc50
LONGEST_FRAMES = 300
MIXED = 1.4  # nepers (6 dB) by which a sound of a mixture is louder than the other, at most
NO_LABEL = -100  # what torch's cross-entropy leaves out


@dataclass(frozen=True)
class Sound:
    """One clip. label: what it is; role: train, val or test; take: the recording it was cut from."""

    file: Path | tuple[int, int]  # a tuple is a recipe and a take of `made_sounds`
    label: str
    role: str
    take: str = ""


def listed(data: Path, fold: int | None) -> list[Sound]:
    """Sounds of the packs and made ones.

    fold   which third of ESC-50's classes is tested; a fourth of the others validates. None: all classes are for
           training, and nothing is left to measure on.

    Only clips whose own license is free have the role train: ESC-50 as a set is CC BY-NC.
    """
    found = []
    roles = None if fold is None else class_roles(data, fold)
    for row in packs.read_table(data / "esc50" / "manifest.tsv"):
        role = "train" if roles is None else roles[row["label"]]
        if role != "train" or row["licence"] in FREE:
            found.append(Sound(data / "esc50" / row["file"], row["label"], role, Path(row["file"]).stem.split("-")[1]))
    animals = [row for row in packs.read_table(data / "bioacoustics" / "manifest.tsv") if row["licence"] in FREE]
    groups = {"B32": "great tit", "SW83": "great tit"} | {f"jura_{part}": "forest" for part in DAY}
    labels = [groups.get(row["label"], row["label"]) for row in animals]
    many = {label for label, n in Counter(labels).items() if n >= FEWEST}
    for row, label in zip(animals, labels, strict=True):
        if label in many:
            found.append(Sound(data / "bioacoustics" / row["file"], f"bioacoustics {label}", "train"))
    words = packs.rows_of_label(data, "arabic_sc_train")
    rng = random.Random(packs.SEED)
    for label in rng.sample(sorted(words), min(SPOKEN_LABELS, len(words))):
        found += [
            Sound(file, "speech", "train") for file in rng.sample(words[label], min(SPOKEN_CLIPS, len(words[label])))
        ]
    found += [
        Sound((recipe, take), f"made {recipe}", "train") for recipe in range(N_RECIPES) for take in range(N_TAKES)
    ]
    return found


DAY = ("night", "day", "dawn", "dusk")


def class_roles(data: Path, fold: int) -> dict[str, str]:
    """A role for each ESC-50 class. Those with a concept have the thirds of the task image-to-audio; the others, in a
    seeded shuffle, are divided alike. A fourth of what is not tested validates."""
    if not 0 <= fold < 3:
        raise InvalidInput(f"there is no fold {fold}: expected 0, 1 or 2")
    by_fold = [packs.image_to_audio(data, i).roles for i in range(3)]
    concepts = sorted(label for label in by_fold[0] if len({roles[label] for roles in by_fold}) > 1)
    tested = {label for label in concepts if by_fold[fold][label] == "test"}
    others = sorted(by_fold[0].keys() - set(concepts))
    random.Random(packs.SEED).shuffle(others)
    tested |= set(others[fold::3])
    rest = sorted(by_fold[0].keys() - tested)
    random.Random(packs.SEED + 1).shuffle(rest)
    return dict.fromkeys(tested, "test") | {label: "val" if i % 4 == 0 else "train" for i, label in enumerate(rest)}


def log_mel(samples: np.ndarray) -> np.ndarray:
    """float32 [n_mels, n_frames] of mono samples at 16 kHz."""
    f = SOUND_FRONT_END
    return kernels.log_mel(samples, mel_filters(f=f), f.window_samples, f.hop_samples, f.energy_floor)


@dataclass(frozen=True)
class LogMels:
    """Log-mels of every sound at every speed it is kept at: row i, speed s are frames starts[i, s] : ends[i, s]."""

    frames: np.ndarray  # float16 [n, n_mels]
    starts: np.ndarray  # int64 [n_sounds, len(SPEEDS)]
    ends: np.ndarray

    @classmethod
    def of(cls, sounds: list[Sound], cache: Path, report: Callable[[str], None]) -> LogMels:
        """From `cache` where they were made before, and kept there."""
        digest = hashlib.sha256(f"{VERSION} {SOUND_FRONT_END} {SPEEDS}".encode())
        for sound in sounds:
            size = sound.file.stat().st_size if isinstance(sound.file, Path) else 0
            digest.update(f"{sound.file} {sound.role == 'train'} {size}\n".encode())
        path = cache / f"sounds-{digest.hexdigest()[:16]}.npz"
        if not path.exists():
            report(f"log-mels of {len(sounds)} sounds, once: {path}")
            made = cls._make(sounds, report)
            cache.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as file:
                np.savez(file, **vars(made))
            return made
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**arrays)

    @classmethod
    def _make(cls, sounds: list[Sound], report: Callable[[str], None]) -> LogMels:
        rate = SOUND_FRONT_END.sample_rate_hz
        frames, starts, ends, at = [], [], [], 0
        for i, sound in enumerate(sounds):
            samples = read_sound(sound.file) if isinstance(sound.file, Path) else made_sound(*sound.file)
            own_starts, own_ends = [], []
            for speed in SPEEDS:
                if speed == 1.0 or (sound.role == "train" and isinstance(sound.file, Path)):
                    faster = samples if speed == 1.0 else soxr.resample(samples, rate * speed, rate, "MQ")
                    mel = log_mel(np.ascontiguousarray(faster, np.float32)).T[:LONGEST_FRAMES].astype(np.float16)
                    frames.append(mel)
                    own_starts.append(at)
                    at += len(mel)
                    own_ends.append(at)
                else:  # not kept: as recorded
                    own_starts.append(own_starts[0])
                    own_ends.append(own_ends[0])
            starts.append(own_starts)
            ends.append(own_ends)
            if (i + 1) % 500 == 0:
                report(f"  {i + 1} of {len(sounds)}")
        return cls(np.concatenate(frames), np.array(starts), np.array(ends))

    def whole(self, row: int) -> np.ndarray:
        """float32 [n_mels, n_frames], as recorded."""
        return np.ascontiguousarray(self.frames[self.starts[row, 0] : self.ends[row, 0]].T, np.float32)


Layer = tuple[int, list[int], float]  # row, speeds to choose from, level in nepers of energy


class SoundBatches:
    """Two variations each of some sounds of some classes. Draws from the seed and the step alone.

    A sound that is played much faster or slower counts as one of another class, and two classes that are heard at once
    are one more, which has no label: it is told from the rest of its batch.
    """

    classes_per_batch, clips_per_class = 13, 3  # recorded
    made_per_batch, takes_per_recipe = 5, 2
    mixtures_per_batch, takes_per_mixture = 8, 2

    def __init__(self, sounds: list[Sound], mels: LogMels, seed: int) -> None:
        self.mels, self.seed = mels, seed
        names = sorted({sound.label for sound in sounds if sound.role == "train"})
        self.label_of = {name: i for i, name in enumerate(names)}
        recorded = [name for name in names if not name.startswith("made ")]
        self.n_labels = len(names) * 3
        self.rows = {name: [] for name in names}
        for row, sound in enumerate(sounds):
            if sound.role == "train":
                self.rows[sound.label].append(row)
        self.recorded, self.made = recorded, [name for name in names if name.startswith("made ")]
        # Speech and the packs beside ESC-50 are drawn half as often as its classes.
        self.share = np.array([0.5 if " " in name or name == "speech" else 1.0 for name in recorded])
        self.share /= self.share.sum()

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log_mel [n, n_mels, n_frames], labels (NO_LABEL: none), groups, instances, each [n]; row i + n/2 is another
        view of row i."""
        rng = np.random.default_rng([self.seed, step])
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        n_frames = 16 * int(rng.integers(6, 12))  # few lengths: convolutions are set up anew for each
        drawn, labels = [], []
        for name in self._some(self.recorded, self.classes_per_batch, rng, self.share):
            kind, speeds = _speeds(rng)
            drawn += [[(row, speeds, 0.0)] for row in self._rows(name, self.clips_per_class, rng)]
            labels += [self.label_of[name] + len(self.label_of) * kind] * self.clips_per_class
        for name in self._some(self.made, self.made_per_batch, rng):
            drawn += [[(row, [SPEEDS.index(1.0)], 0.0)] for row in self._rows(name, self.takes_per_recipe, rng)]
            labels += [self.label_of[name]] * self.takes_per_recipe
        groups = list(labels)
        for i in range(self.mixtures_per_batch):
            layers = []
            level = rng.uniform(-MIXED, MIXED)
            for layer, name in enumerate(self._some(self.recorded, 2, rng, self.share)):
                _, speeds = _speeds(rng)
                layers.append([
                    (row, speeds, layer * (level + rng.uniform(-MIXED, MIXED) / 3))
                    for row in self._rows(name, self.takes_per_mixture, rng)
                ])  # fmt: skip
            drawn += zip(*layers, strict=True)
            labels += [NO_LABEL] * self.takes_per_mixture
            groups += [self.n_labels + i] * self.takes_per_mixture
        views = [self._view(layers, n_frames, rng) for _ in range(2) for layers in drawn]
        x = vary(torch.from_numpy(np.stack(views)), torch_rng)
        return x, torch.tensor(labels).repeat(2), torch.tensor(groups).repeat(2), torch.arange(len(drawn)).repeat(2)

    def _some(self, names: list[str], n: int, rng: np.random.Generator, share: np.ndarray | None = None) -> list[str]:
        return list(rng.choice(names, min(n, len(names)), replace=False, p=share))

    def _rows(self, name: str, n: int, rng: np.random.Generator) -> list[int]:
        return rng.choice(self.rows[name], n, replace=len(self.rows[name]) < n).tolist()

    def _view(self, layers: Sequence[Layer], n_frames: int, rng: np.random.Generator) -> np.ndarray:
        """Sounds that are heard at once, float32 [n_mels, n_frames]."""
        cuts = [self._cut(row, int(rng.choice(speeds)), n_frames, rng) + level for row, speeds, level in layers]
        return np.logaddexp.reduce(cuts).astype(np.float32)

    def _cut(self, row: int, speed: int, n_frames: int, rng: np.random.Generator) -> np.ndarray:
        """A stretch with a loud moment in it, float32 [n_mels, n_frames], the loudest point 0; quiet where the clip
        ends."""
        frames = self.mels.frames[self.mels.starts[row, speed] : self.mels.ends[row, speed]].astype(np.float32)
        frames = frames - frames.max()
        level = np.exp(frames).mean(axis=1) ** 0.4
        moment = int(rng.choice(len(frames), p=level / level.sum()))
        first = moment - int(rng.integers(n_frames))
        if len(frames) >= n_frames:
            first = min(max(first, 0), len(frames) - n_frames)
        else:
            first = min(max(first, len(frames) - n_frames), 0)
        cut = np.full((n_frames, frames.shape[1]), -30.0, np.float32)
        begin, end = max(first, 0), min(first + n_frames, len(frames))
        cut[begin - first : end - first] = frames[begin:end]
        return cut.T


def _speeds(rng: np.random.Generator) -> tuple[int, list[int]]:
    """What kind of class a sound is played as, and the speeds of it: as recorded mostly, else of another pitch."""
    kind = int(rng.choice(3, p=[0.7, 0.15, 0.15]))
    return kind, [i for i, speed in enumerate(SPEEDS) if OTHER_PITCH.get(speed, 0) == kind]


def vary(log_mel: Tensor, rng: torch.Generator) -> Tensor:
    """The same sounds elsewhere, among others, through another microphone: [n, n_mels, n_frames] both."""
    n, n_mels, n_frames = log_mel.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=rng)

    energy = torch.exp(log_mel)
    # An echo: every frame rings on. The kernel is the impulse and an exponential tail.
    taps = torch.arange(1, 33)
    tail = 10 ** (-6 * 0.02 * taps / uniform(0.1, 1.0, 1)) * (uniform(0, 1, 1) < 0.3) * 10 ** uniform(-2, -0.3, 1)
    kernel = torch.cat([tail.flip(1), torch.ones(n, 1)], dim=1)
    rung = F.conv1d(F.pad(energy.transpose(0, 1), (32, 0)), kernel.unsqueeze(1), groups=n).transpose(0, 1)
    energy = rung * _equalizer(uniform(-1, 1, 7) * 8, n_mels)
    # Another sound of the batch, or noise, underneath.
    other = energy[torch.randperm(n, generator=rng)]
    other = torch.roll(other, int(torch.randint(n_frames, (), generator=rng)), dims=2)
    hiss = -torch.log(torch.rand(energy.shape, generator=rng).clamp(min=1e-6)) * _equalizer(uniform(-20, 20, 3), n_mels)
    under = torch.where(uniform(0, 1, 1, 1) < 0.5, other, hiss)
    snr_db = uniform(2, 35, 1, 1) + 40 * (uniform(0, 1, 1, 1) < 0.3)
    gain = energy.mean(dim=(1, 2), keepdim=True) / under.mean(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    energy = energy + under * gain * 10 ** (-snr_db / 10)
    energy = energy ** uniform(0.85, 1.15, 1, 1)
    x = torch.log(energy.clamp(min=1e-12))
    # A band and a stretch are missing.
    floor = x.amax(dim=(1, 2), keepdim=True) - 12
    band, frame = torch.arange(n_mels), torch.arange(n_frames)
    low, width = uniform(0, n_mels - 8, 1), uniform(0, 9, 1) * (uniform(0, 1, 1) < 0.5)
    hidden = ((band >= low) & (band < low + width))[:, :, None]
    start, length = uniform(0, n_frames * 0.8, 1), uniform(0, n_frames * 0.2, 1) * (uniform(0, 1, 1) < 0.5)
    hidden = hidden | ((frame >= start) & (frame < start + length))[:, None]
    return torch.where(hidden, floor, x)


def _equalizer(knots_db: Tensor, n_mels: int) -> Tensor:
    db = F.interpolate(knots_db.unsqueeze(1), n_mels, mode="linear", align_corners=True)
    return 10 ** (db.transpose(1, 2) / 10)
