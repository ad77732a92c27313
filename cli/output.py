"""What the commands print: escaped for terminals and spreadsheets, results on stdout, all else on stderr."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

# Characters that could move the cursor, hide text or reverse it: controls, surrogates, line separators, byte order
# marks and directional overrides. Right-to-left letters themselves and the joiners of emoji are left alone.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with every unsafe character written as \xNN or \uNNNN."""
    return _UNSAFE.sub(lambda match: rf"\x{ord(match[0]):02x}" if match[0] < "\u0100" else _u(match[0]), text)


def json_line(value: Any) -> str:
    """One line of JSON that is safe to print: readable letters, unsafe ones as the escapes JSON has for them."""
    return _UNSAFE.sub(lambda match: _u(match[0]), json.dumps(value, ensure_ascii=False, allow_nan=False))


def _u(character: str) -> str:
    return rf"\u{ord(character):04x}"


def percent(share: float) -> str:
    """A probability in whole percent, without the claims of 0 % and 100 % that rounding would make."""
    return ">99%" if share > 0.99 else "<1%" if share < 0.01 else f"{share:.0%}"


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
    if text.startswith(("=", "+", "-", "@")):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"') else text


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns that line up, also with wide characters; cells are made printable."""
    cells = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(display_width, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(pad(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line, values lined up."""
    rows = [(name, printable(str(value))) for name, value in facts]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")


def display_width(text: str) -> int:
    """How many columns of a terminal a text fills."""
    marks = ("Mn", "Me", "Cf")
    return sum(
        0 if unicodedata.category(c) in marks else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def pad(text: str, width: int) -> str:
    return text + " " * (width - display_width(text))


def say(message: str) -> None:
    """A line for the person, on stderr."""
    print(printable(message), file=sys.stderr)


def warn(message: str) -> None:
    say(f"warning: {message}")
