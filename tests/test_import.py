"""`edgealign bundle import`: a bundle gives what the model in it gives, and what cannot be used is told."""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from conftest import Ran
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from toy_bundle import word_clip
from toy_kinds import RATE_HZ, log_mel_encoder, picture, waveform_encoder

from edgealign import Recognizer
from edgealign.doctor import examine
from edgealign.errors import EdgealignError, InputUnreadable, InvalidInput, ModelUnreadable
from edgealign.export.foreign import ForeignModel, Step
from edgealign.export.foreign_bundle import FALSE_ACCEPT_SHARE, fit_decision, made_up_sound
from edgealign.export.front_ends import read_front_end
from edgealign.export.import_onnx import ImportOptions, import_onnx
from edgealign.inputs import ClipWindows, FrontEnd, Windows
from edgealign.samples import log_mel
from edgealign.train.front_end import mel_filters

WEIGHTS = np.random.default_rng(5).normal(size=(8, 6)).astype(np.float32)
AUDIO = {"modality": "audio", "kind": "waveform", "sample_rate_hz": 8000}


def model(
    nodes: list,
    taken: tuple[str, list],
    outputs: dict[str, list],
    *,
    opset: int = 17,
    element: int = TensorProto.FLOAT,
    more_inputs: tuple = (),
    **weights: np.ndarray,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info(taken[0], element, taken[1]), *more_inputs],
        [helper.make_tensor_value_info(name, element, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return made.SerializeToString()


def framed(taken: list, *, opset: int = 17, start: str = "sound", element: int = TensorProto.FLOAT) -> bytes:
    """Frames of 8 samples, each projected to 6 values and bent: [batch, frames, 6] from a waveform."""
    shape = {1: [-1, 8], 2: [0, -1, 8], 3: [0, -1, 8]}[len(taken)]
    kind = np.float16 if element == TensorProto.FLOAT16 else np.float32
    nodes = [
        helper.make_node("Reshape", [start, "shape"], ["cut"]),
        helper.make_node("MatMul", ["cut", "weights"], ["linear"]),
        helper.make_node("Tanh", ["linear"], ["frames"]),
    ]
    n_frames = taken[-1] // 8 if isinstance(taken[-1], int) else "n_frames"
    dims = [*taken[:1], n_frames, 6] if len(taken) > 1 else [n_frames, 6]
    return model(
        nodes, (start, taken), {"frames": dims}, opset=opset, element=element,
        shape=np.array(shape), weights=WEIGHTS.astype(kind),
    )  # fmt: skip


def bring_in(data: bytes, folder: Path, **options: object):
    (folder / "model.onnx").write_bytes(data)
    return import_onnx(folder / "model.onnx", folder / "bundle", ImportOptions(**options), lambda line: None)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("taken", "pool", "opset"),
    [
        (["n"], "mean", 17),
        ([1, 8000], "max", 17),
        (["batch", "n"], "mean", 11),
        (["batch", "n"], "max", 13),
        (["batch", "n"], "mean", 18),
        (["batch", 1, "n"], "max", 18),
        ([1, 1, "n"], "mean", 13),
    ],
)
def test_a_waveform_model_of_any_shape_gives_what_numpy_gives(
    taken: list, pool: str, opset: int, tmp_path: Path
) -> None:
    options = AUDIO | {"pool": pool, "normalize": "zero-mean-unit-variance", "window_s": 1.0}
    bundle = bring_in(framed(taken, opset=opset), tmp_path, **options)
    samples = made_up_sound(8000, 8000, 7)[None]
    scaled = (samples - samples.mean()) / np.sqrt(samples.astype(np.float64).var() + 1e-7)
    frames = np.tanh(scaled.reshape(-1, 8) @ WEIGHTS)
    wanted = unit(frames.mean(axis=0) if pool == "mean" else frames.max(axis=0))
    np.testing.assert_allclose(bundle.encode(samples)[0], wanted, atol=2e-5)
    twice = bundle.encode(np.concatenate([samples, samples[:, ::-1]]))
    np.testing.assert_allclose(twice[0], wanted, atol=2e-5)
    assert bundle.input.windows.min_s == (1.0 if isinstance(taken[-1], int) else 0.5)
    assert onnx.load(Path(bundle.path, "encoder.onnx")).opset_import[0].version == opset
    assert examine(bundle.path).passed


def test_half_precision_goes_in_and_comes_out(tmp_path: Path) -> None:
    bundle = bring_in(framed(["b", "n"], element=TensorProto.FLOAT16), tmp_path, **AUDIO, pool="mean", window_s=0.5)
    samples = made_up_sound(4000, 8000, 7)[None]
    wanted = unit(np.tanh(samples.reshape(-1, 8) @ WEIGHTS).mean(axis=0))
    np.testing.assert_allclose(bundle.encode(samples)[0], wanted, atol=0.02)


def test_names_that_a_bundle_needs_for_itself_may_be_taken(tmp_path: Path) -> None:
    data = onnx.load_from_string(framed(["b", "n"], start="waveform"))
    data.graph.output[0].name = data.graph.node[-1].output[0] = "embedding"
    bundle = bring_in(data.SerializeToString(), tmp_path, **AUDIO, pool="mean", window_s=1.0)
    session = onnxruntime.InferenceSession(Path(bundle.path, "encoder.onnx").read_bytes())
    assert [entry.name for entry in session.get_inputs()] == ["waveform"]
    assert [entry.name for entry in session.get_outputs()] == ["embedding"]


@pytest.mark.parametrize(
    "shape",
    [
        ["batch", 3, 4, 5], ["batch", 4, 5, 3], ["batch", 4, 5, "channels"], ["batch", "height", "width", 3],
        ["batch", 3, "height", "width"], ["batch", "channels", 4, "width"], ["batch", "channels", "height", "width"],
    ],
    ids=str,
)  # fmt: skip
def test_an_image_model_of_either_layout_gives_what_numpy_gives(shape: list, tmp_path: Path) -> None:
    """Sizes that the file leaves open, as optimum's exporter does, are those of --size and of a picture."""
    weights = np.random.default_rng(1).normal(size=(3 * 4 * 5, 6)).astype(np.float32)
    channels_first = shape[3] != 3 and shape[1] != 4
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["out"]),
    ]
    data = model(nodes, ("pixels", shape), {"out": ["batch", 6]}, weights=weights)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    options = {"mean": mean, "std": std, "fit": "stretch", "size_px": (4, 5)}
    bundle = bring_in(data, tmp_path, modality="image", kind="image", **options)
    pixels = np.random.default_rng(2).random((2, 3, 4, 5), dtype=np.float32)
    scaled = (pixels - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    ordered = scaled if channels_first else scaled.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(bundle.encode(pixels), unit(ordered.reshape(2, -1) @ weights), atol=2e-5)
    recognizer = Recognizer(bundle, tmp_path / "image.store")
    for kind in range(2):
        recognizer.enroll([picture(kind, one) for one in range(3)], label=f"{kind}")
    assert recognizer.classify(picture(1, 9)).top[0].label == "1"


def front_end_file(folder: Path, **changes: object) -> Path:
    numbers = {"sample_rate_hz": 8000, "window_samples": 200, "hop_samples": 80, "n_fft": 256, "n_mels": 8}
    (folder / "front_end.json").write_text(json.dumps(numbers | changes))
    return folder / "front_end.json"


@pytest.mark.parametrize(
    "shape",
    [
        ["b", 8, "t"], ["b", "t", 8], ["b", 1, 8, 98], [1, 1, 98, 8], ["b", 8, 98, 1], ["b", "t", 8, 1],
        ["b", "bands", 98], ["b", "c", 98, "bands"],
    ],
    ids=str,
)  # fmt: skip
def test_a_log_mel_model_of_any_layout_gives_what_numpy_gives(shape: list, tmp_path: Path) -> None:
    bands_first = shape in (["b", 8, "t"], ["b", 1, 8, 98], ["b", 8, 98, 1], ["b", "bands", 98])
    order = [0, 2, 1] if bands_first else [0, 1, 2]
    nodes = [
        helper.make_node("Reshape", ["mel", "to_three"], ["three"]),
        helper.make_node("Transpose", ["three"], ["frames"], perm=order),
        helper.make_node("MatMul", ["frames", "weights"], ["out"]),
    ]
    to_three = np.array([0, 8, -1] if bands_first else [0, -1, 8])
    data = model(nodes, ("mel", shape), {"out": ["b", "t", 6]}, weights=WEIGHTS, to_three=to_three)
    path = front_end_file(tmp_path, log="log10", mean=-3.0, std=2.0)
    bundle = bring_in(
        data, tmp_path, modality="audio", kind="log_mel", front_end=path, pool="mean",
        window_s=None if 98 in shape else 1.0,
    )  # fmt: skip
    samples = made_up_sound(97 * 80 + 200, 8000, 3)
    log_mels = log_mel(bundle, samples)
    scaled = (log_mels / np.log(10) + 3) / 2
    np.testing.assert_allclose(bundle.encode(log_mels[None])[0], unit((scaled.T @ WEIGHTS).mean(axis=0)), atol=2e-5)
    window_samples = bundle.input.windows.in_samples(8000)[0]
    assert window_samples == (len(samples) if 98 in shape else 8000)


def test_an_axis_of_mel_bands_that_is_not_there_or_not_clear_is_refused(tmp_path: Path) -> None:
    options = {"modality": "audio", "kind": "log_mel", "front_end": front_end_file(tmp_path), "window_s": 1.0}
    for taken in (["b", "c", "n"], ["b", 9, 98]):
        with pytest.raises(ModelUnreadable, match="expected one axis of 8 mel bands, as --front-end says"):
            nodes = [helper.make_node("Neg", ["mel"], ["out"])]
            bring_in(model(nodes, ("mel", taken), {"out": taken}), tmp_path, **options)


def test_slaney_filters_are_linear_below_1_khz_and_of_area_one() -> None:
    front_end = FrontEnd(1, 16_000, 400, 160, 4096, 40, 0.0, 8000.0, 1e-10)
    filters = mel_filters(f=front_end, scale="slaney", norm="slaney")
    peaks_hz = filters.argmax(axis=1) * 16_000 / 4096
    np.testing.assert_allclose(np.diff(peaks_hz[peaks_hz < 900]), np.diff(peaks_hz)[0], atol=4)
    ratios = peaks_hz[peaks_hz > 1200][1:] / peaks_hz[peaks_hz > 1200][:-1]
    np.testing.assert_allclose(ratios, ratios.mean(), atol=0.01)
    np.testing.assert_allclose(filters.sum(axis=1) * 16_000 / 4096, 1, atol=0.05)
    assert mel_filters(f=front_end).max() <= 1


def test_speech_without_a_window_is_the_word_in_a_clip(tmp_path: Path) -> None:
    bundle = bring_in(waveform_encoder(np.random.default_rng(0)), tmp_path, modality="speech", kind="waveform",
                      sample_rate_hz=RATE_HZ)  # fmt: skip
    assert isinstance(bundle.input.windows, Windows)
    recognizer = Recognizer(bundle, tmp_path / "speech.store")
    for word in range(3):
        shots = [word_clip(word, voice) for voice in range(4)]
        recognizer.enroll(shots, label=f"{word}", sample_rate_hz=RATE_HZ)
    answers = [recognizer.classify(word_clip(word, 9), RATE_HZ) for word in range(3)]
    assert [answer.top[0].label for answer in answers] == ["0", "1", "2"]
    assert answers[0].start_s > 0.1


def two_outputs(second: str = "other") -> bytes:
    nodes = [
        helper.make_node("ReduceMean", ["sound"], ["level"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["sound", "level"], ["inner"]),
        helper.make_node("MatMul", ["inner", "one"], ["first"]),
        helper.make_node("MatMul", ["sound", "two"], [second]),
    ]
    generator = np.random.default_rng(0)
    one, two = (generator.normal(size=(320, n)).astype(np.float32) for n in (6, 9))
    return model(nodes, ("sound", ["b", 320]), {"first": ["b", 6], second: ["b", 9]}, one=one, two=two)


def test_of_several_outputs_one_must_be_named_and_inner_tensors_may_be(tmp_path: Path) -> None:
    options = AUDIO | {"sample_rate_hz": 4000}
    for name, dim in (("first", 6), ("other", 9), ("inner", 320)):
        folder = tmp_path / name
        folder.mkdir()
        bundle = bring_in(two_outputs(), folder, **options, output=name, window_s=None)
        assert bundle.dim == dim
        kept = {tensor.name for tensor in onnx.load(Path(bundle.path, "encoder.onnx")).graph.initializer}
        assert ("two" in kept) == (name == "other"), "what the embedding does not need is cut"
    with pytest.raises(InvalidInput, match=r"several outputs.*'first' \[1, 6\], 'other' \[1, 9\].*--embedding"):
        bring_in(two_outputs(), tmp_path, **options)
    with pytest.raises(InvalidInput, match="no output 'third': it has 'first', 'other'"):
        bring_in(two_outputs(), tmp_path, **options, output="third")


def constant_output() -> bytes:
    nodes = [
        helper.make_node("Mul", ["sound", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "bias"], ["out"]),
    ]
    weights = {"zero": np.float32(0), "bias": np.arange(320, dtype=np.float32)}
    return model(nodes, ("sound", ["b", 320]), {"out": ["b", 320]}, **weights)


def custom_operator() -> bytes:
    made = onnx.load_from_string(framed(["b", "n"]))
    made.graph.node[-1].domain = "com.example"
    made.opset_import.append(helper.make_opsetid("com.example", 1))
    return made.SerializeToString()


def with_broken(value: float) -> bytes:
    made = onnx.load_from_string(framed(["b", "n"]))
    tensor = next(tensor for tensor in made.graph.initializer if tensor.name == "weights")
    broken = WEIGHTS.copy()
    broken[3, 3] = value
    tensor.CopyFrom(numpy_helper.from_array(broken, "weights"))
    return made.SerializeToString()


def bounded(low: float, high: float, mask: float = 0.0) -> bytes:
    """`framed`, whose frames are clipped between two constants, of which a mask may take some out."""
    made = onnx.load_from_string(framed(["b", "n"]))
    made.graph.node[-1].output[0] = "bent"
    made.graph.node.insert(
        0, helper.make_node("Constant", [], ["high"], value=numpy_helper.from_array(np.float32(high)))
    )
    made.graph.node.extend([
        helper.make_node("Clip", ["bent", "low", "high"], ["clipped"]),
        helper.make_node("Add", ["clipped", "mask"], ["masked"]),
        helper.make_node("Max", ["masked", "least"], ["frames"]),
    ])  # fmt: skip
    tensors = {"low": np.float32(low), "mask": np.array([mask, *[0] * 5], np.float32), "least": np.float32(-0.5)}
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items())
    return made.SerializeToString()


@pytest.mark.parametrize(
    ("low", "high", "mask"), [(-np.inf, np.inf, 0.0), (0.0, np.inf, 0.0), (-np.inf, 0.2, -np.inf)], ids=str
)
def test_infinity_that_bounds_or_masks_is_no_fault(low: float, high: float, mask: float, tmp_path: Path) -> None:
    """As exporters write the clamps of logarithms and the masks of attention."""
    bundle = bring_in(bounded(low, high, mask), tmp_path, **AUDIO, pool="mean", window_s=1.0)
    samples = made_up_sound(8000, 8000, 7)[None]
    frames = np.clip(np.tanh(samples.reshape(-1, 8) @ WEIGHTS), low, high) + np.array([mask, *[0] * 5], np.float32)
    wanted = unit(np.maximum(frames, -0.5).mean(axis=0))
    np.testing.assert_allclose(bundle.encode(samples)[0], wanted, atol=2e-5)


def nan_answer() -> bytes:
    nodes = [helper.make_node("Log", ["sound"], ["out"])]
    return model(nodes, ("sound", ["b", 320]), {"out": ["b", 320]})


def of_a_newer_format() -> bytes:
    made = onnx.load_from_string(framed(["b", "n"]))
    made.ir_version = 99
    return made.SerializeToString()


def of_gigabytes() -> bytes:
    """A few bytes, of which ONNX Runtime makes 40 GB."""
    nodes = [
        helper.make_node("ConstantOfShape", ["much"], ["nothing"]),
        helper.make_node("ReduceSum", ["nothing"], ["none"], keepdims=0),
        helper.make_node("Add", ["sound", "none"], ["out"]),
    ]
    return model(nodes, ("sound", ["b", 8000]), {"out": ["b", 8000]}, much=np.array([10**5, 10**5]))


def without_outputs() -> bytes:
    made = onnx.load_from_string(framed(["b", "n"]))
    del made.graph.output[:]
    return made.SerializeToString()


def two_inputs() -> bytes:
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.FLOAT, ["b", 320])
    nodes = [helper.make_node("Mul", ["sound", "attention_mask"], ["out"])]
    return model(nodes, ("sound", ["b", 320]), {"out": ["b", 320]}, more_inputs=(mask,))


