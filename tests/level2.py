"""Level 2 of the C library, called as a program would call it: through the functions of edgealign_rt.h, by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from toy_bundle import word_clip

import edgealign

ONNXRUNTIME = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
CHANNEL_AXIS = 1


class Match(ctypes.Structure):
    _fields_ = (
        ("label", c_int32), ("accepted", c_int32), ("distance", c_float), ("threshold", c_double),
        ("probability", c_double), ("logit", c_double),
    )  # fmt: skip


class Answer(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t), ("has_sound", c_int32), ("label", c_char_p), ("probability", c_double),
        ("distance", c_double), ("threshold", c_double), ("top", POINTER(Match)), ("n_top", c_size_t),
        ("n_sounds", c_size_t), ("start_s", c_double), ("end_s", c_double), ("heard_s", c_double),
    )  # fmt: skip


class ModelOptions(ctypes.Structure):
    _fields_ = (("struct_size", c_size_t), ("variant", c_char_p))


class StreamOptions(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t), ("sample_rate_hz", c_uint32), ("n_channels", c_uint32), ("ring_s", c_double),
        ("debounce_s", c_double),
    )  # fmt: skip


class Refused(Exception):
    """status, and the sentence that came with it"""

    def __init__(self, status: int, message: str):
        super().__init__(status, message)
        self.status, self.message = status, message


library = ctypes.CDLL(str(Path(edgealign.__file__).parent / "lib" / "libedgealign.so"))
for _name in ("ea_runtime", "ea_model", "ea_recognizer", "ea_stream"):
    getattr(library, f"{_name}_free").argtypes = [c_void_p]
library.ea_stream_n_dropped.restype = c_uint64
library.ea_stream_n_dropped.argtypes = [c_void_p]
library.ea_recognizer_n_labels.restype = c_size_t
library.ea_recognizer_n_labels.argtypes = [c_void_p]
library.ea_recognizer_label.restype = c_char_p
library.ea_recognizer_label.argtypes = [c_void_p, c_size_t]
library.ea_model_dim.restype = c_size_t
library.ea_model_dim.argtypes = [c_void_p]


def call(function: str, *arguments: Any) -> None:
    """Calls a function that ends with a message buffer; Refused where its status is not 0."""
    message = ctypes.create_string_buffer(512)
    status = getattr(library, function)(*arguments, message)
    if status:
        raise Refused(status, message.value.decode())


class Handle:
    """Something that ea_<kind>_open made and ea_<kind>_free frees."""

    def __init__(self, kind: str, *arguments: Any):
        self.kind, self.pointer = kind, c_void_p()
        call(f"ea_{kind}_open", *arguments, byref(self.pointer))

    def free(self) -> None:
        getattr(library, f"ea_{self.kind}_free")(self.pointer)
        self.pointer = c_void_p()

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.free()


def open_runtime(path: Path | None = ONNXRUNTIME) -> Handle:
    return Handle("runtime", None if path is None else str(path).encode())


def open_model(runtime: Handle, bundle: str, variant: str | None = None) -> Handle:
    options = ModelOptions(ctypes.sizeof(ModelOptions), variant and variant.encode())
    return Handle("model", str(bundle).encode(), runtime.pointer, byref(options))


class CRecognizer:
    """ea_recognizer with the manners of Python's."""

    def __init__(self, model: Handle, store: Path | str | None):
        self.dim = library.ea_model_dim(model.pointer)
        self.handle = Handle("recognizer", model.pointer, None if store is None else str(store).encode())

    def hear(self, samples: np.ndarray, rate: int, blocks: Sequence[int] = ()) -> None:
        """Begins a clip and pushes it, float32 or int16 [n] or [n, n_channels], in blocks of these sizes."""
        samples = np.ascontiguousarray(samples)
        n_channels = 1 if samples.ndim == CHANNEL_AXIS else samples.shape[1]
        call("ea_recognizer_begin", self.handle.pointer, rate, n_channels)
        function = "ea_recognizer_push_i16" if samples.dtype == np.int16 else "ea_recognizer_push"
        start = 0
        for size in (*blocks, len(samples)):
            part = samples[start : start + size]
            call(function, self.handle.pointer, part.ctypes.data_as(c_void_p), c_size_t(len(part)))
            start += len(part)

    def classify(self, samples: np.ndarray, rate: int, top_k: int = 5, blocks: Sequence[int] = ()) -> dict[str, Any]:
        self.hear(samples, rate, blocks)
        answer = Answer(ctypes.sizeof(Answer))
        call("ea_recognizer_classify", self.handle.pointer, c_size_t(top_k), byref(answer))
        return as_dict(self, answer)

    def embed(self, samples: np.ndarray, rate: int, blocks: Sequence[int] = ()) -> np.ndarray:
        self.hear(samples, rate, blocks)
        embedding = np.empty(self.dim, np.float32)
        call("ea_recognizer_embed", self.handle.pointer, embedding.ctypes.data_as(c_void_p))
        return embedding

    def enroll(self, samples: np.ndarray, rate: int, label: str, name: str = "") -> int:
        self.hear(samples, rate)
        n_added = c_size_t()
        call("ea_recognizer_enroll", self.handle.pointer, label.encode(), name.encode(), byref(n_added))
        return n_added.value

    def save(self) -> None:
        call("ea_recognizer_save", self.handle.pointer)

    def label(self, i: int) -> str:
        return library.ea_recognizer_label(self.handle.pointer, i).decode()

    def labels(self) -> list[str]:
        return [self.label(i) for i in range(library.ea_recognizer_n_labels(self.handle.pointer))]


