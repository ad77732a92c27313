"""Names words in sound without an end: a microphone, a pipe, a file.

The rule, which the core's ea_stream computes too. Every 5 frames (50 ms) the sounds in the last 2 max_frames
frames (6 s with the shipped bundle) are looked for as in a clip, by `kernels.sound_spans`; what ended more than 50
frames ago is not looked at (what becomes audible later, when something loud leaves the window, is no news).

- Once merge_frames, at most 20 (0.2 s), have passed since the last frame of a sound that was on, it is answered if
  its label is known.
- What is not known may be the first part of a word with a pause in it. It is put off until merge_frames (0.3 s)
  have passed, after which nothing can be joined to it, and answered as unknown then, or with what was joined. The very
  frame is awaited, not the next multiple of 5: there is nothing more to learn from it.
- A sound that was answered and goes on is not answered again; the rest of it is, from where the answer ended, if it
  is long enough to be a sound and its label is known: another word that came soon.

So a word is answered once, about 0.25 s after it ended, and an unknown sound 0.1 s later. What this gives up: a word
with a pause of 0.2 to 0.3 s, whose first part sounds like another known word, is taken for that one.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from edgealign.audio import AudioFile, AudioSource
from edgealign.errors import AudioUnreadable, InputUnreadable, InvalidInput, MissingExtra
from edgealign.inputs import LogMelInput, Windows
from edgealign.samples import log_mel
from edgealign.words import Word, at_least, sound_spans

if TYPE_CHECKING:
    from edgealign.recognizer import Answer, Recognizer

STEP_FRAMES = 5
LATEST_FRAMES = 50
LONGEST_WAIT_FRAMES = 20
BLOCK_S = 0.01  # what is read of a microphone or a pipe at once
CLIP_MARGIN_S = 0.25
SAMPLE_FORMATS = {"s16": "<i2", "f32": "<f4"}
FORMATS_IN_WAV = {(1, 16): "s16", (3, 32): "f32"}  # by format tag and bits
RIFF_BYTES, EXTENSIBLE_BYTES, EXTENSIBLE = 12, 40, 0xFFFE
ENDLESS_BYTES = 0x7FFF0000  # of samples, or more, as recorders write into a pipe: arecord, sox, ffmpeg
MOST_BEFORE_SAMPLES = 2**16  # bytes of a WAV in a pipe, where nothing can be passed over unheard
NOT_PCM = {  # how such files begin
    b"fLaC": "FLAC", b"OggS": "OGG", b"ID3": "MP3", b"FORM": "AIFF", b"caff": "CAF", b"RIFF": "RIFF", b"RF64": "RIFF",
}  # fmt: skip


@dataclass(frozen=True)
class Heard:
    """One sound that ended.

    answer    what it was taken for, with its place in the stream
    heard_s   how much of the stream had been read when it was answered
    samples   float32 [n] at the encoder's rate: the sound and 0.25 s around it, as far as heard
    """

    answer: Answer
    heard_s: float
    samples: np.ndarray


def listen(recognizer: Recognizer, source: AudioSource, *, debounce_s: float = 0.0, top_k: int = 5) -> Iterator[Heard]:
    """The words of a source, each soon after it ended.

    source       a Microphone, RawPcm or PacedFile; any AudioSource
    debounce_s   seconds after the end of an answer in which its label is not answered again
    raises       AudioUnreadable where the source breaks off; what was answered before stands
    """
    if not 0 <= debounce_s < np.inf:
        raise InvalidInput(f"debounce_s is {debounce_s:g}: at least 0 is expected")
    if not isinstance(recognizer.bundle.input, LogMelInput) or not isinstance(recognizer.bundle.input.windows, Windows):
        raise InvalidInput(
            f"the bundle '{recognizer.bundle.name}' cannot be listened with: that needs one that finds words by their "
            f"log-mel energies; scan recordings instead"
        )
    recognizer.store  # noqa: B018  says what is missing before the microphone is opened
    last_label, last_end_s = None, 0.0
    for answer, samples in _answers(recognizer, source, top_k):
        again = answer.label is not None and answer.label == last_label and answer.start_s - last_end_s < debounce_s
        last_label, last_end_s = answer.label, answer.end_s
        if not again:
            yield Heard(answer, source.duration_s, samples)


def _answers(recognizer: Recognizer, source: AudioSource, top_k: int) -> Iterator[tuple[Answer, np.ndarray]]:
    """Each sound that ended: what it was taken for, and its samples."""
    bundle = recognizer.bundle
    front_end, windows = bundle.front_end, bundle.windows
    hop = front_end.hop_samples
    context_frames = -(-2 * windows.max_frames // STEP_FRAMES) * STEP_FRAMES
    # Counted from the padded end of a sound.
    wait_frames = max(1, min(windows.merge_frames, LONGEST_WAIT_FRAMES) - windows.pad_frames)
    hold_frames = max(1, windows.merge_frames - windows.pad_frames)
    rest_frames = wait_frames + windows.min_span_frames + windows.pad_frames
    kept_samples = context_frames * hop + front_end.window_samples
    log_mels = np.empty((front_end.n_mels, 0), np.float32)
    # In frames of the stream: all of it, the last sound that was answered, the end of the last that was put off, and
    # when nothing can be joined to that any more.
    total_frames = answered_until = answered_middle = put_off_until = due = 0
    pending = recent = np.empty(0, np.float32)  # samples that are no frames yet; the latest that are

    def advance(n_samples: int) -> None:
        nonlocal log_mels, pending, recent, total_frames
        new = log_mel(bundle, pending[:n_samples])
        n_new = new.shape[1]
        log_mels = np.concatenate([log_mels[:, max(0, log_mels.shape[1] + n_new - context_frames) :], new], axis=1)
        recent = np.concatenate([recent, pending[: n_new * hop]])[-kept_samples:]
        pending = pending[n_new * hop :]
        total_frames += n_new

    def samples_to_next_look() -> int:
        to_step = STEP_FRAMES - total_frames % STEP_FRAMES
        to_due = due - total_frames
        return front_end.window_samples + ((to_due if 0 < to_due < to_step else to_step) - 1) * hop

    def hear(at_end: bool) -> Iterator[tuple[Answer, np.ndarray]]:
        nonlocal answered_until, answered_middle, put_off_until, due
        context_start = total_frames - log_mels.shape[1]
        for span_first, span_end, clearness in sound_spans(log_mels, windows).tolist():
            first, end = context_start + int(span_first), context_start + int(span_end)
            age = total_frames - end
            if (age < wait_frames and not at_end) or age > LATEST_FRAMES:
                continue
            # What was answered, and goes on; else a sound that begins where that one ended at the earliest.
            rest = answered_until > 0 and first <= answered_middle
            if end < answered_until + rest_frames if rest else first + end <= 2 * answered_until:
                continue
            first = answered_until if rest else first
            only_if_known = rest or (age < hold_frames and not at_end)
            if only_if_known and end == put_off_until:
                continue
            frames = at_least(
                log_mels, first - context_start, end - context_start, windows.min_frames, front_end.energy_floor
            )
            start_s, end_s = front_end.seconds(first), front_end.seconds(end)
            answer = recognizer.name_word(source.name, Word(frames, start_s, end_s, clearness, 1), top_k)
            if only_if_known and answer.label is None:
                put_off_until = end
                due = due if rest else end + hold_frames
                continue
            answered_until, answered_middle = end, (first + end) // 2
            yield answer, cut(start_s, end_s)

    def cut(start_s: float, end_s: float) -> np.ndarray:
        heard = np.concatenate([recent, pending])
        offset = total_frames * hop - len(recent)
        first, end = ((t * front_end.sample_rate_hz - offset) for t in (start_s - CLIP_MARGIN_S, end_s + CLIP_MARGIN_S))
        return heard[max(0, int(first)) : max(0, int(end))].copy()

    for block in source.blocks(front_end.sample_rate_hz):
        pending = np.concatenate([pending, block])
        while len(pending) >= (n_samples := samples_to_next_look()):
            advance(n_samples)
            yield from hear(at_end=False)
    if len(pending) >= front_end.window_samples:
        advance(len(pending))
    if total_frames:
        yield from hear(at_end=True)


class RawPcm(AudioSource):
    """A pipe of PCM, without a header or behind that of a WAV that says what is expected.

    sample_format   "s16" or "f32", little-endian; the channels of a frame lie beside each other
    """

    def __init__(
        self,
        stream: BinaryIO,
        sample_rate_hz: float,
        n_channels: int = 1,
        sample_format: str = "s16",
        channel: int | None = None,
        name: str = "-",
    ):
        if sample_format not in SAMPLE_FORMATS:
            raise InvalidInput(f"the sample format is '{sample_format}': expected {' or '.join(SAMPLE_FORMATS)}")
        if not 1 <= n_channels <= 1024:
            raise InvalidInput(f"{n_channels} channels: 1 to 1024 are expected")
        try:
            super().__init__(name, sample_rate_hz, n_channels, channel)
        except AudioUnreadable as error:  # of a pipe all is known from the caller
            raise InvalidInput(str(error)) from None
        self._stream = stream
        self.sample_format = sample_format
        self._dtype = np.dtype(SAMPLE_FORMATS[sample_format])

    def native_blocks(self) -> Iterator[np.ndarray]:
        frame_bytes = self.n_channels * self._dtype.itemsize
        block_bytes = max(1, int(BLOCK_S * self.sample_rate_hz)) * frame_bytes
        rest = b""
        at_start = True
        left: float = math.inf  # bytes of samples that are still to come
        # read1 gives what there is: waiting for a full block would delay answers.
        while left and (data := self._stream.read1(block_bytes)):
            data = rest + data
            if at_start:
                samples = self._samples(data)
                if samples is None:
                    rest = data
                    continue
                (start, left), at_start = samples, False
                data = data[start:]
            if len(data) >= left:
                data = data[: int(left) // frame_bytes * frame_bytes]
                left = len(data)
            n_bytes = len(data) // frame_bytes * frame_bytes
            left -= n_bytes
            rest = data[n_bytes:]
            block = np.frombuffer(data[:n_bytes], self._dtype).reshape(-1, self.n_channels).astype(np.float32)
            if self._dtype.kind == "i":
                block /= 32768
            if len(block):
                yield block
        if at_start and len(rest) >= RIFF_BYTES:
            raise InputUnreadable(f"'{self.name}' ends in the header of a WAV: no sound came")

    def _samples(self, data: bytes) -> tuple[int, float] | None:
        """Where in a pipe the samples begin, and how many bytes they are; None before enough has come to know.

        They lie behind the header of a WAV, as arecord writes one unless it is told not to, or are all there is. What
        a file holds after its samples is no sound.

        InputUnreadable for what is no PCM, InvalidInput for a WAV of another rate, other channels or another format.
        """
        if len(data) < RIFF_BYTES:
            return None
        is_wav = data[:4] in (b"RIFF", b"RF64") and data[8:RIFF_BYTES] == b"WAVE"
        kind = next((kind for magic, kind in NOT_PCM.items() if data.startswith(magic) and not is_wav), None)
        if kind is not None:
            raise InputUnreadable(f"'{self.name}' begins as {kind} does: raw PCM is expected in a pipe, name the file")
        if not is_wav:
            return 0, math.inf
        wav = f"'{self.name}' begins as a WAV file does"
        form = None
        at = RIFF_BYTES
        while at + 8 <= len(data):
            name, size = struct.unpack_from("<4sI", data, at)
            at += 8
            if name == b"data":
                if form is None:
                    raise InputUnreadable(f"{wav}, and has its samples before their format")
                self._check_form(form)
                return at, size if 0 < size < ENDLESS_BYTES else math.inf
            if name == b"fmt ":
                if size < 16:
                    raise InputUnreadable(f"{wav}, and has a damaged format")
                form = data[at : at + min(size, EXTENSIBLE_BYTES)]
                if len(form) < min(size, EXTENSIBLE_BYTES):
                    return None
            at += size + size % 2
            if at > MOST_BEFORE_SAMPLES:
                raise InputUnreadable(f"{wav}, and has no samples in its first 64 KiB")
        return None

    def _check_form(self, form: bytes) -> None:
        """InvalidInput where the content of a chunk "fmt " is not what is expected."""
        tag, n_channels, rate_hz = struct.unpack_from("<HHI", form)
        bits = struct.unpack_from("<H", form, 14)[0]
        if tag == EXTENSIBLE and len(form) == EXTENSIBLE_BYTES:
            tag = struct.unpack_from("<H", form, 24)[0]
        found = rate_hz, n_channels, FORMATS_IN_WAV.get((tag, bits), f"{bits} bits")
        expected = self.sample_rate_hz, self.n_channels, self.sample_format
        if found != expected:
            have, want = ("{:g} Hz, {} channel(s) and {}".format(*numbers) for numbers in (found, expected))
            raise InvalidInput(
                f"'{self.name}' begins as a WAV file of {have} does, but raw PCM of {want} is expected: say what comes "
                f"with --rate, --channels and --sample-format"
            )


class PacedFile(AudioFile):
    """A recording, no faster than it was recorded."""

    def native_blocks(self) -> Iterator[np.ndarray]:
        block_samples = max(1, int(BLOCK_S * self.sample_rate_hz))
        started, n_read = time.monotonic(), 0
        for block in super().native_blocks():
            for start in range(0, len(block), block_samples):
                part = block[start : start + block_samples]
                n_read += len(part)
                time.sleep(max(0.0, started + n_read / self.sample_rate_hz - time.monotonic()))
                yield part


class Microphone(AudioSource):
    """An input device of this machine, through PortAudio; needs the extra `listen`.

    device       name or number as sounddevice knows it; the system's default where None
    n_overflows  how often sound was lost because the program was too slow
    """

    def __init__(self, device: str | int | None = None, channel: int | None = None):
        try:
            import sounddevice
        except (ImportError, OSError) as error:  # OSError: the package is there but PortAudio is not
            raise MissingExtra(
                f"a microphone needs sounddevice and PortAudio ({error}): pip install 'edgealign[listen]', and the "
                f"system's package libportaudio2 on Linux; or pipe raw PCM into `edgealign listen -`"
            ) from None
        self._sounddevice: Any = sounddevice
        self._device = device
        name = "microphone" if device is None else f"microphone {device}"
        try:
            about = sounddevice.query_devices(device, "input")
        except (sounddevice.PortAudioError, ValueError) as error:
            raise InputUnreadable(f"there is no {name} to listen to: {error}") from None
        self.n_overflows = 0
        super().__init__(name, about["default_samplerate"], 1 if channel is None else channel, channel)

    def native_blocks(self) -> Iterator[np.ndarray]:
        n_read = 0
        try:
            with self._sounddevice.InputStream(
                samplerate=self.sample_rate_hz, channels=self.n_channels, dtype="float32", device=self._device
            ) as stream:
                while True:
                    block, overflowed = stream.read(max(1, int(BLOCK_S * self.sample_rate_hz)))
                    self.n_overflows += bool(overflowed)
                    n_read += len(block)
                    yield block
        except self._sounddevice.PortAudioError as error:
            raise AudioUnreadable(
                f"the {self.name} stopped after {n_read / self.sample_rate_hz:.1f} s: {error}"
            ) from None