def integers() -> bytes:
    return model([helper.make_node("Neg", ["sound"], ["out"])], ("sound", ["b", 320]), {"out": ["b", 320]},
                 element=TensorProto.INT32)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "options", "kind", "message"),
    [
        (b"", {}, ModelUnreadable, "is no ONNX model|cannot be imported"),
        (b"RIFF....WAVE this is no model", {}, ModelUnreadable, "no ONNX model"),
        (framed(["b", "n"], opset=17)[:200], {}, ModelUnreadable, "no ONNX model"),
        (framed(["b", "n"], opset=9), {}, ModelUnreadable, "opset 9 of ONNX: 11 to"),
        (framed(["b", "n"], opset=99), {}, ModelUnreadable, "opset 99 .* update onnx"),
        (custom_operator(), {}, ModelUnreadable, "unknown domain 'com.example'"),
        (with_broken(np.nan), {}, ModelUnreadable, "the weights 'weights' .* NaN"),
        (with_broken(-np.inf), {}, ModelUnreadable, "the weights 'weights' .* NaN or infinity"),
        (bounded(np.nan, 1.0), {}, ModelUnreadable, "the weights 'low' .* NaN"),
        (bounded(0.0, np.nan), {}, ModelUnreadable, "the weights 'high' .* NaN"),
        (bounded(0.0, 1.0, np.inf), {"window_s": 1.0, "pool": "mean"}, ModelUnreadable, "NaN or infinity on a plain"),
        (nan_answer(), {}, ModelUnreadable, "NaN or infinity on a plain sample"),
        (two_inputs(), {}, ModelUnreadable, "2 inputs .'sound', 'attention_mask'."),
        (integers(), {}, ModelUnreadable, "is int32: float32"),
        (framed(["b", 3, "n"]), {}, ModelUnreadable, r"has the shape \[any, 3, any\]: expected"),
        (framed([4, "n"]), {}, ModelUnreadable, r"\[4, any\]: expected a batch of any size, or of 1"),
        (constant_output(), {}, InvalidInput, "is the same for different samples"),
        (framed(["b", "n"]), {}, InvalidInput, "say with --window"),
        (framed(["b", "n"]), {"window_s": 1.0}, InvalidInput, r"shape \[1, 1000, 6\].*add --pool mean"),
        (framed(["b", "n"]), {"window_s": 1.0, "pool": "none"}, InvalidInput, "grows with the length"),
        (framed(["b", "n"]), {"window_s": 0.9999}, ModelUnreadable, "does not run on an input of the shape .1, 7999."),
        (framed(["b", "n"]), {"window_s": -1.0}, InvalidInput, "window_s -1"),
        (framed(["b", "n"]), {"window_s": 1.0, "hop_s": 2.0, "pool": "mean"}, InvalidInput, "hop_s 2"),
        (framed([1, 8000]), {"window_s": 2.0}, InvalidInput, "sounds of 1 s only: --window 2 does not fit"),
        (framed([1, 8000]), {"min_window_s": 0.5}, InvalidInput, "--min-window does not fit"),
        (framed(["b", "n"]), {"sample_rate_hz": None}, InvalidInput, "add --sample-rate"),
        (framed(["b", 8000]), {"sample_rate_hz": 0}, InvalidInput, "--sample-rate is 0: 4000 to 500000 Hz are read"),
        (framed(["b", "n"]), {"kind": "log_mel"}, InvalidInput, "add --front-end"),
        (framed(["b", "n"]), {"kind": "image"}, InvalidInput, "does not go with --modality audio"),
        (framed(["b", "n"]), {"kind": "image", "modality": "image", "sample_rate_hz": None}, ModelUnreadable,
         r"expected \[batch, 3, height"),
        (framed(["b", "n"]), {"kind": "image", "modality": "image"}, InvalidInput, "--sample-rate means nothing"),
        (framed(["b", "n"]), {"size_px": (3, 3)}, InvalidInput, "--size means nothing for --input waveform"),
        (framed(["b", "n"]), {"front_end": Path("f")}, InvalidInput, "--front-end means nothing for --input waveform"),
        (framed(["b", "n"]), {"name": "x" * 201}, InvalidInput, "--name has 201 characters: at most 200"),
        (of_a_newer_format(), {"window_s": 1.0}, ModelUnreadable, "refuses it: Unsupported model IR version: 99"),
        (of_gigabytes(), {"window_s": 1.0}, ModelUnreadable, "cannot be imported: it takes more than 1024 MiB to load"),
        (without_outputs(), {"window_s": 1.0}, ModelUnreadable, "has no output of floating point"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_refused_in_a_sentence_and_nothing_is_left(
    data: bytes, options: dict, kind: type[EdgealignError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message) as refused:
        bring_in(data, tmp_path, **AUDIO | options)
    assert type(refused.value) is kind and "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "not a JSON object"),
        ("{", "not JSON"),
        ("{}", "lacks .*'n_mels'"),
        ({"fmax": 8000}, "unknown keys .'fmax'."),
        ({"log": "loud"}, "'log' .* expected ln or log10 or db"),
        ({"n_fft": 200}, "no usable front end"),
        ({"std": 0}, "'std' .* expected a number"),
        ({"sample_rate_hz": 16_000}, "16000 Hz and --sample-rate 8000"),
    ],
)
def test_a_front_end_that_makes_no_sense_is_refused(text: object, message: str, tmp_path: Path) -> None:
    path = front_end_file(tmp_path, **text) if isinstance(text, dict) else tmp_path / "front_end.json"
    if isinstance(text, str):
        path.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        read_front_end(path, 8000)


def test_a_model_with_its_weights_beside_it_is_read_and_one_that_points_elsewhere_is_not(tmp_path: Path) -> None:
    made = onnx.load_from_string(waveform_encoder(np.random.default_rng(0)))
    options = ImportOptions(modality="audio", kind="waveform", sample_rate_hz=RATE_HZ, window_s=1.0)
    onnx.save(made, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data", size_threshold=0)
    bundle = import_onnx(tmp_path / "apart.onnx", tmp_path / "bundle", options, lambda line: None)
    assert not list(Path(bundle.path).glob("*.data"))
    (tmp_path / "apart.data").unlink()
    with pytest.raises(ModelUnreadable, match="weights in other files"):
        import_onnx(tmp_path / "apart.onnx", tmp_path / "second", options, lambda line: None)
    with pytest.raises(InputUnreadable, match="does not exist"):
        import_onnx(tmp_path / "none.onnx", tmp_path / "second", options, lambda line: None)
    (tmp_path / "thesis").mkdir()
    with pytest.raises(InvalidInput, match="is not a bundle"):
        import_onnx(tmp_path / "apart.onnx", tmp_path / "thesis", options, lambda line: None)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ImportOptions(modality="audio", kind="waveform", sample_rate_hz=RATE_HZ, window_s=1.0)
    (tmp_path / "model.onnx").write_bytes(waveform_encoder(np.random.default_rng(0)))
    with pytest.raises(InvalidInput, match=r"no bundle can be written to .*x' \(Not a directory|File exists\)"):
        import_onnx(tmp_path / "model.onnx", tmp_path / "model.onnx" / "x", options, lambda line: None)
    with pytest.raises(InputUnreadable, match="does not exist"):
        import_onnx(tmp_path / "none.onnx", tmp_path / "new" / "bundle", options, lambda line: None)
    with pytest.raises(InvalidInput, match=r"no bundle can be written to .* \(File name too long\): name another"):
        import_onnx(tmp_path / "none.onnx", tmp_path / ("x" * 250), options, lambda line: None)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidInput, match=r"\(No space left on device\): nothing was changed"):
        import_onnx(tmp_path / "model.onnx", tmp_path / "bundle", options, lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputUnreadable, match="is no regular file"):
        import_onnx(tmp_path / "pipe", tmp_path / "bundle", options, lambda line: None)


def test_the_bias_accepts_the_share_of_the_background_that_is_promised() -> None:
    generator = np.random.default_rng(3)
    rows = unit(generator.normal(size=(200, 12)) + 2).astype(np.float32)
    decision = fit_decision(rows, range(200))
    from edgealign import kernels

    calibration = kernels.Calibration.from_dict(decision)
    accepted = []
    for _ in range(150):
        shuffled = generator.permutation(200)
        matcher = kernels.Matcher(
            rows[shuffled[:5]], np.arange(5), np.full(5, kernels.RECORDING), 5, rows[shuffled[100:]], calibration
        )
        accepted += [matcher.classify(rows[i])[0].accepted for i in shuffled[5:15]]
    assert np.mean(accepted) == pytest.approx(FALSE_ACCEPT_SHARE, abs=0.02)
    few = fit_decision(rows[:10], range(10))
    assert few["w_bias"] == -2.0 and 0 < few["prior_loo"] < 1


def test_a_step_written_into_a_graph_is_the_step_in_numpy() -> None:
    """Every operator of Step, on an input that has no special form."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    steps = [
        Step("unsqueeze", 1), Step("transpose", (0, 2, 1)), Step("affine", (2.0, -0.5)), Step("standardize"),
        Step("mean", (1,)), Step("max", (1, 2)), Step("flatten"), Step("cast", TensorProto.FLOAT16),
    ]  # fmt: skip
    identity = model([helper.make_node("Identity", ["in"], ["out"])], ("in", None), {"out": None}, opset=18)
    proto = onnx.load_from_string(identity)
    for entry in (*proto.graph.input, *proto.graph.output):
        entry.type.tensor_type.ClearField("shape")
    foreign = ForeignModel("m", b"", proto, "in", TensorProto.FLOAT, (None, None, None), 18)
    for step in steps:
        data = onnx.load_from_string(foreign.wrapped("out", "image", ["a", "b", "c"], [step], [], 4))
        data.graph.output[0].type.tensor_type.ClearField("shape")
        if step.operator == "cast":
            data.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
        (have,) = onnxruntime.InferenceSession(data.SerializeToString()).run(None, {"image": x})
        np.testing.assert_allclose(have, step.compute(x), atol=1e-5, err_msg=step.operator)


def test_import_enroll_and_classify_from_the_command_line(edgealign: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "birds.onnx").write_bytes(log_mel_encoder(np.random.default_rng(0)))
    path = front_end_file(tmp_path, sample_rate_hz=16_000, window_samples=400, hop_samples=160, n_fft=512, n_mels=24)
    for label in range(2):
        for voice in range(3):
            clip = tmp_path / "samples" / f"bird{label}" / f"{voice}.wav"
            clip.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(clip, word_clip(label, voice), RATE_HZ)
    (tmp_path / "other").mkdir()
    for i in range(26):
        soundfile.write(tmp_path / "other" / f"{i}.wav", word_clip(100 + i), RATE_HZ)
    (tmp_path / "other" / "broken.wav").write_text("not audio")
    ran = edgealign(
        "bundle", "import", tmp_path / "birds.onnx", "--modality", "audio", "--input", "log_mel", "--front-end", path,
        "--window", "1.0", "--background", tmp_path / "other", "--license", "CC BY-NC", "-o", tmp_path / "bundle",
    )  # fmt: skip
    assert ran.code == 0 and "wrote" in ran.out, ran
    assert "background: 26 embeddings of 26 files" in ran.err and "broken.wav" in ran.err
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "CC BY-NC" in card and "was fitted to them" in card
    store = ("--bundle", tmp_path / "bundle")
    assert edgealign("enroll", tmp_path / "samples", *store).code == 0
    ran = edgealign("classify", tmp_path / "samples" / "bird1" / "0.wav", *store)
    assert ran.code == 0 and "bird1" in ran.out, ran
    info = edgealign("bundle", "info", tmp_path / "bundle")
    assert "windows of 1 s every 0.5 s" in info.out
    assert edgealign("doctor", *store).code == 0
    assert edgealign("bundle", "import", tmp_path / "birds.onnx", "--modality", "audio", "-o", "b").code == 2
    lost = edgealign("bundle", "import", tmp_path / "birds.onnx", "--modality", "audio", "--output", tmp_path / "b")
    assert lost.code == 2 and "taken for the name of a tensor" in lost.err and "add -o BUNDLE" in lost.err
    assert not (tmp_path / "b").exists()
    ran = edgealign("bundle", "import", tmp_path / "other" / "0.wav", "--modality", "image", "-o", tmp_path / "b")
    assert ran.code == 4 and "no ONNX model" in ran.err
    Image.fromarray(picture(0)).save(tmp_path / "one.png")


def test_the_lines_of_the_guide_run(
    edgealign: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "import.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    birds = onnx.load_from_string(waveform_encoder(np.random.default_rng(0), 3 * 48_000, 1))
    birds.graph.output.append(helper.make_tensor_value_info("energy", TensorProto.FLOAT, [1, 24]))
    Path("birds.onnx").write_bytes(birds.SerializeToString())
    flat = helper.make_node("Flatten", ["pixels"], ["flat"], axis=1)
    project = helper.make_node("MatMul", ["flat", "weights"], ["out"])
    weights = np.random.default_rng(0).normal(size=(8 * 8 * 3, 16)).astype(np.float32)
    leaves = model([flat, project], ("pixels", ["b", 8, 8, 3]), {"out": ["b", 16]}, weights=weights)
    Path("leaves.onnx").write_bytes(leaves)
    bands = helper.make_node("ReduceMean", ["mel"], ["out"], axes=[2], keepdims=0)
    Path("mels.onnx").write_bytes(model([bands], ("mel", ["b", 64, "t"]), {"out": ["b", 64]}))
    start = guide.index('    {"sample_rate_hz"')
    Path("front_end.json").write_text(guide[start : guide.index("}", start) + 1])
    for place, label in (("elsewhere", 50), ("samples/owl", 0), ("samples/frog", 1)):
        Path(place).mkdir(parents=True)
        for voice in range(3):
            soundfile.write(f"{place}/{voice}.wav", word_clip(label, voice), RATE_HZ)
    soundfile.write("night.wav", np.concatenate([word_clip(0, 7), word_clip(1, 7)]), RATE_HZ)
    lines = [line.strip() for line in guide.splitlines() if line.startswith("    edgealign ")]
    assert len(lines) >= 8
    for line in lines:
        ran = edgealign(*shlex.split(line)[1:])
        assert ran.code == 0, (line, ran)
    assert (tmp_path / "found" / "detections.csv").exists()


def test_a_window_of_clips_is_what_the_model_is_given(tmp_path: Path) -> None:
    bundle = bring_in(framed([1, 8000]), tmp_path, **AUDIO, pool="mean", hop_s=0.25)
    assert bundle.input.windows == ClipWindows(2, 1.0, 0.25, 1.0)
    short = made_up_sound(3000, 8000, 2)
    padded = np.concatenate([short, np.zeros(5000, np.float32)])
    have = Recognizer(bundle, tmp_path / "x.store").embed(short, 8000)
    np.testing.assert_allclose(have, bundle.encode(padded[None])[0], atol=1e-6)
