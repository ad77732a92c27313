"""What an encoder takes and how a sample becomes that: the `input` of a bundle. docs/formats.md specifies it.

log_mel    log-mel energies of sound      the word in a clip, or windows over all of it
waveform   samples of sound               the word in a clip, or windows over all of it
image      RGB pixels                     the whole picture, cropped or stretched to the encoder's size
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgealign.strict_json import expect, read_section

MAX_SIDE_PX = 2048
MAX_WINDOW_S = 60.0
FITS = ("cover", "stretch")
RESAMPLING = ("bicubic", "bilinear")


@dataclass(frozen=True)
class FrontEnd:
    """How sound becomes log-mel energies; the arguments of `kernels.log_mel` beside the filters."""

    version: int
    sample_rate_hz: int
    window_samples: int
    hop_samples: int
    n_fft: int
    n_mels: int
    low_hz: float
    high_hz: float
    energy_floor: float

    def check(self) -> None:
        expect(self.version == 1, f"front end version {self.version}: this edgealign knows 1")
        expect(8_000 <= self.sample_rate_hz <= 48_000, f"sample_rate_hz {self.sample_rate_hz} is not in 8000-48000")
        expect(self.n_fft in (64, 128, 256, 512, 1024, 2048, 4096), f"n_fft {self.n_fft} is not a power of two")
        expect(1 <= self.hop_samples <= self.window_samples <= self.n_fft, "hop ≤ window ≤ n_fft does not hold")
        expect(1 <= self.n_mels <= 512, f"n_mels {self.n_mels} is not in 1-512")
        expect(0 < self.energy_floor < 1, f"energy_floor {self.energy_floor} is not in (0, 1)")

    @property
    def filters_shape(self) -> tuple[int, int]:
        return self.n_mels, self.n_fft // 2 + 1

    def seconds(self, frames: float) -> float:
        return frames * self.hop_samples / self.sample_rate_hz


@dataclass(frozen=True)
class Windows:
    """How the word is found in a clip; the arguments of `kernels.sound_spans`, and what the encoder needs at least."""

    version: int
    min_frames: int
    floor_quantile: float
    above_floor_db: float
    below_peak_db: float
    merge_frames: int
    min_span_frames: int
    pad_frames: int
    max_frames: int

    def check(self) -> None:
        expect(self.version == 1, f"window policy version {self.version}: this edgealign knows 1")
        expect(0 <= self.floor_quantile <= 1, f"floor_quantile {self.floor_quantile} is not in [0, 1]")
        expect(1 <= self.min_frames <= self.max_frames <= 100_000, "1 ≤ min_frames ≤ max_frames does not hold")
        expect(self.above_floor_db >= 0 and self.below_peak_db > 0, "a level of the window policy is negative")
        frames = (self.merge_frames, self.min_span_frames, self.pad_frames)
        expect(all(0 <= n <= 100_000 for n in frames), "a frame count of the window policy is negative or huge")


@dataclass(frozen=True)
class ClipWindows:
    """All of a clip, in windows of window_s every hop_s; its embedding is the mean of theirs, scaled to unit length.

    min_s   the least that the encoder takes; window_s where it takes one length only
    """

    version: int
    window_s: float
    hop_s: float
    min_s: float

    def check(self) -> None:
        expect(self.version == 2, f"window policy version {self.version}: this edgealign knows 1 and 2")
        expect(0 < self.window_s <= MAX_WINDOW_S, f"window_s {self.window_s} is not in (0, {MAX_WINDOW_S:g}]")
        expect(0.01 <= self.hop_s <= self.window_s, f"hop_s {self.hop_s} is not in [0.01, window_s]")
        expect(0.01 <= self.min_s <= self.window_s, f"min_s {self.min_s} is not in [0.01, window_s]")

    def in_samples(self, sample_rate_hz: int) -> tuple[int, int, int]:
        """window, hop and least length; halves are rounded up."""
        window, hop, least = (math.floor(s * sample_rate_hz + 0.5) for s in (self.window_s, self.hop_s, self.min_s))
        return window, hop, least

    def cut(self, blocks: Iterator[np.ndarray], sample_rate_hz: int) -> Iterator[np.ndarray]:
        """The windows of a clip, float32 [n_samples] each: all of window_s, or one of a shorter clip.

        Windows begin every hop_s while they fit. Where half a hop or more is left behind the last one, one more ends
        with the clip. A clip shorter than window_s is one window, with zeros behind it up to min_s.
        """
        window, hop, least = self.in_samples(sample_rate_hz)
        held = np.zeros(0, np.float32)
        last: np.ndarray | None = None
        for block in blocks:
            held = np.concatenate([held, block])
            while len(held) >= window:
                last, held = held[:window], held[hop:]
                yield last
        if last is None:
            yield np.concatenate([held, np.zeros(max(0, least - len(held)), np.float32)])
        elif 2 * (len(held) - (window - hop)) >= hop:
            yield np.concatenate([last[:hop], held])[-window:]


@dataclass(frozen=True)
class LogMelInput:
    """`log_mel` float32 [batch, n_mels, n_frames]"""

    tensor: ClassVar[str] = "log_mel"
    kind: ClassVar[str] = "log_mel"
    modalities: ClassVar[tuple[str, ...]] = ("speech", "audio")
    front_end: FrontEnd
    windows: Windows | ClipWindows

    @property
    def sample_rate_hz(self) -> int:
        return self.front_end.sample_rate_hz


@dataclass(frozen=True)
class WaveformInput:
    """`waveform` float32 [batch, n_samples], mono, in [-1, 1]

    front_end   by which the word is found; None where windows cover the clip
    """

    tensor: ClassVar[str] = "waveform"
    kind: ClassVar[str] = "waveform"
    modalities: ClassVar[tuple[str, ...]] = ("speech", "audio")
    sample_rate_hz: int
    windows: Windows | ClipWindows
    front_end: FrontEnd | None


@dataclass(frozen=True)
class ImageInput:
    """`image` float32 [batch, 3, height_px, width_px], RGB in [0, 1]

    fit       cover: scaled until it covers the size, its middle is used; stretch: scaled in each direction
    resample  bicubic or bilinear, with antialiasing
    """

    tensor: ClassVar[str] = "image"
    kind: ClassVar[str] = "image"
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    height_px: int
    width_px: int
    fit: str
    resample: str = "bicubic"

    def check(self) -> None:
        for side in (self.height_px, self.width_px):
            expect(1 <= side <= MAX_SIDE_PX, f"a picture of {side} px is not in 1-{MAX_SIDE_PX}")
        expect(self.fit in FITS, f"fit is {self.fit!r}: this edgealign knows {' and '.join(FITS)}")
        expect(self.resample in RESAMPLING, f"resample is {self.resample!r}: expected {' or '.join(RESAMPLING)}")


@dataclass(frozen=True)
class TextInput:
    """`tokens` int64 [batch, n_tokens]: words alone, by the tokenizer of the bundle's text source"""

    tensor: ClassVar[str] = "tokens"
    kind: ClassVar[str] = "text"
    modalities: ClassVar[tuple[str, ...]] = ("text",)


