"""The bundle: a folder with an encoder and everything else that changes an embedding. docs/formats.md specifies it.

A bundle may come from a stranger, so nothing in it is trusted before it is checked: files are plain names beside the
manifest, never links; sizes are limited before reading and the sha256 of a file is compared on the very bytes that are
used; ONNX Runtime gets bytes, never a path, and a graph that points to other files is refused; there is no pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from edgealign.errors import BundleUnreadable, DeviceUnavailable, InvalidInput
from edgealign.kernels import Calibration
from edgealign.text import Tokenizer, Tokens

FORMAT = "edgealign-bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FILTERS = "filters.f32"
GOLDEN = "golden.npz"
CARD = "README.md"

MAX_MANIFEST_BYTES = 2**20
MAX_ONNX_BYTES = 200 * 2**20
MAX_FILE_BYTES = 64 * 2**20
MAX_GOLDEN_UNPACKED_BYTES = 256 * 2**20
MAX_FILES = 64
MAX_DIM = 4096
MAX_JSON_DEPTH = 16

MODALITIES = ("speech",)
DEVICES = ("auto", "cpu", "cuda")
_PLAIN_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FrontEnd:
    """How sound becomes log-mel energies; the arguments of `kernels.log_mel` beside the filters."""

    version: int
    sample_rate_hz: int
    window_samples: int
    hop_samples: int
    n_fft: int
    n_mels: int
    energy_floor: float
    low_hz: float
    high_hz: float

    def check(self) -> None:
        _expect(self.version == 1, f"front end version {self.version}: this edgealign knows 1")
        _expect(8_000 <= self.sample_rate_hz <= 48_000, f"sample_rate_hz {self.sample_rate_hz} is not in 8000-48000")
        _expect(self.n_fft in (64, 128, 256, 512, 1024, 2048, 4096), f"n_fft {self.n_fft} is not a power of two")
        _expect(1 <= self.hop_samples <= self.window_samples <= self.n_fft, "hop ≤ window ≤ n_fft does not hold")
        _expect(1 <= self.n_mels <= 512, f"n_mels {self.n_mels} is not in 1-512")
        _expect(0 < self.energy_floor < 1, f"energy_floor {self.energy_floor} is not in (0, 1)")

    @property
    def filters_shape(self) -> tuple[int, int]:
        return self.n_mels, self.n_fft // 2 + 1

    def seconds(self, frames: float) -> float:
        return frames * self.hop_samples / self.sample_rate_hz


@dataclass(frozen=True)
class Windows:
    """How the word is found in a clip; the arguments of `kernels.sound_spans`, and what the encoder needs at least."""

    version: int
    min_frames: int
    floor_quantile: float
    above_floor_db: float
    below_peak_db: float
    merge_frames: int
    min_span_frames: int
    pad_frames: int
    max_frames: int

    def check(self) -> None:
        _expect(self.version == 1, f"window policy version {self.version}: this edgealign knows 1")
        _expect(0 <= self.floor_quantile <= 1, f"floor_quantile {self.floor_quantile} is not in [0, 1]")
        _expect(1 <= self.min_frames <= self.max_frames <= 100_000, "1 ≤ min_frames ≤ max_frames does not hold")
        _expect(self.above_floor_db >= 0 and self.below_peak_db > 0, "a level of the window policy is negative")
        frames = (self.merge_frames, self.min_span_frames, self.pad_frames)
        _expect(all(0 <= n <= 100_000 for n in frames), "a frame count of the window policy is negative or huge")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BundleUnreadable(otherwise)


def _read_section(cls: type, section: Any, name: str) -> Any:
    """A frozen dataclass from a dict of the manifest: every key, no other key, whole numbers where the field is int."""
    _expect(isinstance(section, dict), f"'{name}' of the manifest is not an object")
    expected = {field.name: field.type for field in fields(cls)}
    if set(section) != set(expected):
        raise BundleUnreadable(f"'{name}' of the manifest has the keys {sorted(section)}: expected {sorted(expected)}")
    for key, kind in expected.items():
        value = section[key]
        fits = type(value) is int if kind == "int" else type(value) in (int, float) and math.isfinite(value)
        _expect(fits, f"'{name}.{key}' of the manifest is {value!r}: expected a finite {kind}")
    return cls(**section)


def _read_calibration(manifest: dict) -> Calibration:
    _expect(isinstance(manifest["calibration"], dict), "'calibration' of the manifest is not an object")
    try:
        calibration = Calibration.from_dict(manifest["calibration"])
        calibration.check(manifest["bank"]["rows"])
    except ValueError as error:
        raise BundleUnreadable(str(error)) from None
    return calibration


def canonical_json(value: Any) -> bytes:
    """ASCII JSON with sorted keys and no white space, so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _parse_json(data: bytes, name: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key appears twice")
        return table

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    def whole(digits: str) -> int:
        if len(digits) > 16:
            raise ValueError(f"{digits[:16]}… has too many digits")
        return int(digits)

    def depth(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + max(map(depth, inner), default=0)

    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_int=whole)
        if depth(value) > MAX_JSON_DEPTH:
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
    except (ValueError, RecursionError) as error:
        raise BundleUnreadable(f"'{name}' is not usable JSON: {error}") from None
    return value


def _read_plain_file(folder: str, name: str, max_bytes: int) -> bytes:
    """Bytes of a regular file that lies directly in the folder; links, devices and oversized files are refused."""
    _expect(_PLAIN_NAME.fullmatch(name) is not None, f"file name {name!r} of the manifest is not a plain name")
    path = os.path.join(folder, name)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        reason = "is a link" if os.path.islink(path) else error.strerror
        raise BundleUnreadable(f"'{path}' cannot be read ({reason}): a bundle needs it as a regular file") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        _expect(stat.S_ISREG(status.st_mode), f"'{path}' is not a regular file")
        _expect(status.st_size <= max_bytes, f"'{path}' has {status.st_size} bytes: at most {max_bytes} are read")
        return file.read(max_bytes + 1)


def _max_bytes(name: str) -> int:
    return MAX_ONNX_BYTES if name.endswith(".onnx") else MAX_FILE_BYTES


# The parts of ONNX's protobuf schema through which a TensorProto can be reached: message -> field number -> message.
_ONNX_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_MAX_ONNX_DEPTH = 64


def points_outside(onnx_model: bytes) -> bool:
    """Whether a tensor of an ONNX model names data in another file. ValueError where the bytes are not protobuf.

    Walks the protobuf by hand, so that checking a graph needs neither onnx nor trust in ONNX Runtime's loader.
    """

    def varint(at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = onnx_model[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
        raise ValueError("a number is cut short")

    def walk(at: int, end: int, message: str, depth: int) -> bool:
        if depth > _MAX_ONNX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_ONNX_DEPTH} levels")
        inner = _ONNX_MESSAGES[message]
        while at < end:
            key, at = varint(at, end)
            number, wire = key >> 3, key & 7
            start = at
            if wire == 0:
                value, at = varint(at, end)
                if message == "tensor" and number == _TENSOR_DATA_LOCATION and value != 0:
                    return True
            elif wire == 2:
                size, start = varint(at, end)
                at = start + size
                if message == "tensor" and number == _TENSOR_EXTERNAL_DATA:
                    return True
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire} is not used by ONNX")
            if at > end:
                raise ValueError("a field reaches past its message")
            if wire == 2 and number in inner and walk(start, at, inner[number], depth + 1):
                return True
        return False

    return walk(0, len(onnx_model), "model", 0)


def package_bundle(modality: str) -> str:
    """Folder of the bundle that is shipped for a modality."""
    return os.path.join(os.path.dirname(__file__), "bundles", modality)


class Bundle:
    """An encoder with its front end, window policy, text encoder, calibration and background bank.

    Opening reads the manifest only; each file is read, checked and kept when it is first needed. A bundle may be used
    from several threads at once.

    modality, name, bundle_version   str
    dim             length of its embeddings
    front_end, windows   see FrontEnd, Windows
    encoder_sha256  the fingerprint: hex sha256 of everything that changes an embedding
    variant         which encoder file is used
    """

    def __init__(self, path: str, manifest: dict, variant: str | None, device: str):
        self.path = path
        self.manifest = manifest
        self.device = device
        self._lock = threading.Lock()
        self._sessions: dict[str, Any] = {}
        self.name: str = manifest["name"]
        self.modality: str = manifest["modality"]
        self.bundle_version: str = manifest["bundle_version"]
        self.dim: int = manifest["dim"]
        self.front_end: FrontEnd = _read_section(FrontEnd, manifest["front_end"], "front_end")
        self.windows: Windows = _read_section(Windows, manifest["windows"], "windows")
        self.front_end.check()
        self.windows.check()
        self.calibration = _read_calibration(manifest)
        self.variant: str = variant or manifest["encoder"]["default"]
        if self.variant not in self.variants:
            known = ", ".join(self.variants)
            raise InvalidInput(f"the bundle at '{path}' has no encoder variant '{self.variant}': it has {known}")

    @classmethod
    def open(
        cls,
        path: str | os.PathLike | None = None,
        *,
        modality: str = "speech",
        variant: str | None = None,
        device: str = "auto",
    ) -> Bundle:
        """The bundle in a folder; without one, that of $EDGEALIGN_BUNDLE or the shipped one.

        device   "cpu", "cuda" (DeviceUnavailable where ONNX Runtime has no CUDA) or "auto", which is the CPU
        """
        if device not in DEVICES:
            raise InvalidInput(f"device is '{device}': expected one of {', '.join(DEVICES)}")
        folder = os.fspath(path or os.environ.get("EDGEALIGN_BUNDLE") or package_bundle(modality))
        if not os.path.isdir(folder):
            raise BundleUnreadable(f"no bundle at '{folder}': a bundle is a folder with a {MANIFEST}")
        try:
            data = _read_plain_file(folder, MANIFEST, MAX_MANIFEST_BYTES)
            manifest = _parse_json(data, MANIFEST)
            _check_manifest(manifest)
            return cls(folder, manifest, variant, device)
        except BundleUnreadable as error:
            raise BundleUnreadable(f"bundle '{folder}': {error}") from None

    @property
    def encoder_sha256(self) -> str:
        return self.manifest["fingerprint"]

    def read(self, name: str) -> bytes:
        """Bytes of one file of the manifest, with size and sha256 checked on exactly these bytes."""
        entry = self.manifest["files"].get(name)
        _expect(entry is not None, f"bundle '{self.path}': '{name}' is not in its manifest")
        data = _read_plain_file(self.path, name, _max_bytes(name))
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise BundleUnreadable(
                f"'{os.path.join(self.path, name)}' differs from its manifest ({len(data)} bytes, expected "
                f"{entry['bytes']} with another sha256): copy or install the bundle again"
            )
        return data

    @cached_property
    def filters(self) -> np.ndarray:
        """float32 [n_mels, n_fft // 2 + 1]"""
        return self._read_matrix(FILTERS, "<f4", self.front_end.filters_shape)

    @cached_property
    def bank(self) -> np.ndarray:
        """float32 [n_bank, dim], unit rows that stand for "anything else"."""
        entry = self.manifest["bank"]
        rows = self._read_matrix(entry["file"], "<f2", (entry["rows"], self.dim))
        # In float64, so that rounded to float32 it is the same in whatever order it is summed, here and in the core.
        norms = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True)).astype(np.float32)
        _expect(
            bool(np.all(np.abs(norms - 1) < 1e-2)), f"bundle '{self.path}': a row of the bank is not of unit length"
        )
        return rows / norms

    @cached_property
    def tokenizer(self) -> Tokenizer:
        entry = self.manifest["text_encoder"]
        if entry is None:
            raise InvalidInput(f"the bundle '{self.name}' has no text encoder: enroll recordings instead")
        return Tokenizer.from_dict(_parse_json(self.read(entry["vocab"]), entry["vocab"]))

    @property
    def text_weight(self) -> float:
        """How many recordings one text counts as in a prototype; 1 where no text can be encoded."""
        entry = self.manifest["text_encoder"]
        return 1.0 if entry is None else float(entry["weight"])

    def golden(self) -> dict[str, np.ndarray]:
        """The golden vectors: recorded inputs and outputs of every stage."""
        import io
        import zipfile

        data = self.read(GOLDEN)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                unpacked_bytes = sum(item.file_size for item in archive.infolist())
            if unpacked_bytes > MAX_GOLDEN_UNPACKED_BYTES:
                raise ValueError(f"unpacks to {unpacked_bytes} bytes")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            raise BundleUnreadable(f"bundle '{self.path}': {GOLDEN} cannot be used: {error}") from None

    @property
    def variants(self) -> list[str]:
        return sorted(self.manifest["encoder"]["variants"])

    def encoder_file(self, variant: str | None = None) -> str:
        return self.manifest["encoder"]["variants"][variant or self.variant]["file"]

    def encode(self, log_mels: np.ndarray, variant: str | None = None) -> np.ndarray:
        """Embeddings of clips that have the same number of frames.

        log_mels  float32 [batch, n_mels, n_frames], n_frames ≥ windows.min_frames
        variant   one of `variants`; the bundle's own where None
        returns   float32 [batch, dim], unit rows
        """
        return self._run(self.encoder_file(variant), "log_mel", log_mels)

    def encode_text(self, tokens: Tokens) -> np.ndarray:
        """Embedding of one text: float32 [dim], of unit length."""
        self.tokenizer  # noqa: B018  says what is missing where there is no text encoder
        return self._run(self.manifest["text_encoder"]["file"], "tokens", tokens.ids[None])[0]

    def verify(self) -> list[str]:
        """Checks every file and returns the names; BundleUnreadable with the first fault.

        Beyond what the use of a bundle checks: that no file is missing or left over, that the fingerprint is the
        one of the files, and that every graph loads.
        """
        names = set(self.manifest["files"])
        present = set(os.listdir(self.path)) - {MANIFEST}
        _expect(names == present, f"bundle '{self.path}' holds {sorted(present)}: its manifest names {sorted(names)}")
        for name in names:
            self.read(name)
        _expect(
            fingerprint(self.manifest) == self.encoder_sha256,
            f"bundle '{self.path}' states the fingerprint {self.encoder_sha256[:12]}, its files have "
            f"{fingerprint(self.manifest)[:12]}",
        )
        for variant in self.manifest["encoder"]["variants"].values():
            self._session(variant["file"])
        if self.manifest["text_encoder"] is not None:
            self._session(self.manifest["text_encoder"]["file"])
            _ = self.tokenizer
        _ = self.filters, self.bank
        self.golden()
        return sorted(names)

    def _read_matrix(self, name: str, dtype: str, shape: tuple[int, int]) -> np.ndarray:
        data = self.read(name)
        expected_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        _expect(
            len(data) == expected_bytes,
            f"bundle '{self.path}': '{name}' has {len(data)} bytes, {shape} values need {expected_bytes}",
        )
        matrix = np.frombuffer(data, dtype).reshape(shape).astype(np.float32)
        _expect(bool(np.isfinite(matrix).all()), f"bundle '{self.path}': '{name}' holds NaN or infinity")
        return matrix

    def _session(self, name: str) -> Any:
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = self._make_session(name)
            return self._sessions[name]

    def _make_session(self, name: str) -> Any:
        import onnxruntime

        provider = "CUDAExecutionProvider" if self.device == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise DeviceUnavailable(
                "device 'cuda' was asked for but ONNX Runtime has no CUDA here: pip install onnxruntime-gpu in place "
                "of onnxruntime, or use --device cpu"
            )
        data = self.read(name)
        try:
            outside = points_outside(data)
        except ValueError as error:
            raise BundleUnreadable(f"bundle '{self.path}': '{name}' is not an ONNX model: {error}") from None
        _expect(not outside, f"bundle '{self.path}': '{name}' points to data in other files, which is never followed")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3  # errors; they are raised anyway
        try:
            session = onnxruntime.InferenceSession(data, options, providers=[provider])
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise BundleUnreadable(f"bundle '{self.path}': ONNX Runtime refuses '{name}': {error}") from None
        if session.get_providers()[0] != provider:
            raise DeviceUnavailable("device 'cuda' was asked for but CUDA could not be started: use --device cpu")
        return session

    def _run(self, name: str, input_name: str, values: np.ndarray) -> np.ndarray:
        session = self._session(name)
        try:
            (embeddings,) = session.run(["embedding"], {input_name: values})
        except Exception as error:  # see _make_session
            raise BundleUnreadable(f"bundle '{self.path}': '{name}' cannot be run: {error}") from None
        expected = (len(values), self.dim)
        if embeddings.dtype != np.float32 or embeddings.shape != expected or not np.isfinite(embeddings).all():
            raise BundleUnreadable(
                f"bundle '{self.path}': '{name}' answered {embeddings.dtype} {embeddings.shape}, expected finite "
                f"float32 {expected}"
            )
        return embeddings


