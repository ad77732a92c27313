"""Which encoder of a bundle runs, and quantizing a bundle from files to a variant that is used."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from toy_bundle import CALIBRATION, DIM, VOCABULARY, text_encoder, word_clip
from toy_kinds import RATE_HZ, make_kind, picture

from edgealign import Bundle, Recognizer, demo, golden, variants
from edgealign.bundle import package_bundle, write_bundle
from edgealign.errors import InvalidInput
from edgealign.export.quantize import MIN_SNR_DB, QuantizationLost
from edgealign.export.quantize_bundle import quantize_bundle
from edgealign.manifest import MANIFEST

CLIPS = Path(demo.CLIPS)
INT8 = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that each variant takes on a made-up clock; the encoder is the real one."""
    seconds, now = {"int8": 0.002, "fp32": 0.001}, [0.0]
    encode = Bundle.encode

    def timed(bundle: Bundle, values: np.ndarray, variant: str | None = None) -> np.ndarray:
        now[0] += seconds[variant or bundle.variant]
        return encode(bundle, values, variant)

    monkeypatch.setattr(Bundle, "encode", timed)
    monkeypatch.setattr(variants.time, "perf_counter", lambda: now[0])
    return seconds


def test_the_fastest_is_used_once_it_was_measured(toy_bundle: Bundle, cache: Path, times: dict) -> None:
    assert Bundle.open(toy_bundle.path).variant == "int8"
    latency_ms = variants.measure(Bundle.open(toy_bundle.path))
    assert latency_ms == {"fp32": pytest.approx(1), "int8": pytest.approx(2)}
    assert Bundle.open(toy_bundle.path).variant == "fp32"
    assert Bundle.open(toy_bundle.path, variant="int8").variant == "int8"
    times["int8"] = 0.0001
    variants.measure(Bundle.open(toy_bundle.path))
    assert Bundle.open(toy_bundle.path).variant == "int8"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"variant": "fp32"}', '{"device": "another processor", "variant": "fp32"}', "\xff", '"x"'],
)
def test_a_memory_of_another_device_or_a_damaged_one_is_as_none(toy_bundle: Bundle, cache: Path, text: str) -> None:
    file = cache / "edgealign" / "variants" / f"{toy_bundle.encoder_sha256}.json"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="latin-1")
    assert Bundle.open(toy_bundle.path).variant == "int8"


def test_a_variant_that_is_too_noisy_is_never_taken_for_its_speed(
    toy_bundle: Bundle, cache: Path, times: dict, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(toy_bundle.path, tmp_path / "noisy"))
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["encoder"]["variants"]["fp32"]["snr_db"] = MIN_SNR_DB - 1
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert set(variants.measure(Bundle.open(folder))) == {"fp32", "int8"}
    assert Bundle.open(folder).variant == "int8"
    assert Bundle.open(folder, variant="fp32").variant == "fp32"


def test_info_shows_every_variant_and_measures_when_it_is_told_to(edgealign, cache: Path) -> None:
    known = Bundle.open(package_bundle("speech")).manifest["encoder"]["variants"]
    shown = edgealign("bundle", "info", package_bundle("speech"))
    rows = {line.split()[0]: line for line in shown.out.splitlines() if line.startswith(("fp32 ", "int8 "))}
    assert f"{known['int8']['snr_db']:.1f}" in rows["int8"] and "used here, default" in rows["int8"]
    assert f"{known['fp32']['snr_db']:.1f}" in rows["fp32"] and "used here" not in rows["fp32"]
    assert not (cache / "edgealign").exists()
    measured = edgealign("bundle", "info", package_bundle("speech"), "--measure")
    assert "ms here" in measured.out and measured.code == 0
    chosen = json.loads(next((cache / "edgealign" / "variants").iterdir()).read_text())
    assert chosen["variant"] in ("fp32", "int8")
    rows = {line.split()[0]: line for line in measured.out.splitlines() if line.startswith(("fp32 ", "int8 "))}
    assert "used here" in rows[chosen["variant"]]


