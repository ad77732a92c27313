"""The manifest of a bundle: what must hold in it before any other file is touched, and what it says.

docs/formats.md specifies it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from edgealign.errors import BundleUnreadable, InvalidInput
from edgealign.inputs import ImageInput, Input, LogMelInput, TextInput, read_input
from edgealign.kernels import Calibration
from edgealign.strict_json import canonical_json, expect

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
PLAIN_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}")
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


def max_bytes(name: str) -> int:
    return MAX_ONNX_BYTES if name.endswith(".onnx") else MAX_FILE_BYTES


def check_modality(modality: str) -> None:
    if modality not in MODALITIES:
        raise InvalidInput(f"modality is '{modality}': expected {', '.join(MODALITIES)}")


def check_manifest(manifest: Any) -> None:
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
        value = manifest[key]
        usable = isinstance(value, str) and len(value) <= MAX_NAME_CHARACTERS and "\0" not in value
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
        expect(PLAIN_NAME.fullmatch(name) is not None, f"file name {name!r} of the manifest is not a plain name")
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
    sources = sources_of(manifest)
    expect(
        isinstance(bank, dict) and set(bank) == {"file", "rows"} and type(bank["rows"]) is int and bank["rows"] >= 0,
        "'bank' of the manifest is not a file and a number of rows",
    )
    taken = input_of(manifest)
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


def input_of(manifest: dict) -> Input:
    if manifest["format_version"] == 1:
        parts = {"kind": LogMelInput.kind, "front_end": manifest["front_end"], "windows": manifest["windows"]}
        return read_input(parts, "")
    return read_input(manifest["input"])


def sources_of(manifest: dict) -> dict[str, TextSource | ImageSource]:
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


def calibration_of(manifest: dict) -> Calibration:
    expect(isinstance(manifest["calibration"], dict), "'calibration' of the manifest is not an object")
    try:
        calibration = Calibration.from_dict(manifest["calibration"])
        calibration.check(manifest["bank"]["rows"])
    except ValueError as error:
        raise BundleUnreadable(str(error)) from None
    return calibration
