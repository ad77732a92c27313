"""The clock of a recording: what says when it began, and what is not guessed."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgealign.errors import InvalidInput
from edgealign.timestamps import parse_timezone, recorded_at, utc_text


def test_a_system_without_time_zones_is_told_from_a_zone_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="timezone is 'Africa/Atlantis'"):
        parse_timezone("Africa/Atlantis")
    monkeypatch.setattr("zoneinfo.available_timezones", set)
    with pytest.raises(InvalidInput, match="names no time zones: give an offset"):
        parse_timezone("Africa/Atlantis")


def wav(path: Path, *chunks: tuple[bytes, bytes], before_data: bool = False) -> Path:
    """A short WAV with further chunks."""
    soundfile.write(path, np.zeros(800), 16_000)
    data = path.read_bytes()
    added = b"".join(name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for name, body in chunks)
    data = data[:12] + added + data[12:] if before_data else data + added
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    return path


def info(comment: str) -> tuple[bytes, bytes]:
    body = comment.encode() + b"\0"
    return b"LIST", b"INFOICMT" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


AUDIOMOTH = "Recorded at 19:17:30 28/05/2020 (UTC{}) by AudioMoth 24F3190361DE1234 at medium gain setting."


@pytest.mark.parametrize(("zone", "hour"), [("", 19), ("+3", 16), ("-5:30", 24)])
@pytest.mark.parametrize("before_data", [True, False])
def test_audiomoth_comments_carry_their_zone(tmp_path: Path, zone: str, hour: int, before_data: bool) -> None:
    clock = recorded_at(wav(tmp_path / "x.wav", info(AUDIOMOTH.format(zone)), before_data=before_data))
    expected = datetime(2020, 5, 28, tzinfo=UTC) + timedelta(
        hours=hour, minutes=17 + 30 * (zone == "-5:30"), seconds=30
    )
    assert (clock.start, clock.source) == (expected, "ICMT")


def test_guano_is_trusted_most_and_written_by_its_own_library(tmp_path: Path) -> None:
    guano = pytest.importorskip("guano")
    path = wav(tmp_path / "20200101_000000.wav", info(AUDIOMOTH.format("")))
    file = guano.GuanoFile(str(path))
    file["GUANO|Version"] = 1.0
    file["Timestamp"] = datetime(2021, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2)))
    file["Make"] = 'Ångström, "Labs"'
    file.write()
    clock = recorded_at(path, UTC)
    assert (utc_text(clock.start), clock.source) == ("2021-02-03T02:05:06.000Z", "GUANO")


def test_a_clock_without_a_zone_is_never_guessed(tmp_path: Path) -> None:
    body = b"GUANO|Version:1.0\nTimestamp:2021-02-03T04:05:06\n"
    path = wav(tmp_path / "x.wav", (b"guan", body))
    assert recorded_at(path) is None
    assert utc_text(recorded_at(path, parse_timezone("+01:00")).start) == "2021-02-03T03:05:06.000Z"
    named = wav(tmp_path / "SITE-A_20230704_235959.wav")
    assert recorded_at(named) is None
    clock = recorded_at(named, parse_timezone("Africa/Nairobi"))
    assert (utc_text(clock.start), clock.source) == ("2023-07-04T20:59:59.000Z", "file name")


@pytest.mark.parametrize(
    "name", ["2023_07_04.wav", "20231345_000000.wav", "20230704_246060.wav", "120230704_235959.wav"]
)
def test_names_that_are_no_clock_tell_nothing(tmp_path: Path, name: str) -> None:
    assert recorded_at(wav(tmp_path / name), UTC) is None


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", b"RIFF\x10\0\0\0WAVEguan\xff\xff\xff\xff", b"RIFF\0\0\0\0WAVELIST\x03\0\0\0INF"]
)
def test_broken_headers_tell_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.wav").write_bytes(data)
    assert recorded_at(tmp_path / "x.wav", UTC) is None


def test_metadata_behind_four_gigabytes_of_sound_is_found(tmp_path: Path) -> None:
    sound_bytes = 5 * 2**30
    path = tmp_path / "long.wav"
    body = b"GUANO|Version:1.0\nTimestamp:2021-02-03T04:05:06Z\n"
    with open(path, "wb") as file:
        file.write(b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<IQQQI", 28, sound_bytes + 200, sound_bytes, 0, 0))
        file.write(b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + b"data\xff\xff\xff\xff")
        file.seek(sound_bytes, 1)  # a hole: it takes no room on the disk
        file.write(b"guan" + struct.pack("<I", len(body)) + body)
    assert utc_text(recorded_at(path).start) == "2021-02-03T04:05:06.000Z"


@pytest.mark.parametrize("text", ["Mars/Olympus", "+25:00", "", "../etc/passwd"])
def test_zones_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_timezone(text)
