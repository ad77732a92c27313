"""ELAN EAF: one tier in; new tiers out, in a new file or added to an existing one that stays as it is otherwise.

An existing file is not parsed and written again: new elements are put between its bytes, so taking them out gives the
user's file back.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from edgealign.annotations import Annotation, Table, channel_of, choose_tiers
from edgealign.errors import AnnotationUnreadable, InvalidInput
from edgealign.escaping import printable
from edgealign.sources import is_audio_name

LINGUISTIC_TYPE = "edgealign"
_TYPE_ELEMENT = (
    f'<LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="{LINGUISTIC_TYPE}" TIME_ALIGNABLE="true"/>'
)
_SLOT_REFERENCES = ("TIME_SLOT_REF1", "TIME_SLOT_REF2")
_SLOT = re.compile(rb"<TIME_SLOT\b[^>]*?/>|<TIME_SLOT\b[^>]*?>\s*</TIME_SLOT>")
_SLOT_VALUE = re.compile(rb"""\bTIME_VALUE\s*=\s*["'](\d+)["']""")
_EMPTY_ORDER = re.compile(rb"<TIME_ORDER\s*/>")
_OPEN_ORDER = re.compile(rb"<TIME_ORDER\s*>")
_CLOSE_ORDER = re.compile(rb"</TIME_ORDER\s*>")
_LAST_TIER = re.compile(rb"</TIER\s*>|<TIER\b[^>]*/>")
_ENCODING = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([^"']+)["']""")
CONSTRAINTS = (
    ("Time_Subdivision", "Time subdivision of parent annotation's time interval, no gaps within it"),
    ("Symbolic_Subdivision", "Symbolic subdivision of a parent annotation, in order"),
    ("Symbolic_Association", "1-1 association with a parent annotation"),
    ("Included_In", "Time alignable annotations within the parent's interval, gaps are allowed"),
)  # fmt: skip


def read(data: bytes, path: str, tier: str | None) -> Table:
    """The annotations of one tier, with the recording that the file names first."""
    root = _parse(data, path)
    times_s = _slot_times(root, path)
    media, offset_s = _media(root, path)
    unit_s = {"milliseconds": 1e-3, "seconds": 1.0}.get(_header_units(root))
    if unit_s is None:
        raise AnnotationUnreadable(f"'{path}' counts time in '{_header_units(root)}': milliseconds are expected")
    spans: dict[str, tuple[str | None, str | None]] = {}
    parents: dict[str, str | None] = {}
    for item in root.iter("ALIGNABLE_ANNOTATION"):
        spans[item.get("ANNOTATION_ID", "")] = item.get("TIME_SLOT_REF1"), item.get("TIME_SLOT_REF2")
    for item in root.iter("REF_ANNOTATION"):
        parents[item.get("ANNOTATION_ID", "")] = item.get("ANNOTATION_REF")
    tiers = {item.get("TIER_ID", ""): item for item in root.iter("TIER")}
    holding = {
        name: [text for v in item.iter("ANNOTATION_VALUE") if (text := (v.text or "").strip())]
        for name, item in tiers.items()
    }
    table = Table()
    chosen = choose_tiers(path, holding, tier)
    for in_tier in chosen:
        entries = [entry for item in tiers[in_tier].iter("ANNOTATION") for entry in itertools.islice(item, 1)]
        placed = [(entry, _aligned(entry.get("ANNOTATION_ID", ""), spans, parents)) for entry in entries]
        n_in_place = Counter(slots for _, slots in placed)
        for entry, (begin, end) in placed:
            text = (entry.findtext("ANNOTATION_VALUE") or "").strip()
            where = f"'{path}' tier '{printable(in_tier)}' annotation '{printable(entry.get('ANNOTATION_ID', ''))}'"
            if times_s.get(begin) is None or times_s.get(end) is None:
                table.problems.append(f"{where}: has no times")
            elif text and n_in_place[begin, end] > 1:
                table.problems.append(
                    f"{where}: '{printable(text)}' is one of {n_in_place[begin, end]} parts of an annotation, and ELAN "
                    f"keeps no times of such parts: choose a tier that has times"
                )
            else:
                start_s, end_s = (times_s[slot] * unit_s + offset_s for slot in (begin, end))
                table.add(where, Annotation(start_s, end_s, text, channel=channel_of(in_tier), file=media))
    return table


def _media(root: ElementTree.Element, path: str) -> tuple[str | None, float]:
    """The recording that the file is about, and how much later its clock is than that of the annotations, in s.

    Of a video and its sound it is the sound. What lies where the file says relative to itself is found after a move.
    """
    found = [
        ([url for key in ("RELATIVE_MEDIA_URL", "MEDIA_URL") if (url := item.get(key))], item.get("TIME_ORIGIN", "0"))
        for item in root.iter("MEDIA_DESCRIPTOR")
    ]
    found = [(urls, origin) for urls, origin in found if urls]
    if not found:
        return None, 0.0
    urls, origin = next((media for media in found if is_audio_name(os.path.basename(media[0][-1]))), found[0])
    beside = os.path.join(os.path.dirname(path), unquote(urls[0]))
    offset_s = int(origin) / 1000 if origin.isdecimal() else 0.0
    return beside if os.path.isfile(beside) else urls[-1], offset_s


def _aligned(
    identity: str, spans: dict[str, tuple[str | None, str | None]], parents: dict[str, str | None]
) -> tuple[str | None, str | None]:
    """The time slots of an annotation, or of the one that it refers to."""
    seen: set[str] = set()
    current: str | None = identity
    while current is not None and current not in spans and current not in seen:
        seen.add(current)
        current = parents.get(current)
    return spans.get(current, (None, None)) if current is not None else (None, None)


def _slot_times(root: ElementTree.Element, path: str) -> dict[str | None, float]:
    """Time of every slot; those without a value lie evenly between those of their tier that have one."""
    slots = [(slot.get("TIME_SLOT_ID"), slot.get("TIME_VALUE")) for slot in root.iter("TIME_SLOT")]
    try:
        times: dict[str | None, float] = {slot: float(value) for slot, value in slots if value is not None}
    except ValueError:
        raise AnnotationUnreadable(f"'{path}' has a TIME_SLOT whose TIME_VALUE is no number") from None
    place = {slot: i for i, (slot, _) in enumerate(slots)}
    for tier in root.iter("TIER"):
        used = {item.get(key) for item in tier.iter("ALIGNABLE_ANNOTATION") for key in _SLOT_REFERENCES}
        chain = sorted(used & place.keys(), key=place.__getitem__)
        known = [(i, times[slot]) for i, slot in enumerate(chain) if slot in times]
        for (i, before), (j, after) in itertools.pairwise(known):
            for k in range(i + 1, j):
                times[chain[k]] = before + (after - before) * (k - i) / (j - i)
    return times


def _header_units(root: ElementTree.Element) -> str:
    header = root.find("HEADER")
    return "milliseconds" if header is None else header.get("TIME_UNITS", "milliseconds")


def _parse(data: bytes, path: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise AnnotationUnreadable(f"'{path}' is not XML that can be read: {error}") from None
    if root.tag != "ANNOTATION_DOCUMENT":
        raise AnnotationUnreadable(f"'{path}' holds <{root.tag}>: an ELAN file begins with <ANNOTATION_DOCUMENT>")
    return root


def new(tiers: dict[str, Sequence[Annotation]], media_path: str, now: datetime | None = None) -> bytes:
    """An EAF 3.0 document with a tier per name, about one recording."""
    now = now or datetime.now(UTC)
    mime = {".wav": "audio/x-wav", ".mp3": "audio/mpeg"}.get(Path(media_path).suffix.lower(), "unknown")
    url = Path(media_path).absolute().as_uri()
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<ANNOTATION_DOCUMENT AUTHOR="edgealign" DATE="{now.isoformat(timespec="seconds")}" FORMAT="3.0" VERSION="3.0"'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
        ' xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">',
        '    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">',
        f'        <MEDIA_DESCRIPTOR MEDIA_URL={quoteattr(url)} MIME_TYPE="{mime}"/>',
        '        <PROPERTY NAME="lastUsedAnnotationId">0</PROPERTY>',
        "    </HEADER>",
        "    <TIME_ORDER>",
        "    </TIME_ORDER>",
        f"    {_TYPE_ELEMENT}",
        *(f'    <CONSTRAINT DESCRIPTION="{text}" STEREOTYPE="{name}"/>' for name, text in CONSTRAINTS),
        "</ANNOTATION_DOCUMENT>",
        "",
    ]
    return add_tiers("\n".join(lines).encode(), tiers, media_path)


def add_tiers(data: bytes, tiers: dict[str, Sequence[Annotation]], path: str) -> bytes:
    """An EAF with more tiers: its own bytes in their order, and new elements between them.

    tiers    name -> annotations in time order that do not overlap; a name that is taken gets a number
    raises   AnnotationUnreadable where the file is no EAF in UTF-8 that can be added to
    """
    root = _parse(data, path)
    declared = _ENCODING.match(data.removeprefix(b"\xef\xbb\xbf").lstrip())
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or (declared and declared[1].upper() not in (b"UTF-8", b"US-ASCII")):
        raise AnnotationUnreadable(f"'{path}' is not in UTF-8: save it from ELAN, which writes UTF-8, then add to it")
    slots, elements = _made(root, tiers)
    added = _insert(data, slots, elements, root, path)
    _check_kept(root, _parse(added, path), len(tiers), path)
    return added


def _made(root: ElementTree.Element, tiers: dict[str, Sequence[Annotation]]) -> tuple[list[tuple[int, bytes]], bytes]:
    """Time slots (ms, element) in time order, and the tiers that use them, all with ids that are not in use."""
    used = {value for item in root.iter() for key, value in item.attrib.items() if key.endswith("_ID")}
    names = {item.get("TIER_ID") for item in root.iter("TIER")}
    numbers = (number for number in range(1, 10**9))

    def fresh(prefix: str) -> str:
        return next(name for number in numbers if (name := f"{prefix}{number}") not in used)

    slots: list[tuple[int, bytes]] = []
    lines: list[str] = []
    for wanted, entries in tiers.items():
        name, number = wanted, 2
        while name in names:
            name, number = f"{wanted} {number}", number + 1
        names.add(name)
        lines.append(f"    <TIER LINGUISTIC_TYPE_REF={quoteattr(LINGUISTIC_TYPE)} TIER_ID={_attribute(name)}>")
        last_ms = 0
        for found in entries:
            begin_ms = max(last_ms, round(found.start_s * 1000))
            end_ms = round(found.end_s * 1000)
            if end_ms <= begin_ms:
                continue  # ELAN knows no annotation without a duration, nor two at once in a tier
            last_ms = end_ms
            ids = []
            for value in (begin_ms, end_ms):
                ids.append(fresh("ets"))
                slots.append((value, f'<TIME_SLOT TIME_SLOT_ID="{ids[-1]}" TIME_VALUE="{value}"/>'.encode()))
            lines += [
                "        <ANNOTATION>",
                f'            <ALIGNABLE_ANNOTATION ANNOTATION_ID="{fresh("ea")}" TIME_SLOT_REF1="{ids[0]}" '
                f'TIME_SLOT_REF2="{ids[1]}">',
                f"                <ANNOTATION_VALUE>{escape(printable(found.label))}</ANNOTATION_VALUE>",
                "            </ALIGNABLE_ANNOTATION>",
                "        </ANNOTATION>",
            ]
        lines.append("    </TIER>")
    slots.sort(key=lambda slot: slot[0])
    return slots, "".join(f"{line}\n" for line in lines).encode()


def _insert(data: bytes, slots: list[tuple[int, bytes]], tiers: bytes, root: ElementTree.Element, path: str) -> bytes:
    empty = _EMPTY_ORDER.search(data)
    if empty:
        data = data[: empty.start()] + b"<TIME_ORDER>\n    </TIME_ORDER>" + data[empty.end() :]
    opened, closed = _OPEN_ORDER.search(data), _CLOSE_ORDER.search(data)
    if not opened or not closed:
        raise AnnotationUnreadable(f"'{path}' has no TIME_ORDER: it is no ELAN file that tiers can be added to")
    pieces = [data[: opened.end()]]
    at, waiting = opened.end(), list(reversed(slots))
    for match in _SLOT.finditer(data, opened.end(), closed.start()):
        value = _SLOT_VALUE.search(match[0])
        earlier = b""
        while value and waiting and waiting[-1][0] < int(value[1]):
            earlier += waiting.pop()[1] + b"\n        "
        pieces += [data[at : match.start()], earlier, match[0]]
        at = match.end()
    rest = b"".join(b"\n        " + element for _, element in reversed(waiting))
    tail = data[at : closed.start()]
    pieces += [rest, tail, data[closed.start() : closed.end()]]
    body = data[closed.end() :]
    last = None
    for match in _LAST_TIER.finditer(body):
        last = match
    where = last.end() if last else 0
    known = {item.get("LINGUISTIC_TYPE_ID") for item in root.iter("LINGUISTIC_TYPE")}
    if LINGUISTIC_TYPE not in known:
        tiers += f"    {_TYPE_ELEMENT}\n".encode()
    pieces += [body[:where], b"\n", tiers.rstrip(b"\n"), body[where:]]
    return b"".join(pieces)


def _check_kept(before: ElementTree.Element, after: ElementTree.Element, n_new: int, path: str) -> None:
    """What was there is there, and what was added is read back."""

    def tiers(root: ElementTree.Element) -> list[bytes]:
        return [ElementTree.tostring(item).strip() for item in root.iter("TIER")]

    old, new_tiers = tiers(before), tiers(after)
    if new_tiers[: len(old)] != old or len(new_tiers) != len(old) + n_new:
        raise AnnotationUnreadable(
            f"'{path}' is written in a way that tiers cannot be added to safely: save it from ELAN, then try again"
        )


def _attribute(text: str) -> str:
    shown = printable(text)
    if not shown:
        raise InvalidInput("a tier needs a name")
    return quoteattr(shown)
