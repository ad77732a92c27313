"""The bundle: what is written is read back, and whatever a stranger may do to one is refused with a sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_bundle import CALIBRATION, DIM, WINDOWS, noise_clip, word_clip

from edgealign.bundle import Bundle, write_bundle
from edgealign.errors import BundleUnreadable, DeviceUnavailable, InvalidInput
from edgealign.manifest import MANIFEST, fingerprint
from edgealign.strict_json import canonical_json

FIELDS = (
    "name", "modality", "bundle_version", "dim", "front_end", "windows", "encoder", "text_encoder", "bank",
    "calibration", "license", "attribution",
)  # fmt: skip


@pytest.fixture
def copy(toy_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the toy bundle that a test may damage."""
    return Path(shutil.copytree(toy_bundle.path, tmp_path / "copy"))


def change_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    change(manifest)
    (folder / MANIFEST).write_bytes(canonical_json(manifest))


def replace_part(folder: Path, name: str, data: bytes) -> None:
    """Another file in the place of a part, with a manifest that vouches for it, as an attacker would write it."""
    import hashlib

    (folder / name).write_bytes(data)

    def vouch(manifest: dict) -> None:
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest["fingerprint"] = fingerprint(manifest)

    change_manifest(folder, vouch)


def test_open_reads_back_what_was_written(toy_bundle: Bundle) -> None:
    assert (toy_bundle.name, toy_bundle.modality, toy_bundle.dim, toy_bundle.variant) == ("toy", "speech", DIM, "int8")
    assert toy_bundle.windows.min_frames == WINDOWS["min_frames"]
    assert toy_bundle.calibration.top == CALIBRATION["top"]
    assert toy_bundle.filters.shape == (24, 257) and toy_bundle.filters.dtype == np.float32
    assert np.allclose(np.linalg.norm(toy_bundle.bank, axis=1), 1, atol=1e-6)
    assert "encoder.onnx" in toy_bundle.verify()


def test_embeddings_have_unit_length_at_any_number_of_frames(toy_bundle: Bundle) -> None:
    generator = np.random.default_rng(0)
    for n_frames in (18, 50, 300):
        log_mels = generator.normal(size=(2, 24, n_frames)).astype(np.float32)
        embeddings = toy_bundle.encode(log_mels)
        assert embeddings.shape == (2, DIM)
        assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
        assert np.array_equal(embeddings, toy_bundle.encode(log_mels, "fp32"))


def test_fingerprint_depends_on_what_changes_an_embedding_and_on_nothing_else(toy_bundle: Bundle) -> None:
    manifest = toy_bundle.manifest

    def changed(**parts: object) -> str:
        return fingerprint({**manifest, **parts})

    def other_file(name: str) -> str:
        return changed(files={**manifest["files"], name: {"sha256": "0" * 64, "bytes": 1}})

    assert fingerprint(manifest) == toy_bundle.encoder_sha256
    matters = [changed(windows={**manifest["windows"], "pad_frames": 11})]
    matters += [changed(front_end={**manifest["front_end"], "hop_samples": 161}), changed(dim=31)]
    matters += map(other_file, ("encoder.onnx", "encoder.fp32.onnx", "text_encoder.onnx", "vocab.json", "filters.f32"))
    assert len({toy_bundle.encoder_sha256, *matters}) == 1 + len(matters)
    for name in ("bank.f16", "README.md", "golden.npz"):
        assert other_file(name) == toy_bundle.encoder_sha256
    assert changed(calibration={}, license="other", name="x") == toy_bundle.encoder_sha256


