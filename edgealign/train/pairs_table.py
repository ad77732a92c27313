"""A user's own pairs: one CSV file.

source    a text, or a file, as the task says; relative to the folder of the table; may be empty in a weak row
target    a file; may be empty in a weak row
label     what the row is an example of
pairing   strong: this source belongs to this target; weak: both belong to the label (as strong ones do, too)
split     train, val or test: of the label, in all its rows; without this column labels are split by a hash
"""

from __future__ import annotations

import csv
from pathlib import Path

from edgealign.errors import InputUnreadable, InvalidInput
from edgealign.train.listing import Listing
from edgealign.train.paired import split_labels

COLUMNS = ("source", "target", "label", "pairing", "split")
SPLITS = ("train", "val", "test")


def read(path: Path, name: str, kinds: tuple[str, str]) -> Listing:
    """The pairs of a table. A sample that several rows name is one sample."""
    listing = Listing(name, kinds)
    rows: dict[tuple[str, str, str], int] = {}
    has: dict[str, set[str]] = {}
    first_row: dict[str, int] = {}

    def add(side: str, value: str, label: str) -> int:
        key = (side, value, label)
        if key not in rows:
            kind = kinds[side == "target"]
            item = value if kind == "text" else path.parent / value
            rows[key] = listing.source(item, label) if side == "source" else listing.target(item, label)
        has[label].add(side)
        return rows[key]

    found = _rows(path)
    by_hash = {} if "split" in found[0][1] else split_labels(row["label"] for _, row in found)
    for number, row in found:
        where, label = f"'{path}' row {number}", row["label"]
        if not label:
            raise InvalidInput(f"{where}: the label is empty: say what the row is an example of")
        _one_of(where, "pairing", row["pairing"], ("strong", "weak"))
        split = row.get("split") or by_hash.get(label, "")
        _one_of(where, "split", split, SPLITS)
        if listing.roles.setdefault(label, split) != split:
            raise InvalidInput(
                f"{where}: the label '{label}' is in the split {split}, and in {listing.roles[label]} in row "
                f"{first_row[label]}: a label that is tested must not be trained on, give it one split"
            )
        first_row.setdefault(label, number)
        has.setdefault(label, set())
        missing = [side for side in ("source", "target") if not row[side]]
        if missing and (row["pairing"] == "strong" or len(missing) == 2):
            raise InvalidInput(
                f"{where}: a {row['pairing']} row without a {' or a '.join(missing)}: give it, or call the row weak "
                f"and keep what is there"
            )
        for side, kind in zip(("source", "target"), kinds, strict=True):
            if row[side] and kind != "text" and not (path.parent / row[side]).is_file():
                raise InputUnreadable(
                    f"{where}: there is no {side} '{path.parent / row[side]}': paths are relative to the table"
                )
        added = {side: add(side, row[side], label) for side in ("source", "target") if row[side]}
        if row["pairing"] == "strong":
            listing.pair(added["source"], added["target"])
    for label, sides in has.items():
        alone = {"source", "target"} - sides
        if alone and listing.roles[label] == "train":
            raise InvalidInput(
                f"'{path}' row {first_row[label]}: the train label '{label}' has no {' and no '.join(sorted(alone))}, "
                f"so nothing to be paired with: add one, or leave the label out"
            )
    return listing


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file with exactly COLUMNS, or all but the split."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = set(reader.fieldnames or ())
            unknown = (names | {"split"}) ^ set(COLUMNS)
            if unknown:
                kinds = [f"unknown column '{c}'" if c not in COLUMNS else f"no column '{c}'" for c in sorted(unknown)]
                raise InvalidInput(f"'{path}' row 1: {', '.join(kinds)}: the header is {','.join(COLUMNS)}")
            found = []
            for row in reader:
                if None in row or None in row.values():
                    raise InvalidInput(f"'{path}' row {reader.line_num}: expected {len(names)} values: quote commas")
                found.append((reader.line_num, {name: value.strip() for name, value in row.items()}))
    except OSError as error:
        raise InputUnreadable(f"'{path}' cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputUnreadable(f"'{path}' is not a CSV file in UTF-8 ({error}): save it as one") from None
    if not found:
        raise InvalidInput(f"'{path}' has no rows after its header: list the pairs")
    return found


def _one_of(where: str, column: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInput(f"{where}: the {column} '{value}' is not one of {', '.join(allowed)}: write one of them")
