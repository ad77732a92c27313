"""Sound in, label out, from C: the same answers as Python, and one sentence for everything that is wrong.

Run: python -m pytest tests/test_level2.py
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from ctypes import byref, c_size_t, c_void_p
from pathlib import Path

import level2
import numpy as np
import pytest
import soundfile
from level2 import ONNXRUNTIME, CRecognizer, CStream, Handle, Refused, library, open_model, open_runtime, two_words
from toy_bundle import noise_clip, word_clip
from toy_kinds import KINDS, make_kind

import edgealign
from edgealign import Bundle, Recognizer
from edgealign.errors import BundleUnreadable
from edgealign.store import Store

pytestmark = pytest.mark.skipif(ONNXRUNTIME is None, reason="this onnxruntime has no shared library")

HOME = Path(edgealign.__file__).parent
C = Path(__file__).parent / "c"
INCLUDE = Path(__file__).parents[1] / "cpp_ext" / "include"
INVALID_ARGUMENT, NOT_FINITE, IO, STORE_UNREADABLE, STORE_MISMATCH, LIMIT = 1, 2, 4, 6, 7, 8
BUNDLE_UNREADABLE, RUNTIME_MISSING, RUNTIME_FAILED, NO_SOUND, WRONG_STATE = 11, 12, 13, 14, 15
WORDS = ("maji", "moto", "ndege")


@pytest.fixture(scope="module")
def runtime() -> Handle:
    return open_runtime()


@pytest.fixture(scope="module")
def model(runtime: Handle, toy_bundle: Bundle) -> Handle:
    return open_model(runtime, toy_bundle.path)


@pytest.fixture(scope="module")
def store(toy_bundle: Bundle, samples_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("level2") / "speech.store"
    Recognizer(toy_bundle, path).enroll(samples_folder)
    return path


@pytest.fixture
def c(model: Handle, store: Path) -> CRecognizer:
    return CRecognizer(model, store)


@pytest.fixture
def python(toy_bundle: Bundle, store: Path) -> Recognizer:
    return Recognizer(toy_bundle, store)


def assert_same_answer(answer: edgealign.recognizer.Answer, heard: dict) -> None:
    assert heard["label"] == answer.label
    assert heard["has_sound"] == (answer.distance is not None)
    if heard["has_sound"]:
        assert (heard["start_s"], heard["end_s"]) == (answer.start_s, answer.end_s)
        assert [name for name, *_ in heard["top"]] == [candidate.label for candidate in answer.top]
        numbers = ("probability", "distance", "threshold")
        assert [heard[name] for name in numbers] == [getattr(answer, name) for name in numbers]


# ---- the same as Python ----


def test_embeddings_and_answers_are_pythons_to_the_bit(c: CRecognizer, python: Recognizer) -> None:
    for word in range(5):
        samples = word_clip(word, 7)
        assert np.array_equal(c.embed(samples, 16_000), python.embed(samples, 16_000))
        assert_same_answer(python.classify(samples, 16_000), c.classify(samples, 16_000))


@pytest.mark.parametrize("variant", ["int8", "fp32"])
def test_the_shipped_bundle_hears_real_clips_as_python_does(runtime: Handle, variant: str, tmp_path: Path) -> None:
    bundle = Bundle.open(variant=variant)
    clips = sorted((HOME / "demo_clips").rglob("*.ogg"))
    python = Recognizer(bundle, tmp_path / "demo.store")
    python.enroll(HOME / "demo_clips" / "enroll")
    c = CRecognizer(open_model(runtime, bundle.path, variant), python.store_path)
    for clip in clips:
        samples, rate = soundfile.read(clip, dtype="float32")
        answer = python.classify(samples, rate)
        assert_same_answer(answer, c.classify(samples, rate))
        if answer.distance is not None:
            assert np.array_equal(c.embed(samples, rate), python.embed(samples, rate))


@pytest.mark.skipif(not os.environ.get("EDGEALIGN_DATA"), reason="no $EDGEALIGN_DATA")
def test_another_rate_is_heard_as_python_hears_it(runtime: Handle, tmp_path: Path) -> None:
    """Python resamples with soxr, the core by itself: on real recordings the answers are the same all but always."""
    import soxr

    labels = sorted((Path(os.environ["EDGEALIGN_DATA"]) / "fsdd").glob("[0-9]"))
    if not labels:
        pytest.skip("no fsdd")
    bundle = Bundle.open()
    python = Recognizer(bundle, tmp_path / "digits.store")
    clips = {folder.name: sorted(folder.glob("*.flac")) for folder in labels}
    for label, of_label in clips.items():
        python.enroll(of_label[::30], label=label)
    c = CRecognizer(open_model(runtime, bundle.path), python.store_path)
    distances, same = [], 0
    asked = [clip for of_label in clips.values() for clip in of_label[1::20]]
    for i, clip in enumerate(asked):
        samples, recorded_hz = soundfile.read(clip, dtype="float32")
        rate = (44_100, 48_000, 22_050, 8_000)[i % 4]
        samples = soxr.resample(samples, recorded_hz, rate, quality="VHQ")
        distances.append(1 - float(c.embed(samples, rate) @ python.embed(samples, rate)))
        same += c.classify(samples, rate)["label"] == python.classify(samples, rate).label
    assert len(asked) >= 50
    assert same >= 0.97 * len(asked)
    assert np.median(distances) < 2e-3


def test_int16_and_channels_are_what_python_reads(c: CRecognizer, python: Recognizer) -> None:
    mono = word_clip(0, 8)
    pcm = np.round(np.stack([mono, 0.5 * mono, 0.25 * mono], axis=1) * 32767).astype(np.int16)
    assert np.array_equal(c.embed(pcm, 16_000), python.embed(pcm, 16_000))
    assert np.array_equal(c.embed(pcm[:, 0], 16_000), python.embed(pcm[:, 0], 16_000))
    stereo = (pcm[:, :2] / 32768).astype(np.float32)
    assert np.array_equal(c.embed(stereo, 16_000), python.embed(stereo, 16_000))


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
def test_the_sizes_of_pushes_change_nothing(c: CRecognizer, rate: int) -> None:
    samples = word_clip(1, 9, sample_rate_hz=rate)
    whole = c.embed(samples, rate)
    sizes = np.random.default_rng(0).integers(0, 3000, size=40).tolist()
    assert np.array_equal(c.embed(samples, rate, [1, 0, *sizes]), whole)


def test_in_a_long_recording_the_clearest_word_is_found_where_python_finds_it(
    c: CRecognizer, python: Recognizer
) -> None:
    hiss = 1e-3 * np.random.default_rng(3).normal(size=140 * 16_000).astype(np.float32)
    for at_s, word, gain in ((10, 0, 0.3), (58.8, 1, 0.6), (117.5, 2, 1.0), (130, 3, 0.2)):
        sound = gain * word_clip(word, 5)
        hiss[int(at_s * 16_000) :][: len(sound)] += sound
    answer, heard = python.classify(hiss, 16_000), c.classify(hiss, 16_000)
    assert_same_answer(answer, heard)
    assert heard["n_sounds"] == 4
    assert heard["start_s"] == pytest.approx(59.0, abs=0.3)  # where two windows overlap


def test_a_clip_shorter_than_the_encoder_needs_is_filled_like_pythons(c: CRecognizer, python: Recognizer) -> None:
    tick = np.zeros(2400, np.float32)
    tick[800:1900] = 0.3 * np.sin(np.arange(1100) * 0.4)
    tick += 1e-4 * np.random.default_rng(0).normal(size=2400).astype(np.float32)
    assert np.array_equal(c.embed(tick, 16_000), python.embed(tick, 16_000))


def test_noise_is_an_answer_and_no_embedding(c: CRecognizer) -> None:
    heard = c.classify(noise_clip(), 16_000)
    assert (heard["has_sound"], heard["label"], heard["top"], heard["heard_s"]) == (False, None, [], 1.0)
    with pytest.raises(Refused, match=r"no sound stands out of the 1\.0 s") as refused:
        c.embed(noise_clip(), 16_000)
    assert refused.value.status == NO_SOUND


# ---- resampling ----


@pytest.mark.parametrize(
    ("rate", "hz"), [(44_100, 1000), (48_000, 7000), (8_000, 3500), (11_025, 900), (96_000, 5000), (44_101, 2000)]
)
def test_a_tone_keeps_its_embedding_place_at_any_rate(c: CRecognizer, python: Recognizer, rate: int, hz: int) -> None:
    """A tone that swells, as it would be at 16 kHz and as it is resampled from another rate, sounds the same."""

    def tone(rate_hz: int) -> np.ndarray:
        t = np.arange(rate_hz) / rate_hz
        swell = np.clip(np.minimum(t - 0.2, 0.8 - t) * 10, 0, 0.5)
        return (swell * np.sin(2 * np.pi * hz * t) + 1e-3 * np.sin(2 * np.pi * 50 * t)).astype(np.float32)

    ours, exact = c.embed(tone(rate), rate), python.embed(tone(16_000), 16_000)
    assert 1 - float(ours @ exact) < 5e-3


# ---- enrolling ----


def test_what_c_enrolls_python_knows_and_the_other_way_round(model: Handle, toy_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "both.store"
    c = CRecognizer(model, path)
    for word, label in enumerate(WORDS[:2]):
        for voice in range(3):
            assert c.enroll(word_clip(word, voice), 16_000, label, f"{label} {voice}.wav") == 1
    assert c.classify(word_clip(0, 6), 16_000)["label"] == "maji"  # before it is saved
    assert not path.exists()
    c.save()
    assert path.stat().st_mode & 0o777 == 0o600
    python = Recognizer(toy_bundle, path)
    assert python.store.labels() == ["maji", "moto"]
    assert_same_answer(python.classify(word_clip(1, 6), 16_000), c.classify(word_clip(1, 6), 16_000))
    report = python.enroll([word_clip(0, 0)], label="maji", sample_rate_hz=16_000)
    assert report.labels[0].n_added == 0  # the same recording, by its digest
    python.enroll([word_clip(2, voice) for voice in range(3)], label="ndege", sample_rate_hz=16_000)
    assert c.enroll(word_clip(3, 0), 44_100, "nyoka") == 1
    c.save()
    assert c.labels() == ["maji", "moto", "ndege", "nyoka"] == Store.load(path).labels()
    assert Store.load(path).n_ops == 3


def test_the_same_recording_is_learned_once(model: Handle) -> None:
    c = CRecognizer(model, None)
    assert [c.enroll(word_clip(0), 16_000, "maji") for _ in range(2)] == [1, 0]
    with pytest.raises(Refused, match="without a store to save to"):
        c.save()


def test_a_store_of_another_encoder_is_refused_by_name(runtime: Handle, other_bundle: Bundle, store: Path) -> None:
    with pytest.raises(Refused, match=re.escape(f"'{store}' holds speech of encoder")) as refused:
        CRecognizer(open_model(runtime, other_bundle.path), store)
    assert refused.value.status == STORE_MISMATCH


def test_what_is_no_store_is_refused_and_what_cannot_be_written_is_said(model: Handle, tmp_path: Path) -> None:
    (tmp_path / "not.store").write_text("hello, this is not a store")
    with pytest.raises(Refused, match="does not begin with EDGSTOR"):
        CRecognizer(model, tmp_path / "not.store")
    c = CRecognizer(model, tmp_path / "no folder" / "x.store")
    c.enroll(word_clip(0), 16_000, "maji")
    with pytest.raises(Refused, match="cannot write") as refused:
        c.save()
    assert refused.value.status == IO
    (tmp_path / "no folder").mkdir()
    c.save()  # nothing was lost
    assert Store.load(tmp_path / "no folder" / "x.store").labels() == ["maji"]


# ---- many handles, one model ----


def test_handles_share_a_model_that_may_be_freed_before_them(
    runtime: Handle, toy_bundle: Bundle, store: Path, python: Recognizer
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    own_runtime = open_runtime()
    model = open_model(own_runtime, toy_bundle.path)
    handles = [CRecognizer(model, store) for _ in range(4)]
    model.free()
    own_runtime.free()
    clips = [word_clip(word, voice) for word in range(3) for voice in range(4)]
    expected = [python.embed(clip, 16_000) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda c: [c.embed(clip, 16_000) for clip in clips], handles):
            assert all(map(np.array_equal, got, expected))


# ---- bad input ----


@pytest.mark.parametrize(
    ("rate", "n_channels", "why"),
    [(0, 1, "a sample rate of 0 Hz"), (3999, 1, "4000 to 500000"), (4_000_000_000, 1, "Hz"), (16_000, 0, "0 channels"),
     (16_000, 65, "65 channels")],
)  # fmt: skip
def test_absurd_formats_are_refused(c: CRecognizer, rate: int, n_channels: int, why: str) -> None:
    with pytest.raises(Refused, match=why) as refused:
        level2.call("ea_recognizer_begin", c.handle.pointer, rate, n_channels)
    assert refused.value.status == INVALID_ARGUMENT


@pytest.mark.parametrize(("value", "status"), [(np.nan, NOT_FINITE), (-np.inf, NOT_FINITE), (2e6, INVALID_ARGUMENT)])
def test_samples_that_are_no_sound_are_refused_and_the_clip_goes_on(
    c: CRecognizer, python: Recognizer, value: float, status: int
) -> None:
    samples = word_clip(0, 3)
    bad = samples[:500].copy()
    bad[77] = value
    c.hear(samples, 16_000)
    with pytest.raises(Refused) as refused:
        level2.call("ea_recognizer_push", c.handle.pointer, bad.ctypes.data_as(c_void_p), c_size_t(len(bad)))
    assert refused.value.status == status
    embedding = np.empty(c.dim, np.float32)
    level2.call("ea_recognizer_embed", c.handle.pointer, embedding.ctypes.data_as(c_void_p))
    assert np.array_equal(embedding, python.embed(samples, 16_000))


def test_calls_out_of_order_are_refused(c: CRecognizer, model: Handle) -> None:
    samples = word_clip(0)
    pushed = (samples.ctypes.data_as(c_void_p), c_size_t(len(samples)))
    with pytest.raises(Refused, match="ea_recognizer_begin first"):
        level2.call("ea_recognizer_push", c.handle.pointer, *pushed)
    answer = level2.Answer(ctypes.sizeof(level2.Answer))
    with pytest.raises(Refused, match="there is no clip"):
        level2.call("ea_recognizer_classify", c.handle.pointer, c_size_t(1), byref(answer))
    c.hear(samples[:300], 16_000)
    with pytest.raises(Refused, match=r"holds 300 frame\(s\): at least 25 ms"):
        level2.call("ea_recognizer_classify", c.handle.pointer, c_size_t(1), byref(answer))
    with pytest.raises(Refused, match="no labels yet") as refused:
        CRecognizer(model, None).classify(samples, 16_000)
    assert refused.value.status == WRONG_STATE


def test_null_pointers_and_unset_structs_are_refused(c: CRecognizer, model: Handle) -> None:
    null = c_void_p()
    for function, *arguments in (
        ("ea_runtime_adopt", null, null),
        ("ea_model_open", None, null, None, null),
        ("ea_recognizer_open", null, None, null),
        ("ea_recognizer_begin", null, 16_000, 1),
        ("ea_recognizer_push", null, null, c_size_t(1)),
        ("ea_recognizer_classify", null, c_size_t(1), null),
        ("ea_recognizer_embed", null, null),
        ("ea_recognizer_enroll", null, None, None, None),
        ("ea_recognizer_save", null),
        ("ea_stream_open", null, null, null),
        ("ea_stream_poll", null, c_size_t(1), null, null),
    ):
        with pytest.raises(Refused) as refused:
            level2.call(function, *arguments)
        assert refused.value.status == INVALID_ARGUMENT, function
    for kind in ("runtime", "model", "recognizer", "stream"):
        getattr(library, f"ea_{kind}_free")(null)
    c.hear(word_clip(0), 16_000)
    for top_k, size, why in ((1, 0, "struct_size"), (1, 8, "struct_size"), (0, None, "top_k"), (101, None, "top_k")):
        answer = level2.Answer(ctypes.sizeof(level2.Answer) if size is None else size)
        with pytest.raises(Refused, match=why):
            level2.call("ea_recognizer_classify", c.handle.pointer, c_size_t(top_k), byref(answer))


def test_a_missing_or_wrong_runtime_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match=r"cannot be loaded: .*EDGEALIGN_ONNXRUNTIME") as refused:
        open_runtime(tmp_path / "libonnxruntime.so.1")
    assert refused.value.status == RUNTIME_MISSING
    with pytest.raises(Refused, match="it has no OrtGetApiBase"):
        open_runtime(HOME / "lib" / "libedgealign.so")
    monkeypatch.setenv("EDGEALIGN_ONNXRUNTIME", str(ONNXRUNTIME))
    open_runtime(None).free()


@pytest.mark.parametrize("version", ["1.16.3", "0.9", "new"])
def test_a_runtime_that_is_too_old_is_named(version: str) -> None:
    text = ctypes.create_string_buffer(version.encode())
    get_version = ctypes.CFUNCTYPE(c_void_p)(lambda: ctypes.addressof(text))
    get_api = ctypes.CFUNCTYPE(c_void_p, ctypes.c_uint32)(lambda _: None)
    base = (c_void_p * 2)(ctypes.cast(get_api, c_void_p), ctypes.cast(get_version, c_void_p))
    with pytest.raises(Refused, match=f"ONNX Runtime .*{re.escape(version)}"):
        level2.call("ea_runtime_adopt", base, byref(c_void_p()))


def test_a_runtime_can_be_passed_in_by_the_program(toy_bundle: Bundle, store: Path, python: Recognizer) -> None:
    host = ctypes.CDLL(str(ONNXRUNTIME))
    host.OrtGetApiBase.restype = c_void_p
    adopted = Handle.__new__(Handle)
    adopted.kind, adopted.pointer = "runtime", c_void_p()
    level2.call("ea_runtime_adopt", c_void_p(host.OrtGetApiBase()), byref(adopted.pointer))
    c = CRecognizer(open_model(adopted, toy_bundle.path), store)
    assert np.array_equal(c.embed(word_clip(0), 16_000), python.embed(word_clip(0), 16_000))


def _edit(folder: Path, change: dict) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value in change.items():
        *outer, last = key.split(".")
        section = manifest
        for name in outer:
            section = section[name]
        if value is None:
            del section[last]
        else:
            section[last] = value
    path.write_text(json.dumps(manifest))


BAD_MANIFESTS = (
    {"format": "other"}, {"format_version": 2}, {"format_version": 3}, {"extra": 1}, {"license": None}, {"dim": 0},
    {"dim": 31}, {"dim": True}, {"modality": "image"}, {"front_end.n_fft": 500}, {"front_end.hop_samples": 0},
    {"front_end.sample_rate_hz": 16000.0}, {"front_end.version": 2}, {"front_end.more": 1}, {"windows.max_frames": 5},
    {"windows.floor_quantile": 1.5}, {"windows.pad_frames": -1}, {"encoder.default": "int4"}, {"bank.rows": 39},
    {"calibration.w_z": -1.0}, {"calibration.top": 0}, {"calibration.w_bias": "1"}, {"calibration.prior_loo": None},
    {"files": {}}, {"fingerprint": "12"}, {"text_encoder.weight": 0}, {"attribution": "me"}, {"name": 5},
    {"license": "ж" * 201}, {"license": "a\0b"},
)  # fmt: skip


@pytest.mark.parametrize("change", BAD_MANIFESTS, ids=json.dumps)
def test_both_refuse_a_manifest_that_breaks_the_format(
    runtime: Handle, toy_bundle: Bundle, tmp_path: Path, change: dict
) -> None:
    folder = shutil.copytree(toy_bundle.path, tmp_path / "bundle")
    _edit(folder, change)
    with pytest.raises(BundleUnreadable):
        bundle = Bundle.open(folder)
        _ = bundle.filters, bundle.bank
        bundle.encode(np.zeros((1, 24, 20), np.float32))
    with pytest.raises(Refused) as refused:
        open_model(runtime, folder)
    assert refused.value.status == BUNDLE_UNREADABLE


def test_both_count_the_characters_of_a_text_and_not_its_bytes(
    runtime: Handle, toy_bundle: Bundle, tmp_path: Path
) -> None:
    folder = shutil.copytree(toy_bundle.path, tmp_path / "bundle")
    _edit(folder, {"license": "ж" * 150 + "🐦" * 50})
    Bundle.open(folder)
    open_model(runtime, folder)


# ---- bundles of format 2 ----


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {kind: make_kind(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


SOUNDS = ("audio_log_mel", "audio_waveform", "speech_waveform")


@pytest.mark.parametrize("kind", SOUNDS)
def test_every_kind_of_input_is_heard_as_python_hears_it(
    runtime: Handle, kinds: dict[str, Bundle], kind: str, tmp_path: Path
) -> None:
    python = Recognizer(kinds[kind], tmp_path / "some.store")
    for word, label in enumerate(WORDS):
        shots = [word_clip(word, voice) for voice in range(3)]
        python.enroll(shots, label=label, sample_rate_hz=16_000)
    c = CRecognizer(open_model(runtime, kinds[kind].path), python.store_path)
    long = np.concatenate([word_clip(word, 5) for word in range(6)])
    sizes = np.random.default_rng(0).integers(0, 3000, size=60).tolist()
    lengths = (500, 3999, 4000, 16_000, 19_999, 20_000, 23_999, 24_000, 31_234, len(long))
    for samples in (*(long[5000 : 5000 + n] for n in lengths), word_clip(1, 7)):
        answer = python.classify(samples, 16_000)
        assert_same_answer(answer, c.classify(samples, 16_000))
        if answer.distance is not None:
            assert np.array_equal(c.embed(samples, 16_000), python.embed(samples, 16_000)), len(samples)
            assert np.array_equal(c.embed(samples, 16_000, sizes), python.embed(samples, 16_000))
    assert python.classify(word_clip(1, 7), 16_000).label == "moto"
    assert c.enroll(word_clip(5), 16_000, "new", "new.wav") == 1
    assert c.classify(word_clip(5), 16_000)["label"] == "new"


def test_a_word_shorter_than_a_waveform_encoder_needs_is_filled_as_pythons(
    runtime: Handle, kinds: dict[str, Bundle], tmp_path: Path
) -> None:
    python = Recognizer(kinds["speech_waveform"], tmp_path / "some.store")
    c = CRecognizer(open_model(runtime, python.bundle.path), python.store_path)
    beep = np.zeros(1900, np.float32)
    beep[500:1400] = 0.5 * np.sin(np.arange(900) / 3)
    quiet = np.zeros(4000, np.float32)
    for samples in (beep, np.concatenate([beep, quiet]), np.concatenate([quiet, beep])):
        assert np.array_equal(c.embed(samples, 16_000), python.embed(samples, 16_000))


def test_without_a_bank_both_decide_alike(runtime: Handle, tmp_path: Path) -> None:
    python = Recognizer(make_kind(tmp_path, "audio_log_mel", n_bank=0), tmp_path / "some.store")
    for word, label in enumerate(WORDS):
        python.enroll([word_clip(word, voice) for voice in range(3)], label=label, sample_rate_hz=16_000)
    c = CRecognizer(open_model(runtime, python.bundle.path), python.store_path)
    for word in range(4):
        assert_same_answer(python.classify(word_clip(word, 9), 16_000), c.classify(word_clip(word, 9), 16_000))


def test_pictures_and_streams_of_whole_clips_are_refused(
    runtime: Handle, kinds: dict[str, Bundle], tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="it is for pictures: this library hears sound") as refused:
        open_model(runtime, kinds["image"].path)
    assert refused.value.status == BUNDLE_UNREADABLE
    for kind in SOUNDS:
        c = CRecognizer(open_model(runtime, kinds[kind].path), tmp_path / f"{kind}.store")
        with pytest.raises(Refused, match="a stream needs one that finds words") as refused:
            CStream(c, 16_000)
        assert refused.value.status == INVALID_ARGUMENT


BAD_MANIFESTS_2 = (
    ("audio_log_mel", {"input": []}), ("audio_log_mel", {"input.kind": "smell"}), ("audio_log_mel", {"input.more": 1}),
    ("audio_log_mel", {"input.front_end.n_fft": 500}), ("audio_log_mel", {"input.windows": 3}),
    ("audio_log_mel", {"modality": "smell"}), ("audio_log_mel", {"front_end": {}}),
    ("audio_log_mel", {"sources": None}), ("audio_log_mel", {"sources": []}), ("audio_log_mel", {"sources.smell": {}}),
    ("audio_log_mel", {"format_version": 1}),
    ("audio_log_mel", {"files": {}}), ("audio_waveform", {"input.sample_rate_hz": 3999}),
    ("audio_waveform", {"input.sample_rate_hz": 16000.0}), ("audio_waveform", {"input.windows.hop_s": 0}),
    ("audio_waveform", {"input.windows.hop_s": 1.5}), ("audio_waveform", {"input.windows.window_s": 61}),
    ("audio_waveform", {"input.windows.min_s": 2}), ("audio_waveform", {"input.windows.version": 3}),
    ("audio_waveform", {"input.windows.more": 3}), ("audio_waveform", {"sources.image.weight": 101}),
    ("audio_waveform", {"sources.image.file": "other.onnx"}), ("audio_waveform", {"sources.image.tokenizer": {}}),
    ("speech_waveform", {"input.front_end": None}), ("speech_waveform", {"input.sample_rate_hz": 8000}),
    ("speech_waveform", {"sources.text.tokenizer": {"kind": "edgealign"}}),
    ("speech_waveform", {"input.windows": {"version": 2, "window_s": 1, "hop_s": 1, "min_s": 1}}),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "change"), BAD_MANIFESTS_2, ids=str)
def test_both_refuse_a_manifest_that_breaks_format_2(
    runtime: Handle, kinds: dict[str, Bundle], tmp_path: Path, kind: str, change: dict
) -> None:
    folder = shutil.copytree(kinds[kind].path, tmp_path / "bundle")
    _edit(folder, change)
    with pytest.raises(BundleUnreadable):
        Bundle.open(folder)
    with pytest.raises(Refused) as refused:
        open_model(runtime, folder)
    assert refused.value.status == BUNDLE_UNREADABLE


BAD_JSON = (
    b"", b"{", b"[1,2]", b"null", b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":01}', b'{"a":1}x', b'{"a":"\x01"}',
    b'{"a":"\xff"}', b'{"a":"\\x"}', b'{"a":"\\ud800"}', b'{"a":1e}', b'{"a":tru}', b'{a:1}', b"[" * 40 + b"]" * 40,
    b'{"a":.5}', b'{"a":12345678901234567}', b"\xef\xbb\xbf{}", b'{"a":"\\u00', b'{"a"',
)  # fmt: skip


@pytest.mark.parametrize("data", BAD_JSON, ids=repr)
def test_what_is_not_json_is_refused(runtime: Handle, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(Refused) as refused:
        open_model(runtime, tmp_path)
    assert refused.value.status == BUNDLE_UNREADABLE


def test_a_hundred_thousand_keys_are_told_apart_before_anybody_gives_up(runtime: Handle, tmp_path: Path) -> None:
    keys = [f'"{i:x}":0' for i in range(100_000)]
    for members, why in ((keys, "its format is not 'edgealign-bundle'"), ([*keys, keys[7]], "a key appears twice")):
        (tmp_path / "manifest.json").write_text("{" + ",".join(members) + "}")
        with pytest.raises(Refused, match=why):
            open_model(runtime, tmp_path)


@pytest.mark.parametrize("name", ["encoder.onnx", "bank.f16", "filters.f32"])
@pytest.mark.parametrize("harm", ["flipped", "short", "missing", "link"])
def test_a_harmed_file_is_named(runtime: Handle, toy_bundle: Bundle, tmp_path: Path, name: str, harm: str) -> None:
    folder = shutil.copytree(toy_bundle.path, tmp_path / "bundle")
    data = bytearray((folder / name).read_bytes())
    (folder / name).unlink()
    if harm == "flipped":
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
    elif harm == "short":
        (folder / name).write_bytes(data[:-4])
    elif harm == "link":
        (folder / name).symlink_to(Path(toy_bundle.path) / name)
    with pytest.raises(Refused, match=re.escape(name)) as refused:
        open_model(runtime, folder)
    assert refused.value.status == BUNDLE_UNREADABLE


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.9, 6e-8])
def test_both_refuse_a_bank_whose_rows_are_not_of_unit_length(
    runtime: Handle, toy_bundle: Bundle, tmp_path: Path, value: float
) -> None:
    import hashlib

    folder = shutil.copytree(toy_bundle.path, tmp_path / "bundle")
    rows = np.zeros((40, 32), np.float16)
    rows[:, 3] = 1

    def write() -> None:
        (folder / "bank.f16").write_bytes(rows.tobytes())
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["bank.f16"]["sha256"] = hashlib.sha256(rows.tobytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))

    write()
    assert np.array_equal(Bundle.open(folder).bank, rows)
    open_model(runtime, folder)
    rows[-1, 3] = value
    write()
    with pytest.raises(BundleUnreadable):
        _ = Bundle.open(folder).bank
    with pytest.raises(Refused, match="bank") as refused:
        open_model(runtime, folder)
    assert refused.value.status == BUNDLE_UNREADABLE


def test_an_encoder_that_points_to_other_files_is_refused(runtime: Handle, toy_bundle: Bundle, tmp_path: Path) -> None:
    import hashlib

    import onnx
    from onnx.external_data_helper import set_external_data

    folder = shutil.copytree(toy_bundle.path, tmp_path / "bundle")
    graph = onnx.load(folder / "encoder.onnx")
    set_external_data(graph.graph.initializer[0], location="../secret")
    data = graph.SerializeToString()
    for content, why in ((data, "points to data in other files"), (b"\x0f" * 50, "is not an ONNX model")):
        (folder / "encoder.onnx").write_bytes(content)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["encoder.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(Refused, match=why):
            open_model(runtime, folder)


def test_an_encoder_that_onnx_runtime_refuses_is_reported(runtime: Handle, toy_bundle: Bundle, tmp_path: Path) -> None:
    import hashlib

    folder = shutil.copytree(toy_bundle.path, tmp_path / "bundle")
    (folder / "encoder.onnx").write_bytes(b"")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["encoder.onnx"] = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Refused, match="cannot load the encoder") as refused:
        open_model(runtime, folder)
    assert refused.value.status == RUNTIME_FAILED


def test_an_unknown_variant_is_refused(runtime: Handle, toy_bundle: Bundle) -> None:
    with pytest.raises(Refused, match="no encoder variant 'int4'"):
        open_model(runtime, toy_bundle.path, "int4")


# ---- what makes no sense ----


def test_sound_that_overshoots_when_it_is_resampled_is_heard(c: CRecognizer, python: Recognizer) -> None:
    """As loud as is taken, and of a form whose edges a filter makes louder yet."""
    samples = np.sign(np.sin(np.arange(44_100) / 35 + 0.1)).astype(np.float32)
    samples *= np.repeat(np.float32([1e2, 1e6, 1e2]), 14_700)
    assert python.classify(samples, 44_100).distance is not None
    assert c.classify(samples, 44_100)["has_sound"]
    stream = CStream(c, 44_100)
    assert len(stream.hear(samples, 4_410)) == 1


CALLS_WITH_NOTHING = """
import ctypes, sys
library, message = ctypes.CDLL(sys.argv[1]), ctypes.create_string_buffer(512)
for declared in sys.argv[2:]:
    function, kinds, is_void, has_message = declared.split()
    print(function, end=" ", flush=True)
    call, message.value = getattr(library, function), b""
    call.restype = None if is_void == "True" else ctypes.c_size_t
    arguments = [ctypes.c_float() if kind == "f" else ctypes.c_void_p() for kind in kinds]
    if has_message == "True":
        arguments[-1] = message
    result = call(*arguments)
    print(0 if result is None else result & 0xFFFFFFFF, bool(message.value))
