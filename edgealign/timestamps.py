"""When a recording began, by its own account: GUANO, then AudioMoth's comment, then its name with a time zone.

GUANO 1.0 is a RIFF chunk `guan`; AudioMoth writes "Recorded at HH:MM:SS DD/MM/YYYY (UTC...)" into the comment ICMT;
AudioMoth and Song Meter names hold YYYYMMDD_HHMMSS. A clock without a time zone is used only where the user names one.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo

from edgealign import riff
from edgealign.errors import InvalidInput, MissingExtra

MAX_METADATA_BYTES = 2**20
_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])(\d{1,2})(?::?(\d{2}))?")
_ICMT = re.compile(
    r"Recorded at (\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,3}))? (\d{2})/(\d{2})/(\d{4}) "
    r"\(UTC(?:([+-])(\d{1,2})(?::(\d{2}))?)?\)"
)
_NAME = re.compile(r"(?:^|_)((?:19|20)\d{6})_(\d{6})(?!\d)")


@dataclass(frozen=True)
class Clock:
    """When a recording began, and what says so: "GUANO", "ICMT" or "file name"."""

    start: datetime
    source: str


def recorded_at(path: str | os.PathLike, zone: tzinfo | None = None) -> Clock | None:
    """The start of a recording with its time zone; None where nothing tells it.

    zone   of clocks that name none: file names, and GUANO timestamps without an offset
    """
    path = os.fspath(path)
    guano, comment = _metadata(path)
    if guano is not None:
        start = _from_guano(guano, zone)
        if start is not None:
            return Clock(start, "GUANO")
    if comment is not None:
        start = _from_comment(comment)
        if start is not None:
            return Clock(start, "ICMT")
    if zone is not None:
        start = _from_name(os.path.basename(path), zone)
        if start is not None:
            return Clock(start, "file name")
    return None


def parse_timezone(text: str) -> tzinfo:
    """ "UTC", an offset such as "+03:00", or a name such as "Africa/Nairobi"."""
    if text.upper() in ("UTC", "GMT", "Z"):
        return UTC
    offset = _OFFSET.fullmatch(text)
    if offset:
        return _offset_zone(*offset.groups())
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        if not zoneinfo.available_timezones():
            raise MissingExtra(
                f"timezone is '{text}', but this system names no time zones: give an offset such as +03:00, or "
                f"pip install tzdata"
            ) from None
        raise InvalidInput(f"timezone is '{text}': expected UTC, an offset such as +03:00, or Africa/Nairobi") from None


def utc_text(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _offset_zone(sign: str, hours: str, minutes: str | None) -> timezone:
    amount = timedelta(hours=int(hours), minutes=int(minutes or 0))
    if amount >= timedelta(hours=24):
        raise InvalidInput(f"a time zone of {sign}{hours}:{minutes or '00'} does not exist: expected less than 24 h")
    return timezone(amount if sign == "+" else -amount)


def _from_guano(text: str, zone: tzinfo | None) -> datetime | None:
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == "Timestamp":
            try:
                start = datetime.fromisoformat(value.strip())
            except ValueError:
                return None
            if start.tzinfo is None:
                start = None if zone is None else start.replace(tzinfo=zone)
            return start
    return None


def _from_comment(text: str) -> datetime | None:
    match = _ICMT.search(text)
    if not match:
        return None
    hour, minute, second, millis, day, month, year, sign, hours, minutes = match.groups()
    try:
        zone = UTC if sign is None else _offset_zone(sign, hours, minutes)
        micro = int((millis or "0").ljust(3, "0")) * 1000
        return datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), micro, zone)
    except ValueError:
        return None


def _from_name(name: str, zone: tzinfo) -> datetime | None:
    match = _NAME.search(os.path.splitext(name)[0])
    if not match:
        return None
    try:
        return datetime.strptime("".join(match.groups()), "%Y%m%d%H%M%S").replace(tzinfo=zone)
    except ValueError:
        return None


def _metadata(path: str) -> tuple[str | None, str | None]:
    """The GUANO text and the ICMT comment of a RIFF or RF64 file; None for what it lacks."""
    guano = comment = None
    try:
        with open(path, "rb") as file:
            for name, _, size in riff.chunks(file):
                if name == b"guan" and guano is None:
                    guano = file.read(min(size, MAX_METADATA_BYTES)).decode("utf-8", "replace").rstrip("\0")
                elif name == b"LIST" and comment is None:
                    comment = _comment(file.read(min(size, MAX_METADATA_BYTES)))
    except OSError:
        return None, None  # whoever decodes the file says what is wrong with it
    return guano, comment


def _comment(content: bytes) -> str | None:
    if content[:4] != b"INFO":
        return None
    at = 4
    while at + 8 <= len(content):
        size = struct.unpack("<I", content[at + 4 : at + 8])[0]
        if content[at : at + 4] == b"ICMT":
            return content[at + 8 : at + 8 + size].split(b"\0")[0].decode("utf-8", "replace")
        at += 8 + size + size % 2
    return None
