"""Praat TextGrids: long and short text form in, long form out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgealign.annotations import Annotation, Table, channel_of, choose_tiers, decoded
from edgealign.errors import AnnotationUnreadable
from edgealign.escaping import printable

# Both forms are the same numbers, texts and flags in the same order; the rest of the long form is decoration. A number
# counts where it stands alone, which "[1]:" does not.
_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)(<exists>|<absent>)(?!\S)|(?<!\S)([+-]?[\d.]+(?:[eE][+-]?\d+)?)(?!\S)')


class _Tokens:
    def __init__(self, text: str, path: str):
        self.path = path
        self._found = _TOKEN.finditer(text)

    def _next(self, group: int, what: str) -> str:
        match = next(self._found, None)
        if match is None or match[group] is None:
            found = "its end" if match is None else repr(match[0][:40])
            raise AnnotationUnreadable(
                f"'{self.path}' is not a TextGrid that can be read: {found} where {what} belongs"
            )
        return match[group]

    def text(self) -> str:
        return self._next(1, "a text").replace('""', '"')

    def flag(self) -> str:
        return self._next(2, "<exists>")

    def number(self) -> float:
        try:
            return float(self._next(3, "a number"))
        except ValueError as error:
            raise AnnotationUnreadable(f"'{self.path}' is not a TextGrid that can be read: {error}") from None


def read(data: bytes, path: str, tier: str | None) -> Table:
    """The intervals of one tier; a point has no duration and is a problem."""
    tokens = _Tokens(decoded(data, path), path)
    if tokens.text() not in ("ooTextFile", "ooTextFile short") or tokens.text() != "TextGrid":
        raise AnnotationUnreadable(f"'{path}' is not a TextGrid in text form: save it as text from Praat")
    tokens.number(), tokens.number()
    tiers: dict[str, list[tuple[float, float, str]]] = {}
    if tokens.flag() == "<exists>":
        for _ in range(int(tokens.number())):
            kind, name = tokens.text(), tokens.text()
            tokens.number(), tokens.number()
            entries = []
            for _ in range(int(tokens.number())):
                start_s = tokens.number()
                end_s = tokens.number() if kind == "IntervalTier" else start_s
                entries.append((start_s, end_s, tokens.text()))
            tiers.setdefault(name, []).extend(entries)
    holding = {name: [text.strip() for _, _, text in entries if text.strip()] for name, entries in tiers.items()}
    table = Table()
    for name in choose_tiers(path, holding, tier):
        for number, (start_s, end_s, text) in enumerate(tiers[name], start=1):
            where = f"'{path}' tier '{printable(name)}' number {number}"
            table.add(where, Annotation(start_s, end_s, text, channel=channel_of(name)))
    return table


def write(tiers: dict[str, Sequence[Annotation]], duration_s: float) -> str:
    """A TextGrid with an interval tier per name; annotations of one tier are in time order and do not overlap."""
    end_s = max([duration_s, *(found.end_s for entries in tiers.values() for found in entries)])
    lines = [
        'File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {_seconds(end_s)}",
        "tiers? <exists>", f"size = {len(tiers)}", "item []:",
    ]  # fmt: skip
    for number, (name, entries) in enumerate(tiers.items(), start=1):
        intervals = _tiled(entries, end_s)
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f"        name = {_quoted(name)}",
            "        xmin = 0",
            f"        xmax = {_seconds(end_s)}",
            f"        intervals: size = {len(intervals)}",
        ]
        for i, (start, stop, text) in enumerate(intervals, start=1):
            lines += [
                f"        intervals [{i}]:",
                f"            xmin = {start}",
                f"            xmax = {stop}",
                f"            text = {_quoted(text)}",
            ]
    return "\n".join(lines) + "\n"


def _tiled(entries: Sequence[Annotation], end_s: float) -> list[tuple[str, str, str]]:
    """(start, end, text) from 0 to end_s without gaps, as they are written: equal times are equal texts."""
    tiles: list[tuple[str, str, str]] = []
    last = "0"
    for found in entries:
        start, stop = _seconds(found.start_s), _seconds(found.end_s)
        if float(start) > float(last):
            tiles.append((last, start, ""))
        tiles.append((start, stop, found.label))
        last = stop
    if float(_seconds(end_s)) > float(last) or not tiles:
        tiles.append((last, _seconds(end_s), ""))
    return tiles


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") or "0"


def _quoted(text: str) -> str:
    return '"' + printable(text).replace('"', '""') + '"'
