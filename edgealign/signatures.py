"""Who made a bundle: an ed25519 signature over its manifest, whose hashes cover every other file.

Optional: a bundle works without one. Keys are PEM files as OpenSSL writes them; docs/formats.md says how the signature
is made and checked without edgealign.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edgealign.bundle import Bundle, read_plain_file
from edgealign.errors import BundleUnreadable, InvalidInput, MissingExtra
from edgealign.manifest import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE
from edgealign.writing import replace_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64
MAX_KEY_BYTES = 2**16


def sign(bundle_path: str | os.PathLike, key_path: str | os.PathLike) -> str:
    """Signs a bundle after it was verified; writes the signature beside the manifest and returns its path.

    key_path   private ed25519 key, PEM, without a password
    raises     InvalidInput for a key that cannot be used, BundleUnreadable for a bundle that is damaged
    """
    key = _private_key(key_path)
    bundle = Bundle.open(bundle_path)
    bundle.verify()
    path = os.path.join(bundle.path, SIGNATURE)
    with replace_file(path) as file:
        file.write(key.sign(read_plain_file(bundle.path, MANIFEST, MAX_MANIFEST_BYTES)))
    return path


def verify(bundle_path: str | os.PathLike, key_path: str | os.PathLike) -> list[str]:
    """Checks the signature and then every file, as `Bundle.verify` does; returns the names of the files.

    key_path   public ed25519 key, PEM
    raises     InvalidInput for a key that cannot be used; BundleUnreadable where the bundle has no signature, where it
               is not of this key, or where the bundle changed after it was signed
    """
    key = _public_key(key_path)
    from cryptography.exceptions import InvalidSignature

    bundle = Bundle.open(bundle_path)
    if not os.path.lexists(os.path.join(bundle.path, SIGNATURE)):
        raise BundleUnreadable(f"bundle '{bundle.path}' is not signed: it has no {SIGNATURE}; ask its maker for one")
    signature = read_plain_file(bundle.path, SIGNATURE, SIGNATURE_BYTES)
    try:
        key.verify(signature, read_plain_file(bundle.path, MANIFEST, MAX_MANIFEST_BYTES))
    except InvalidSignature:
        raise BundleUnreadable(
            f"the signature of bundle '{bundle.path}' is not of the key '{os.fspath(key_path)}', or the bundle was "
            f"changed after it was signed: do not use it"
        ) from None
    try:
        return bundle.verify()
    except BundleUnreadable as error:
        raise BundleUnreadable(f"the manifest is as it was signed, but {error}") from None


def _private_key(path: str | os.PathLike) -> Ed25519PrivateKey:
    serialization, ed25519 = _cryptography()
    data = _read_key(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        reason = "it has a password" if isinstance(error, TypeError) else "it is no private key in PEM"
        raise _no_key(path, reason, "openssl genpkey -algorithm ed25519 -out key.pem") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _no_key(path, "it is not an ed25519 key", "openssl genpkey -algorithm ed25519 -out key.pem")
    return key


def _public_key(path: str | os.PathLike) -> Ed25519PublicKey:
    serialization, ed25519 = _cryptography()
    hint = "openssl pkey -in key.pem -pubout -out public.pem"
    data = _read_key(path)
    try:
        key = serialization.load_pem_public_key(data)
    except ValueError:
        raise _no_key(path, "it is no public key in PEM", hint) from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise _no_key(path, "it is not an ed25519 key", hint)
    return key


def _read_key(path: str | os.PathLike) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise InvalidInput(f"the key '{os.fspath(path)}' cannot be read: {error.strerror}") from None


def _no_key(path: str | os.PathLike, reason: str, command: str) -> InvalidInput:
    return InvalidInput(f"the key '{os.fspath(path)}' cannot be used, {reason}: make one with `{command}`")


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingExtra("signatures need the package cryptography: pip install 'edgealign[sign]'") from None
    return serialization, ed25519
