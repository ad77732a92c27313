"""Annotations that are lines of a table: Audacity label tracks, Raven selection tables, CSV."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence

from edgealign.annotations import Annotation, Table
from edgealign.audio import MIX
from edgealign.errors import AnnotationUnreadable
from edgealign.escaping import FORMULA_STARTS, printable

# Names of columns, in lower case, in the order in which they are preferred.
START_OF_RAVEN = "begin time (s)"
START = ("start_s", START_OF_RAVEN, "start (s)", "start", "begin", "onset", "start_time", "begin_s", "tmin")
END = ("end_s", "end time (s)", "end (s)", "end", "stop", "offset", "end_time", "stop_s", "tmax")
DURATION = ("duration_s", "duration", "delta time (s)")
LABEL = ("label", "annotation", "species", "common name", "text", "name", "class", "scientific name")
FILE = ("file", "begin path", "begin file", "filename", "file_name", "path", "audio_file")
SCORE = ("probability", "confidence", "score")
LOW, HIGH = ("low_hz", "low freq (hz)"), ("high_hz", "high freq (hz)")
OFFSET = ("file offset (s)",)
LAST_ROW = "\0end"  # a row behind the last one, which a quote that is never closed takes in
TITLE_WITH_SCORE = re.compile(r"(.*\S) (0\.\d\d|1\.00)", re.DOTALL)  # as write_audacity makes it


def read(text: str, path: str, label: str | None = None) -> Table:
    """Annotations of a text file: Audacity where its first field is a number, else a table with a header.

    label   of what has none
    """
    lines = text.split("\n")
    first = next((line for line in lines if line.strip()), "")
    if not first:
        return Table()
    if _number(first.split("\t")[0]) is not None:
        return _read_audacity(lines, path, label)
    return _read_table(text, first, path, label)


def _read_audacity(lines: Sequence[str], path: str, unnamed: str | None) -> Table:
    table = Table()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"'{path}' line {number}"
        fields = line.split("\t")
        if fields[0] == "\\":  # the frequencies of the label above
            low, high = (_number(value) for value in (*fields[1:3], "", "")[:2])
            if table.annotations and low is not None and high is not None:
                last = table.annotations[-1]
                table.annotations[-1] = Annotation(last.start_s, last.end_s, last.label, last.score, low, high)
            continue
        start_s, end_s = (_number(value) for value in (*fields[:2], "", "")[:2])
        if start_s is None or end_s is None:
            table.problems.append(f"{where}: '{printable(line[:40])}' does not begin with two times")
            continue
        label = fields[2] if len(fields) > 2 and fields[2].strip() else unnamed or ""
        title = TITLE_WITH_SCORE.fullmatch(label)
        label, score = (title[1], float(title[2])) if title else (label, None)
        table.add(where, Annotation(start_s, end_s, label, score))
    return table


def _read_table(text: str, header: str, path: str, unnamed: str | None) -> Table:
    delimiter = max("\t;,", key=header.count)
    # Raven quotes nothing: a quote in its tables is a letter. Spreadsheets and R quote in tables with tabs, too.
    raven = delimiter == "\t" and START_OF_RAVEN in header.lower().split("\t")
    rows = csv.reader(
        (f"{line}\n" for line in (*text.split("\n"), LAST_ROW)),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if raven else csv.QUOTE_MINIMAL,
    )
    try:
        names = [name.strip().lower() for name in next(row for row in rows if any(row))]
        columns: dict[str, int] = {}
        for i, name in enumerate(names):
            columns.setdefault(name, i)
        table = _read_rows(rows, columns, path, unnamed)
    except csv.Error as error:
        raise AnnotationUnreadable(
            f"'{path}' is not a table that can be read (line {rows.line_num}): {error}"
        ) from None
    return table


def _read_rows(rows: csv.reader, columns: dict[str, int], path: str, unnamed: str | None) -> Table:
    def find(names: Sequence[str]) -> int | None:
        return next((columns[name] for name in names if name in columns), None)

    start, end, duration, label = find(START), find(END), find(DURATION), find(LABEL)
    if start is None or (label is None and unnamed is None) or (end is None and duration is None):
        raise AnnotationUnreadable(
            f"'{path}' has the columns {', '.join(map(repr, columns)) or 'none'}: a start, an end and a label are "
            f"needed, such as start_s, end_s, label, or --label for all of it"
        )
    selection, view, rank = columns.get("selection"), columns.get("view"), columns.get("rank")
    file, offset, channel = find(FILE), find(OFFSET), columns.get("channel")
    heard, score, low, high = columns.get(HEARD.lower()), find(SCORE), find(LOW), find(HIGH)
    table = Table()
    seen: set[tuple[str, ...]] = set()
    last_line = rows.line_num
    for row in rows:
        if row == [LAST_ROW]:
            break
        if row and row[-1].endswith(f"{LAST_ROW}\n"):
            table.problems.append(
                f"'{path}' line {last_line + 1}: a quote begins here that nothing ends, and nothing below it was read: "
                f"close it, or take it out"
            )
            break
        last_line = rows.line_num
        if not any(field.strip() for field in row):
            continue
        where = f"'{path}' line {rows.line_num}"

        def field(column: int | None, row: list[str] = row) -> str:
            text = row[column].strip() if column is not None and column < len(row) else ""
            return text[1:] if text[:1] == "'" and text[1:2] in FORMULA_STARTS else text  # what csv_row put before it

        # Raven writes a row for the waveform and one for the spectrogram of the same selection. Selections are numbered
        # anew where tables of several files were put together.
        if selection is not None and view is not None:
            row_of_view = tuple(map(field, (selection, channel, start, end, file)))
            if row_of_view in seen:
                continue
            seen.add(row_of_view)
        if (_number(field(rank)) or 1) > 1:
            continue  # what else the sound might have been, from scan --top-k
        start_s = _number(field(start))
        end_s = _number(field(end)) if end is not None else None
        if end_s is None and start_s is not None and (length_s := _number(field(duration))) is not None:
            end_s = start_s + length_s
        if start_s is None or end_s is None:
            times = f"'{printable(field(start))}' to '{printable(field(end))}'"
            table.problems.append(f"{where}: {times} are no times: seconds are expected")
            continue
        in_file_s = _number(field(offset))
        if in_file_s is not None:  # Begin Time counts from the start of the first file of several
            start_s, end_s = in_file_s, in_file_s + (end_s - start_s)
        number = "" if field(heard) == MIX else field(channel)
        table.add(
            where,
            Annotation(
                start_s,
                end_s,
                field(label) or unnamed or "",
                _number(field(score)),
                _number(field(low)),
                _number(field(high)),
                int(number) if number.isdecimal() and int(number) > 0 else None,
                field(file) or None,
            ),
        )
    return table


def _number(text: str) -> float | None:
    """A finite number, with a point or a decimal comma; None for anything else."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def write_audacity(annotations: Sequence[Annotation]) -> str:
    """A label track; the score is part of the title, because Audacity drops further fields."""
    lines = []
    for found in annotations:
        title = _one_line(found.label) + ("" if found.score is None else f" {found.score:.2f}")
        lines.append(f"{found.start_s:.6f}\t{found.end_s:.6f}\t{title}\n")
        if found.low_hz is not None and found.high_hz is not None:
            lines.append(f"\\\t{found.low_hz:.6f}\t{found.high_hz:.6f}\n")
    return "".join(lines)