"""
DECLARATION = re.compile(r"^EA_(?:API|KERNEL) ([\w ]+?[ *]+)(ea_\w+)\(([^;]*?)\);", re.MULTILINE)
NEED_NOTHING = ("ea_version", "ea_instruction_set", "ea_status_text", "ea_instruction_set_check")


def test_no_function_minds_that_all_it_is_given_is_null_or_0() -> None:
    told, expected = [], []
    for header in ("edgealign.h", "edgealign_rt.h"):
        for returned, name, arguments in DECLARATION.findall((INCLUDE / header).read_text()):
            if name in NEED_NOTHING:
                continue
            has_message, has_status = arguments.endswith("char *message"), returned == "ea_status "
            kinds = "".join("f" if re.match(r" *float \w", one) else "p" for one in arguments.split(","))
            told.append(f"{name} {kinds} {returned == 'void '} {has_message}")
            expected.append(f"{name} {INVALID_ARGUMENT if has_status else 0} {has_message}")
    words = [sys.executable, "-c", CALLS_WITH_NOTHING, library._name, *told]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == expected
    assert (done.returncode, done.stderr, len(expected) > 80) == (0, "", True)


@pytest.mark.parametrize("n_channels", [1, 2, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_a_number_of_frames_that_was_negative_is_no_number_of_frames(
    c: CRecognizer, n_channels: int, dtype: type
) -> None:
    stream = CStream(c, 16_000, n_channels)
    level2.call("ea_recognizer_begin", c.handle.pointer, 16_000, n_channels)
    suffix, samples = "_i16" if dtype == np.int16 else "", np.zeros(64, dtype).ctypes.data_as(c_void_p)
    for count in (-1, -480, 2**63 // n_channels, 2**64 // n_channels // np.dtype(dtype).itemsize + 1):
        assert getattr(library, f"ea_stream_push{suffix}")(stream.handle.pointer, samples, c_size_t(count)) == 1
        with pytest.raises(Refused, match="no memory holds as many") as refused:
            level2.call(f"ea_recognizer_push{suffix}", c.handle.pointer, samples, c_size_t(count))
        assert refused.value.status == INVALID_ARGUMENT
    assert library.ea_stream_n_dropped(stream.handle.pointer) == 0


# ---- the stream ----


def listening(recognizer: CRecognizer, samples: np.ndarray, rate: int, block: int, **options: float) -> list[dict]:
    return CStream(recognizer, rate, **options).hear(samples, block)


@pytest.fixture(scope="module")
def conversation() -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Half a minute of hiss with words of known and unknown labels in it, and where they are."""
    hiss = 1e-4 * np.random.default_rng(5).normal(size=30 * 16_000).astype(np.float32)
    truth = []
    for i, at_s in enumerate(np.arange(1.0, 28.0, 2.1)):
        sound = word_clip(i % 3, 10 + i, silence_s=0)
        start = int(at_s * 16_000)
        hiss[start : start + len(sound)] += sound
        truth.append((WORDS[i % 3], at_s, at_s + len(sound) / 16_000))
    return hiss, truth


