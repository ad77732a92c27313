"""Words in sound without an end. Run: python -m pytest tests/test_listen.py"""

from __future__ import annotations

import io
import json
import struct
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import level2
import numpy as np
import pytest
import soundfile
from conftest import Ran
from toy_bundle import make_toy_bundle, word_clip

from edgealign import Bundle, Recognizer
from edgealign.audio import AudioArray, AudioSource
from edgealign.errors import AudioUnreadable, InputUnreadable, InvalidInput, MissingExtra, StoreUnreadable
from edgealign.listen import BLOCK_S, CLIP_MARGIN_S, Microphone, PacedFile, RawPcm, listen

RATE = 16_000
WORDS = ("maji", "moto", "ndege")


@pytest.fixture(scope="module")
def recognizer(toy_bundle: Bundle, samples_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    made = Recognizer(toy_bundle, tmp_path_factory.mktemp("listen") / "speech.store")
    made.enroll(samples_folder)
    return made


@pytest.fixture(scope="module")
def speech() -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Twelve seconds with a word every 2.1 s: samples, and the label, start and end of each word in s."""
    samples = 1e-4 * np.random.default_rng(5).normal(size=12 * RATE).astype(np.float32)
    truth = []
    for i, at_s in enumerate(np.arange(1.0, 11.0, 2.1)):
        sound = word_clip(i % 3, 10 + i, silence_s=0)
        start = int(at_s * RATE)
        samples[start : start + len(sound)] += sound
        truth.append((WORDS[i % 3], float(at_s), float(at_s) + len(sound) / RATE))
    return samples, truth


class InBlocks(AudioArray):
    """Samples that come as a microphone brings them."""

    def native_blocks(self) -> Iterator[np.ndarray]:
        size = int(BLOCK_S * RATE)
        for block in super().native_blocks():
            yield from np.split(block, range(size, len(block), size))


def test_each_word_is_answered_soon_after_its_end(recognizer: Recognizer, speech: tuple) -> None:
    samples, truth = speech
    heard = list(listen(recognizer, InBlocks(samples, RATE)))
    assert [event.answer.label for event in heard] == [label for label, *_ in truth]
    for event, (_, start_s, end_s) in zip(heard, truth, strict=True):
        assert abs(event.answer.start_s - start_s) < 0.2
        assert 0 < event.heard_s - end_s <= 0.3


def test_the_samples_of_a_word_are_those_around_it(recognizer: Recognizer, speech: tuple) -> None:
    samples, _ = speech
    for event in listen(recognizer, InBlocks(samples, RATE)):
        first = round((event.answer.start_s - CLIP_MARGIN_S) * RATE)
        assert np.array_equal(event.samples, samples[first : first + len(event.samples)])
        assert len(event.samples) >= (event.answer.end_s - event.answer.start_s + CLIP_MARGIN_S) * RATE


def in_c(recognizer: Recognizer, samples: np.ndarray, block: int) -> list[dict]:
    model = level2.open_model(level2.open_runtime(), recognizer.bundle.path)
    return level2.CStream(level2.CRecognizer(model, recognizer.store_path), RATE, ring_s=40).hear(samples, block)


@pytest.mark.skipif(level2.ONNXRUNTIME is None, reason="this onnxruntime has no shared library")
def test_python_hears_what_the_c_library_hears(recognizer: Recognizer, patient: Recognizer, speech: tuple) -> None:
    generator = np.random.default_rng(1)
    noisy = speech[0] + generator.normal(size=len(speech[0])) * np.repeat(generator.uniform(0, 0.02, 48), RATE // 4)
    close = with_pauses(*((word_clip(i % 4, i, silence_s=0), 0.2 + 0.01 * i) for i in range(12)))
    parts = np.split(word_clip(7, 1, silence_s=0), [3000, 6000])
    broken = with_pauses(*((parts[i % 3], generator.uniform(0.15, 0.35)) for i in range(30)))
    for samples in (speech[0], noisy.astype(np.float32), np.tile(speech[0], 3)[: 31 * RATE + 77], close, broken):
        for by in (recognizer, patient):
            fields = ("label", "start_s", "end_s", "distance")
            answers = [event.answer for event in listen(by, AudioArray(samples, RATE))]
            heard = [tuple(getattr(answer, field) for field in fields) for answer in answers]
            assert heard
            for block in (len(samples), 480):
                assert [tuple(event[field] for field in fields) for event in in_c(by, samples, block)] == heard


def test_a_word_at_the_very_end_is_answered_too(recognizer: Recognizer, speech: tuple) -> None:
    samples, truth = speech
    cut = samples[: int(truth[2][2] * RATE)]
    assert len(list(listen(recognizer, AudioArray(cut, RATE)))) == 3


def test_a_label_is_not_repeated_within_the_debounce_time(recognizer: Recognizer) -> None:
    samples = np.concatenate([word_clip(0, 1), np.zeros(3000, np.float32), word_clip(0, 1)])
    samples += 1e-4 * np.random.default_rng(0).normal(size=len(samples)).astype(np.float32)
    assert len(list(listen(recognizer, AudioArray(samples, RATE)))) == 2
    assert len(list(listen(recognizer, AudioArray(samples, RATE), debounce_s=2))) == 1
    with pytest.raises(InvalidInput, match="debounce_s is -1"):
        next(listen(recognizer, AudioArray(samples, RATE), debounce_s=-1))


def with_pauses(*parts: tuple[np.ndarray, float]) -> np.ndarray:
    """Sounds, each with so many seconds after it, in hiss."""
    pieces = [np.zeros(RATE, np.float32)]
    for sound, pause_s in parts:
        pieces += [sound, np.zeros(int(pause_s * RATE), np.float32)]
    samples = np.concatenate(pieces)
    return samples + 1e-4 * np.random.default_rng(0).normal(size=len(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    """Joins sounds over pauses of up to 0.3 s, as the shipped bundle does. It knows "maji", "moto" and a word with a
    pause in it, "kigogo", whose halves it does not know."""
    folder = tmp_path_factory.mktemp("patient")
    made = Recognizer(make_toy_bundle(folder, merge_frames=30), folder / "speech.store")
    for i, label in enumerate(WORDS[:2]):
        made.enroll([word_clip(i, voice) for voice in (1, 2)], label=label, sample_rate_hz=RATE)
    made.enroll([paused_word(0.25, gain) for gain in (1, 0.8)], label="kigogo", sample_rate_hz=RATE)
    return made


def paused_word(pause_s: float, gain: float) -> np.ndarray:
    first, second = np.array_split(gain * word_clip(7, 1, silence_s=0), 2)
    return with_pauses((first, pause_s), (second, 1.0))


@pytest.mark.parametrize("pause_s", [0.21, 0.25, 0.28])
def test_a_word_with_a_pause_in_it_is_answered_once(patient: Recognizer, pause_s: float) -> None:
    (event,) = listen(patient, InBlocks(paused_word(pause_s, 0.9), RATE))
    assert event.answer.label == "kigogo"
    sound_s = len(word_clip(7, 1, silence_s=0)) / RATE + pause_s
    assert 0 < event.heard_s - (1 + sound_s) <= 0.3


@pytest.mark.parametrize("later_samples", range(0, 800, 80))
def test_an_unknown_sound_is_put_off_until_nothing_can_join_it_and_no_longer(
    patient: Recognizer, later_samples: int
) -> None:
    """0.3 s of silence, the rest of the last frame of it and what is left of a block, wherever frames and steps lie."""
    sound = word_clip(7, 1, silence_s=0)[: RATE // 3]
    samples = np.concatenate([np.zeros(later_samples, np.float32), sound])
    (event,) = listen(patient, InBlocks(with_pauses((samples, 2.0)), RATE))
    assert event.answer.label is None
    assert 0.29 < event.heard_s - (1 + len(samples) / RATE) <= 0.3 + 0.025 + BLOCK_S


def test_a_word_that_comes_soon_after_a_known_one_is_answered_by_itself(patient: Recognizer) -> None:
    words = [word_clip(i, 1, silence_s=0) for i in (0, 1)]
    events = list(listen(patient, InBlocks(with_pauses((words[0], 0.25), (words[1], 2.0)), RATE)))
    first, second = (event.answer for event in events)
    assert (first.label, second.label) == ("maji", "moto")
    assert first.end_s <= second.start_s
    first_end_s = 1 + len(words[0]) / RATE
    assert events[0].heard_s - first_end_s <= 0.3
    assert events[1].heard_s - (first_end_s + 0.25 + len(words[1]) / RATE) <= 0.3


def test_silence_and_steady_noise_are_not_answered(recognizer: Recognizer) -> None:
    noise = 0.1 * np.random.default_rng(0).normal(size=20 * RATE).astype(np.float32)
    for samples in (np.zeros(10 * RATE, np.float32), noise):
        assert list(listen(recognizer, AudioArray(samples, RATE))) == []


def test_without_labels_the_source_is_not_opened(toy_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(StoreUnreadable, match="enroll recordings first"):
        next(listen(Recognizer(toy_bundle, tmp_path / "none.store"), AudioSource("untouched", RATE, 1, None)))


@pytest.mark.parametrize("sample_format", ["s16", "f32"])
@pytest.mark.parametrize("n_channels", [1, 2])
def test_a_pipe_of_raw_pcm_is_heard(recognizer: Recognizer, speech: tuple, sample_format: str, n_channels: int) -> None:
    samples, truth = speech
    frames = np.repeat(samples[:, None], n_channels, axis=1)
    data = np.round(frames * 32767).astype("<i2") if sample_format == "s16" else frames.astype("<f4")
    pipe = io.BytesIO(data.tobytes() + b"\1")  # and half a sample
    source = RawPcm(pipe, RATE, n_channels, sample_format)
    assert [event.answer.label for event in listen(recognizer, source)] == [label for label, *_ in truth]


def test_a_file_is_heard_no_faster_than_it_was_recorded(
    speech: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "x.wav", speech[0][:RATE], RATE)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    source = PacedFile(tmp_path / "x.wav")
    for n_blocks, _ in enumerate(source.blocks(RATE), start=1):
        assert clock[0] == pytest.approx(BLOCK_S * n_blocks)
    assert clock[0] == pytest.approx(1.0)


# ---- the microphone: a stand-in for sounddevice ----


class PortAudioError(Exception):
    pass


@pytest.fixture
def sounddevice(monkeypatch: pytest.MonkeyPatch, speech: tuple) -> types.ModuleType:
    """A device at 48 kHz that says three words and is then unplugged."""
    import soxr

    loud = soxr.resample(speech[0][: 13 * RATE // 2], RATE, 48_000).astype(np.float32)

    class InputStream:
        def __init__(self, samplerate: float, channels: int, dtype: str, device: object):
            assert (samplerate, channels, dtype) == (48_000, 1, "float32")
            self.left = loud

        def __enter__(self) -> InputStream:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, n: int) -> tuple[np.ndarray, bool]:
            if len(self.left) < n:
                raise PortAudioError("Device unavailable [PaErrorCode -9985]")
            block, self.left = self.left[:n, None], self.left[n:]
            return block, len(self.left) < 60_000 <= len(self.left) + n

    def query_devices(device: object, kind: str) -> dict:
        if device == "nowhere":
            raise ValueError("No input device matching 'nowhere'")
        return {"default_samplerate": 48_000.0}

    module = types.ModuleType("sounddevice")
    module.InputStream, module.query_devices, module.PortAudioError = InputStream, query_devices, PortAudioError
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


@pytest.mark.usefixtures("sounddevice")
def test_a_microphone_that_vanishes_ends_the_listening_after_what_was_heard(
    recognizer: Recognizer, speech: tuple
) -> None:
    heard = []
    with pytest.raises(AudioUnreadable, match=r"the microphone stopped after 6\.5 s: Device unavailable"):
        for event in listen(recognizer, Microphone()):
            heard.append(event.answer.label)
    assert heard == [label for label, *_ in speech[1][:3]]


@pytest.mark.usefixtures("sounddevice")
def test_a_microphone_that_is_not_there_is_named() -> None:
    with pytest.raises(InputUnreadable, match="there is no microphone nowhere to listen to"):
        Microphone("nowhere")


def test_without_sounddevice_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgealign\[listen\]'"):
        Microphone()


# ---- the command ----


@pytest.fixture
def taught(edgealign: Callable, samples_folder: Path) -> Callable:
    assert edgealign("enroll", samples_folder).code == 0
    return edgealign


def pipe_in(monkeypatch: pytest.MonkeyPatch, samples: np.ndarray) -> None:
    data = np.round(samples * 32767).astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))


def test_listen_writes_one_json_object_for_each_word(
    taught: Callable, speech: tuple, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    samples, truth = speech
    pipe_in(monkeypatch, samples)
    clips = tmp_path / "clips here"
    ran = taught("listen", "-", "--format", "json", "--save-clips", clips)
    assert ran.code == 0
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert [event["label"] for event in events] == [label for label, *_ in truth]
    for event in events:
        assert event["start_s"] < event["end_s"] < event["heard_s"]
        assert set(event) >= {"probability", "distance", "threshold", "top", "store_sha256", "time_utc"}
        saved, rate = soundfile.read(event["clip"])
        assert rate == RATE
        assert len(saved) / RATE >= event["end_s"] - event["start_s"]
    assert len(list(clips.iterdir())) == len(events)


def test_listen_prints_a_line_for_each_word(taught: Callable, speech: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, speech[0][: 4 * RATE])
    ran = taught("listen", "-")
    lines = ran.out.splitlines()
    assert len(lines) == 2
    assert "s  maji, " in lines[0]
    assert "the sound ended after 4.0 s" in ran.err


def test_a_file_that_breaks_off_is_heard_to_where_it_does_and_that_is_said(
    taught: Callable, speech: tuple, tmp_path: Path
) -> None:
    path = tmp_path / "cut.wav"
    soundfile.write(path, speech[0][: 2 * RATE], RATE, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[: 44 + 2 * 3 * RATE // 2])
    ran = taught("listen", path)
    assert ran.code == 0
    assert f"warning: '{path}' breaks off at 1.5 s: its header announces 2.0 s" in ran.err


def test_a_clip_that_cannot_be_saved_is_a_warning(
    taught: Callable, speech: tuple, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe_in(monkeypatch, speech[0][: 4 * RATE])
    monkeypatch.setattr(soundfile, "write", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    ran = taught("listen", "-", "--format", "json", "--save-clips", tmp_path / "full")
    assert ran.code == 0
    assert [json.loads(line)["clip"] for line in ran.out.splitlines()] == [None, None]
    assert "could not be saved" in ran.err
    assert not list((tmp_path / "full").iterdir())


@pytest.mark.usefixtures("sounddevice")
def test_a_vanished_microphone_has_exit_code_4_and_loses_no_line(taught: Callable) -> None:
    ran = taught("listen", "--format", "json")
    assert ran.code == 4
    assert [json.loads(line)["label"] for line in ran.out.splitlines()] == list(WORDS)
    assert "error: the microphone stopped after 6.5 s" in ran.err
    assert "sound was lost 1 time(s)" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["nothing.wav"], 4, "does not exist"),
        (["x.wav", "--microphone", "usb"], 2, "name one"),
        (["-", "--rate", "100"], 2, "sample rate of 100 Hz"),
        (["-", "--channels", "0"], 2, ""),
        (["-", "--channel", "2"], 2, "channel 2 was asked for"),
    ],
)
def test_what_cannot_be_heard_is_one_sentence(
    taught: Callable, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, why: str
) -> None:
    pipe_in(monkeypatch, np.zeros(RATE, np.float32))
    ran = taught("listen", *arguments)
    assert ran.code == code
    assert why in ran.err
    assert "Traceback" not in ran.err


def test_a_file_in_a_pipe_is_heard_only_as_what_it_is(
    taught: Callable, speech: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, truth = speech

    def piped(rate: int, *arguments: str, **form: str) -> Ran:
        file = io.BytesIO()
        soundfile.write(file, samples, rate, **form)
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(file.getvalue())))
        return taught("listen", "-", *arguments)

    assert piped(RATE, format="WAV").out.count("\n") == len(truth)
    float_wav = {"format": "WAV", "subtype": "FLOAT"}
    assert piped(RATE, "--sample-format", "f32", **float_wav).out.count("\n") == len(truth)
    for ran in (piped(RATE, **float_wav), piped(2 * RATE, format="WAV")):
        assert ran.code == 2 and "--rate, --channels and --sample-format" in ran.err and not ran.out
    ran = piped(RATE, format="FLAC")
    assert ran.code == 4 and "begins as FLAC does" in ran.err


class Dripping(io.BytesIO):
    """A pipe whose writer is slow: few bytes at once."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(7 if self.tell() < 200 else size)


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
def test_a_header_is_no_sound_however_it_comes(form: str) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, RATE).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=form, subtype="PCM_16")
    junk = b"LIST" + struct.pack("<I", 101) + bytes(102)  # before the format, of an odd length
    data = file.getvalue()
    after = b"guan" + struct.pack("<I", 400) + bytes(range(200)) * 2
    for whole in (data, data[:12] + junk + data[12:], data + after):
        heard = np.concatenate(list(RawPcm(Dripping(whole), RATE).blocks(RATE)))
        assert len(heard) >= RATE and np.abs(heard[:RATE] - samples).max() < 1e-4
        assert form == "RF64" or len(heard) == RATE  # whose own size says nothing: ds64 would