def test_commands_take_the_variant_that_is_named(edgealign, samples_folder: Path, tmp_path: Path) -> None:
    clip = samples_folder / "maji" / "voice0.wav"
    assert edgealign("enroll", samples_folder, "--variant", "fp32").code == 0
    assert "maji" in edgealign("classify", clip, "--variant", "fp32").out
    assert edgealign("embed", clip, "-o", tmp_path / "e.npz", "--variant", "int8").code == 0
    assert ["variant", "fp32"] in [line.split() for line in edgealign("bench", "--variant", "fp32").out.splitlines()]
    ran = edgealign("classify", clip, "--variant", "int4")
    assert (ran.code, ran.out) == (2, "")
    assert "no encoder variant 'int4': it has fp32, int8" in ran.err


# ---- bundle quantize ----


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    """The shipped bundle with one variant more, made of its own demo's clips."""
    lines: list[str] = []
    folder = tmp_path_factory.mktemp("quantized") / "bundle"
    samples = [CLIPS / "enroll", CLIPS / "ask"]
    made = quantize_bundle(package_bundle("speech"), samples, folder, "int8-static", CLIPS / "enroll", lines.append)
    return made, lines


def test_the_bundle_gains_a_variant_that_says_what_was_measured(quantized: tuple[Bundle, list[str]]) -> None:
    made, lines = quantized
    entries = made.manifest["encoder"]["variants"]
    assert set(entries) == {"fp32", "int8", "int8-static"}
    entry = entries["int8-static"]
    assert entry["snr_db"] >= MIN_SNR_DB and 0 < entry["max_cosine_drift"] < 0.1
    assert entry["accuracy"] > 0.9 and entry["latency_ms"] > 0
    assert abs(entries["fp32"]["accuracy"] - entry["accuracy"]) < 0.01
    assert any("int8-static passes" in line for line in lines)
    assert made.encoder_sha256 != Bundle.open(package_bundle("speech")).encoder_sha256
    assert all(stage.passed for stage in golden.compare(made))
    assert {f"encoder {name}" for name in entries} <= {stage.stage for stage in golden.compare(made)}


def test_all_else_of_the_bundle_is_as_it_was(quantized: tuple[Bundle, list[str]], tmp_path: Path) -> None:
    made, _ = quantized
    was = Bundle.open(package_bundle("speech"))
    for name in set(was.manifest["files"]) - {"golden.npz"}:
        assert made.read(name) == was.read(name)
    changed = {key for key in was.manifest if was.manifest[key] != made.manifest[key]}
    assert changed == {"encoder", "files", "fingerprint"}
    recognizer = Recognizer(Bundle.open(made.path, variant="int8-static"), tmp_path / "words.store")
    recognizer.enroll([CLIPS / "enroll"])
    other = Recognizer(Bundle.open(made.path, variant="fp32"), tmp_path / "words.store")
    clips = sorted((CLIPS / "enroll").rglob("*.ogg"))
    assert all(other.classify(clip).top[0].label == clip.parent.name for clip in clips)


def test_what_does_not_pass_leaves_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgealign.export import gates

    monkeypatch.setattr(gates, "MIN_SNR_DB", 70.0)
    monkeypatch.setattr(gates, "BUDGET_S", 1.0)
    with pytest.raises(QuantizationLost, match="no int8 encoder passes"):
        quantize_bundle(package_bundle("speech"), [CLIPS / "ask"], tmp_path / "new", "int8-static")
    assert list(tmp_path.iterdir()) == []


