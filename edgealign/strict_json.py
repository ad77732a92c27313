"""Reads JSON that may be hostile: strict and bounded; every fault raises BundleUnreadable."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields
from typing import Any

from edgealign.errors import BundleUnreadable

MAX_JSON_DEPTH = 16


def canonical_json(value: Any) -> bytes:
    """ASCII JSON with sorted keys and no white space, so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse_json(data: bytes, name: str) -> Any:
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


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BundleUnreadable(otherwise)


def read_section(cls: type, section: Any, name: str) -> Any:
    """A frozen dataclass from a dict of the manifest: every key, no other key, values of the fields' types."""
    expect(isinstance(section, dict), f"'{name}' of the manifest is not an object")
    known = {field.name: field for field in fields(cls)}
    required = {key for key, field in known.items() if field.default is MISSING}
    if not required <= set(section) <= set(known):
        raise BundleUnreadable(f"'{name}' of the manifest has the keys {sorted(section)}: expected {sorted(known)}")
    for key, value in section.items():
        kind = known[key].type
        if kind == "float":
            fits = type(value) in (int, float) and math.isfinite(value)
        else:
            fits = type(value) is {"int": int, "str": str}[kind]
        expect(fits, f"'{name}.{key}' of the manifest is {value!r}: expected a finite {kind}")
    return cls(**section)
