"""Audio files and arrays -> mono blocks at the encoder's rate, in bounded memory.

libsndfile decodes (WAV with 8 to 32 bits, float and EXTENSIBLE, RF64, FLAC, OGG, MP3, AIFF and more), soxr resamples
with an anti-aliasing filter. Only one block is held at a time: a recording of hours needs no more memory than one of
seconds.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgealign import riff
from edgealign.errors import AudioUnreadable, InputUnreadable, InvalidInput

if TYPE_CHECKING:
    import soundfile

# What phones and bat recorders write and libsndfile cannot read, and what converts it: refused with a sentence instead
# of being passed over in silence.
CONVERTED_WITH = {
    ".m4a": "ffmpeg",
    ".aac": "ffmpeg",
    ".amr": "ffmpeg",
    ".wma": "ffmpeg",
    ".w4v": "Wildlife Acoustics' Kaleidoscope",
    ".wac": "Wildlife Acoustics' Kaleidoscope",
}
# What a folder is searched for; a file that is named is read whatever its name.
EXTENSIONS = frozenset((
    ".wav", ".wave", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf",
    *CONVERTED_WITH,
))  # fmt: skip
MIN_RATE_HZ = 4_000
MAX_RATE_HZ = 500_000
MIN_DURATION_S = 0.025  # one window of the front end
MAX_MAGNITUDE = 1e6  # floating-point files may hold any scale, but energies must stay finite in float32
BLOCK_VALUES = 2**17  # samples times channels that are decoded at once: 512 KiB
MIX = "mix"  # the mean of all channels, where a channel is named
LAST_SAMPLES = 1024  # that are decoded at once where a larger block has a fault in it
LENGTH_ERROR = 0.02  # of the length that formats other than WAV announce, which is an estimate


class AudioSource:
    """One clip or recording, decoded as it is read. Another kind of source is a subclass with `native_blocks`.

    name            as it appears in reports
    sample_rate_hz  of the source
    n_channels      of the source
    sha256          hex, over the rate and the mono samples before resampling; complete once all blocks are read
    duration_s      of what was read so far
    """

    def __init__(self, name: str, sample_rate_hz: float, n_channels: int, channel: int | None = None):
        if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
            raise AudioUnreadable(
                f"'{name}' has a sample rate of {sample_rate_hz:g} Hz: {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz are read"
            )
        if channel is not None and not 1 <= channel <= n_channels:
            raise AudioUnreadable(f"'{name}' has {n_channels} channel(s): channel {channel} was asked for")
        self.name = name
        self.sample_rate_hz = sample_rate_hz
        self.n_channels = n_channels
        self.n_samples = 0
        self._channel = channel
        self._digest = hashlib.sha256(f"{sample_rate_hz:g} Hz\n".encode())

    def native_blocks(self) -> Iterator[np.ndarray]:
        """float32 [n_samples, n_channels] at the source's own rate, as decoded. Can be read once."""
        raise NotImplementedError

    def missing_s(self) -> float:
        """How much of what was announced was not there, once all blocks are read."""
        return 0.0

    def cut_off(self) -> str | None:
        """What is to be said of sound that ends before its header says so, once all blocks are read."""
        missing_s = self.missing_s()
        if not missing_s:
            return None
        announced_s = self.duration_s + missing_s
        return f"'{self.name}' breaks off at {self.duration_s:.1f} s: its header announces {announced_s:.1f} s"

    @property
    def duration_s(self) -> float:
        return self.n_samples / self.sample_rate_hz

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def blocks(self, target_rate_hz: int, hashed: bool = True) -> Iterator[np.ndarray]:
        """float32 [n_samples] blocks at the target rate, mono: the mean of the channels, or the one that was chosen.

        hashed   False leaves sha256 out, which long recordings have no use for

        AudioUnreadable for NaN, infinity, values that are no sound, and less than 25 ms in all.
        """
        resampler = None
        if self.sample_rate_hz != target_rate_hz:
            import soxr

            resampler = soxr.ResampleStream(self.sample_rate_hz, target_rate_hz, 1, dtype="float32", quality="HQ")
        for block in self.native_blocks():
            mono = self._to_mono(block)
            if hashed:
                self._digest.update(mono.astype("<f4", copy=False).tobytes())
            self.n_samples += len(mono)
            yield mono if resampler is None else _within(resampler.resample_chunk(mono))
        if self.duration_s < MIN_DURATION_S:
            raise AudioUnreadable(
                f"'{self.name}' holds {self.n_samples} sample(s): at least {MIN_DURATION_S * 1e3:.0f} ms are needed"
            )
        if resampler is not None:
            yield _within(resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))

    def _to_mono(self, block: np.ndarray) -> np.ndarray:
        if self._channel is not None:
            block = block[:, self._channel - 1 : self._channel]
        magnitude = float(np.abs(block).max(initial=0))  # NaN where any sample is NaN
        if not magnitude <= MAX_MAGNITUDE:
            at = int(np.flatnonzero(~(np.abs(block) <= MAX_MAGNITUDE).all(axis=1))[0])
            raise AudioUnreadable(
                f"'{self.name}' holds NaN, infinity or a value beyond ±{MAX_MAGNITUDE:g} at "
                f"{(self.n_samples + at) / self.sample_rate_hz:.3f} s: samples between -1 and 1 are expected"
            )
        if block.shape[1] == 1:
            return np.ascontiguousarray(block[:, 0])
        return block.mean(axis=1, dtype=np.float64).astype(np.float32)