def test_quantizing_refuses_bad_input_in_one_sentence(edgealign, toy_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "text.wav").write_text("no sound")
    target = tmp_path / "new"
    for arguments, code, sentence in (
        ((toy_bundle.path, "--samples", tmp_path / "empty", "-o", target), 4, "holds no"),
        ((toy_bundle.path, "--samples", tmp_path / "none", "-o", target), 4, "does not exist"),
        ((toy_bundle.path, "--samples", tmp_path / "words", "-o", target), 4, "can be used"),
        ((toy_bundle.path, "--samples", CLIPS / "ask", "-o", tmp_path / "empty"), 2, "is not a bundle"),
        ((tmp_path / "empty", "--samples", CLIPS / "ask", "-o", target), 3, "manifest.json"),
        ((toy_bundle.path, "--samples", CLIPS / "enroll" / "fire", "-o", target), 2, "5 quantization samples"),
    ):
        ran = edgealign("bundle", "quantize", *arguments)
        assert (ran.code, ran.out) == (code, ""), ran
        assert sentence in ran.err.splitlines()[-1]
    assert not target.exists()


# ---- encoders that labels start from ----

WORDS = [a + b + c for a in "mnpsk" for b in "aeiou" for c in ("ji", "to", "na")]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("\ufeff" + "\n".join([*WORDS, "", WORDS[0], "  "]), encoding="utf-8")
    return tmp_path / "words.txt"


def largest_tensor(bundle: Bundle, name: str) -> int:
    """The element type of the largest tensor of a graph."""
    graph = onnx.load_from_string(bundle.read(name)).graph
    return max(graph.initializer, key=lambda tensor: np.prod(tensor.dims)).data_type


def test_a_text_encoder_is_replaced_by_one_in_int8(words: Path, tmp_path: Path) -> None:
    was = make_kind(tmp_path / "was", "speech_waveform")
    lines: list[str] = []
    made = quantize_bundle(was.path, [], tmp_path / "new", "int8-dynamic", report=lines.append, texts=words)
    assert {key for key in was.manifest if was.manifest[key] != made.manifest[key]} == {
        "sources", "files", "fingerprint",
    }  # fmt: skip
    assert was.manifest["files"].keys() - made.manifest["files"].keys() == {"text_encoder.onnx"}
    assert made.read("encoder.onnx") == was.read("encoder.onnx")
    entry = made.manifest["sources"]["text"]
    assert entry == was.manifest["sources"]["text"] | {"file": "text.int8-dynamic.onnx"}
    assert largest_tensor(made, entry["file"]) in INT8
    tokens = [made.tokenizer.encode(word) for word in ("maji", "moto", "zebra")]
    drifts = [1 - float(made.encode_text(one) @ was.encode_text(one)) for one in tokens]
    assert 0 < max(drifts) < 1e-2
    assert all(stage.passed for stage in golden.compare(made))
    assert any(line.startswith("text encoder, int8-dynamic passes") for line in lines)
    card = made.read("README.md").decode()
    assert card.startswith("A toy: it was never trained.\n") and "The text encoder was made int8-dynamic by" in card
    recognizer = Recognizer(made, tmp_path / "words.store")
    recognizer.enroll(text="maji")
    assert recognizer.classify(word_clip(0), RATE_HZ).top[0].label == "maji"


def test_a_picture_encoder_is_replaced_by_one_in_int8_and_both_at_once_pass(tmp_path: Path) -> None:
    was = make_kind(tmp_path / "was", "audio_waveform")
    for label in range(4):
        (tmp_path / "pictures" / f"{label}").mkdir(parents=True)
        for one in range(4):
            Image.fromarray(picture(label, one)).save(tmp_path / "pictures" / f"{label}" / f"{one}.png")
    (tmp_path / "pictures" / "0" / "broken.png").write_text("no picture")
    lines: list[str] = []
    made = quantize_bundle(
        was.path, [], tmp_path / "new", "int8-dynamic", report=lines.append, pictures=[tmp_path / "pictures"]
    )
    assert made.source("image") == replace(was.source("image"), file="image.int8-dynamic.onnx")
    assert largest_tensor(made, "image.int8-dynamic.onnx") in INT8
    assert all(stage.passed for stage in golden.compare(made))
    assert any(line.startswith("passed over") and "broken.png" in line for line in lines)
    assert "The picture encoder was made int8-dynamic by" in made.read("README.md").decode()
    with pytest.raises(QuantizationLost, match="no layer that this way can quantize"):
        quantize_bundle(made.path, [], tmp_path / "twice", "int8-dynamic", pictures=[tmp_path / "pictures"])
    assert not (tmp_path / "twice").exists()