def _check_manifest(manifest: Any) -> None:
    """What must hold before any other file is touched."""
    _expect(isinstance(manifest, dict), f"{MANIFEST} is not an object")
    _expect(manifest.get("format") == FORMAT, f"its format is {manifest.get('format')!r}, expected '{FORMAT}'")
    version = manifest.get("format_version")
    _expect(version == FORMAT_VERSION, f"its format_version is {version!r}: this edgealign reads {FORMAT_VERSION}")
    expected = {
        "format", "format_version", "name", "modality", "bundle_version", "dim", "front_end", "windows", "encoder",
        "text_encoder", "bank", "calibration", "files", "fingerprint", "license", "attribution",
    }  # fmt: skip
    missing, unknown = sorted(expected - set(manifest)), sorted(set(manifest) - expected)
    _expect(not missing, f"its manifest lacks {', '.join(missing)}")
    _expect(not unknown, f"its manifest has the unknown keys {', '.join(unknown)}")
    for key in ("name", "modality", "bundle_version", "fingerprint", "license"):
        _expect(isinstance(manifest[key], str) and len(manifest[key]) <= 200, f"'{key}' of the manifest is not text")
    _expect(manifest["modality"] in MODALITIES, f"its modality is '{manifest['modality']}': this edgealign has speech")
    _expect(type(manifest["dim"]) is int and 1 <= manifest["dim"] <= MAX_DIM, f"dim {manifest['dim']!r} is not usable")
    _expect(_SHA256.fullmatch(manifest["fingerprint"]) is not None, "'fingerprint' is not a sha256")
    _expect(isinstance(manifest["attribution"], list), "'attribution' of the manifest is not a list")
    _check_files(manifest["files"])
    _check_parts(manifest)


