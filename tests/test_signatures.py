"""Signed bundles: what was signed verifies, whatever changed does not, and OpenSSL agrees."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgealign import Bundle, signatures
from edgealign.errors import BundleUnreadable, InvalidInput, MissingExtra
from edgealign.manifest import MANIFEST, SIGNATURE


class Keys(NamedTuple):
    private: Path
    public: Path


def write_keys(folder: Path, name: str, key: object, password: bytes | None = None) -> Keys:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    keys = Keys(folder / f"{name}.pem", folder / f"{name}-public.pem")
    keys.private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    keys.public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return write_keys(tmp_path, "key", ed25519.Ed25519PrivateKey.generate())


@pytest.fixture
def signed(toy_bundle: Bundle, keys: Keys, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(toy_bundle.path, tmp_path / "signed"))
    signatures.sign(folder, keys.private)
    return folder


def test_what_was_signed_verifies_and_is_used_as_before(signed: Path, keys: Keys, toy_bundle: Bundle) -> None:
    assert (signed / SIGNATURE).stat().st_size == 64
    assert signatures.verify(signed, keys.public) == toy_bundle.verify() == Bundle.open(signed).verify()


def test_openssl_verifies_the_same_signature(signed: Path, keys: Keys) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys.public), "-rawin", "-in"]
    ran = subprocess.run(
        [*command, str(signed / MANIFEST), "-sigfile", str(signed / SIGNATURE)], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "Signature Verified Successfully"), ran.stderr


@pytest.mark.parametrize("change", ["manifest", "file", "signature", "cut", "longer", "link"])
def test_what_changed_after_signing_is_refused(signed: Path, keys: Keys, change: str) -> None:
    part = signed / {"manifest": MANIFEST, "file": "bank.f16"}.get(change, SIGNATURE)
    data = part.read_bytes()
    if change == "manifest":
        part.write_bytes(data.replace(b'"license":"CC0-1.0"', b'"license":"CC0-1.1"'))
    elif change == "cut":
        part.write_bytes(data[:-1])
    elif change == "longer":
        part.write_bytes(data + b"\0")
    elif change == "link":
        part.rename(signed.parent / "elsewhere")
        part.symlink_to(signed.parent / "elsewhere")
    else:
        part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleUnreadable, match="signed"):
        signatures.verify(signed, keys.public)


def test_the_signature_of_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    other = write_keys(tmp_path, "other", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(BundleUnreadable, match=r"is not of the key .* or the bundle was changed after it was signed"):
        signatures.verify(signed, other.public)


def test_a_bundle_without_a_signature_is_not_taken_for_a_signed_one(toy_bundle: Bundle, keys: Keys) -> None:
    with pytest.raises(BundleUnreadable, match="is not signed"):
        signatures.verify(toy_bundle.path, keys.public)


def test_a_damaged_bundle_is_not_signed(toy_bundle: Bundle, keys: Keys, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_bundle.path, tmp_path / "damaged"))
    (folder / "bank.f16").write_bytes(b"")
    with pytest.raises(BundleUnreadable, match=r"bank\.f16"):
        signatures.sign(folder, keys.private)
    assert not (folder / SIGNATURE).exists()


def test_keys_that_cannot_be_used_are_refused_with_how_to_make_one(
    toy_bundle: Bundle, keys: Keys, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("not a key")
    locked = write_keys(tmp_path, "locked", ed25519.Ed25519PrivateKey.generate(), b"secret")
    curve = write_keys(tmp_path, "curve", ec.generate_private_key(ec.SECP256R1()))
    for use, key, message in (
        (signatures.sign, tmp_path / "text", "no private key in PEM: make one with `openssl genpkey"),
        (signatures.sign, keys.public, "no private key in PEM"),
        (signatures.sign, locked.private, "it has a password"),
        (signatures.sign, curve.private, "not an ed25519 key"),
        (signatures.sign, tmp_path / "none.pem", "cannot be read: No such file"),
        (signatures.verify, keys.private, "no public key in PEM: make one with `openssl pkey"),
        (signatures.verify, curve.public, "not an ed25519 key"),
        (signatures.verify, tmp_path, "cannot be read: Is a directory"),
    ):
        with pytest.raises(InvalidInput, match=message):
            use(toy_bundle.path, key)


def test_without_cryptography_its_extra_is_named(
    toy_bundle: Bundle, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for use in (signatures.sign, signatures.verify):
        with pytest.raises(MissingExtra, match=r"edgealign\[sign\]"):
            use(toy_bundle.path, keys.public)


def test_the_commands_sign_and_verify(edgealign, toy_bundle: Bundle, keys: Keys, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_bundle.path, tmp_path / "bundle")
    ran = edgealign("bundle", "verify", folder, "--key", keys.public)
    assert (ran.code, ran.out) == (3, "") and "is not signed" in ran.err
    ran = edgealign("bundle", "sign", folder, "--key", keys.private)
    assert (ran.code, ran.err) == (0, "") and SIGNATURE in ran.out
    ran = edgealign("bundle", "verify", folder, "--key", keys.public)
    assert (ran.code, ran.err) == (0, "")
    assert "intact" in ran.out and "signed" in ran.out
    other = write_keys(tmp_path, "other", ed25519.Ed25519PrivateKey.generate())
    ran = edgealign("bundle", "verify", folder, "--key", other.public)
    assert (ran.code, ran.out) == (3, "") and ran.err.count("\n") == 1