def test_the_bundle_is_found_by_path_then_environment_then_package(
    toy_bundle: Bundle, other_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEALIGN_BUNDLE", other_bundle.path)
    assert Bundle.open().encoder_sha256 == other_bundle.encoder_sha256
    assert Bundle.open(toy_bundle.path).encoder_sha256 == toy_bundle.encoder_sha256


@pytest.mark.parametrize("name", ["encoder.onnx", "text_encoder.onnx", "filters.f32", "bank.f16", "vocab.json"])
@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "longer", "missing", "link"])
def test_a_damaged_part_is_refused_when_it_is_used(copy: Path, name: str, damage: str) -> None:
    part = copy / name
    data = part.read_bytes()
    part.unlink()
    if damage == "flipped bit":
        part.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "cut short":
        part.write_bytes(data[:-1])
    elif damage == "longer":
        part.write_bytes(data + b"\0")
    elif damage == "link":
        (copy.parent / "elsewhere").write_bytes(data)
        part.symlink_to(copy.parent / "elsewhere")
    bundle = Bundle.open(copy)
    use = {
        "encoder.onnx": lambda: bundle.encode(np.zeros((1, 24, 20), np.float32)),
        "text_encoder.onnx": lambda: bundle.encode_text(bundle.tokenizer.encode("maji")),
        "filters.f32": lambda: bundle.filters,
        "bank.f16": lambda: bundle.bank,
        "vocab.json": lambda: bundle.tokenizer,
    }[name]
    with pytest.raises(BundleUnreadable, match=name.replace(".", r"\.")):
        use()
    with pytest.raises(BundleUnreadable):
        bundle.verify()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "zip", "its format is 'zip'"),
        ("format_version", 3, "format_version is 3: this edgealign reads 1 and 2"),
        ("format_version", True, "format_version is True: this edgealign reads 1 and 2"),
        ("format_version", 2, "lacks input, sources"),
        ("modality", "smell", "modality is 'smell'"),
        ("dim", 0, "dim 0"),
        ("dim", 5000, "dim 5000"),
        ("dim", True, "dim True"),
        ("fingerprint", "f" * 63, "not a sha256"),
        ("files", [], "'files'"),
        ("attribution", None, "'attribution'"),
        ("front_end", {}, "front_end"),
        ("windows", 3, "'windows'"),
        ("encoder", {"default": "int8", "variants": {}}, "'encoder'"),
        ("text_encoder", {"file": "text_encoder.onnx"}, "'text_encoder'"),
        ("bank", {"file": "bank.f16", "rows": -1}, "'bank'"),
        ("calibration", {}, "calibration"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_on_opening(
    copy: Path, key: str, value: object, message: str
) -> None:
    change_manifest(copy, lambda manifest: manifest.update({key: value}))
    with pytest.raises(BundleUnreadable, match=message):
        Bundle.open(copy)


@pytest.mark.parametrize("section", ["front_end", "windows", "calibration"])
@pytest.mark.parametrize("value", [float("inf"), "1", None, -1e9, [], True])
def test_numbers_of_the_manifest_are_checked(copy: Path, section: str, value: object) -> None:
    key = {"front_end": "n_mels", "windows": "pad_frames", "calibration": "prior_weight"}[section]
    manifest = json.loads((copy / MANIFEST).read_bytes())
    manifest[section][key] = value
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleUnreadable):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("weights", "accepted"),
    [
        ({}, True),
        ({"w_distance": 1.0}, False),
        ({"w_z": -0.1}, False),
        ({"w_margin": -0.1}, False),
        ({"w_z": 0, "w_t": 0, "w_margin": 0, "w_distance": 0}, False),
    ],
)
def test_a_calibration_under_which_closer_is_less_likely_is_refused(copy: Path, weights: dict, accepted: bool) -> None:
    change_manifest(copy, lambda manifest: manifest["calibration"].update(weights))
    if accepted:
        Bundle.open(copy)
    else:
        with pytest.raises(BundleUnreadable, match="calibration"):
            Bundle.open(copy)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"format": "edgealign-bundle", "format": "edgealign-bundle"}',
        b'{"format": NaN}',
        b'{"format": ' + b"9" * 5000 + b"}",
        b" " * (2**20 + 1),
    ],
    ids=["empty", "not UTF-8", "open braces", "deep", "double key", "NaN", "huge number", "over 1 MiB"],
)
def test_hostile_json_is_refused(copy: Path, data: bytes) -> None:
    (copy / MANIFEST).write_bytes(data)
    with pytest.raises(BundleUnreadable):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["../bank.f16", "/etc/passwd", "a/b", "..", ".hidden", "x\0y", "", "a\\b", MANIFEST])
