"""What the commands print: escaped for terminals and spreadsheets, results on stdout, all else on stderr."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress

from edgealign.escaping import csv_row, json_line, printable

__all__ = ["counted", "csv_row", "json_line", "pad", "percent", "print_facts", "printable", "say", "table", "warn"]


def percent(share: float) -> str:
    """A probability in whole percent, without the claims of 0 % and 100 % that rounding would make."""
    return ">99%" if share > 0.99 else "<1%" if share < 0.01 else f"{share:.0%}"


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


def counted(n: int, noun: str) -> str:
    """1 label, 2 labels."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def pad(text: str, width: int) -> str:
    return text + " " * (width - display_width(text))


def say(message: str) -> None:
    """A line for the person, on stderr. Work goes on where nobody can read it."""
    with suppress(OSError):
        print(printable(message), file=sys.stderr)


def warn(message: str) -> None:
    say(f"warning: {message}")
