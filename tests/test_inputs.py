"""Inputs of every kind: how a clip is cut into windows, what a bundle of format 2 may say, and the way to a label."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import toy_kinds
from conftest import Ran
from toy_bundle import word_clip
from toy_kinds import KINDS, RATE_HZ, make_kind, sample

from edgealign import Bundle, Recognizer
from edgealign.doctor import examine
from edgealign.errors import AudioUnreadable, BundleUnreadable, ImageUnreadable, InvalidInput
from edgealign.inputs import ClipWindows, read_input
from edgealign.manifest import MANIFEST, fingerprint
from edgealign.samples import mean_of
from edgealign.strict_json import canonical_json


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {kind: make_kind(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def rate_of(kind: str) -> int | None:
    return None if kind == "image" else RATE_HZ


def cut(n_samples: int, windows: ClipWindows, rate_hz: int = 100, block: int = 70) -> list[tuple[int, int, int]]:
    """(first sample, samples of the clip, zeros behind) of each window; samples count from 1 so that zeros are seen."""
    clip = np.arange(1, n_samples + 1, dtype=np.float32)
    blocks = (clip[at : at + block] for at in range(0, n_samples, block))
    found = []
    for window in windows.cut(blocks, rate_hz):
        inside = window[window > 0]
        assert np.array_equal(inside, np.arange(inside[0], inside[0] + len(inside)))
        assert not window[len(inside) :].any()
        found.append((int(inside[0]) - 1, len(inside), len(window) - len(inside)))
    return found


def test_windows_cover_a_clip_in_whole_hops_and_one_more_ends_with_it() -> None:
    windows = ClipWindows(2, 1.0, 0.4, 0.3)
    assert cut(100, windows) == [(0, 100, 0)]
    assert cut(119, windows) == [(0, 100, 0)]  # less than half a hop is left
    assert cut(120, windows) == [(0, 100, 0), (20, 100, 0)]
    assert cut(140, windows) == [(0, 100, 0), (40, 100, 0)]
    assert cut(199, windows) == [(0, 100, 0), (40, 100, 0), (80, 100, 0), (99, 100, 0)][:3]
    assert cut(200, windows) == [(0, 100, 0), (40, 100, 0), (80, 100, 0), (100, 100, 0)]
    apart = ClipWindows(2, 1.0, 1.0, 1.0)
    assert cut(249, apart) == [(0, 100, 0), (100, 100, 0)]
    assert cut(250, apart) == [(0, 100, 0), (100, 100, 0), (150, 100, 0)]


def test_a_clip_shorter_than_a_window_is_one_window_and_padded_only_up_to_what_the_encoder_needs() -> None:
    any_length = ClipWindows(2, 1.0, 0.5, 0.3)
    assert cut(99, any_length) == [(0, 99, 0)]
    assert cut(30, any_length) == [(0, 30, 0)]
    assert cut(12, any_length) == [(0, 12, 18)]
    assert cut(12, ClipWindows(2, 1.0, 0.5, 1.0)) == [(0, 12, 88)]


@pytest.mark.parametrize("block", [1, 7, 99, 100, 101, 1000])
def test_windows_do_not_depend_on_how_a_clip_is_read(block: int) -> None:
    windows = ClipWindows(2, 1.0, 0.3, 0.2)
    for n_samples in (5, 100, 130, 314, 777):
        assert cut(n_samples, windows, block=block) == cut(n_samples, windows, block=10_000)


def test_the_embedding_of_a_clip_is_the_mean_of_its_windows(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["audio_waveform"]
    clip = np.concatenate([word_clip(0), word_clip(1), word_clip(2)])
    windows = [clip[at : at + RATE_HZ] for at in range(0, len(clip) - RATE_HZ + 1, RATE_HZ // 2)]
    if 2 * (len(clip) - (RATE_HZ // 2 * (len(windows) - 1) + RATE_HZ)) >= RATE_HZ // 2:
        windows.append(clip[-RATE_HZ:])
    rows = np.concatenate([bundle.encode(window[None]) for window in windows]).astype(np.float64)
    mean = rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0))
    embedding = Recognizer(bundle, "nowhere.store").embed(clip, RATE_HZ)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, mean, atol=1e-6)
    assert np.array_equal(mean_of([rows[0].astype(np.float32)]), rows[0].astype(np.float32))
    with pytest.raises(BundleUnreadable, match="cancel"):
        mean_of([np.eye(3, dtype=np.float32)[0], -np.eye(3, dtype=np.float32)[0]])


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_learned_and_named(kind: str, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    recognizer = Recognizer(bundles[kind], tmp_path / "some.store")
    for label in range(3):
        shots = [sample(kind, label, one) for one in range(4)]
        report = recognizer.enroll(shots, label=f"label {label}", sample_rate_hz=rate_of(kind)).labels[0]
        assert (report.n_added, report.n_recordings) == (4, 4)
    for label in range(3):
        for one in (10, 11):
            answer = recognizer.classify(sample(kind, label, one), rate_of(kind))
            assert answer.label == f"label {label}"
            assert (answer.start_s is None) == (kind == "image")
    again = recognizer.enroll([sample(kind, 0, 0)], label="label 0", sample_rate_hz=rate_of(kind)).labels[0]
    assert (again.n_added, again.n_known) == (0, 1)
    assert Recognizer.open(tmp_path / "some.store", recognizer.bundle.path).store.modality == kind.partition("_")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_golden_vectors_hold_for_every_kind_and_damage_is_seen(
    kind: str, bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examination = examine(bundles[kind].path)
    assert examination.passed
    stages = {stage.stage for stage in examination.stages}
    assert {"encoder fp32", "matching"} <= stages
    assert ("front end" in stages) == (kind in ("audio_log_mel", "speech_waveform"))
    assert ("picture fitting" in stages) == (kind in ("audio_waveform", "image"))
    assert ("tokenizer" in stages) == (kind in ("speech_waveform", "image"))
    encode = Bundle.encode
    monkeypatch.setattr(Bundle, "encode", lambda self, values, variant=None: -encode(self, values, variant))
    assert not examine(bundles[kind].path).passed


def test_a_waveform_encoder_of_words_hears_the_samples_under_the_frames(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["speech_waveform"]
    from edgealign.words import find_word

    clip = word_clip(0)
    word = find_word(iter([clip]), bundle.front_end, bundle.windows, bundle.filters, with_samples=True)
    first = round(word.start_s * RATE_HZ)
    assert len(word.samples) == (word.log_mels.shape[1] - 1) * 160 + 400
    assert np.array_equal(word.samples, clip[first : first + len(word.samples)])
    beep = np.zeros(1900, np.float32)
    beep[500:1400] = 0.5 * np.sin(np.arange(900) / 3)
    short = find_word(iter([beep]), bundle.front_end, bundle.windows, bundle.filters, with_samples=True)
    assert len(short.samples) == 17 * 160 + 400  # of the 18 frames that the encoder sees at least, the clip has 10
    heard = 9 * 160 + 400
    assert np.array_equal(short.samples[4 * 160 : 4 * 160 + heard], beep[:heard])
    assert np.count_nonzero(short.samples) == np.count_nonzero(beep)


def test_a_picture_starts_a_sound_and_a_text_starts_a_picture(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    from edgealign.store import PICTURE, TEXT

    sounds = Recognizer(bundles["audio_waveform"], tmp_path / "audio.store")
    report = sounds.enroll(image=toy_kinds.picture(7), label="frog").labels[0]
    assert (report.n_recordings, report.n_texts, report.text_share) == (0, 1, 1.0)
    assert sounds.store.rows()["kind"].tolist() == [PICTURE]
    assert sounds.enroll([word_clip(0)], label="frog", sample_rate_hz=RATE_HZ).labels[0].text_share == pytest.approx(
        1 / 3
    )
    with pytest.raises(InvalidInput, match="has no label"):
        sounds.enroll(image=toy_kinds.picture(7))
    before = sounds.store.sha256
    for asked in ({"text": "frog"}, {"image": toy_kinds.picture(8), "label": "frog", "labels_are_words": True}):
        with pytest.raises(InvalidInput, match="no text encoder: enroll recordings"):
            sounds.enroll(**asked)
    assert Recognizer(bundles["audio_waveform"], sounds.store_path).store.sha256 == before
    pictures = Recognizer(bundles["image"], tmp_path / "image.store")
    pictures.enroll(text="frog")
    assert pictures.store.rows()["kind"].tolist() == [TEXT]
    with pytest.raises(InvalidInput, match="no picture encoder: enroll pictures"):
        pictures.enroll(image=toy_kinds.picture(7), label="frog")


def test_without_a_bank_thresholds_come_from_the_support(tmp_path: Path) -> None:
    bundle = make_kind(tmp_path, "image", n_bank=0)
    assert bundle.bank.shape == (0, bundle.dim)
    recognizer = Recognizer(bundle, tmp_path / "image.store")
    for label in range(2):
        recognizer.enroll([sample("image", label, one) for one in range(3)], label=f"{label}")
    answer = recognizer.classify(sample("image", 0, 9))
    assert (answer.label, answer.distance <= answer.threshold) == ("0", True)
    assert recognizer.classify(255 - sample("image", 0, 9)).label is None


def test_the_fingerprint_of_format_2_covers_what_changes_an_embedding(bundles: dict[str, Bundle]) -> None:
    manifest = bundles["audio_waveform"].manifest
    other_file = {name: {**manifest["files"], name: {"sha256": "0" * 64, "bytes": 1}} for name in manifest["files"]}
    same = [fingerprint(manifest | {"files": other_file[name]}) for name in ("bank.f16", "README.md", "golden.npz")]
    same.append(fingerprint(manifest | {"calibration": {}, "name": "x", "license": "other"}))
    assert set(same) == {bundles["audio_waveform"].encoder_sha256}
    source = manifest["sources"]["image"]
    changed = [fingerprint(manifest | {"files": other_file[name]}) for name in ("encoder.onnx", "image_encoder.onnx")]
    changed.append(fingerprint(manifest | {"input": manifest["input"] | {"sample_rate_hz": 8000}}))
    changed.append(fingerprint(manifest | {"sources": {}}))
    stretched = source | {"input": source["input"] | {"fit": "stretch"}}
    changed.append(fingerprint(manifest | {"sources": {"image": stretched}}))
    assert len({*same, *changed}) == 1 + len(changed)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("image", {"input": {"kind": "smell"}}, "'input.kind' of the manifest is 'smell'"),
        ("image", {"input.fit": "tile"}, "fit is 'tile'"),
        ("image", {"input.height_px": 0}, "a picture of 0 px"),
        ("image", {"input.height_px": 12.0}, "expected a finite int"),
        ("image", {"input.depth_px": 3}, r"'input' of the manifest has the keys"),
        ("image", {"modality": "audio"}, "a bundle for audio cannot take image"),
        ("image", {"sources.sound": {}}, "'sources' of the manifest"),
        ("image", {"sources.text.weight": 0}, "'sources.text'"),
        ("image", {"sources.text.tokenizer": {"kind": "edgealign"}}, "names no file"),
        ("image", {"sources.text.tokenizer.file": "other.json"}, "names 'other.json' but not its sha256"),
        ("audio_waveform", {"modality": "image"}, "a bundle for image cannot take waveform"),
        ("audio_waveform", {"input.sample_rate_hz": 100}, "sample_rate_hz"),
        ("audio_waveform", {"input.windows.hop_s": 0}, "hop_s 0"),
        ("audio_waveform", {"input.windows.hop_s": 1.5}, "hop_s 1.5"),
        ("audio_waveform", {"input.windows.window_s": 1e9}, "window_s"),
        ("audio_waveform", {"input.windows.min_s": 2.0}, "min_s"),
        ("audio_waveform", {"input.windows.version": 3}, "expected"),
        ("audio_waveform", {"sources.image.input.kind": "waveform"}, "windows' of the manifest is not an object"),
        ("audio_waveform", {"front_end": {}}, "unknown keys front_end"),
        ("audio_log_mel", {"input.front_end.n_fft": 500}, "n_fft 500"),
        ("speech_waveform", {"input.front_end.sample_rate_hz": 8000}, "two sample rates"),
    ],
)
def test_a_manifest_of_format_2_that_makes_no_sense_is_refused(
    kind: str, change: dict, message: str, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundles[kind].path, tmp_path / "copy"))
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for path, value in change.items():
        section = manifest
        *outer, last = path.split(".")
        for key in outer:
            section = section[key]
        section[last] = value
    (folder / MANIFEST).write_bytes(canonical_json(manifest))
    with pytest.raises(BundleUnreadable, match=message):
        Bundle.open(folder)


def test_a_tokenizer_of_another_kind_is_refused_by_name(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundles["image"].path, tmp_path / "copy"))
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for kind in ("psychic", ["edgealign"], None):
        manifest["sources"]["text"]["tokenizer"]["kind"] = kind
        (folder / MANIFEST).write_bytes(canonical_json(manifest))
        with pytest.raises(BundleUnreadable, match="tokenizer is of the kind"):
            _ = Bundle.open(folder).tokenizer


def test_parts_of_a_bundle_that_another_kind_has_are_missed_with_a_sentence(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(InvalidInput, match="makes no log-mel energies"):
        _ = bundles["audio_waveform"].front_end
    with pytest.raises(InvalidInput, match="finds no words"):
        _ = bundles["audio_log_mel"].windows
    assert read_input(bundles["image"].manifest["input"]).resample == "bicubic"


@pytest.mark.parametrize("kind", KINDS)
def test_listening_needs_a_bundle_that_finds_words_by_log_mel_energies(
    kind: str, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    from edgealign.audio import AudioArray
    from edgealign.listen import listen

    recognizer = Recognizer(bundles[kind], tmp_path / "some.store")
    with pytest.raises(InvalidInput, match="cannot be listened with"):
        next(listen(recognizer, AudioArray(word_clip(0), RATE_HZ)))


def test_a_file_of_another_kind_is_refused(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", word_clip(0), RATE_HZ)
    with pytest.raises(ImageUnreadable, match="is not a picture"):
        Recognizer(bundles["image"], tmp_path / "x.store").embed(tmp_path / "clip.wav")
    save(toy_kinds.picture(1), tmp_path / "one.png")
    with pytest.raises(AudioUnreadable, match="is not audio"):
        Recognizer(bundles["audio_waveform"], tmp_path / "x.store").embed(tmp_path / "one.png")


def save(pixels: np.ndarray, path: Path) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def packaged(
    bundles: dict[str, Bundle], toy_bundle: Bundle, edgealign: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """The command line with a bundle for each modality in the place of the shipped ones."""
    shipped = {"speech": toy_bundle, "audio": bundles["audio_waveform"], "image": bundles["image"]}
    monkeypatch.delenv("EDGEALIGN_BUNDLE")
    monkeypatch.setattr("edgealign.bundle.package_bundle", lambda modality: shipped[modality].path if modality else "")
    return edgealign


def test_the_command_line_takes_the_modality_that_fits(packaged: Callable[..., Ran], tmp_path: Path) -> None:
    for label in range(2):
        for one in range(3):
            save(sample("image", label, one), tmp_path / "pictures" / f"p{label}" / f"{one}.png")
            path = tmp_path / "clips" / f"c{label}" / f"{one}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, word_clip(label, one), RATE_HZ)
    clip, shot = tmp_path / "clips" / "c0" / "0.wav", tmp_path / "pictures" / "p1" / "0.png"
    ran = packaged("enroll", tmp_path / "pictures")
    assert ran.code == 0 and "image.store" in ran.out and "pictures" in ran.out, ran
    assert "p1" in packaged("classify", shot).out
    assert "no store" in packaged("classify", clip).err

    assert "audio.store" in packaged("enroll", "--modality", "audio", tmp_path / "clips").out
    assert '"modality": "audio"' in packaged("classify", clip, "--format", "json").out
    assert '"modality": "image"' in packaged("classify", shot, "--format", "json").out
    assert "speech.store" in packaged("enroll", tmp_path / "clips").out
    asked = packaged("classify", clip)
    assert asked.code == 2 and "speech and audio" in asked.err and "--modality" in asked.err
    assert '"modality": "speech"' in packaged("classify", "--modality", "speech", clip, "--format", "json").out
    assert "stores for speech and audio and image" in packaged("store", "list").err
    assert "pictures" in packaged("store", "list", "--modality", "image").out

    ran = packaged("enroll", "--modality", "audio", "--image", shot, "--label", "frog")
    assert ran.code == 0 and "no recording was learned yet" in ran.out, ran
    assert "pictures to start from" in packaged("store", "list", "--modality", "audio").out
    ran = packaged("embed", shot, "-o", tmp_path / "out.npz")
    assert ran.code == 0 and np.load(tmp_path / "out.npz")["embeddings"].shape == (1, 32)
    named = tmp_path / "stores" / "audio.store"
    assert '"modality": "audio"' in packaged("classify", clip, "--store", named, "--format", "json").out
    assert packaged("classify", "--modality", "image", clip).code == 4
    for modality in ("speech", "audio", "image"):
        for command in (("doctor",), ("bundle", "info"), ("bundle", "verify"), ("bench",)):
            assert packaged(*command, "--modality", modality).code == 0, (command, modality)


def test_the_doctor_of_an_encoder_of_sounds_needs_no_pillow(
    bundles: dict[str, Bundle], edgealign: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    ran = edgealign("doctor", "--bundle", bundles["audio_waveform"].path)
    assert ran.code == 0 and "all other stages agree" in ran.out
    assert "picture fitting was not run: pictures need pillow" in ran.err
    rows = {line.split("  ")[0]: line.split()[-1] for line in ran.out.splitlines() if line}
    assert (rows["picture encoder"], rows["picture fitting"]) == ("ok", "run")
    assert edgealign("doctor", "--bundle", bundles["image"].path).code == 2


def test_a_bundle_for_another_modality_is_refused(bundles: dict[str, Bundle], edgealign: Callable[..., Ran]) -> None:
    ran = edgealign("enroll", "--modality", "image", "--bundle", bundles["audio_log_mel"].path, "x.wav")
    assert ran.code == 2 and "is for audio: one for image was asked for" in ran.err
