"""Tiny bundles of format 2, one for every kind of input, whose encoders were never trained but tell samples apart.

audio_log_mel     windows of 1 s every 0.5 s over a clip, which may be as short as 0.25 s
audio_waveform    the same of samples, for one length only; labels can start from a picture
speech_waveform   the word in a clip, found by a front end; labels can start from text
image             pictures of 16 x 12 px; labels can start from text
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from toy_bundle import (
    CALIBRATION,
    DIM,
    FRONT_END,
    VOCABULARY,
    WINDOWS,
    onnx_bytes,
    text_encoder,
    triangular_filters,
    word_clip,
)

from edgealign.bundle import Bundle, write_bundle
from edgealign.samples import embed, open_sample

KINDS = ("audio_log_mel", "audio_waveform", "speech_waveform", "image")
RATE_HZ = 16_000
CLIP_WINDOWS = {"version": 2, "window_s": 1.0, "hop_s": 0.5, "min_s": 0.25}
PICTURE = {"kind": "image", "height_px": 12, "width_px": 16, "fit": "cover"}
N_BANK = 12


def log_mel_encoder(generator: np.random.Generator) -> bytes:
    """log_mel [batch, n_mels, n_frames] -> embedding: a projection of the mean of each band, without the level."""
    nodes = [
        helper.make_node("ReduceMean", ["log_mel"], ["bands"], axes=[2], keepdims=0),
        helper.make_node("ReduceMean", ["bands"], ["level"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["bands", "level"], ["shape"]),
    ]
    projection = generator.normal(size=(FRONT_END["n_mels"], DIM))
    taken = helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["batch", FRONT_END["n_mels"], "n_frames"])
    return _projected(nodes, {}, projection, taken)


def waveform_encoder(
    generator: np.random.Generator, n_samples: int | str = "n_samples", batch: int | str = "batch"
) -> bytes:
    """waveform [batch, n_samples] -> embedding: a projection of the log energies in 24 bands, without the level."""
    t = np.arange(400) / RATE_HZ
    tones = [np.cos(2 * np.pi * hz * t + phase) for hz in np.geomspace(100, 6000, 24) for phase in (0, np.pi / 2)]
    constants = {
        "tones": (np.array(tones) * np.hanning(400))[:, None].astype(np.float32),
        "channel": np.array([1]),
        "pairs": np.array([0, 24, 2]),
        "floor": np.float32(1e-8),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["waveform", "channel"], ["sound"]),
        helper.make_node("Conv", ["sound", "tones"], ["waves"], strides=[160]),
        helper.make_node("Mul", ["waves", "waves"], ["power"]),
        helper.make_node("ReduceMean", ["power"], ["mean_power"], axes=[2], keepdims=0),
        helper.make_node("Reshape", ["mean_power", "pairs"], ["phases"]),
        helper.make_node("ReduceMean", ["phases"], ["energy"], axes=[2], keepdims=0),
        helper.make_node("Add", ["energy", "floor"], ["audible"]),
        helper.make_node("Log", ["audible"], ["bands"]),
        helper.make_node("ReduceMean", ["bands"], ["level"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["bands", "level"], ["shape"]),
    ]
    taken = helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [batch, n_samples])
    return _projected(nodes, constants, generator.normal(size=(24, DIM)), taken)


def image_encoder(generator: np.random.Generator) -> bytes:
    """image [batch, 3, height, width] -> embedding: a projection of the pixels."""
    shape = [3, PICTURE["height_px"], PICTURE["width_px"]]
    nodes = [
        helper.make_node("Sub", ["image", "gray"], ["centered"]),
        helper.make_node("Flatten", ["centered"], ["shape"], axis=1),
    ]
    taken = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])
    return _projected(nodes, {"gray": np.float32(0.45)}, generator.normal(size=(int(np.prod(shape)), DIM)), taken)


def _projected(nodes: list, constants: dict[str, np.ndarray], projection: np.ndarray, taken: Any) -> bytes:
    nodes += [
        helper.make_node("MatMul", ["shape", "projection"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embedding"], axis=1, p=2),
    ]
    return onnx_bytes(nodes, constants | {"projection": projection.astype(np.float32)}, taken, ["embedding"])


def picture(kind: int, one: int = 0, *, width_px: int = 40, height_px: int = 30) -> np.ndarray:
    """A made-up picture: uint8 [height_px, width_px, 3], colored waves over the whole of it.

    kind   picks waves and colors;  one   picks the phase by a little, and the noise
    """
    waves, noise = np.random.default_rng(kind), np.random.default_rng([kind, one])
    y, x = np.mgrid[0:height_px, 0:width_px] / np.array([height_px, width_px])[:, None, None]
    layers = []
    for _ in range(3):
        right, down, phase = waves.uniform(0.3, 1.5), waves.uniform(0.3, 1.5), waves.uniform(0, 6)
        layers.append(np.sin(2 * np.pi * (right * x + down * y) + phase + noise.uniform(-0.3, 0.3)))
    values = 128 + 90 * np.stack(layers, axis=2) + noise.normal(0, 6, (height_px, width_px, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


def sample(kind: str, label: int, one: int = 0) -> np.ndarray:
    """A sample for the bundle of a kind: samples at RATE_HZ, or pixels."""
    return picture(label, one) if kind == "image" else word_clip(label, one)


def make_kind(folder: Path, kind: str, seed: int = 0, n_bank: int = N_BANK) -> Bundle:
    """Writes the bundle of one of KINDS to folder / "bundle"; another seed is another encoder.

    n_bank   rows of its background bank; 0 for a bundle that knows nothing else
    """
    source = folder / "source"
    source.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    manifest, encoder = _parts(kind, generator, source)
    (source / "encoder.onnx").write_bytes(encoder)
    (source / "bank.f16").write_bytes(b"")
    (source / "README.md").write_text("A toy: it was never trained.\n", encoding="utf-8")
    golden: dict[str, Any] = {"golden_samples": [sample(kind, 900), sample(kind, 901)]}
    if "text" in manifest["sources"]:
        golden["golden_texts"] = [("maji", "grapheme", "sw"), ("ˈmadʒi", "ipa", None)]
    if "image" in manifest["sources"]:
        golden["golden_pictures"] = [picture(900)]
    fields = {
        "name": f"toy {kind}",
        "modality": kind.partition("_")[0],
        "bundle_version": "0.0.1",
        "dim": DIM,
        "encoder": {"default": "fp32", "variants": {"fp32": {"file": "encoder.onnx"}}},
        "calibration": CALIBRATION,
        "license": "CC0-1.0",
        "attribution": [],
        **manifest,
    }
    target = folder / "bundle"
    bundle = write_bundle(target, source, bank={"file": "bank.f16", "rows": 0}, **golden, **fields)
    if not n_bank:
        return bundle
    rate_hz = None if kind == "image" else RATE_HZ
    others = [embed(bundle, open_sample(bundle, sample(kind, 500 + i), rate_hz)).embedding for i in range(n_bank)]
    (source / "bank.f16").write_bytes(np.stack(others).astype("<f2").tobytes())
    return write_bundle(target, source, bank={"file": "bank.f16", "rows": n_bank}, **golden, **fields)


def _parts(kind: str, generator: np.random.Generator, source: Path) -> tuple[dict[str, Any], bytes]:
    """Writes what only this kind needs: `input` and `sources` of its manifest, and its encoder."""
    sources: dict[str, Any] = {}
    if kind in ("speech_waveform", "image"):
        (source / "text_encoder.onnx").write_bytes(text_encoder(generator))
        (source / "vocab.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
        tokenizer = {"kind": "edgealign", "file": "vocab.json"}
        sources["text"] = {"file": "text_encoder.onnx", "weight": 0.5, "tokenizer": tokenizer}
    if kind == "audio_waveform":
        (source / "image_encoder.onnx").write_bytes(image_encoder(generator))
        sources["image"] = {"file": "image_encoder.onnx", "weight": 0.5, "input": PICTURE}
    if kind in ("audio_log_mel", "speech_waveform"):
        (source / "filters.f32").write_bytes(triangular_filters().astype("<f4").tobytes())
    if kind == "audio_log_mel":
        taken = {"kind": "log_mel", "front_end": FRONT_END, "windows": CLIP_WINDOWS}
        return {"input": taken, "sources": sources}, log_mel_encoder(generator)
    if kind == "audio_waveform":
        taken = {"kind": "waveform", "sample_rate_hz": RATE_HZ, "windows": CLIP_WINDOWS | {"min_s": 1.0}}
        return {"input": taken, "sources": sources}, waveform_encoder(generator, RATE_HZ, 1)
    if kind == "speech_waveform":
        taken = {"kind": "waveform", "sample_rate_hz": RATE_HZ, "windows": WINDOWS, "front_end": FRONT_END}
        return {"input": taken, "sources": sources}, waveform_encoder(generator)
    return {"input": PICTURE, "sources": sources}, image_encoder(generator)