SoundInput = LogMelInput | WaveformInput
Input = SoundInput | ImageInput | TextInput


def read_input(section: Any, name: str = "input") -> Input:
    """The input that a section of a manifest describes; BundleUnreadable where it describes none.

    name   of the section, for messages; empty where its parts lie at the top of the manifest
    """
    expect(isinstance(section, dict), f"'{name}' of the manifest is not an object")
    kind = section.get("kind")
    rest = {key: value for key, value in section.items() if key != "kind"}
    if kind == "image":
        image = read_section(ImageInput, rest, name)
        image.check()
        return image
    if kind == "text":
        _expect_keys(rest, name, set())
        return TextInput()
    expect(
        kind in ("log_mel", "waveform"), f"'{name}.kind' of the manifest is {kind!r}: this edgealign does not know it"
    )
    windows = _read_windows(rest.get("windows"), f"{name}.windows".lstrip("."))
    if kind == "log_mel":
        _expect_keys(rest, name, {"front_end", "windows"})
        return LogMelInput(_read_front_end(rest["front_end"], f"{name}.front_end".lstrip(".")), windows)
    finds_words = isinstance(windows, Windows)
    _expect_keys(rest, name, {"sample_rate_hz", "windows"} | ({"front_end"} if finds_words else set()))
    rate_hz = rest["sample_rate_hz"]
    fits = type(rate_hz) is int and 4_000 <= rate_hz <= 500_000
    expect(fits, f"'{name}.sample_rate_hz' of the manifest is {rate_hz!r}: expected 4000 to 500000")
    front_end = _read_front_end(rest["front_end"], f"{name}.front_end".lstrip(".")) if finds_words else None
    same = front_end is None or front_end.sample_rate_hz == rate_hz
    expect(same, f"'{name}' of the manifest has two sample rates")
    return WaveformInput(rate_hz, windows, front_end)


def _read_front_end(section: Any, name: str) -> FrontEnd:
    front_end = read_section(FrontEnd, section, name)
    front_end.check()
    return front_end


def _read_windows(section: Any, name: str) -> Windows | ClipWindows:
    covers = isinstance(section, dict) and section.get("version") == 2
    windows = read_section(ClipWindows if covers else Windows, section, name)
    windows.check()
    return windows


def _expect_keys(section: dict, name: str, expected: set[str]) -> None:
    found = set(section)
    expect(found == expected, f"'{name}' of the manifest has the keys {sorted(found)}: expected {sorted(expected)}")