def test_a_bundle_of_format_1_keeps_its_format_and_says_what_words_lost(
    toy_bundle: Bundle, words: Path, tmp_path: Path
) -> None:
    made = quantize_bundle(toy_bundle.path, [], tmp_path / "new", "int8-dynamic", texts=words)
    assert made.manifest["format_version"] == 1
    was = toy_bundle.manifest["text_encoder"]
    assert made.manifest["text_encoder"] == was | {"file": "text.int8-dynamic.onnx"}
    assert made.manifest["encoder"] == toy_bundle.manifest["encoder"]
    assert all(stage.passed for stage in golden.compare(made))


def test_a_bundle_of_words_alone_has_the_int8_encoder_and_no_other(words: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "words.onnx").write_bytes(text_encoder(np.random.default_rng(0)))
    (source / "vocab.json").write_text(json.dumps(VOCABULARY))
    (source / "bank.f16").write_bytes(b"")
    tokenizer = {"kind": "edgealign", "file": "vocab.json"}
    was = write_bundle(
        tmp_path / "was", source, golden_texts=[("maji", "grapheme", "sw")], name="words", modality="text",
        bundle_version="1", dim=DIM, input={"kind": "text"}, calibration=CALIBRATION, license="CC0-1.0", attribution=[],
        encoder={"default": "fp32", "variants": {"fp32": {"file": "words.onnx"}}},
        sources={"text": {"file": "words.onnx", "weight": 1.0, "tokenizer": tokenizer}},
        bank={"file": "bank.f16", "rows": 0},
    )  # fmt: skip
    made = quantize_bundle(was.path, [], tmp_path / "new", texts=words)
    assert made.variants == [made.variant] and made.variant.startswith("int8-")
    assert made.encoder_file() == made.source("text").file
    assert [name for name in made.manifest["files"] if name.endswith(".onnx")] == [made.encoder_file()]
    assert made.manifest["encoder"]["variants"][made.variant]["snr_db"] >= MIN_SNR_DB
    for arguments in ({"samples": [CLIPS / "ask"]}, {"samples": [], "texts": words, "evaluate": CLIPS / "ask"}):
        with pytest.raises(InvalidInput, match="encodes words alone"):
            quantize_bundle(was.path, target=tmp_path / "other", **arguments)


def test_sources_are_refused_in_one_sentence(edgealign, toy_bundle: Bundle, words: Path, tmp_path: Path) -> None:
    audio = make_kind(tmp_path / "audio", "audio_log_mel")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "few.txt").write_text("maji\nmoto")
    (tmp_path / "blank.txt").write_text(" \n\n")
    target = tmp_path / "new"
    for arguments, code, sentence in (
        ((toy_bundle.path,), 2, "add --samples, --texts or --pictures"),
        ((audio.path, "--texts", words), 2, "has no text encoder"),
        ((toy_bundle.path, "--pictures", tmp_path), 2, "has no picture encoder"),
        ((toy_bundle.path, "--texts", tmp_path / "none.txt"), 4, "cannot be read (No such file or directory)"),
        ((toy_bundle.path, "--texts", tmp_path), 4, "cannot be read (Is a directory)"),
        ((toy_bundle.path, "--texts", tmp_path / "latin.txt"), 4, "is not UTF-8"),
        ((toy_bundle.path, "--texts", tmp_path / "blank.txt"), 4, "none of the texts"),
        ((toy_bundle.path, "--texts", tmp_path / "few.txt"), 2, "2 quantization samples were found"),
        ((toy_bundle.path, "--texts", words, "--evaluate", CLIPS / "enroll" / "fire"), 2, "fewer than two"),
    ):
        ran = edgealign("bundle", "quantize", *arguments, "-o", target)
        assert (ran.code, ran.out) == (code, ""), ran
        assert sentence in ran.err.splitlines()[-1], ran
    assert not target.exists()
