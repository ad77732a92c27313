"""From files, texts and samples to the fixed-size arrays of `paired`. What was computed once is kept in a cache.

Features are small on purpose: the three research tasks train on two cores in minutes.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from edgealign.errors import InputUnreadable, InvalidInput, MissingExtra
from edgealign.text import normalize
from edgealign.train.front_end import FRONT_END, mel_filters
from edgealign.train.synthesis import SAMPLE_RATE_HZ, Espeak, Manner
from edgealign.words import log_mel
from edgealign.writing import replace_file

VERSION = 1  # of the computation below: part of the name of every cached file


@dataclass(frozen=True)
class FeatureConfig:
    n_tokens: int = 64
    n_buckets: int = 4096  # of the hash of a word or trigram; 0 is padding
    size_px: int = 32
    n_frames: int = 50
    frames_pooled: int = 10  # averaged into one: 50 x 10 frames of 10 ms are 5 s


@dataclass(frozen=True)
class Spoken:
    """A sound that a synthesizer makes."""

    text: str
    language: str  # of the espeak-ng voice
    manner: Manner


@dataclass(frozen=True)
class Samples:
    """A sound or picture that is in memory: float32 [n_samples] at 16 kHz, or uint8 [height, width, 3]."""

    values: np.ndarray


Item = str | Path | Spoken | Samples


def features(items: Sequence[Item], kind: str, config: FeatureConfig, cache: Path | None, name: str) -> np.ndarray:
    """The array of all items, as `paired` says; from `cache` where it was made before, and kept there."""
    if kind == "text":
        return np.array([tokens(item, config) for item in items], np.int32).reshape(-1, config.n_tokens)
    make: Callable[[], np.ndarray] = lambda: _compute(items, kind, config)  # noqa: E731
    if cache is None:
        return make()
    digest = hashlib.sha256(f"{VERSION} {kind} {astuple(config)} {FRONT_END}".encode())
    for item in items:
        digest.update(identity(item))
    path = cache / f"{name}-{kind}-{digest.hexdigest()[:16]}.npy"
    if path.exists():
        return np.load(path, allow_pickle=False)
    array = make()
    cache.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        np.save(file, array)
    return array


def identity(item: Item) -> bytes:
    """What tells an item from others, and a file from an earlier state of it: for names in a cache."""
    if isinstance(item, Path):
        try:
            stat = item.stat()
        except OSError as error:
            raise InputUnreadable(f"'{item}' cannot be read: {error.strerror}") from None
        return f"{item} {stat.st_size} {stat.st_mtime_ns}\n".encode()
    if isinstance(item, Samples):
        return hashlib.sha256(np.ascontiguousarray(item.values)).digest()
    return f"{item}\n".encode()


def _compute(items: Sequence[Item], kind: str, config: FeatureConfig) -> np.ndarray:
    if kind == "image":
        made = [pixels(item, config) for item in items]
        return np.array(made, np.uint8).reshape(-1, 3, config.size_px, config.size_px)
    voice = _Voice()
    made = [frames(voice.say(item) if isinstance(item, Spoken) else read_sound(item), config) for item in items]
    return np.array(made, np.float16).reshape(-1, FRONT_END.n_mels, config.n_frames)


class _Voice:
    """espeak-ng, started when something is to be said."""

    def __init__(self) -> None:
        self.espeak: Espeak | None = None

    def say(self, item: Spoken) -> np.ndarray:
        self.espeak = self.espeak or Espeak()
        if not self.espeak.set_voice(item.language, item.manner):
            raise InvalidInput(f"espeak-ng has no voice '{item.language}': choose a language that it speaks")
        return self.espeak.say(item.text)


def tokens(text: str, config: FeatureConfig) -> list[int]:
    """Buckets of the words of a text, then of their letter trigrams (Bojanowski et al. 2017), cut and zero-padded.

    A long text is its words alone: there is no room left for trigrams.
    """
    words = normalize(text, "grapheme").split(" ")
    pieces = list(words)
    for word in words:
        framed = f"<{word}>"
        pieces += [framed[i : i + 3] for i in range(len(framed) - 2)]
    buckets = [zlib.crc32(piece.encode()) % (config.n_buckets - 1) + 1 for piece in pieces[: config.n_tokens]]
    return buckets + [0] * (config.n_tokens - len(buckets))


def pixels(item: Path | Samples, config: FeatureConfig) -> np.ndarray:
    """The middle square of a picture on white, scaled: uint8 [3, size_px, size_px]."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtra("reading pictures needs pillow: pip install 'edgealign[image]'") from error
    try:
        picture = Image.fromarray(item.values) if isinstance(item, Samples) else Image.open(item)
        picture.load()
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise InputUnreadable(f"'{item}' cannot be read as a picture ({error}): convert it to PNG or JPEG") from None
    if picture.mode in ("RGBA", "LA", "P"):
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    picture = picture.convert("RGB")
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    size = (config.size_px, config.size_px)
    scaled = picture.resize(size, Image.Resampling.BOX, box=(left, top, left + side, top + side))
    return np.asarray(scaled, np.uint8).transpose(2, 0, 1)


def read_sound(item: Path | Samples) -> np.ndarray:
    """Mono samples at 16 kHz: float32 [n_samples]."""
    if isinstance(item, Samples):
        return item.values
    from edgealign.audio import AudioFile

    blocks = list(AudioFile(item).blocks(SAMPLE_RATE_HZ))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def frames(samples: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """Log-mels of the loudest stretch, `frames_pooled` frames averaged into one: float16 [n_mels, n_frames], mean 0.

    Nothing further than 14 nepers (61 dB) below the loudest counts. A shorter sound is surrounded by its quietest.
    """
    n = config.n_frames * config.frames_pooled
    shortest = np.zeros(FRONT_END.window_samples, np.float32)
    samples = samples if len(samples) >= len(shortest) else np.concatenate([samples, shortest])
    mel = log_mel(samples, FRONT_END, mel_filters())
    mel = np.maximum(mel, mel.max() - 14.0)
    if mel.shape[1] > n:
        energy = np.concatenate([[0.0], np.exp(mel).sum(axis=0).cumsum(dtype=np.float64)])
        first = int(np.argmax(energy[n:] - energy[:-n]))
        mel = mel[:, first : first + n]
    missing = n - mel.shape[1]
    mel = np.pad(mel, ((0, 0), (missing // 2, missing - missing // 2)), constant_values=float(mel.min()))
    pooled = mel.reshape(len(mel), config.n_frames, config.frames_pooled).mean(axis=2)
    return (pooled - pooled.mean()).astype(np.float16)
