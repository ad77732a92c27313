"""Text from users, made safe to print, to put into JSON lines and to open in a spreadsheet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

# Characters that could move the cursor, hide text or reverse it: controls, surrogates, line separators, byte order
# marks and directional overrides. Right-to-left letters themselves and the joiners of emoji are left alone.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
FORMULA_STARTS = ("=", "+", "-", "@")


def printable(text: str) -> str:
    r"""The text with every unsafe character written as \xNN or \uNNNN."""
    return _UNSAFE.sub(lambda match: rf"\x{ord(match[0]):02x}" if match[0] < "\u0100" else _u(match[0]), text)


def json_line(value: Any) -> str:
    """One line of JSON that is safe to print: readable letters, unsafe ones as the escapes JSON has for them."""
    return _UNSAFE.sub(lambda match: _u(match[0]), json.dumps(value, ensure_ascii=False, allow_nan=False))


def _u(character: str) -> str:
    return rf"\u{ord(character):04x}"


def csv_row(values: Iterable[Any]) -> str:
    """One row after RFC 4180, with its line end; None is an empty field.

    A text that a spreadsheet would run as a formula gets a leading apostrophe, which spreadsheets hide.
    """
    return ",".join(map(_csv_field, values)) + "\r\n"


def _csv_field(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value)
    text = printable(value)
    if text.startswith(FORMULA_STARTS):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"') else text