@pytest.mark.parametrize("stated", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_header_from_before_the_recording_ended_limits_nothing(stated: int) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, RATE).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="PCM_16")
    data = file.getvalue()
    at = data.index(b"data") + 4
    heard = np.concatenate(
        list(RawPcm(Dripping(data[:at] + struct.pack("<I", stated) + data[at + 4 :]), RATE).blocks(RATE))
    )
    assert len(heard) == RATE


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"RIFF" + bytes(4) + b"AVI LIST" + bytes(9), "begins as RIFF does"),
        (b"RIFF" + bytes(4) + b"WAVEdata" + bytes(400), "samples before their format"),
        (b"RIFF" + bytes(4) + b"WAVEfmt " + struct.pack("<I", 8) + bytes(400), "damaged format"),
        (b"RIFF" + bytes(4) + b"WAVELIST" + struct.pack("<I", 2**20) + bytes(400), "no samples in its first 64 KiB"),
        (b"RIFF" + bytes(4) + b"WAVELIST" + struct.pack("<I", 400) + bytes(100), "ends in the header of a WAV"),
    ],
)
def test_a_wav_in_a_pipe_without_samples_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(InputUnreadable, match=said):
        list(RawPcm(io.BytesIO(data), RATE).blocks(RATE))


def test_listening_before_enrolling_says_so(edgealign: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, np.zeros(RATE, np.float32))
    ran = edgealign("listen", "-")
    assert (ran.code, "enroll recordings first" in ran.err) == (3, True)
