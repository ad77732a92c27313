"""The bundle: a folder with an encoder and everything else that changes an embedding. docs/formats.md specifies it.

A bundle may come from a stranger, so nothing in it is trusted before it is checked: files are plain names beside the
manifest, never links; sizes are limited before reading and the sha256 of a file is compared on the very bytes that are
used; ONNX Runtime gets bytes, never a path, and a graph that points to other files is refused; there is no pickle.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from edgealign.errors import BundleUnreadable, DeviceUnavailable, InvalidInput
from edgealign.inputs import FrontEnd, Windows
from edgealign.manifest import (
    FILTERS,
    FORMAT,
    GOLDEN,
    MANIFEST,
    MAX_GOLDEN_UNPACKED_BYTES,
    MAX_MANIFEST_BYTES,
    PLAIN_NAME,
    SIGNATURE,
    ImageSource,
    TextSource,
    calibration_of,
    check_manifest,
    check_modality,
    fingerprint,
    input_of,
    max_bytes,
    sources_of,
)
from edgealign.strict_json import canonical_json, expect, parse_json
from edgealign.text import TextTokenizer, Tokens, open_tokenizer

DEVICES = ("auto", "cpu", "cuda")


def read_plain_file(folder: str, name: str, max_bytes: int) -> bytes:
    """Bytes of a regular file that lies directly in the folder; links, devices and oversized files are refused."""
    expect(PLAIN_NAME.fullmatch(name) is not None, f"file name {name!r} of the manifest is not a plain name")
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
    sources         what a label can start from besides recordings: TextSource by "text", ImageSource by "image"
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
        self.input = input_of(manifest)
        self.sources = sources_of(manifest)
        self.calibration = calibration_of(manifest)
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

        modality "speech", "audio" or "image": what the bundle must be for; where None, any that is named, or "speech"
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
            check_manifest(manifest)
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
        """Embeddings of a batch of encoder inputs. The sounds of a batch are of equal length.

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
        check_manifest(
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