def test_a_path_in_the_place_of_a_file_name_is_refused(copy: Path, name: str) -> None:
    def traverse(manifest: dict) -> None:
        manifest["files"][name] = manifest["files"].pop("bank.f16")
        manifest["bank"]["file"] = name

    change_manifest(copy, traverse)
    with pytest.raises(BundleUnreadable, match=r"not a plain name|lists itself"):
        Bundle.open(copy)


def test_a_device_in_the_place_of_a_file_does_not_hang(copy: Path) -> None:
    (copy / "bank.f16").unlink()
    os.mkfifo(copy / "bank.f16")
    with pytest.raises(BundleUnreadable, match="not a regular file"):
        _ = Bundle.open(copy).bank


def test_a_graph_that_points_to_other_files_is_refused(copy: Path) -> None:
    model = onnx.load_model(copy / "encoder.onnx")
    onnx.external_data_helper.convert_model_to_external_data(model, location="../../secret", size_threshold=0)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "projection")
    assert tensor.data_location == onnx.TensorProto.EXTERNAL
    replace_part(copy, "encoder.onnx", model.SerializeToString())
    with pytest.raises(BundleUnreadable, match="points to data in other files"):
        Bundle.open(copy).encode(np.zeros((1, 24, 20), np.float32))


def test_a_hostile_graph_is_refused_with_what_is_wrong(copy: Path) -> None:
    """By its bytes, and by what it takes to run; tests/test_onnx_check.py has the others."""
    model = onnx.load_model(copy / "encoder.onnx")
    model.graph.node[0].domain = "evil"
    replace_part(copy, "encoder.onnx", model.SerializeToString())
    with pytest.raises(
        BundleUnreadable, match=r"'encoder\.onnx' cannot be used: it uses .* of the unknown domain 'evil'"
    ):
        Bundle.open(copy).encode(np.zeros((1, 24, 20), np.float32))
    model = onnx.load_model(copy / "encoder.fp32.onnx")
    shape = onnx.numpy_helper.from_array(np.array([10**5, 10**5]), "huge")
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["huge"], ["zeros"]))
    model.graph.node.insert(1, onnx.helper.make_node("ReduceSum", ["zeros"], ["zero_sum"], keepdims=0))
    model.graph.node[2].input[0] = "with_nothing"
    model.graph.node.insert(2, onnx.helper.make_node("Add", ["log_mel", "zero_sum"], ["with_nothing"]))
    replace_part(copy, "encoder.onnx", model.SerializeToString())
    with pytest.raises(BundleUnreadable, match=r"'encoder\.onnx' cannot be used: it takes more than \d+ MiB"):
        Bundle.open(copy).encode(np.zeros((1, 24, 20), np.float32))


def test_bytes_that_are_no_graph_are_refused(copy: Path) -> None:
    for data in (b"ORTM1234 not a graph", b"", b"\x08\x07"):
        replace_part(copy, "encoder.onnx", data)
        with pytest.raises(BundleUnreadable, match=r"encoder\.onnx"):
            Bundle.open(copy).encode(np.zeros((1, 24, 20), np.float32))


def test_a_graph_with_another_answer_is_refused(copy: Path) -> None:
    replace_part(copy, "encoder.onnx", (copy / "text_encoder.onnx").read_bytes())
    with pytest.raises(BundleUnreadable, match="cannot be run"):
        Bundle.open(copy).encode(np.zeros((1, 24, 20), np.float32))


def test_pickle_in_golden_vectors_is_refused(copy: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(copy / "trapped"),))

    np.savez(copy / "trap.npz", **{"clip0.samples": np.array([Trap()], dtype=object)})
    data = (copy / "trap.npz").read_bytes()
    (copy / "trap.npz").unlink()
    replace_part(copy, "golden.npz", data)
    with pytest.raises(BundleUnreadable, match=r"golden\.npz"):
        Bundle.open(copy).golden()
    assert not (copy / "trapped").exists()