# Raven knows no mix of channels: its Channel says 1 then, and this column of ours, which it keeps, what was heard.
HEARD = "Heard Channel"
RAVEN_COLUMNS = (
    "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", "Begin File",
    "Begin Path", "File Offset (s)", "Annotation", "Confidence", HEARD,
)  # fmt: skip


def write_raven(
    annotations: Sequence[Annotation], begin_file: str, begin_path: str, band_hz: tuple[float, float]
) -> str:
    """A selection table of one recording.

    band_hz   low and high frequency of annotations that have none: Raven needs both
    """
    lines = ["\t".join(RAVEN_COLUMNS) + "\n"]
    for number, found in enumerate(annotations, start=1):
        low, high = (band_hz[i] if value is None else value for i, value in enumerate((found.low_hz, found.high_hz)))
        row = (
            str(number), "Spectrogram 1", str(found.channel or 1), f"{found.start_s:.6f}", f"{found.end_s:.6f}",
            f"{low:.1f}", f"{high:.1f}", _one_line(begin_file), _one_line(begin_path), f"{found.start_s:.6f}",
            _one_line(found.label), "" if found.score is None else f"{found.score:.4f}", str(found.channel or MIX),
        )  # fmt: skip
        lines.append("\t".join(row) + "\n")
    return "".join(lines)


def _one_line(text: str) -> str:
    """No tabs and no line ends, which these formats have no way to write."""
    return printable(" ".join(text.split()))