def _check_files(files: Any) -> None:
    _expect(isinstance(files, dict) and len(files) <= MAX_FILES, f"'files' is not a table of at most {MAX_FILES} files")
    for name, entry in files.items():
        _expect(_PLAIN_NAME.fullmatch(name) is not None, f"file name {name!r} of the manifest is not a plain name")
        _expect(name != MANIFEST, f"the manifest lists itself as {name!r}")
        _expect(
            isinstance(entry, dict)
            and set(entry) == {"sha256", "bytes"}
            and isinstance(entry["sha256"], str)
            and _SHA256.fullmatch(entry["sha256"]) is not None
            and type(entry["bytes"]) is int
            and 0 <= entry["bytes"] <= _max_bytes(name),
            f"the entry of '{name}' is not a sha256 and a size of at most {_max_bytes(name)} bytes",
        )


def _check_parts(manifest: dict) -> None:
    """That encoder, text encoder and bank name files of the manifest."""
    encoder, text, bank = manifest["encoder"], manifest["text_encoder"], manifest["bank"]
    _expect(
        isinstance(encoder, dict)
        and set(encoder) == {"default", "variants"}
        and isinstance(encoder["variants"], dict)
        and all(isinstance(variant, dict) for variant in encoder["variants"].values())
        and isinstance(encoder["default"], str)
        and encoder["default"] in encoder["variants"],
        "'encoder' of the manifest is not a default and its variants",
    )
    _expect(
        text is None
        or (
            isinstance(text, dict)
            and set(text) == {"file", "vocab", "weight"}
            and type(text["weight"]) in (int, float)
            and 0 < text["weight"] <= 100
        ),
        "'text_encoder' of the manifest is not a file, a vocab and a weight in (0, 100]",
    )
    _expect(
        isinstance(bank, dict) and set(bank) == {"file", "rows"} and type(bank["rows"]) is int and bank["rows"] >= 0,
        "'bank' of the manifest is not a file and a number of rows",
    )
    named = [variant.get("file") for variant in encoder["variants"].values()]
    named += [bank["file"], FILTERS, GOLDEN] + ([] if text is None else [text["file"], text["vocab"]])
    for name in named:
        _expect(isinstance(name, str) and name in manifest["files"], f"the manifest names {name!r} but not its sha256")