class AudioFile(AudioSource):
    """A file in any format that libsndfile reads. AudioUnreadable says why where it cannot.

    speed        how many times as fast it is heard: 0.1 brings a bat's calls into the band that ears have
    n_expected   samples per channel that can be read
    """

    def __init__(self, path: str | os.PathLike, channel: int | None = None, speed: float = 1.0):
        self.path = os.fspath(path)
        check_readable(self.path, AudioUnreadable)
        import soundfile

        self._decoding_errors = (soundfile.LibsndfileError, TypeError)  # TypeError: headerless .raw
        try:
            # As bytes: soundfile refuses names that are not UTF-8, which old memory cards hold.
            self._file = soundfile.SoundFile(self.path if os.name == "nt" else os.fsencode(self.path))
        except self._decoding_errors as error:
            program = CONVERTED_WITH.get(os.path.splitext(self.path)[1].lower())
            if program is not None:
                raise AudioUnreadable(
                    f"'{self.path}' is in a format that is not read: convert it to WAV or FLAC, for example with "
                    f"{program}"
                ) from None
            raise AudioUnreadable(
                f"'{self.path}' is not audio that can be read ({_cause(error)}): WAV, FLAC, OGG, MP3 or AIFF is "
                f"expected"
            ) from None
        self.n_expected = self._file.frames
        if not self.n_expected and (n_bytes := riff.unannounced_bytes(self.path)):
            raise AudioUnreadable(
                f"'{self.path}' was not closed by its recorder: its header announces no sound, and {n_bytes} bytes "
                f"follow it; wait for the recorder, or repair it, for example with ffmpeg -i OLD.wav NEW.wav"
            )
        self._first, self._n_wanted = 0, sys.maxsize
        super().__init__(self.path, self._file.samplerate * speed, self._file.channels, channel)

    def missing_s(self) -> float:
        """How much of what the header announces was not there, once all blocks are read: more than 0 in a cut file."""
        n_announced, slack_s = self.n_expected, MIN_DURATION_S
        stated = riff.data_bytes(self.path)
        if stated is not None:
            n_announced = self.n_expected * stated[0] // max(1, stated[1])
        elif self._file.format != "WAV":
            slack_s += LENGTH_ERROR * n_announced / self.sample_rate_hz
        seconds = (n_announced - self.n_samples) / self.sample_rate_hz
        return seconds if seconds > slack_s else 0.0

    def native_blocks(self) -> Iterator[np.ndarray]:
        block_samples = max(1, BLOCK_VALUES // self.n_channels)
        # The commonest form as it is: the same bits, and libsndfile takes ten times as long to convert it.
        dtype = "int16" if self._file.subtype == "PCM_16" else "float32"
        n_read = 0
        with self._file as file:
            while n_read < self._n_wanted:
                n_wanted = min(block_samples, self._n_wanted - n_read)
                try:
                    block = file.read(n_wanted, dtype=dtype, always_2d=True)
                except self._decoding_errors as error:
                    if block_samples > LAST_SAMPLES and self._can_read_on(file, n_read):
                        block_samples = LAST_SAMPLES  # what precedes the fault is read in small pieces
                        continue
                    raise AudioUnreadable(
                        f"'{self.path}' breaks off at {n_read / self.sample_rate_hz:.1f} s ({_cause(error)}): copy it "
                        f"again, or cut it there"
                    ) from None
                if not len(block):
                    return
                n_read += len(block)
                yield block if dtype == "float32" else block * np.float32(2**-15)

    def _can_read_on(self, file: soundfile.SoundFile, n_read: int) -> bool:
        try:
            file.seek(self._first + n_read)
        except self._decoding_errors:
            return False
        return True


class AudioExcerpt(AudioFile):
    """A stretch of a file, which is not decoded from its start on.

    start_s, end_s   in the file; AudioUnreadable where it ends before end_s
    pad_s            of what surrounds it is heard too, as far as the file goes
    """

    def __init__(
        self, path: str | os.PathLike, start_s: float, end_s: float, channel: int | None = None, pad_s: float = 0.0
    ):
        super().__init__(path, channel)
        rate_hz, lasts_s = self.sample_rate_hz, self.n_expected / self.sample_rate_hz
        if end_s > lasts_s + MIN_DURATION_S:
            raise AudioUnreadable(f"'{self.path}' lasts {lasts_s:.3f} s: {start_s:.3f} to {end_s:.3f} s are not in it")
        self._first = max(0, round((start_s - pad_s) * rate_hz))
        self._n_wanted = min(self.n_expected, round((end_s + pad_s) * rate_hz)) - self._first
        try:
            self._file.seek(self._first)
        except self._decoding_errors as error:
            raise AudioUnreadable(f"'{self.path}' cannot be read from {start_s:.3f} s on: {error}") from None
        self.name = f"{self.path} at {start_s:.3f}-{end_s:.3f} s"


class AudioArray(AudioSource):
    """Samples in memory: floating point in [-1, 1] or signed integers at full scale, [n] or [n, n_channels]."""

    def __init__(self, samples: np.ndarray, sample_rate_hz: float, channel: int | None = None, name: str = "samples"):
        samples = np.asarray(samples)
        if samples.ndim not in (1, 2):
            raise InvalidInput(f"samples have shape {list(samples.shape)}: expected [n] or [n, n_channels]")
        if samples.ndim == 2 and not 1 <= samples.shape[1] <= 1024:
            raise InvalidInput(f"samples have shape {list(samples.shape)}: 1 to 1024 channels belong in the last axis")
        if samples.dtype.kind == "i":
            samples = samples / np.float64(2 ** (8 * samples.dtype.itemsize - 1))
        elif samples.dtype.kind != "f":
            raise InvalidInput(f"samples are {samples.dtype}: expected floating point or signed integers")
        super().__init__(name, sample_rate_hz, 1 if samples.ndim == 1 else samples.shape[1], channel)
        self._samples = samples.reshape(len(samples), self.n_channels)

    def native_blocks(self) -> Iterator[np.ndarray]:
        block_samples = max(1, BLOCK_VALUES // self.n_channels)
        for start in range(0, len(self._samples), block_samples):
            yield self._samples[start : start + block_samples].astype(np.float32)


def _within(resampled: np.ndarray) -> np.ndarray:
    """The filter overshoots at edges, by a tenth or so: samples that were taken must not be refused for that."""
    return np.clip(resampled, -MAX_MAGNITUDE, MAX_MAGNITUDE, out=resampled)


def _cause(error: Exception) -> str:
    """What libsndfile says, as a part of a sentence."""
    return str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")


def parse_channel(text: str) -> int | None:
    """`mix` -> None, the mean of all channels; "1" -> 1, the first channel."""
    if text == MIX:
        return None
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise InvalidInput(f"channel is '{text}': expected mix, or a number from 1")


def check_readable(path: str, empty: type[InputUnreadable]) -> None:
    """One clear sentence for everything that can be wrong before decoding starts; `empty` for a file of 0 bytes."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise InputUnreadable(f"'{path}' does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise InputUnreadable(f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputUnreadable(f"'{path}' is a folder: a file is expected here")
    if not stat.S_ISREG(status.st_mode):
        raise InputUnreadable(f"'{path}' is not a regular file")
    if status.st_size == 0:
        raise empty(f"'{path}' is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise InputUnreadable(f"'{path}' cannot be read: permission denied")