def test_the_stream_answers_each_word_soon_after_its_end(c: CRecognizer, conversation: tuple) -> None:
    samples, truth = conversation
    heard = listening(c, samples, 16_000, 160)
    assert len(heard) == len(truth)
    for event, (label, start_s, end_s) in zip(heard, truth, strict=True):
        assert event["label"] in (label, None)
        assert abs(event["start_s"] - start_s) < 0.2
        assert 0 < event["heard_s"] - end_s <= (0.3 if event["label"] else 0.4)
    assert sum(event["label"] is not None for event in heard) > len(truth) / 2


@pytest.mark.parametrize(("rate", "block"), [(16_000, 7), (16_000, 9000), (48_000, 4410)])
def test_the_sizes_of_blocks_change_nothing_in_a_stream(
    c: CRecognizer, conversation: tuple, rate: int, block: int
) -> None:
    samples = conversation[0][: 12 * 16_000]
    if rate != 16_000:
        samples = np.interp(np.arange(12 * rate) / rate, np.arange(len(samples)) / 16_000, samples).astype(np.float32)
    times = [(event["label"], event["start_s"], event["end_s"], event["distance"]) for event in
             listening(c, samples, rate, rate // 100)]  # fmt: skip
    assert times == [
        (event["label"], event["start_s"], event["end_s"], event["distance"])
        for event in listening(c, samples, rate, block)
    ]
    assert len(times) == 6


def test_a_full_ring_takes_nothing_and_counts_it(c: CRecognizer) -> None:
    stream = CStream(c, 16_000, ring_s=0.5)
    assert stream.push(np.zeros(8_000, np.float32)) == 0
    assert stream.push(np.zeros(1, np.float32)) == LIMIT
    assert library.ea_stream_n_dropped(stream.handle.pointer) == 1
    stream.poll_all()
    assert stream.push(np.zeros(8_000, np.int16)) == 0
    assert stream.push(np.full(10, np.nan, np.float32)) == NOT_FINITE
    stream.end()
    assert stream.push(np.zeros(10, np.float32)) == WRONG_STATE


def test_a_label_is_not_repeated_before_the_debounce_time(c: CRecognizer) -> None:
    word = word_clip(0, 1)
    pause = np.zeros(3_000, np.float32)
    samples = np.concatenate([word, pause, word, pause, word])
    samples += 1e-4 * np.random.default_rng(0).normal(size=len(samples)).astype(np.float32)
    assert len(listening(c, samples, 16_000, 800)) == 3
    assert len(listening(c, samples, 16_000, 800, debounce_s=5)) == 1


@pytest.mark.parametrize(("label", "answered"), [("maji", []), ("moto", ["moto"])])
def test_a_label_is_not_another_one_whose_number_it_got(
    model: Handle, toy_bundle: Bundle, tmp_path: Path, label: str, answered: list[str]
) -> None:
    """Here "maji" was learned as number 0; meanwhile the store on disk got "moto", which is number 0 after saving."""
    c = CRecognizer(model, tmp_path / "shared.store")
    c.enroll(word_clip(0, 1), 16_000, "maji")
    stream = CStream(c, 16_000, debounce_s=60)

    def said(word: str) -> list[str]:
        samples = np.concatenate([word_clip(WORDS.index(word), 1), np.zeros(12_000, np.float32)])
        assert stream.push(samples + 1e-4 * np.random.default_rng(0).normal(size=len(samples)).astype(np.float32)) == 0
        return [event["label"] for event in stream.poll_all()]

    assert said("maji") == ["maji"]
    Recognizer(toy_bundle, tmp_path / "shared.store").enroll([word_clip(1, 1)], label="moto", sample_rate_hz=16_000)
    c.save()
    assert c.labels() == ["moto", "maji"]
    assert said(label) == answered


def test_a_stream_learns_while_it_listens(model: Handle, conversation: tuple) -> None:
    samples, _ = conversation
    c = CRecognizer(model, None)
    stream = CStream(c, 16_000)
    stream.push(samples[: 2 * 16_000])
    (first,) = stream.poll_all()
    assert (first["label"], first["top"], first["has_sound"]) == (None, [], True)
    for voice in range(3):
        c.enroll(word_clip(1, voice), 16_000, "moto")
    stream.push(samples[2 * 16_000 : 4 * 16_000])
    (second,) = stream.poll_all()
    assert [name for name, *_ in second["top"]] == ["moto"]


@pytest.mark.parametrize("options", [{"ring_s": -1}, {"ring_s": 61}, {"debounce_s": -1}, {"debounce_s": np.nan}])
def test_options_that_make_no_sense_are_refused(c: CRecognizer, options: dict) -> None:
    with pytest.raises(Refused, match=next(iter(options))):
        CStream(c, 16_000, **options)


def test_a_stream_of_another_rate_hears_the_same_words(c: CRecognizer, conversation: tuple) -> None:
    samples, _ = conversation
    import soxr

    heard = listening(c, soxr.resample(samples, 16_000, 44_100).astype(np.float32), 44_100, 441)
    expected = listening(c, samples, 16_000, 160)
    assert [event["label"] for event in heard] == [event["label"] for event in expected]
    assert all(abs(a["end_s"] - b["end_s"]) <= 0.03 for a, b in zip(heard, expected, strict=True))


# ---- programs ----

C99 = ("gcc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-g")
LINK = (f"-I{INCLUDE}", f"-L{HOME}/lib", f"-Wl,-rpath,{HOME}/lib", "-ledgealign")


@pytest.fixture(scope="module")
def header_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in the comment at the top of the header, compiled."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    comment = re.search(r"\n\n((?:       .*\n|\n)+)", (INCLUDE / "edgealign_rt.h").read_text()).group(1)
    source = tmp_path_factory.mktemp("rt") / "program.c"
    source.write_text(re.sub(r"^       ", "", comment, flags=re.MULTILINE))
    subprocess.run([*C99, source, "-o", source.with_suffix(""), *LINK], check=True)
    return source.with_suffix("")


def test_the_program_of_the_header_names_a_word(
    header_program: Path, toy_bundle: Bundle, store: Path, python: Recognizer
) -> None:
    samples = word_clip(0, 6)[:16_000]
    done = subprocess.run(
        [header_program, ONNXRUNTIME, toy_bundle.path, store], input=samples.tobytes(), capture_output=True, check=True
    )
    answer = python.classify(samples, 16_000)
    assert done.stdout.decode() == f"{answer.label} {answer.probability:.4f}\n"
    failed = subprocess.run([header_program, "nothing.so", "b", "s"], input=b"", capture_output=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith(b"ONNX Runtime cannot be loaded")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runtime that allocates nothing and is quick under valgrind, beside tests/c/every_call.c."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    library = tmp_path_factory.mktemp("every_call") / "stand_in.so"
    subprocess.run([*C99, "-O1", "-shared", "-fPIC", C / "stand_in_runtime.c", "-o", library, "-lm"], check=True)
    return library


def every_call(stand_in: Path, bundle: Bundle, folder: Path, *before: str, defines: tuple[str, ...] = ()) -> None:
    program = folder / "every_call"
    subprocess.run([*C99, *defines, C / "every_call.c", "-o", program, *LINK], check=True)
    done = subprocess.run(
        [*before, program, stand_in, bundle.path, folder / "new.store"],
        input=two_words().tobytes(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr.decode(), done.stdout.decode().splitlines()[1:]) == (
        0,
        "",
        ["2 heard, 0 dropped"],
    )


def test_the_audio_path_allocates_nothing(stand_in: Path, toy_bundle: Bundle, tmp_path: Path) -> None:
    every_call(stand_in, toy_bundle, tmp_path, defines=("-DCOUNT_ALLOCATIONS", "-Wno-attributes"))


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind")
def test_every_call_is_clean_under_valgrind(stand_in: Path, toy_bundle: Bundle, tmp_path: Path) -> None:
    suppressions = tmp_path / "loader.supp"
    suppressions.write_text(  # what the loader of libraries does with its own paths
        "{\n loader\n Memcheck:Addr8\n fun:strncmp\n fun:is_dst\n ...\n}\n"
        "{\n loader\n Memcheck:Leak\n match-leak-kinds: reachable\n ...\n fun:_dl_open\n}\n"
        "{\n loader\n Memcheck:Leak\n match-leak-kinds: reachable\n ...\n fun:dlopen*\n}\n"
    )
    check = ("valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all")
    every_call(stand_in, toy_bundle, tmp_path, *check, "--errors-for-leak-kinds=all", f"--suppressions={suppressions}")