class CStream:
    """ea_stream over a recognizer."""

    def __init__(
        self, recognizer: CRecognizer, rate: int, n_channels: int = 1, ring_s: float = 0, debounce_s: float = 0
    ):
        self.recognizer = recognizer
        options = StreamOptions(ctypes.sizeof(StreamOptions), rate, n_channels, ring_s, debounce_s)
        self.handle = Handle("stream", recognizer.handle.pointer, byref(options))

    def push(self, samples: np.ndarray) -> int:
        samples = np.ascontiguousarray(samples)
        function = library.ea_stream_push_i16 if samples.dtype == np.int16 else library.ea_stream_push
        return function(self.handle.pointer, samples.ctypes.data_as(c_void_p), c_size_t(len(samples)))

    def poll(self, top_k: int = 5) -> dict[str, Any] | None:
        answer, heard = Answer(ctypes.sizeof(Answer)), c_int32()
        call("ea_stream_poll", self.handle.pointer, c_size_t(top_k), byref(answer), byref(heard))
        return as_dict(self.recognizer, answer) if heard.value else None

    def poll_all(self) -> list[dict[str, Any]]:
        return list(iter(self.poll, None))

    def end(self) -> None:
        library.ea_stream_end(self.handle.pointer)

    def hear(self, samples: np.ndarray, block: int) -> list[dict[str, Any]]:
        """All answers to samples that come in blocks, and then end."""
        heard = []
        for start in range(0, len(samples), block):
            assert self.push(samples[start : start + block]) == 0
            heard += self.poll_all()
        self.end()
        return heard + self.poll_all()


def two_words() -> np.ndarray:
    """What tests/c/every_call.c hears: float32 [n] at 16 kHz, two words in faint noise, 0.75 s after each."""
    pause = np.zeros(12_000, np.float32)
    samples = np.concatenate([word_clip(0), pause, word_clip(1), pause])
    return samples + 1e-4 * np.random.default_rng(0).normal(size=len(samples)).astype(np.float32)


def as_dict(recognizer: CRecognizer, answer: Answer) -> dict[str, Any]:
    top = [answer.top[i] for i in range(answer.n_top)]
    return {
        "has_sound": bool(answer.has_sound),
        "label": None if answer.label is None else answer.label.decode(),
        "probability": answer.probability,
        "distance": answer.distance,
        "threshold": answer.threshold,
        "top": [(recognizer.label(match.label), match.distance, match.probability) for match in top],
        "n_sounds": answer.n_sounds,
        "start_s": answer.start_s,
        "end_s": answer.end_s,
        "heard_s": answer.heard_s,
    }
