"""Scans of what memory cards really hold: cut files, headers that lie, folders that cannot be read, a full disk."""

from __future__ import annotations

import csv
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_bundle import word_clip

from edgealign import riff
from edgealign.audio import AudioFile

RATE_HZ = 16_000


def tape() -> np.ndarray:
    pieces = [np.zeros(RATE_HZ)]
    for word in (0, 1, 2, 0):
        pieces += [word_clip(word, 20, silence_s=0.0), np.zeros(RATE_HZ)]
    samples = np.concatenate(pieces)
    return (samples + 1e-4 * np.random.default_rng(0).normal(size=len(samples))).astype(np.float32)


def with_field(data: bytes, at: int, form: str, value: int) -> bytes:
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def failed(out: Path) -> dict[str, str]:
    with open(out / "failed.csv", encoding="utf-8", newline="") as file:
        return {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}


def found(out: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    with open(out / "detections.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            counts[Path(row["file"]).name] = counts.get(Path(row["file"]).name, 0) + 1
    return counts


@pytest.fixture
def card(tmp_path: Path, samples_folder: Path, edgealign) -> Path:
    """A folder with good.wav, four words long, and labels enrolled in the default store."""
    assert edgealign("enroll", samples_folder).code == 0
    (tmp_path / "card").mkdir()
    soundfile.write(tmp_path / "card" / "good.wav", tape(), RATE_HZ)
    return tmp_path / "card"


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_are_listed_as_the_recordings_were_named(card: Path, tmp_path: Path, edgealign, workers: int) -> None:
    soundfile.write(card / "a.wav", tape(), RATE_HZ)
    (card / "a.wav").write_bytes((card / "a.wav").read_bytes()[:-50_000])  # searched, and known to break off at its end
    (card / "b.wav").write_text("no sound")
    (card / "c.wav").write_bytes((card / "a.wav").read_bytes())
    missing = tmp_path / "missing.wav"
    assert edgealign("scan", missing, card, "-o", tmp_path / "out", "-q", "--workers", workers).code == 5
    assert list(failed(tmp_path / "out")) == ["missing.wav", "a.wav", "b.wav", "c.wav"]


def test_what_is_cut_off_is_searched_as_far_as_it_goes_and_listed(card: Path, tmp_path: Path, edgealign) -> None:
    for name, form in (
        ("a.wav", {}), ("b.wav", {"format": "RF64"}), ("c.wav", {"format": "WAVEX", "subtype": "PCM_24"}),
        ("d.flac", {}), ("e.mp3", {}),
    ):  # fmt: skip
        soundfile.write(card / name, tape(), RATE_HZ, **form)
        whole = (card / name).read_bytes()
        (card / name).write_bytes(whole[: len(whole) * 3 // 4])
    assert edgealign("scan", card, "-o", tmp_path / "out", "-q", "--workers", 1).code == 5
    reasons = failed(tmp_path / "out")
    assert set(reasons) == {"a.wav", "b.wav", "c.wav", "d.flac", "e.mp3"}
    assert all("breaks off at" in reason for reason in reasons.values())
    lasts_s = len(tape()) / RATE_HZ
    assert f"announces {lasts_s:.1f} s" in reasons["a.wav"] and f"announces {lasts_s:.1f} s" in reasons["b.wav"]
    counts = found(tmp_path / "out")
    assert counts["good.wav"] == 4
    assert all(2 <= counts[name] <= 3 for name in reasons)


def test_headers_that_lie_spoil_only_their_own_file(card: Path, tmp_path: Path, edgealign) -> None:
    good = (card / "good.wav").read_bytes()
    size_at = good.index(b"data") + 4
    lies = {
        "no_channels.wav": (22, "<H", 0), "channels.wav": (22, "<H", 9999), "no_rate.wav": (24, "<I", 0),
        "rate.wav": (24, "<I", 4_000_000_000), "coding.wav": (20, "<H", 0x1234), "more.wav": (size_at, "<I", 10**8),
        "nothing.wav": (size_at, "<I", 0),
    }  # fmt: skip
    for name, lie in lies.items():
        (card / name).write_bytes(with_field(good, *lie))
    # What a program writes that does not know how long it will record: no lie.
    (card / "stream.wav").write_bytes(with_field(with_field(good, size_at, "<I", 0xFFFFFFFF), 4, "<I", 0xFFFFFFFF))
    (card / "head.wav").write_bytes(good[:20])
    (card / "zeros.wav").write_bytes(bytes(50_000))
    (card / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(20_000))
    os.mkfifo(card / "pipe.wav")
    (card / "self.wav").symlink_to(card / "self.wav")
    assert edgealign("scan", card, "-o", tmp_path / "out", "-q", "--workers", 1).code == 5
    reasons = failed(tmp_path / "out")
    assert set(reasons) == {*lies, "head.wav", "zeros.wav", "noise.mp3", "pipe.wav", "self.wav"}
    assert not any(str(card) in reason for reason in reasons.values())
    assert found(tmp_path / "out") == {"good.wav": 4, "stream.wav": 4, "more.wav": 4}
    assert "3125.0 s" in reasons["more.wav"]


def test_a_folder_that_cannot_be_read_is_listed_and_the_others_are_searched(
    card: Path, tmp_path: Path, edgealign, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = card / "locked"
    locked.mkdir()
    (card / "open").mkdir()
    soundfile.write(card / "open" / "b.wav", tape(), RATE_HZ)
    listed = os.scandir

    def scandir(path: str | os.PathLike):
        # Root may read everything, and tests run as root in places.
        if os.fspath(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(locked))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert edgealign("scan", card, "-o", tmp_path / "out", "-q", "--workers", 1).code == 5
    assert failed(tmp_path / "out") == {"locked": "cannot be read: Permission denied"}
    assert found(tmp_path / "out") == {"good.wav": 4, "b.wav": 4}


def test_a_recording_of_more_than_4_gb_is_heard_to_its_end(card: Path, tmp_path: Path, edgealign) -> None:
    """RF64, all but the end of it a hole in the file, whose words lie beyond 4 GB."""
    n_channels, width = 32, 8
    per_sample = n_channels * width
    words = np.tile(tape()[:, None].astype("<f8"), (1, n_channels))
    n_samples = 2**32 // per_sample + len(words)
    n_data = n_samples * per_sample
    numbers = (3, n_channels, RATE_HZ, RATE_HZ * per_sample, per_sample, 8 * width)
    with open(card / "large.wav", "wb") as file:
        file.write(
            b"RF64\xff\xff\xff\xffWAVE" + struct.pack("<4sIQQQI", b"ds64", 28, 72 + n_data, n_data, n_samples, 0)
        )
        file.write(struct.pack("<4sIHHIIHH", b"fmt ", 16, *numbers) + b"data\xff\xff\xff\xff")
        file.seek(n_data - words.nbytes, os.SEEK_CUR)
        file.write(words.tobytes())
    assert riff.data_bytes(str(card / "large.wav")) == (n_data, n_data)
    assert AudioFile(card / "large.wav").n_expected == n_samples
    (card / "good.wav").unlink()
    assert edgealign("scan", card, "-o", tmp_path / "out", "-q", "--channel", 3).code == 0
    assert found(tmp_path / "out") == {"large.wav": 4}


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX")
@pytest.mark.parametrize("limit_bytes", [200, 4_000])
def test_a_full_disk_loses_nothing_that_was_written(card: Path, tmp_path: Path, edgealign, limit_bytes: int) -> None:
    for i in range(6):
        (card / f"{i}.wav").write_bytes((card / "good.wav").read_bytes())
    arguments = ["scan", str(card), "--rtype", "csv,audacity,raven", "--workers", "1", "-q", "-o"]
    assert edgealign(*arguments, tmp_path / "whole").code == 0
    code = (
        "import resource, sys; from edgealign.cli import app\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
        f"sys.argv = ['edgealign', *{[*arguments, str(tmp_path / 'cut')]!r}]\n"
        "app.main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert ran.returncode == 1 and ran.stderr.startswith("error: ") and "Traceback" not in ran.stderr
    journal = (tmp_path / "cut" / ".edgealign-scan" / "journal.jsonl").read_bytes()
    assert journal == b"" or journal.endswith(b"\n")
    for written in (tmp_path / "cut").glob("*.txt"):
        assert written.read_bytes() == (tmp_path / "whole" / written.name).read_bytes()
    again = edgealign(*arguments, tmp_path / "cut")
    assert again.code == 0
    n_kept = max(0, journal.count(b"\n") - 1)
    assert (f"{n_kept} of them earlier" in again.out) == (n_kept > 0)
    names = {path.name for path in (tmp_path / "whole").iterdir() if path.is_file()}
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