def fingerprint(manifest: dict) -> str:
    """Hex sha256 of everything that changes an embedding: docs/formats.md lists it."""
    sha256 = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    text = manifest["text_encoder"]
    return hashlib.sha256(
        canonical_json(
            {
                "format_version": manifest["format_version"],
                "dim": manifest["dim"],
                "front_end": manifest["front_end"],
                "windows": manifest["windows"],
                "filters": sha256[FILTERS],
                "encoders": {key: sha256[item["file"]] for key, item in manifest["encoder"]["variants"].items()},
                "text_encoder": None if text is None else sha256[text["file"]],
                "vocab": None if text is None else sha256[text["vocab"]],
            }
        )
    ).hexdigest()


def write_bundle(
    target: str | os.PathLike,
    source: str | os.PathLike,
    *,
    golden_clips: Sequence[np.ndarray],
    golden_texts: Sequence[tuple[str, str, str | None]] = (),
    **manifest_fields: Any,
) -> Bundle:
    """Makes a bundle at `target` from a folder of files and the fields of its manifest; returns it, verified.

    source            folder that holds the files of the bundle, but no manifest and no golden vectors
    golden_clips      float32 [n_samples] each, mono, at the front end's rate: golden vectors are recorded with these
    golden_texts      (text, kind, language) each
    manifest_fields   name, modality, bundle_version, dim, front_end, windows, encoder, text_encoder, bank,
                      calibration, license, attribution; hashes, sizes and the fingerprint are computed here

    The bundle is written beside `target`, verified there and then renamed: a reader sees the old bundle or the new
    one. A `target` that exists and is no bundle is refused.
    """
    import shutil
    import tempfile

    from edgealign import golden

    target, source = os.path.abspath(os.fspath(target)), os.fspath(source)
    if os.path.lexists(target) and not _is_bundle(target):
        raise InvalidInput(f"'{target}' exists and is not a bundle: name a new folder, nothing was overwritten")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    partial = tempfile.mkdtemp(prefix=f".{os.path.basename(target)}-", dir=os.path.dirname(target))
    try:
        files = {}

        def add(name: str, data: bytes) -> None:
            files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            _write_durably(os.path.join(partial, name), data)

        for name in sorted(os.listdir(source)):
            add(name, _read_plain_file(source, name, _max_bytes(name)))
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "files": files, **manifest_fields}
        # The structure is checked before it is hashed and used, with stand-ins for what is still to be computed.
        _check_manifest(
            {**manifest, "fingerprint": "0" * 64, "files": {**files, GOLDEN: {"sha256": "0" * 64, "bytes": 0}}}
        )
        manifest["fingerprint"] = fingerprint(manifest)
        add(GOLDEN, golden.record(Bundle(partial, manifest, None, "cpu"), golden_clips, golden_texts))
        _write_durably(os.path.join(partial, MANIFEST), canonical_json(manifest))
        Bundle.open(partial).verify()
        os.chmod(partial, 0o755)  # mkdtemp makes it private
        if os.path.lexists(target):
            replaced = tempfile.mkdtemp(prefix=f".{os.path.basename(target)}-", dir=os.path.dirname(target))
            os.replace(target, replaced)
            os.rename(partial, target)
            shutil.rmtree(replaced)
        else:
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Bundle.open(target)


def _is_bundle(folder: str) -> bool:
    try:
        return _parse_json(_read_plain_file(folder, MANIFEST, MAX_MANIFEST_BYTES), MANIFEST).get("format") == FORMAT
    except (BundleUnreadable, AttributeError):
        return False


def _write_durably(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
