"""A tiny bundle whose encoder was never trained but really tells sounds apart, built with onnx.helper alone.

The speech encoder removes a clip's level, takes the mean of each log-mel band over six equal shares of the clip's
duration, and projects the means with a fixed random matrix. The text encoder averages one random vector per token.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgealign import kernels
from edgealign.bundle import Bundle, write_bundle

DIM = 32
N_SEGMENTS = 6
FRONT_END = {
    "version": 1, "sample_rate_hz": 16_000, "window_samples": 400, "hop_samples": 160, "n_fft": 512, "n_mels": 24,
    "energy_floor": 1e-10, "low_hz": 60, "high_hz": 7600,
}  # fmt: skip
WINDOWS = {
    "version": 1, "min_frames": 18, "floor_quantile": 0.05, "above_floor_db": 6, "below_peak_db": 32,
    "merge_frames": 20, "min_span_frames": 6, "pad_frames": 10, "max_frames": 300,
}  # fmt: skip
CALIBRATION = {
    "w_bias": 2.0, "w_z": 0.5, "w_t": 0.5, "w_distance": -20.0, "w_margin": 4.0, "w_loo": 5.0, "w_shots": 0.1,
    "w_text": -1.0, "accept_logit": 0.0, "top": 8, "prior_loo": 0.1, "prior_weight": 2.0, "lone_margin": 0.2,
}  # fmt: skip
VOCABULARY = {
    "format_version": 1,
    "tokens": {character: 10 + i for i, character in enumerate(" abcdefghijklmnopqrstuvwxyzˈˌːɡʃʒŋəɛɪɔʊ\u0301\u0303")},
    "languages": {"und": 2, "en": 3, "pt": 4, "sw": 5},
    "kinds": {"grapheme": 6, "ipa": 7},
    "unknown": 1,
    "pad": 0,
    "max_tokens": 40,
}


def triangular_filters() -> np.ndarray:
    """Triangles on the mel scale: float32 [n_mels, n_fft // 2 + 1]."""
    mel_edges = np.linspace(*(2595 * np.log10(1 + np.array([60, 7600]) / 700)), FRONT_END["n_mels"] + 2)
    edges_hz = 700 * (10 ** (mel_edges / 2595) - 1)
    bins_hz = np.linspace(0, 8000, FRONT_END["n_fft"] // 2 + 1)
    rising = (bins_hz - edges_hz[:-2, None]) / np.diff(edges_hz)[:-1, None]
    falling = (edges_hz[2:, None] - bins_hz) / np.diff(edges_hz)[1:, None]
    return np.maximum(np.minimum(rising, falling), 0).astype(np.float32)


def speech_encoder(projection: np.ndarray, center: np.ndarray) -> bytes:
    """ONNX bytes: log_mel [batch, n_mels, n_frames] -> embedding [batch, DIM], and projected before scaling.

    projection  float32 [n_mels * N_SEGMENTS, DIM];  center  float32 [DIM], what the average word would project to
    """
    constants = {
        "projection": projection,
        "center": center,
        "segments": np.arange(N_SEGMENTS, dtype=np.float32)[None, :],
        "n_segments": np.float32(N_SEGMENTS),
        "zero": np.int64(0),
        "one": np.int64(1),
        "half": np.float32(0.5),
        "two": np.array([2], dtype=np.int64),
        "flat": np.array([0, -1], dtype=np.int64),
        "column": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("ReduceMean", ["log_mel"], ["level"], axes=[2], keepdims=1),
        helper.make_node("Sub", ["log_mel", "level"], ["shape"]),
        # Membership of each frame in each segment: floor(n_segments * (t + 1/2) / n_frames) == segment.
        helper.make_node("Shape", ["log_mel"], ["size"]),
        helper.make_node("Gather", ["size", "two"], ["n_frames_vector"]),
        helper.make_node("Squeeze", ["n_frames_vector"], ["n_frames"]),
        helper.make_node("Range", ["zero", "n_frames", "one"], ["index"]),
        helper.make_node("Cast", ["index"], ["index_float"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["n_frames"], ["n_frames_float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["index_float", "half"], ["middle"]),
        helper.make_node("Mul", ["middle", "n_segments"], ["scaled"]),
        helper.make_node("Div", ["scaled", "n_frames_float"], ["position"]),
        helper.make_node("Floor", ["position"], ["segment"]),
        helper.make_node("Unsqueeze", ["segment", "column"], ["segment_column"]),
        helper.make_node("Equal", ["segment_column", "segments"], ["member"]),
        helper.make_node("Cast", ["member"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["weights", "zero_axis"], ["counts"], keepdims=1),
        helper.make_node("Div", ["weights", "counts"], ["averaging"]),
        helper.make_node("MatMul", ["shape", "averaging"], ["means"]),
        helper.make_node("Reshape", ["means", "flat"], ["features"]),
        helper.make_node("MatMul", ["features", "projection"], ["off_center"]),
        helper.make_node("Sub", ["off_center", "center"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embedding"], axis=1, p=2),
    ]
    constants["zero_axis"] = np.array([0], dtype=np.int64)
    return onnx_bytes(
        nodes,
        constants,
        helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["batch", FRONT_END["n_mels"], "n_frames"]),
        ["embedding", "projected"],
    )


def text_encoder(generator: np.random.Generator) -> bytes:
    """ONNX bytes: tokens [batch, n_tokens] -> embedding [batch, DIM]."""
    constants = {"table": generator.normal(size=(64, DIM)).astype(np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], ["embedding"], axis=1, p=2),
    ]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "n_tokens"])
    return onnx_bytes(nodes, constants, tokens, ["embedding"])


def onnx_bytes(
    nodes: list, constants: dict[str, np.ndarray], graph_input: onnx.ValueInfoProto, outputs: list[str]
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "toy",
        [graph_input],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", DIM]) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def word_clip(word: int, voice: int = 0, *, sample_rate_hz: int = 16_000, silence_s: float = 0.25) -> np.ndarray:
    """A synthetic word: float32 [n_samples], a few gliding formants over a buzz, with faint noise around it.

    word    picks the formant glides;  voice   picks pitch, tempo, small deviations and the noise
    """
    glides = np.random.default_rng(1000 + word)
    person = np.random.default_rng([word, voice])
    duration_s = glides.uniform(0.45, 0.8) * person.uniform(0.93, 1.07)
    n_samples = int(duration_s * sample_rate_hz)
    t = np.arange(n_samples) / sample_rate_hz
    pitch_hz = person.uniform(95, 220)
    buzz = sum(np.sin(2 * np.pi * k * pitch_hz * t) / k for k in range(1, 8))
    sound = np.zeros(n_samples)
    for low_hz, high_hz in ((250, 900), (900, 2300), (2300, 3400)):
        path_hz = np.interp(t, np.linspace(0, duration_s, 5), glides.uniform(low_hz, high_hz, 5))
        path_hz = path_hz * person.uniform(0.97, 1.03)
        sound += np.sin(2 * np.pi * np.cumsum(path_hz) / sample_rate_hz + 0.3 * buzz)
    envelope = np.interp(t, np.linspace(0, duration_s, 7), [0, *glides.uniform(0.5, 1, 5), 0])
    silence = np.zeros(int(silence_s * sample_rate_hz))
    clip = np.concatenate([silence, 0.1 * sound * envelope, silence])
    return (clip + 1e-4 * person.normal(size=len(clip))).astype(np.float32)


def noise_clip(seed: int = 0, *, seconds: float = 1.0, sample_rate_hz: int = 16_000) -> np.ndarray:
    """Steady noise in which nothing stands out: float32 [n_samples]."""
    return (0.05 * np.random.default_rng(seed).normal(size=int(seconds * sample_rate_hz))).astype(np.float32)


def _run(encoder: bytes, output: str, filters: np.ndarray, clips: list[np.ndarray]) -> np.ndarray:
    """float32 [n_clips, DIM]: one output of the encoder for whole clips."""
    session = onnxruntime.InferenceSession(encoder)
    numbers = (FRONT_END["window_samples"], FRONT_END["hop_samples"], FRONT_END["energy_floor"])
    log_mels = [kernels.log_mel(samples, filters, *numbers) for samples in clips]
    return np.concatenate([session.run([output], {"log_mel": log_mel[None]})[0] for log_mel in log_mels])


def make_toy_bundle(folder: Path, seed: int = 0, **windows: float) -> Bundle:
    """Writes the bundle to folder / "bundle"; another seed is another encoder. windows: other values of WINDOWS."""
    source = folder / "source"
    source.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    filters = triangular_filters()
    others = [word_clip(500 + i, silence_s=0.1) for i in range(40)]
    projection = generator.normal(size=(FRONT_END["n_mels"] * N_SEGMENTS, DIM)).astype(np.float32)
    off_center = speech_encoder(projection, np.zeros(DIM, dtype=np.float32))
    encoder = speech_encoder(projection, _run(off_center, "projected", filters, others).mean(axis=0))
    bank = _run(encoder, "embedding", filters, others)
    (source / "encoder.onnx").write_bytes(encoder)
    (source / "encoder.fp32.onnx").write_bytes(encoder)
    (source / "text_encoder.onnx").write_bytes(text_encoder(generator))
    (source / "filters.f32").write_bytes(filters.astype("<f4").tobytes())
    (source / "bank.f16").write_bytes(bank.astype("<f2").tobytes())
    (source / "vocab.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
    (source / "README.md").write_text("A toy: it was never trained.\n", encoding="utf-8")
    return write_bundle(
        folder / "bundle",
        source,
        golden_samples=[word_clip(900), word_clip(901)],
        golden_texts=[("maji", "grapheme", "sw"), ("ˈmadʒi", "ipa", None)],
        name="toy",
        modality="speech",
        bundle_version="0.0.1",
        dim=DIM,
        front_end=FRONT_END,
        windows=WINDOWS | windows,
        encoder={
            "default": "int8",
            "variants": {"int8": {"file": "encoder.onnx"}, "fp32": {"file": "encoder.fp32.onnx"}},
        },
        text_encoder={"file": "text_encoder.onnx", "vocab": "vocab.json", "weight": 1.5},
        bank={"file": "bank.f16", "rows": len(bank)},
        calibration=CALIBRATION,
        license="CC0-1.0",
        attribution=[],
    )
