"""Decoding: every format, rate and channel count that field recorders write, in bounded memory; clear refusals."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_bundle import noise_clip, word_clip

from edgealign import Bundle
from edgealign.audio import AudioArray, AudioFile, AudioSource, parse_channel
from edgealign.errors import AudioUnreadable, InputUnreadable, InvalidInput
from edgealign.sources import audio_files
from edgealign.words import Word, find_word

RATE_HZ = 16_000


def mono(source: AudioSource, rate_hz: int = RATE_HZ) -> np.ndarray:
    return np.concatenate(list(source.blocks(rate_hz)))


def tone(rate_hz: int, seconds: float = 0.5, tone_hz: float = 440) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * tone_hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "container", "subtype", "tolerance"),
    [
        ("wav", "WAV", "PCM_U8", 1e-2),
        ("wav", "WAV", "PCM_16", 1e-4),
        ("wav", "WAV", "PCM_24", 1e-6),
        ("wav", "WAV", "PCM_32", 1e-7),
        ("wav", "WAV", "FLOAT", 0),
        ("wav", "WAV", "DOUBLE", 0),
        ("wav", "WAV", "ULAW", 2e-2),
        ("wav", "WAVEX", "PCM_24", 1e-6),
        ("wav", "WAVEX", "FLOAT", 0),
        ("wav", "RF64", "PCM_16", 1e-4),
        ("flac", "FLAC", "PCM_16", 1e-4),
        ("flac", "FLAC", "PCM_24", 1e-6),
        ("aiff", "AIFF", "PCM_16", 1e-4),
        ("caf", "CAF", "PCM_16", 1e-4),
        ("ogg", "OGG", "VORBIS", 0.1),
        ("opus", "OGG", "OPUS", 0.1),
        ("mp3", "MP3", "MPEG_LAYER_III", 0.1),
    ],
)
def test_formats(tmp_path: Path, suffix: str, container: str, subtype: str, tolerance: float) -> None:
    samples = tone(RATE_HZ)
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, samples, RATE_HZ, format=container, subtype=subtype)
    decoded = mono(AudioFile(path))
    assert decoded.dtype == np.float32
    assert abs(len(decoded) - len(samples)) <= 2500  # MP3 pads to whole frames
    middle = slice(3000, 6000)
    if tolerance < 0.1:
        assert np.abs(decoded[middle] - samples[middle]).max() <= tolerance
    else:  # lossy codecs may shift by some samples: compare what is heard
        spectrum = np.abs(np.fft.rfft(decoded[middle]))
        assert np.argmax(spectrum) == np.argmax(np.abs(np.fft.rfft(samples[middle])))


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000, 384_000, 500_000])
def test_any_rate_is_resampled_without_aliases(tmp_path: Path, rate_hz: int) -> None:
    path = tmp_path / "clip.wav"
    heard = tone(rate_hz, tone_hz=1000)
    above = tone(rate_hz, tone_hz=12_000) if rate_hz > 24_000 else 0  # must vanish at 16 kHz, not fold to 4 kHz
    soundfile.write(path, heard + above, rate_hz, subtype="FLOAT")
    resampled = mono(AudioFile(path))
    assert abs(len(resampled) - 8000) <= 1
    middle = slice(2000, 6000)
    assert np.abs(resampled[middle] - tone(RATE_HZ, tone_hz=1000)[middle]).max() < 2e-3


def test_blocks_do_not_change_the_result(tmp_path: Path) -> None:
    """A long file that is decoded in many blocks equals the same samples resampled in one piece."""
    import soxr

    samples = noise_clip(3, seconds=20, sample_rate_hz=44_100)
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, 44_100, subtype="FLOAT")
    blocks = list(AudioFile(path).blocks(RATE_HZ))
    assert len(blocks) > 5
    whole = soxr.resample(samples, 44_100, RATE_HZ, quality="HQ")
    assert np.abs(np.concatenate(blocks)[: len(whole)] - whole).max() < 1e-5


def test_channels_are_mixed_or_chosen(tmp_path: Path) -> None:
    channels = np.stack([np.full(8000, k / 10) for k in range(8)], axis=1)
    path = tmp_path / "eight.wav"
    soundfile.write(path, channels, RATE_HZ, subtype="FLOAT")
    assert np.allclose(mono(AudioFile(path)), 0.35)
    assert np.allclose(mono(AudioFile(path, channel=1)), 0.0)
    assert np.allclose(mono(AudioFile(path, channel=8)), 0.7)
    with pytest.raises(AudioUnreadable, match="has 8 channel"):
        AudioFile(path, channel=9)


def test_arrays_of_all_kinds_are_one() -> None:
    as_float = tone(RATE_HZ)
    as_int16 = np.round(as_float * 2**15).astype(np.int16)
    assert np.array_equal(mono(AudioArray(as_float.astype(np.float64), RATE_HZ)), as_float)
    assert np.abs(mono(AudioArray(as_int16, RATE_HZ)) - as_float).max() < 1e-4
    stereo = np.stack([as_float, as_float], axis=1)
    assert np.array_equal(mono(AudioArray(stereo, RATE_HZ)), as_float)
    assert np.array_equal(mono(AudioArray(np.asfortranarray(stereo)[:, ::-1], RATE_HZ, channel=2)), as_float)


@pytest.mark.parametrize(
    ("samples", "rate_hz", "error"),
    [
        (np.zeros((2, 3, 4)), RATE_HZ, InvalidInput),
        (np.zeros((2, 16_000)), RATE_HZ, InvalidInput),  # channels belong in the last axis
        (np.zeros(16_000, dtype=np.uint8), RATE_HZ, InvalidInput),
        (np.array(["a"]), RATE_HZ, InvalidInput),
        (np.zeros(16_000, dtype=complex), RATE_HZ, InvalidInput),
        (np.zeros(16_000), 0, AudioUnreadable),
        (np.zeros(16_000), float("nan"), AudioUnreadable),
        (np.zeros(16_000), 1e6, AudioUnreadable),
    ],
)
def test_arrays_that_are_no_clip_are_refused(samples: np.ndarray, rate_hz: float, error: type[Exception]) -> None:
    with pytest.raises(error):
        AudioArray(samples, rate_hz)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e7])
def test_values_that_are_no_sound_are_refused_and_located(tmp_path: Path, value: float) -> None:
    samples = tone(RATE_HZ, seconds=20)
    samples[16_000 * 15] = value
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    with pytest.raises(AudioUnreadable, match=r"at 15\.000 s"):
        mono(AudioFile(path))


@pytest.mark.parametrize("n_samples", [0, 1, 399])
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_too_few_samples_are_refused(tmp_path: Path, n_samples: int, rate_hz: int) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.zeros(n_samples), rate_hz)
    with pytest.raises(AudioUnreadable, match=rf"holds {n_samples} sample\(s\): at least 25 ms"):
        mono(AudioFile(path))


def test_the_sha256_is_of_the_sound_not_of_the_file(tmp_path: Path) -> None:
    samples = np.round(tone(RATE_HZ) * 2**15).astype(np.int16)
    digests = []
    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / name, samples, RATE_HZ)
        source = AudioFile(tmp_path / name)
        mono(source)
        digests.append(source.sha256)
    array = AudioArray(samples, RATE_HZ)
    mono(array)
    other = AudioArray(samples, 8_000)
    mono(other)
    assert digests == [array.sha256] * 2
    assert other.sha256 != array.sha256


def test_files_that_are_no_audio(tmp_path: Path) -> None:
    text = tmp_path / "notes.wav"
    text.write_text("these are my field notes\n" * 100)
    with pytest.raises(AudioUnreadable, match=r"notes\.wav' is not audio that can be read"):
        AudioFile(text)
    with pytest.raises(InputUnreadable, match="does not exist"):
        AudioFile(tmp_path / "missing.wav")
    with pytest.raises(InputUnreadable, match="is a folder"):
        AudioFile(tmp_path)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioUnreadable, match="empty"):
        AudioFile(tmp_path / "empty.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(InputUnreadable, match="not a regular file"):
        AudioFile(tmp_path / "pipe.wav")
    (tmp_path / "headerless.raw").write_bytes(bytes(4000))
    with pytest.raises(AudioUnreadable, match="headerless"):
        AudioFile(tmp_path / "headerless.raw")


def test_a_recording_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """As a recorder leaves it when its battery dies: the header promises more than there is."""
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(RATE_HZ, seconds=2), RATE_HZ, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[: 44 + 2 * 16_000])
    assert len(mono(AudioFile(path))) == 16_000


def test_a_wav_that_its_recorder_never_closed_is_told_from_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "no power.wav"
    soundfile.write(path, tone(RATE_HZ), RATE_HZ)
    data = path.read_bytes()
    at = data.index(b"data") + 4
    path.write_bytes(data[:4] + bytes(4) + data[8:at] + bytes(4) + data[at + 4 :])
    with pytest.raises(AudioUnreadable, match=rf"not closed by its recorder: .* and {RATE_HZ} bytes follow"):
        AudioFile(path)
    path.write_bytes(data[:at] + bytes(4))
    with pytest.raises(AudioUnreadable, match=r"holds 0 sample\(s\)"):
        mono(AudioFile(path))


def test_flac_that_was_cut_off_is_a_clear_error_or_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "clip.flac"
    soundfile.write(path, noise_clip(0, seconds=4), RATE_HZ)
    path.write_bytes(path.read_bytes()[:40_000])
    try:
        assert 0 < len(mono(AudioFile(path))) < 64_000
    except AudioUnreadable as error:
        assert "clip.flac" in str(error)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_end_in_samples_or_a_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["wav", "flac", "ogg", "aiff"]))
    path = tmp_path / f"clip.{suffix}"
    if not path.exists():
        soundfile.write(path, tone(RATE_HZ, seconds=0.2), RATE_HZ)
    original = path.read_bytes()
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 120))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        decoded = mono(AudioFile(path))
        assert decoded.ndim == 1 and np.isfinite(decoded).all()
    except InputUnreadable as error:
        assert str(path) in str(error)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize(("name", "program"), [("bats.W4V", "Kaleidoscope"), ("phone.m4a", "ffmpeg")])
def test_formats_that_nobody_here_decodes_are_refused_with_a_hint(tmp_path: Path, name: str, program: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100))
    with pytest.raises(AudioUnreadable, match=f"{name}' is in a format that is not read: convert it to WAV.*{program}"):
        AudioFile(path)
    assert audio_files(str(tmp_path)) == [str(path)]  # so that nobody takes the folder for empty
    soundfile.write(path, tone(RATE_HZ), RATE_HZ, format="WAV")  # the name alone decides nothing
    assert len(mono(AudioFile(path))) == len(tone(RATE_HZ))


@pytest.mark.parametrize("shape", [(0,), (0, 2)])
def test_an_array_without_samples_is_refused_as_too_short(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioUnreadable, match=r"holds 0 sample\(s\): at least 25 ms"):
        mono(AudioArray(np.zeros(shape, np.float32), RATE_HZ))


@pytest.mark.parametrize(("text", "channel"), [("mix", None), ("1", 1), ("12", 12)])
def test_parse_channel(text: str, channel: int | None) -> None:
    assert parse_channel(text) == channel


@pytest.mark.parametrize("text", ["0", "-1", "left", "1.5", "", "²"])
def test_parse_channel_refuses(text: str) -> None:
    with pytest.raises(InvalidInput, match="channel is"):
        parse_channel(text)


class TestFindWord:
    def find(self, bundle: Bundle, samples: np.ndarray) -> Word | None:
        return find_word(iter([samples]), bundle.front_end, bundle.windows, bundle.filters)

    def test_the_word_is_found_in_silence(self, toy_bundle: Bundle) -> None:
        word = self.find(toy_bundle, np.concatenate([np.zeros(16_000), word_clip(1), np.zeros(16_000)]).astype("f4"))
        assert word.n_sounds == 1
        assert 1.1 < word.start_s < 1.3 and 1.6 < word.end_s < 2.3
        assert word.log_mels.shape[1] == round((word.end_s - word.start_s) * 100)

    def test_silence_around_a_word_changes_nothing(self, toy_bundle: Bundle) -> None:
        near = self.find(toy_bundle, word_clip(1, silence_s=0.3))
        far = self.find(toy_bundle, np.concatenate([noise_clip(1) * 2e-3, word_clip(1, silence_s=0.3)]))
        near_embedding, far_embedding = (toy_bundle.encode(word.log_mels[None])[0] for word in (near, far))
        assert 1 - near_embedding @ far_embedding < 0.02

    def test_of_several_words_the_clearest_wins(self, toy_bundle: Bundle) -> None:
        clip = np.concatenate([0.2 * word_clip(1), word_clip(2), 0.2 * word_clip(3)])
        word = self.find(toy_bundle, clip)
        assert word.n_sounds == 3
        middle_s = len(word_clip(1)) / RATE_HZ + 0.25
        assert word.start_s == pytest.approx(middle_s, abs=0.15)

    @pytest.mark.parametrize("samples", [np.zeros(16_000, np.float32), noise_clip(5), noise_clip(6, seconds=10)])
    def test_silence_and_steady_noise_hold_no_word(self, toy_bundle: Bundle, samples: np.ndarray) -> None:
        assert self.find(toy_bundle, samples) is None

    def test_a_clip_shorter_than_the_encoder_needs_is_filled_with_silence(self, toy_bundle: Bundle) -> None:
        click = np.zeros(2400, np.float32)
        click[1000:2200] = tone(RATE_HZ, seconds=0.075)
        word = self.find(toy_bundle, click)
        floor = np.float32(np.log(toy_bundle.front_end.energy_floor))
        assert word.log_mels.shape == (24, toy_bundle.windows.min_frames)
        assert (word.log_mels[:, 0] == floor).all() and (word.log_mels[:, -1] == floor).all()

    @pytest.mark.parametrize("at_s", [3.0, 56.5, 57.0, 58.2, 59.0, 61.0, 113.9, 171.0])
    def test_a_word_anywhere_in_a_long_recording_is_found_once_and_whole(self, toy_bundle: Bundle, at_s: float) -> None:
        samples = 1e-4 * np.random.default_rng(0).normal(size=175 * RATE_HZ).astype(np.float32)
        clip = word_clip(1)
        start = int(at_s * RATE_HZ)
        samples[start : start + len(clip)] += clip
        blocks = (samples[i : i + 100_000] for i in range(0, len(samples), 100_000))
        word = find_word(blocks, toy_bundle.front_end, toy_bundle.windows, toy_bundle.filters)
        alone = self.find(toy_bundle, clip)
        assert word.n_sounds == 1
        assert word.start_s == pytest.approx(at_s + alone.start_s, abs=0.08)
        assert word.end_s - word.start_s == pytest.approx(alone.end_s - alone.start_s, abs=0.12)


def test_extensible_wav_as_field_recorders_write_it(tmp_path: Path) -> None:
    """24 bits under a WAVE_FORMAT_EXTENSIBLE header that is written by hand, not by libsndfile's own writer."""
    values = np.round(tone(48_000) * (2**23 - 1)).astype("<i4")
    data = np.stack([values & 0xFF, values >> 8 & 0xFF, values >> 16 & 0xFF], axis=1).astype(np.uint8).tobytes()
    pcm_guid = struct.pack("<IHH8s", 1, 0, 0x10, bytes.fromhex("800000aa00389b71"))
    format_chunk = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 48_000, 144_000, 3, 24, 22, 24, 4) + pcm_guid
    chunks = b"fmt " + struct.pack("<I", 40) + format_chunk + b"data" + struct.pack("<I", len(data)) + data
    path = tmp_path / "field.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    decoded = mono(AudioFile(path), 48_000)
    assert np.abs(decoded - tone(48_000)).max() < 1e-6
