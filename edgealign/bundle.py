"""The bundle: a folder with an encoder and everything else that changes an embedding. docs/formats.md specifies it.

A bundle may come from a stranger, so nothing in it is trusted before it is checked: files are plain names beside the
manifest, never links; sizes are limited before reading and the sha256 of a file is compared on the very bytes that are
used; ONNX Runtime gets bytes, never a path, and a graph that points to other files is refused; there is no pickle.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgealign.errors import BundleUnreadable, DeviceUnavailable, InvalidInput
from edgealign.inputs import FrontEnd, ImageInput, Input, LogMelInput, TextInput, Windows, read_input
from edgealign.kernels import Calibration
from edgealign.manifest import canonical_json, expect, parse_json
from edgealign.text import TextTokenizer, Tokens, open_tokenizer

FORMAT = "edgealign-bundle"
FORMAT_VERSIONS = (1, 2)
MANIFEST = "manifest.json"
FILTERS = "filters.f32"
GOLDEN = "golden.npz"
SIGNATURE = "manifest.sig"  # see edgealign.signatures
CARD = "README.md"

MAX_MANIFEST_BYTES = 2**20
MAX_ONNX_BYTES = 2**31 - 1  # what protobuf can hold
MAX_FILE_BYTES = 64 * 2**20
MAX_GOLDEN_UNPACKED_BYTES = 256 * 2**20
MAX_FILES = 64
MAX_DIM = 4096
MAX_NAME_CHARACTERS = 200  # of any text of the manifest

MODALITIES = ("speech", "audio", "image")
DEVICES = ("auto", "cpu", "cuda")
_PLAIN_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TextSource:
    """Words that a label can start from: tokens -> `embedding` in the space of the samples.

    weight      how many samples one text counts as
    tokenizer   the section of the manifest: kind, file and what the kind needs
    """

    file: str
    weight: float
    tokenizer: dict[str, Any]


@dataclass(frozen=True)
class ImageSource:
    """Pictures that a label can start from: `image` -> `embedding` in the space of the samples."""

    file: str
    weight: float
    input: ImageInput


def _read_calibration(manifest: dict) -> Calibration:
    expect(isinstance(manifest["calibration"], dict), "'calibration' of the manifest is not an object")
    try:
        calibration = Calibration.from_dict(manifest["calibration"])
        calibration.check(manifest["bank"]["rows"])
    except ValueError as error:
        raise BundleUnreadable(str(error)) from None
    return calibration


def read_plain_file(folder: str, name: str, max_bytes: int) -> bytes:
    """Bytes of a regular file that lies directly in the folder; links, devices and oversized files are refused."""
    expect(_PLAIN_NAME.fullmatch(name) is not None, f"file name {name!r} of the manifest is not a plain name")
    path = os.path.join(folder, name)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        reason = "is a link" if os.path.islink(path) else error.strerror
        raise BundleUnreadable(f"'{path}' cannot be read ({reason}): a bundle needs it as a regular file") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        expect(stat.S_ISREG(status.st_mode), f"'{path}' is not a regular file")
        expect(status.st_size <= max_bytes, f"'{path}' has {status.st_size} bytes: at most {max_bytes} are read")
        return file.read(max_bytes + 1)


def max_bytes(name: str) -> int:
    return MAX_ONNX_BYTES if name.endswith(".onnx") else MAX_FILE_BYTES


def check_modality(modality: str) -> None:
    if modality not in MODALITIES:
        raise InvalidInput(f"modality is '{modality}': expected {', '.join(MODALITIES)}")


def package_bundle(modality: str) -> str:
    """Folder of the bundle that is shipped for a modality."""
    return os.path.join(os.path.dirname(__file__), "bundles", modality)


def _is_shipped(folder: str) -> bool:
    """Whether the bundle is a part of this installation, and so as trusted as the code."""
    return os.path.dirname(os.path.realpath(folder)) == os.path.realpath(os.path.dirname(package_bundle("")))


class Bundle:
    """An encoder with its front end, window policy, text encoder, calibration and background bank.

    Opening reads the manifest only; each file is read, checked and kept when it is first needed. A bundle may be used
    from several threads at once.

    modality, name, bundle_version   str
    dim             length of its embeddings
    input           what its encoder takes, see edgealign.inputs
    sources         "text" and "image", as far as labels can start from them: TextSource, ImageSource
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
        self.input = _read_input(manifest)
        self.sources = _read_sources(manifest)
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
        modality: str | None = None,
        variant: str | None = None,
        device: str = "auto",
    ) -> Bundle:
        """The bundle in a folder; without one, that of $EDGEALIGN_BUNDLE or the shipped one.

        modality "speech", "audio" or "image": what the bundle must be for; None takes any, and ships "speech"
        variant  one of its encoders; where None, the fastest on this device if it was measured (`edgealign.variants`),
                 else the default that the bundle states
        device   "cpu", "cuda" (DeviceUnavailable where ONNX Runtime has no CUDA) or "auto", which is the CPU
        """
        if device not in DEVICES:
            raise InvalidInput(f"device is '{device}': expected one of {', '.join(DEVICES)}")
        if modality is not None:
            check_modality(modality)
        named = path or os.environ.get("EDGEALIGN_BUNDLE")
        folder = os.fspath(named or package_bundle(modality or "speech"))
        if not named and not os.path.isdir(folder):
            raise BundleUnreadable(f"no bundle for {modality} is part of this installation: name one with --bundle")
        if not os.path.isdir(folder):
            raise BundleUnreadable(f"no bundle at '{folder}': a bundle is a folder with a {MANIFEST}")
        try:
            data = read_plain_file(folder, MANIFEST, MAX_MANIFEST_BYTES)
            manifest = parse_json(data, MANIFEST)
            _check_manifest(manifest)
            bundle = cls(folder, manifest, variant or _fastest(manifest), device)
        except BundleUnreadable as error:
            raise BundleUnreadable(f"bundle '{folder}': {error}") from None
        if modality is not None and bundle.modality != modality:
            raise InvalidInput(f"the bundle at '{folder}' is for {bundle.modality}: one for {modality} was asked for")
        return bundle

    @property
    def encoder_sha256(self) -> str:
        return self.manifest["fingerprint"]

    def read(self, name: str) -> bytes:
        """Bytes of one file of the manifest, with size and sha256 checked on exactly these bytes."""
        entry = self.manifest["files"].get(name)
        expect(entry is not None, f"bundle '{self.path}': '{name}' is not in its manifest")
        data = read_plain_file(self.path, name, max_bytes(name))
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise BundleUnreadable(
                f"'{os.path.join(self.path, name)}' differs from its manifest ({len(data)} bytes, expected "
                f"{entry['bytes']} with another sha256): copy or install the bundle again"
            )
        return data

    @property
    def front_end(self) -> FrontEnd:
        """How its log-mel energies are made; InvalidInput where it has none."""
        front_end = getattr(self.input, "front_end", None)
        if front_end is None:
            raise InvalidInput(
                f"the bundle '{self.name}' takes {self.input.kind} as it is: it makes no log-mel energies"
            )
        return front_end

    @property
    def windows(self) -> Windows:
        """How the word is found in a clip; InvalidInput where the encoder does not see words."""
        windows = getattr(self.input, "windows", None)
        if not isinstance(windows, Windows):
            raise InvalidInput(f"the bundle '{self.name}' is for {self.modality}: it finds no words in clips")
        return windows

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
        expect(bool(np.all(np.abs(norms - 1) < 1e-2)), f"bundle '{self.path}': a row of the bank is not of unit length")
        return rows / norms

    def source(self, kind: str) -> TextSource | ImageSource:
        """What lets a label start from "text" or "image"; InvalidInput where this bundle has nothing for it."""
        if kind not in self.sources:
            what = {"text": "text encoder", "image": "picture encoder"}[kind]
            raise InvalidInput(f"the bundle '{self.name}' has no {what}: enroll {self.sample_noun}s instead")
        return self.sources[kind]

    @property
    def sample_noun(self) -> str:
        """What one sample is called: picture or recording."""
        return "picture" if self.modality == "image" else "recording"

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        entry = self.source("text").tokenizer
        data = self.read(entry["file"])
        try:
            return open_tokenizer(entry, data)
        except BundleUnreadable as error:
            raise BundleUnreadable(f"bundle '{self.path}': {error}") from None

    @property
    def text_weight(self) -> float:
        """How many samples one text or picture counts as in a prototype; 1 where labels start from samples alone."""
        return float(next((source.weight for source in self.sources.values()), 1.0))

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
        except Exception as error:  # numpy and zipfile raise a dozen unrelated types
            raise BundleUnreadable(f"bundle '{self.path}': {GOLDEN} cannot be used: {error}") from None

    @property
    def variants(self) -> list[str]:
        return sorted(self.manifest["encoder"]["variants"])

    def encoder_file(self, variant: str | None = None) -> str:
        return self.manifest["encoder"]["variants"][variant or self.variant]["file"]

    def encode(self, values: np.ndarray, variant: str | None = None) -> np.ndarray:
        """Embeddings of what the encoder takes; for sounds of equal length.

        values    float32 log_mel [batch, n_mels, n_frames], waveform [batch, n_samples] or image [batch, 3, height,
                  width], as `input` says
        variant   one of `variants`; the bundle's own where None
        returns   float32 [batch, dim], unit rows
        """
        return self._run(self.encoder_file(variant), {self.input.tensor: values})

    def encode_text(self, tokens: Tokens) -> np.ndarray:
        """Embedding of one text: float32 [dim], of unit length."""
        return self._run(self.source("text").file, tokens.inputs)[0]

    def encode_image_source(self, pixels: np.ndarray) -> np.ndarray:
        """Embedding of one picture that a label starts from: float32 [dim], of unit length.

        pixels   float32 [3, height_px, width_px] in [0, 1], as `images.fit` makes them for sources["image"].input
        """
        source = self.source("image")
        return self._run(source.file, {source.input.tensor: pixels[None]})[0]

    def verify(self) -> list[str]:
        """Checks every file and returns the names; BundleUnreadable with the first fault.

        Beyond what the use of a bundle checks: that no file is missing or left over, that the fingerprint is the
        one of the files, and that every graph loads.
        """
        names = set(self.manifest["files"])
        present = set(os.listdir(self.path)) - {MANIFEST, SIGNATURE}
        expect(names == present, f"bundle '{self.path}' holds {sorted(present)}: its manifest names {sorted(names)}")
        for name in names:
            self.read(name)
        expect(
            fingerprint(self.manifest) == self.encoder_sha256,
            f"bundle '{self.path}' states the fingerprint {self.encoder_sha256[:12]}, its files have "
            f"{fingerprint(self.manifest)[:12]}",
        )
        for variant in self.manifest["encoder"]["variants"].values():
            self._session(variant["file"])
        for source in self.sources.values():
            self._session(source.file)
        if "text" in self.sources:
            _ = self.tokenizer
        if FILTERS in self.manifest["files"]:
            _ = self.filters
        _ = self.bank
        self.golden()
        return sorted(names)

    def _read_matrix(self, name: str, dtype: str, shape: tuple[int, int]) -> np.ndarray:
        data = self.read(name)
        expected_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        expect(
            len(data) == expected_bytes,
            f"bundle '{self.path}': '{name}' has {len(data)} bytes, {shape} values need {expected_bytes}",
        )
        matrix = np.frombuffer(data, dtype).reshape(shape).astype(np.float32)
        expect(bool(np.isfinite(matrix).all()), f"bundle '{self.path}': '{name}' holds NaN or infinity")
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
        if not _is_shipped(self.path):
            from edgealign.first_load import check_first_load

            try:
                check_first_load(data, self.manifest["files"][name]["sha256"])
            except ValueError as error:
                raise BundleUnreadable(f"bundle '{self.path}': '{name}' cannot be used: {error}") from None
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

    def _run(self, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        session = self._session(name)
        n_rows = len(next(iter(inputs.values())))
        try:
            if n_rows > 1 and session.get_inputs()[0].shape[0] == 1:  # a graph that takes one at a time
                rows = [session.run(["embedding"], {k: v[i : i + 1] for k, v in inputs.items()}) for i in range(n_rows)]
                embeddings = np.concatenate([row for (row,) in rows])
            else:
                (embeddings,) = session.run(["embedding"], inputs)
        except Exception as error:  # see _make_session
            raise BundleUnreadable(f"bundle '{self.path}': '{name}' cannot be run: {error}") from None
        expected = (n_rows, self.dim)
        if embeddings.dtype != np.float32 or embeddings.shape != expected or not np.isfinite(embeddings).all():
            raise BundleUnreadable(
                f"bundle '{self.path}': '{name}' answered {embeddings.dtype} {embeddings.shape}, expected finite "
                f"float32 {expected}"
            )
        return embeddings


def _fastest(manifest: dict) -> str | None:
    """The variant that was measured to be the fastest here, if the bundle has it."""
    variants = manifest["encoder"]["variants"]
    if len(variants) == 1:
        return None
    from edgealign.variants import passes, remembered

    name = remembered(manifest["fingerprint"])
    return name if name in variants and passes(variants[name]) else None


def _check_manifest(manifest: Any) -> None:
    """What must hold before any other file is touched."""
    expect(isinstance(manifest, dict), f"{MANIFEST} is not an object")
    expect(manifest.get("format") == FORMAT, f"its format is {manifest.get('format')!r}, expected '{FORMAT}'")
    version = manifest.get("format_version")
    known = " and ".join(map(str, FORMAT_VERSIONS))
    expect(
        version in FORMAT_VERSIONS and type(version) is int,
        f"its format_version is {version!r}: this edgealign reads {known}",
    )
    parts = {"front_end", "windows", "text_encoder"} if version == 1 else {"input", "sources"}
    expected = parts | {
        "format", "format_version", "name", "modality", "bundle_version", "dim", "encoder", "bank", "calibration",
        "files", "fingerprint", "license", "attribution",
    }  # fmt: skip
    missing, unknown = sorted(expected - set(manifest)), sorted(set(manifest) - expected)
    expect(not missing, f"its manifest lacks {', '.join(missing)}")
    expect(not unknown, f"its manifest has the unknown keys {', '.join(unknown)}")
    for key in ("name", "modality", "bundle_version", "fingerprint", "license"):
        usable = isinstance(manifest[key], str) and len(manifest[key]) <= MAX_NAME_CHARACTERS
        expect(usable, f"'{key}' of the manifest is not text of at most {MAX_NAME_CHARACTERS} characters")
    allowed = ("speech",) if version == 1 else (*MODALITIES, TextInput.kind)
    found = manifest["modality"]
    expect(found in allowed, f"its modality is '{found}': this edgealign has {', '.join(allowed)}")
    expect(type(manifest["dim"]) is int and 1 <= manifest["dim"] <= MAX_DIM, f"dim {manifest['dim']!r} is not usable")
    expect(_SHA256.fullmatch(manifest["fingerprint"]) is not None, "'fingerprint' is not a sha256")
    expect(isinstance(manifest["attribution"], list), "'attribution' of the manifest is not a list")
    _check_files(manifest["files"])
    _check_parts(manifest)


def _check_files(files: Any) -> None:
    expect(isinstance(files, dict) and len(files) <= MAX_FILES, f"'files' is not a table of at most {MAX_FILES} files")
    for name, entry in files.items():
        expect(_PLAIN_NAME.fullmatch(name) is not None, f"file name {name!r} of the manifest is not a plain name")
        expect(name not in (MANIFEST, SIGNATURE), f"the manifest lists itself as {name!r}")
        expect(
            isinstance(entry, dict)
            and set(entry) == {"sha256", "bytes"}
            and isinstance(entry["sha256"], str)
            and _SHA256.fullmatch(entry["sha256"]) is not None
            and type(entry["bytes"]) is int
            and 0 <= entry["bytes"] <= max_bytes(name),
            f"the entry of '{name}' is not a sha256 and a size of at most {max_bytes(name)} bytes",
        )


def _check_parts(manifest: dict) -> None:
    """That encoder, sources and bank name files of the manifest."""
    encoder, bank = manifest["encoder"], manifest["bank"]
    expect(
        isinstance(encoder, dict)
        and set(encoder) == {"default", "variants"}
        and isinstance(encoder["variants"], dict)
        and all(isinstance(variant, dict) for variant in encoder["variants"].values())
        and isinstance(encoder["default"], str)
        and encoder["default"] in encoder["variants"],
        "'encoder' of the manifest is not a default and its variants",
    )
    sources = _read_sources(manifest)
    expect(
        isinstance(bank, dict) and set(bank) == {"file", "rows"} and type(bank["rows"]) is int and bank["rows"] >= 0,
        "'bank' of the manifest is not a file and a number of rows",
    )
    taken = _read_input(manifest)
    modality = manifest["modality"]
    expect(modality in taken.modalities, f"a bundle for {modality} cannot take {taken.kind}")
    if isinstance(taken, TextInput):
        own = encoder["variants"][encoder["default"]].get("file")
        alone = set(sources) == {"text"} and sources["text"].file == own
        expect(alone, "a bundle for text must have its encoder as its only source, 'text'")
    named = [variant.get("file") for variant in encoder["variants"].values()]
    named += [bank["file"], GOLDEN, *(source.file for source in sources.values())]
    named += [FILTERS] if getattr(taken, "front_end", None) else []
    named += [sources["text"].tokenizer["file"]] if "text" in sources else []
    for name in named:
        expect(isinstance(name, str) and name in manifest["files"], f"the manifest names {name!r} but not its sha256")


def _read_input(manifest: dict) -> Input:
    if manifest["format_version"] == 1:
        parts = {"kind": LogMelInput.kind, "front_end": manifest["front_end"], "windows": manifest["windows"]}
        return read_input(parts, "")
    return read_input(manifest["input"])


def _read_sources(manifest: dict) -> dict[str, TextSource | ImageSource]:
    """What labels can start from beside samples."""
    found: dict[str, TextSource | ImageSource] = {}
    if manifest["format_version"] == 1:
        text = manifest["text_encoder"]
        if text is not None:
            usable = isinstance(text, dict) and set(text) == {"file", "vocab", "weight"} and _is_weight(text["weight"])
            expect(usable, "'text_encoder' of the manifest is not a file, a vocab and a weight in (0, 100]")
            found["text"] = TextSource(text["file"], text["weight"], {"kind": "edgealign", "file": text["vocab"]})
        return found
    sources = manifest["sources"]
    usable = isinstance(sources, dict) and set(sources) <= {"text", "image"}
    expect(usable, "'sources' of the manifest is not a table of at most 'text' and 'image'")
    for kind, needed in (("text", "tokenizer"), ("image", "input")):
        if kind not in sources:
            continue
        entry = sources[kind]
        usable = isinstance(entry, dict) and set(entry) == {"file", "weight", needed} and _is_weight(entry["weight"])
        expect(usable, f"'sources.{kind}' of the manifest is not a file, a weight in (0, 100] and its {needed}")
        if kind == "text":
            tokenizer = entry["tokenizer"]
            usable = isinstance(tokenizer, dict) and isinstance(tokenizer.get("file"), str)
            expect(usable, "'sources.text.tokenizer' of the manifest names no file")
            found[kind] = TextSource(entry["file"], entry["weight"], tokenizer)
        else:
            taken = read_input(entry["input"], "sources.image.input")
            expect(isinstance(taken, ImageInput), "'sources.image.input' of the manifest is not of the kind image")
            found[kind] = ImageSource(entry["file"], entry["weight"], taken)
    # The decision has one weight for all that is no sample.
    expect(len({source.weight for source in found.values()}) <= 1, "the sources of the manifest differ in their weight")
    return found


def _is_weight(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 100


def fingerprint(manifest: dict) -> str:
    """Hex sha256 of everything that changes an embedding: docs/formats.md lists it."""
    sha256 = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    parts: dict[str, Any] = {
        "format_version": manifest["format_version"],
        "dim": manifest["dim"],
        "encoders": {key: sha256[item["file"]] for key, item in manifest["encoder"]["variants"].items()},
    }
    if manifest["format_version"] == 1:
        text = manifest["text_encoder"]
        parts |= {
            "front_end": manifest["front_end"],
            "windows": manifest["windows"],
            "filters": sha256[FILTERS],
            "text_encoder": None if text is None else sha256[text["file"]],
            "vocab": None if text is None else sha256[text["vocab"]],
        }
    else:
        sources = manifest["sources"]
        parts |= {"input": manifest["input"], "filters": sha256.get(FILTERS), "sources": {}}
        if "text" in sources:
            tokenizer = sources["text"]["tokenizer"]
            parts["sources"]["text"] = {
                "encoder": sha256[sources["text"]["file"]],
                "tokenizer": tokenizer | {"file": sha256[tokenizer["file"]]},
            }
        if "image" in sources:
            entry = sources["image"]
            parts["sources"]["image"] = {"encoder": sha256[entry["file"]], "input": entry["input"]}
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def write_bundle(
    target: str | os.PathLike,
    source: str | os.PathLike,
    *,
    golden_samples: Sequence[np.ndarray] = (),
    golden_texts: Sequence[tuple[str, str, str | None]] = (),
    golden_pictures: Sequence[np.ndarray] = (),
    golden_of: Bundle | None = None,
    **manifest_fields: Any,
) -> Bundle:
    """Makes a bundle at `target` from a folder of files and the fields of its manifest; returns it, verified.

    source            folder that holds the files of the bundle, but no manifest and no golden vectors
    golden_samples    golden vectors are recorded with these: float32 [n_samples] each, mono, at the encoder's rate; or
                      pictures, uint8 [height, width, 3]
    golden_texts      (text, kind, language) each, for a bundle with a text encoder
    golden_pictures   uint8 [height, width, 3] each, for a bundle whose labels can start from a picture
    golden_of         instead of the three: a bundle that differs in its encoders alone
    manifest_fields   name, modality, bundle_version, dim, input, sources, encoder, bank, calibration, license and
                      attribution make format 2; front_end, windows and text_encoder instead of input and sources make
                      format 1. Hashes, sizes and the fingerprint are computed here

    The bundle is written beside `target`, verified there and then renamed: a reader sees the old bundle or the new
    one. A `target` that exists and is no bundle is refused.
    """
    import shutil
    import tempfile

    from edgealign import golden

    target, source = os.path.abspath(os.fspath(target)), os.fspath(source)
    check_target(target)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    partial = tempfile.mkdtemp(prefix=f".{os.path.basename(target)}-", dir=os.path.dirname(target))
    try:
        files = {}

        def add(name: str, data: bytes) -> None:
            files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            _write_durably(os.path.join(partial, name), data)

        for name in sorted(os.listdir(source)):
            add(name, read_plain_file(source, name, max_bytes(name)))
        version = 1 if "front_end" in manifest_fields else 2
        manifest = {"format": FORMAT, "format_version": version, "files": files, **manifest_fields}
        # The structure is checked before it is hashed and used, with stand-ins for what is still to be computed.
        _check_manifest(
            {**manifest, "fingerprint": "0" * 64, "files": {**files, GOLDEN: {"sha256": "0" * 64, "bytes": 0}}}
        )
        manifest["fingerprint"] = fingerprint(manifest)
        made = Bundle(partial, manifest, None, "cpu")
        if golden_of is not None:
            add(GOLDEN, golden.with_variants(made, golden_of.golden()))
        else:
            add(GOLDEN, golden.record(made, golden_samples, golden_texts, golden_pictures))
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
    except OSError as error:
        raise InvalidInput(f"no bundle can be written to '{target}' ({error.strerror}): nothing was changed") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Bundle.open(target)


def check_target(target: str | os.PathLike) -> None:
    """InvalidInput where something else is in the way of a bundle, or nothing can be written there; makes nothing."""
    import tempfile

    target = os.path.abspath(os.fspath(target))
    if os.path.lexists(target) and not _is_bundle(target):
        raise InvalidInput(f"'{target}' exists and is not a bundle: name a new folder, nothing was overwritten")
    folder = os.path.dirname(target)
    while not os.path.lexists(folder) and folder != os.path.dirname(folder):  # a drive may be none
        folder = os.path.dirname(folder)
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{os.path.basename(target)}-", dir=folder))
    except OSError as error:
        raise InvalidInput(f"no bundle can be written to '{target}' ({error.strerror}): name another folder") from None


def _is_bundle(folder: str) -> bool:
    try:
        return parse_json(read_plain_file(folder, MANIFEST, MAX_MANIFEST_BYTES), MANIFEST).get("format") == FORMAT
    except (BundleUnreadable, AttributeError):
        return False


def _write_durably(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
