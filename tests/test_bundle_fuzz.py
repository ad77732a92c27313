"""Real bundles with bytes flipped, cut out and put in: used, or refused with one sentence, and nothing else.

Each damaged file is vouched for by the manifest, as an attacker would do it, so that its contents are read and not only
its hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgealign import Bundle, golden
from edgealign.bundle import package_bundle
from edgealign.errors import BundleUnreadable
from edgealign.first_load import check_first_load
from edgealign.manifest import MANIFEST, fingerprint
from edgealign.onnx_check import check_onnx
from edgealign.strict_json import canonical_json


def damaged(data: bytes, n: int, seed: int) -> Iterator[bytes]:
    """n copies, each with one to four bytes, or stretches of them, that are not what they were."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        changed = bytearray(data)
        for _ in range(rng.integers(1, 5)):
            # Half of the damage goes to the ends, where heads and directories lie.
            near_end = rng.random() < 0.5
            at = int(rng.integers(min(200, len(changed)))) if near_end else int(rng.integers(len(changed)))
            at = len(changed) - 1 - at if near_end and rng.random() < 0.5 else at
            size = int(rng.integers(1, 40))
            kind = rng.integers(4)
            if kind == 0:
                changed[at] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                del changed[at : at + size]
            elif kind == 2:
                changed[at:at] = rng.bytes(size)
            else:
                changed[at : at + size] = rng.choice([0, 0x7F, 0x80, 0xFF], size).astype(np.uint8).tobytes()
            if not changed:
                break
        yield bytes(changed)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped bundle, which is a stranger's by where it lies."""
    return Path(shutil.copytree(package_bundle("speech"), tmp_path_factory.mktemp("fuzz") / "speech"))


def try_all(folder: Path, name: str, use: Callable[[Bundle], object], n: int, seed: int = 0) -> tuple[int, int]:
    """How many damaged copies of a file were refused and how many used; any other end is the test's failure."""
    before, manifest = (folder / name).read_bytes(), (folder / MANIFEST).read_bytes()
    n_refused = 0
    try:
        for data in damaged(before, n, seed):
            (folder / name).write_bytes(data)
            if name != MANIFEST:
                vouched = json.loads(manifest)
                vouched["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
                vouched["fingerprint"] = fingerprint(vouched)
                (folder / MANIFEST).write_bytes(canonical_json(vouched))
            try:
                use(Bundle.open(folder))
            except BundleUnreadable as error:
                n_refused += 1
                assert str(folder) in str(error), error
                assert "\n" not in str(error) and len(str(error)) < 2000
    finally:
        (folder / name).write_bytes(before)
        (folder / MANIFEST).write_bytes(manifest)
    return n_refused, n - n_refused


@pytest.mark.parametrize(
    ("name", "use", "n"),
    [
        (MANIFEST, lambda bundle: (bundle.filters, bundle.bank, bundle.tokenizer, bundle.encoder_file()), 400),
        ("golden.npz", lambda bundle: bundle.golden(), 150),
        ("bank.f16", lambda bundle: bundle.bank, 40),
        ("filters.f32", lambda bundle: bundle.filters, 40),
        ("vocab.json", lambda bundle: bundle.tokenizer.encode("maji", "grapheme", "sw"), 150),
    ],
)
def test_a_damaged_file_is_refused_or_used(speech: Path, name: str, use: Callable, n: int) -> None:
    refused, _ = try_all(speech, name, use, n)
    assert refused > n // 4


@pytest.mark.parametrize("name", ["encoder.onnx", "text_encoder.onnx"])
def test_damaged_graphs_are_walked_to_an_end(name: str) -> None:
    data = Path(package_bundle("speech"), name).read_bytes()
    n_refused = 0
    for changed in damaged(data, 60, seed=1):
        try:
            check_onnx(changed)
        except ValueError as error:
            n_refused += 1
            assert "\n" not in str(error) and len(str(error)) < 400
    assert n_refused > 20


def test_damaged_graphs_are_loaded_apart_or_refused(toy_bundle: Bundle, tmp_path: Path) -> None:
    """To the end: what passes is loaded here too, and compared with the golden vectors."""
    folder = Path(shutil.copytree(toy_bundle.path, tmp_path / "toy"))
    refused, used = try_all(folder, "encoder.onnx", golden.compare, 10, seed=2)
    assert refused and refused + used == 10


def test_the_files_before_the_damage_are_used(speech: Path) -> None:
    """So that a refusal above is of the damage."""
    bundle = Bundle.open(speech)
    assert bundle.golden() and len(bundle.bank) and len(bundle.filters)
    check_first_load(bundle.read("encoder.onnx"), bundle.manifest["files"]["encoder.onnx"]["sha256"])