def test_golden_vectors_that_unpack_to_gigabytes_are_refused(copy: Path) -> None:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb.npy", "w") as entry:
        for _ in range(300):
            entry.write(bytes(2**20))
    replace_part(copy, "golden.npz", buffer.getvalue())
    with pytest.raises(BundleUnreadable, match="unpacks to"):
        Bundle.open(copy).golden()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_a_byte_of_the_manifest_goes_further_than_an_error(copy: Path, data: st.DataObject) -> None:
    original = (copy / MANIFEST).read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    (copy / MANIFEST).write_bytes(original[:at] + bytes([data.draw(st.integers(0, 255))]) + original[at + 1 :])
    try:
        Bundle.open(copy).verify()
    except BundleUnreadable as error:
        assert str(copy) in str(error)
    finally:
        (copy / MANIFEST).write_bytes(original)


def test_verify_finds_what_is_left_over_and_a_wrong_fingerprint(copy: Path) -> None:
    (copy / "extra.txt").write_text("x")
    with pytest.raises(BundleUnreadable, match="extra"):
        Bundle.open(copy).verify()
    (copy / "extra.txt").unlink()
    change_manifest(copy, lambda manifest: manifest.update(fingerprint="0" * 64))
    with pytest.raises(BundleUnreadable, match="states the fingerprint"):
        Bundle.open(copy).verify()


def test_cuda_that_is_absent_is_an_error(toy_bundle: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    with pytest.raises(DeviceUnavailable, match="cuda"):
        Bundle.open(toy_bundle.path, device="cuda").encode(np.zeros((1, 24, 20), np.float32))
    with pytest.raises(InvalidInput, match="tpu"):
        Bundle.open(toy_bundle.path, device="tpu")


def test_unknown_variant_names_those_there_are(toy_bundle: Bundle) -> None:
    with pytest.raises(InvalidInput, match="fp32, int8"):
        Bundle.open(toy_bundle.path, variant="int4")


def write_again(toy_bundle: Bundle, target: Path, tmp_path: Path, **changes: object) -> Bundle:
    source = tmp_path / "source"
    shutil.copytree(toy_bundle.path, source, ignore=shutil.ignore_patterns(MANIFEST, "golden.npz"))
    fields = {key: toy_bundle.manifest[key] for key in FIELDS} | changes
    try:
        return write_bundle(target, source, golden_samples=[word_clip(1)], golden_texts=[("a", "ipa", None)], **fields)
    finally:
        shutil.rmtree(source)


def test_write_replaces_a_bundle_and_nothing_else(toy_bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "out" / "bundle"
    first = write_again(toy_bundle, target, tmp_path)
    assert first.encoder_sha256 == toy_bundle.encoder_sha256
    assert write_again(toy_bundle, target, tmp_path, bundle_version="0.0.2").bundle_version == "0.0.2"
    assert sorted(path.name for path in target.parent.iterdir()) == ["bundle"]

    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.txt").write_text("x")
    with pytest.raises(InvalidInput, match="is not a bundle"):
        write_again(toy_bundle, precious, tmp_path)
    assert (precious / "chapter1.txt").exists()


def test_write_leaves_nothing_behind_when_the_parts_do_not_fit(toy_bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "out" / "bundle"
    with pytest.raises(BundleUnreadable, match=r"bank\.f16"):
        write_again(toy_bundle, target, tmp_path, bank={"file": "bank.f16", "rows": 7})
    assert list(target.parent.iterdir()) == []


def test_golden_clips_need_a_sound(toy_bundle: Bundle) -> None:
    from edgealign.golden import compare, record

    stages = compare(toy_bundle)
    assert {stage.stage for stage in stages} == {
        "front end", "word finding", "encoder int8", "encoder fp32", "tokenizer", "text encoder",
        "matching",
    }  # fmt: skip
    assert all(stage.passed for stage in stages)
    with pytest.raises(InvalidInput, match="no sound"):
        record(toy_bundle, [noise_clip()], [])
